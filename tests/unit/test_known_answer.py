"""The known-answer corpora: shapes, labels, determinism, and that the answer is what it is said to be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score

from uml_core.config import CorpusConfig, load_experiment
from uml_core.corpora.examples.known_answer import SPLIT_ROWS, LinearGaussian, class_latents, main, write_known_answer
from uml_core.corpora.ready.adopt import stream_ready


def class_means(file: Path) -> npt.NDArray[np.float32]:
    """Mean embedding of every class (C, D), classes in the order of their names."""
    table = pq.read_table(file)
    embeddings = np.stack(table["embedding"].to_numpy())
    labels = np.asarray(table["label"].to_pylist())
    return np.stack([embeddings[labels == name].mean(axis=0) for name in np.unique(labels)])


def predictability(inputs: npt.NDArray[np.float32], latents: npt.NDArray[np.float64]) -> float:
    """Cross-validated R² of a linear map from class means to latents."""
    return float(cross_val_score(Ridge(alpha=1.0), inputs, latents, cv=5, scoring="r2").mean())


def test_corpora_have_the_stated_rows_and_types(tmp_path: Path) -> None:
    write_known_answer(tmp_path, LinearGaussian(num_classes=12, auxiliary_rows=5), shared=True)
    target = pq.read_table(tmp_path / "target.parquet")
    auxiliary = pq.read_table(tmp_path / "auxiliary.parquet")
    assert target.schema.field("embedding").type == pa.list_(pa.float32(), 128)
    assert auxiliary.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    assert target.column_names == auxiliary.column_names == ["id", "label", "split", "embedding"]
    assert Counter(target["split"].to_pylist()) == {split: rows * 12 for split, rows in SPLIT_ROWS.items()}
    assert auxiliary.num_rows == 60
    assert set(auxiliary["split"].to_pylist()) == {"train"}
    assert (
        set(target["label"].to_pylist()) == set(auxiliary["label"].to_pylist()) == {f"class-{i:02d}" for i in range(12)}
    )
    ids = target["id"].to_pylist() + auxiliary["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("synthetic-") for name in ids)


@pytest.mark.parametrize(("shared", "name"), [(True, "synthetic-shared"), (False, "synthetic-unrelated")])
def test_experiment_file_is_ready_to_use(tmp_path: Path, shared: bool, name: str) -> None:
    file = write_known_answer(tmp_path / "form", LinearGaussian(num_classes=3), shared=shared)
    experiment = load_experiment(file)
    assert experiment.name == name
    assert experiment.data.shots == 1
    assert "SYNTHETIC" in file.read_text().splitlines()[0]
    for corpus in ("target", "auxiliary"):
        config: CorpusConfig = experiment.corpora[corpus]
        assert not any(chunk.rejected for chunk in stream_ready(corpus, config))


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    for folder, seed in (("first", 3), ("second", 3), ("other", 4)):
        write_known_answer(tmp_path / folder, LinearGaussian(num_classes=5), shared=True, seed=seed)
    for file in ("target.parquet", "auxiliary.parquet"):
        first, second, other = ((tmp_path / folder / file).read_bytes() for folder in ("first", "second", "other"))
        assert first == second
        assert first != other


def test_writing_again_leaves_the_files_alone(tmp_path: Path) -> None:
    stamps = []
    for _ in range(2):
        write_known_answer(tmp_path, LinearGaussian(num_classes=5), shared=True)
        stamps.append({file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.parquet")})
    assert stamps[0] == stamps[1]


def test_only_the_shared_form_tells_about_the_latents(tmp_path: Path) -> None:
    write_known_answer(tmp_path / "shared", shared=True)
    write_known_answer(tmp_path / "unrelated", shared=False)
    targets = [(tmp_path / form / "target.parquet").read_bytes() for form in ("shared", "unrelated")]
    assert targets[0] == targets[1]
    latents = class_latents(LinearGaussian(), seed=0)
    assert predictability(class_means(tmp_path / "shared" / "target.parquet"), latents) > 0.9
    assert predictability(class_means(tmp_path / "shared" / "auxiliary.parquet"), latents) > 0.9
    assert predictability(class_means(tmp_path / "unrelated" / "auxiliary.parquet"), latents) < 0.1


def test_command_line_writes_the_form_into_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "--form", "unrelated"]) == 0
    assert "unrelated/experiment.yaml" in capsys.readouterr().out
    assert (tmp_path / "unrelated" / "experiment.yaml").is_file()
