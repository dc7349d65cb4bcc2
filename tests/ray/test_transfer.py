"""Weight transfer under Ray: two workers thaw together, and the run keeps the table of tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines import embed, predict, train
from tests.conftest import picture_tree, write_picture_corpora
from tests.text_models import save_text_model
from uml_core.config import Experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.tracking import download, find_run

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Pictures of shapes, a vision transformer without weights, and a BERT of its shape; embedded."""
    directory = write_picture_corpora(tmp_path_factory.mktemp("transfer"))
    save_text_model(directory / "bert", "bert")
    tree = picture_tree(directory)
    tree["encoders"] = {"image": {"source": "timm", "name": "test_vit", "image_size": 32, "weights": "random"}}
    tree["model"] = {"backbone": "finetune", "transfer": {"source": str(directory / "bert"), "freeze_steps": 2}}
    train = {"max_steps": 4, "eval_every": 1, "batch_size": 6}
    experiment = parse_experiment({**tree, "train": train, "optim": {"warmup_steps": 0, "backbone_lr": 1e-3}})
    embed.run(experiment)
    return experiment


def test_two_workers_thaw_together_and_the_table_is_kept(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (train.run(experiment.override({"train.workers": workers})).results for workers in (1, 2))
    for name in ("train/loss/pictures", "train/loss/names", "val/nll"):
        metrics = [find_run(experiment.tracking, run["run_id"]).metrics[name] for run in (one, two)]
        assert metrics[0] == pytest.approx(metrics[1], rel=5e-3), name
    assert "36 tensors of 3 blocks go from" in caplog.text
    uri = experiment.tracking.uri
    table = Path(download(uri, f"runs:/{one['run_id']}/transfer.md", tmp_path / "table")).read_text()
    assert table.count("| copied |") == 36
    weights = load_file(download(uri, f"runs:/{one['run_id']}/weights/model.safetensors", tmp_path / "weights"))
    assert "backbone.blocks.2.attn.qkv.weight" in weights

    pictures = Path(str(experiment.corpora["pictures"].path)) / "test"
    assert predict.run(one["model_uri"], str(pictures), str(tmp_path / "out.parquet"), uri).results["rows"] == 9


def test_blocks_that_do_not_fit_begin_no_run(experiment: Experiment) -> None:
    with pytest.raises(
        InputError, match=r"'minilm_l6' \(bert\) has width 384, .* and encoders.image 'test_vit' has width 64"
    ):
        train.run(experiment.override({"model.transfer.source": "minilm_l6"}))
