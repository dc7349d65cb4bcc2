"""The pictures that training reads: kept or streamed, cropped, shared among ranks; draws depend on the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.train.picture_stream import chunks_of
from tests.conftest import finish
from tests.fine_tuning_runs import data_of, experiment_of, run_of, tables_of, write_corpus
from uml_core.corpora.rows import Row
from uml_core.data.subsets import Rows
from uml_core.data.training_data import build_training_data
from uml_core.encoders.image.pixel_encoder import PixelEncoder
from uml_core.errors import InputError
from uml_core.feed.pictures import Crops, Pictures, TargetOrder, crop_and_flip, picture_data
from uml_core.gradients.ranks import RankContext
from uml_core.training.fine_tuning import FineTuningObjective, PictureBatch, target_encoder
from uml_core.training.run import TrainingRun


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pictures"))


def test_dropout_is_drawn_from_the_batchs_seed_alone() -> None:
    model = _Dropped()
    batch = PictureBatch({"x": torch.ones(4, 50)}, {"x": torch.zeros(4, dtype=torch.int64)}, {"x": 4}, seed=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = batch.losses(model, 1)["x"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert torch.equal(batch.losses(model, 1)["x"], first)
    assert not torch.equal(replace(batch, seed=4).losses(model, 1)["x"], first)


class _Dropped(nn.Module):
    def forward(self, batches: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: nn.functional.dropout(value, 0.5) for name, value in batches.items()}


def test_crops_by_hand() -> None:
    picture = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    whole = Crops(np.full((2, 2), 0.5), np.ones((2, 2)), np.array([False, True]))
    result = crop_and_flip(picture, whole)
    torch.testing.assert_close(result[0], picture[0].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(result[1], picture[1].float().flip(-1), atol=1e-3, rtol=0)
    # The left half, stretched to the whole width: column x reads the picture at x / 2 - 1/4, at the border its edge.
    half = Crops(np.array([[0.25, 0.5]]), np.array([[0.5, 1.0]]), np.array([False]))
    row = crop_and_flip(picture[:1], half)[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]), atol=1e-3, rtol=0)


def test_crops_stay_inside_and_depend_on_seed_and_step_alone() -> None:
    drawn = Crops.draw(500, seed=1, step=7, min_crop=0.3)
    assert (drawn.centre_B2 - drawn.size_B2 / 2 >= -1e-12).all()
    assert (drawn.centre_B2 + drawn.size_B2 / 2 <= 1 + 1e-12).all()
    areas = drawn.size_B2.prod(axis=1)
    assert areas.min() > 0.3 * 0.85
    assert areas.max() <= 1
    assert 0.4 < drawn.flipped_B.mean() < 0.6
    again, other = (Crops.draw(500, seed=1, step=step, min_crop=0.3) for step in (7, 8))
    assert (again.size_B2 == drawn.size_B2).all()
    assert (other.size_B2 != drawn.size_B2).any()
    assert (drawn.share(slice(3, 5)).centre_B2 == drawn.centre_B2[3:5]).all()


def test_pictures_that_are_streamed_train_the_same_model(corpus: Path) -> None:
    asked: list[int] = []

    def open_stream(coming: Iterator[Rows], raw: list[Row], encoder: PixelEncoder) -> Any:
        pictures = Pictures(raw, encoder, keep=False)

        def following(rows: Rows) -> Any:
            assert next(coming).tolist() == rows.tolist()
            asked.extend(rows.tolist())
            return pictures(rows)

        return following

    changes = {"mixing.warm_start": {"corpus": "names", "steps": 1}, "train.accumulate": 2, "train.batch_size": 5}
    kept = finish(run_of(corpus, **changes))
    experiment = experiment_of(corpus, **changes, **{"pictures.keep": "stream"})
    data = data_of(experiment)
    assert not data.keep
    streamed = finish(TrainingRun(experiment, replace(data, open_stream=open_stream)))
    assert len(asked) == 5 * 5, "one step of six warms up without the target"
    for name, value in kept.model.state_dict().items():
        assert torch.equal(value, streamed.model.state_dict()[name]), name


def test_memory_decides_and_the_choice_is_told(corpus: Path) -> None:
    data = data_of(experiment_of(corpus))
    assert data.keep
    assert data.gib == pytest.approx(32 * 32 * 3 * (18 + 12) / 2**30)
    small = experiment_of(corpus, **{"pictures.memory_gib": 1e-5})
    assert not data_of(small).keep
    assert "0.00 GiB and are decoded for every step (pictures.keep is auto" in data_of(small).describe(small)
    assert data_of(small.override({"pictures.keep": "memory"})).keep


def test_chunks_hold_every_row_in_order(corpus: Path) -> None:
    experiment = experiment_of(corpus, **{"train.max_steps": 200})
    run = TrainingRun(experiment, data_of(experiment))
    order: TargetOrder = run.objective._order
    rows = np.concatenate(list(order.coming(3, 200)))
    chunks = list(chunks_of(order.coming(3, 200)))
    assert np.concatenate(chunks).tolist() == rows.tolist()
    assert len(rows) == 197 * 6
    assert [len(chunk) for chunk in chunks[:-1]] == [258] * 4


def test_a_picture_that_changed_is_told(corpus: Path) -> None:
    experiment = experiment_of(corpus)
    tables, rows = tables_of(experiment)
    data, encoder = build_training_data(experiment, tables), target_encoder(experiment)
    listed = {row.id: row for row in rows}
    with pytest.raises(InputError, match=r"no longer has 1 of its 43 embedded rows, first gone\.png"):
        picture_data(experiment, data, [*listed, "gone.png"], listed, encoder)
    broken = {**listed, rows[-1].id: replace(rows[-1], path=str(corpus / "nowhere.png"))}
    pictures = Pictures(tuple(broken.values()), encoder, keep=True)
    with pytest.raises(InputError, match=r"was embedded and can no longer be read .*run python -m pipelines"):
        pictures(np.array([len(rows) - 1]))


def test_ranks_make_up_the_batch(corpus: Path) -> None:
    experiment = experiment_of(corpus, **{"train.batch_size": 5})
    data = data_of(experiment)
    whole = FineTuningObjective(experiment, data, RankContext(torch.device("cpu"))).batch(2, ("pictures", "names"))
    shares = [
        FineTuningObjective(experiment, data, RankContext(torch.device("cpu"), rank, 2)).batch(2, ("pictures", "names"))
        for rank in range(2)
    ]
    for corpus_name in ("pictures", "names"):
        joined = torch.cat([share.embeddings[corpus_name] for share in shares])
        torch.testing.assert_close(joined, whole.embeddings[corpus_name])
        assert torch.cat([share.labels[corpus_name] for share in shares]).tolist() == whole.labels[corpus_name].tolist()
        assert {share.global_counts[corpus_name] for share in shares} == {5}
