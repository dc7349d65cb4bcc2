"""The known-answer sequences: their law, their files, and what the two forms have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from uml_core.config import load_experiment
from uml_core.corpora.examples.known_answer_sequences import (
    Turning,
    auxiliary_sequences,
    hidden_motion,
    main,
    target_sequences,
    write_known_answer_sequences,
)
from uml_core.corpora.ready.adopt import stream_ready

SMALL = Turning(train_sequences=3, val_sequences=2, test_sequences=4, auxiliary_sequences=5, num_tokens=6)


@pytest.mark.parametrize("turn", [0.0, np.pi / 2, np.pi])
def test_only_the_lag_tells_how_a_motion_turns(turn: float) -> None:
    motion_NT2 = hidden_motion(turn, 0.9, count=4000, num_tokens=8, rng=np.random.default_rng(0))
    for time in (0, 7):
        assert np.allclose(np.cov(motion_NT2[:, time].T), np.eye(2), atol=0.1), "the same law of a token at any time"
    lag = np.einsum("ni,nj->ij", motion_NT2[:, 5], motion_NT2[:, 4]) / len(motion_NT2)
    expected = 0.9 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert np.allclose(lag, expected, atol=0.08)


def test_the_forms_differ_in_the_order_of_auxiliary_tokens_alone() -> None:
    shared_NTD, shuffled_NTD = (auxiliary_sequences(SMALL, shared=shared, seed=3) for shared in (True, False))
    assert shared_NTD.shape == shuffled_NTD.shape == (20, 6, 8)
    assert not np.array_equal(shared_NTD, shuffled_NTD)
    for ours, theirs in zip(shared_NTD, shuffled_NTD, strict=True):
        assert {tuple(token) for token in ours} == {tuple(token) for token in theirs}


def test_the_two_modalities_have_maps_of_their_own() -> None:
    still = Turning(target_noise=0.0, auxiliary_noise=0.0, test_sequences=20, auxiliary_sequences=135)
    spans = []
    for tokens_NTD in (target_sequences(still, seed=0), auxiliary_sequences(still, shared=True, seed=0)):
        _, scales, directions = np.linalg.svd(tokens_NTD.reshape(-1, 8), full_matrices=False)
        assert scales[2] < 1e-3 * scales[0], "a plane"
        spans.append(directions[:2])
    cosines = np.linalg.svd(spans[0] @ spans[1].T, compute_uv=False)
    assert cosines[1] < 0.9, "not the same plane"


@pytest.mark.parametrize(
    ("shared", "name"), [(True, "synthetic-sequences-shared"), (False, "synthetic-sequences-shuffled")]
)
def test_files_are_ready_to_use_and_stay_as_they_are(tmp_path: Path, shared: bool, name: str) -> None:
    first = write_known_answer_sequences(tmp_path, SMALL, shared=shared)
    stamps = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    write_known_answer_sequences(tmp_path, SMALL, shared=shared)
    assert stamps == {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")}
    experiment = load_experiment(first)
    assert (experiment.objective, experiment.name) == ("self_supervised", name)
    for corpus, expected in (("target", target_sequences(SMALL, seed=0)), ("auxiliary", None)):
        (chunk,) = stream_ready(corpus, experiment.corpora[corpus])
        assert not chunk.rejected
        assert all(row.id.startswith("synthetic-") for row in chunk.rows)
        if expected is not None:
            assert np.array_equal(np.stack(chunk.values), expected)
            assert [row.split for row in chunk.rows[:9]] == ["train"] * 3 + ["val"] * 2 + ["test"] * 4
            assert {row.label for row in chunk.rows} == {f"turn-{code}" for code in range(4)}
    assert "label" not in pq.read_table(tmp_path / "auxiliary.parquet").column_names, (
        "the auxiliary corpus has no label"
    )


def test_another_seed_gives_other_sequences_and_another_form_the_same_target(tmp_path: Path) -> None:
    for folder, shared, seed in (("a", True, 0), ("b", False, 0), ("c", True, 1)):
        write_known_answer_sequences(tmp_path / folder, SMALL, shared=shared, seed=seed)
    target = {folder: (tmp_path / folder / "target.parquet").read_bytes() for folder in "abc"}
    assert target["a"] == target["b"] != target["c"]


def test_command_line_writes_the_form_into_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "--form", "shuffled"]) == 0
    assert "shuffled/experiment.yaml" in capsys.readouterr().out
    assert (tmp_path / "shuffled" / "experiment.yaml").is_file()
