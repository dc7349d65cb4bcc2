"""Fixtures shared by all layers: small corpora written as real files, and experiments over them."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from PIL import Image

from tests.servers import FaultyS3, s3_settings
from uml_core.config import Experiment, parse_experiment
from uml_core.files.paths import filesystem_of
from uml_core.store.corpus_table import CorpusTable

if TYPE_CHECKING:
    from uml_core.training.run import TrainingRun  # torch: not every test needs it

# Untimed, because machines differ, and are shared; a test that needs more examples says so.
settings.register_profile("untimed", deadline=None, max_examples=50)
settings.load_profile("untimed")

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # as `pipelines` does, before any test imports Ray

CLASSES = ("circle", "square", "stripes")
MakeExperiment = Callable[..., Experiment]


def finish(run: TrainingRun) -> TrainingRun:
    for _ in run.evaluations():
        pass
    return run


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a test process died, and what Ray wrote of it; what it said itself is lost with its captured output."""
    if not error:
        return
    process = node.gateway._io.popen
    print(f"\n{node.gateway.id}, process {process.pid}, ended with status {process.wait(10)}")
    logs = Path(tempfile.gettempdir()).glob(f"ray/session_*/logs/python-core-driver-*_{process.pid}.log")
    newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
    if newest is not None:
        print(*newest.read_text(encoding="utf-8").splitlines()[-5:], sep="\n")


@pytest.fixture(scope="session", autouse=True)
def relative_places_lie_outside_the_working_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let relative places, such as the default of tracking.uri, start in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UML_ROOT", str(tmp_path_factory.mktemp("root")))
        yield


def write_embeddings(path: Path, rows: Mapping[str, Any]) -> Path:
    """Write ready embeddings: label, split and embedding of each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**rows, "embedding": [list(map(float, row)) for row in rows["embedding"]]}), path)
    return path


def write_vector_corpora(directory: Path, *, num_classes: int = 6, seed: int = 0) -> Path:
    """Write two corpora of ready embeddings about the same classes: target.parquet and names.parquet."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(num_classes, 4))
    for name, width, splits in (
        ("target", 12, ["train"] * 8 + ["val"] * 4 + ["test"] * 8),
        ("names", 6, ["train"] * 10),
    ):
        mapping = rng.normal(size=(4, width))
        labels = [f"class-{code}" for code in range(num_classes) for _ in splits]
        codes = np.repeat(np.arange(num_classes), len(splits))
        embeddings = latents[codes] @ mapping + 0.5 * rng.normal(size=(len(codes), width))
        write_embeddings(
            directory / f"{name}.parquet",
            {"label": labels, "split": splits * num_classes, "embedding": embeddings},
        )
    return directory


@functools.cache
def _new_database() -> bytes:
    """Return a database that MLflow has just made: making one takes it a second, and most tests begin with one."""
    from mlflow.tracking import MlflowClient  # for the tests alone that track

    with tempfile.TemporaryDirectory() as directory:
        MlflowClient(f"sqlite:///{directory}/mlflow.db").search_experiments()
        return Path(directory, "mlflow.db").read_bytes()


def tracking_in(directory: Path) -> dict[str, str]:
    """Return the section `tracking` of an experiment file, over an empty database in a directory."""
    if not (directory / "mlflow.db").exists():
        (directory / "mlflow.db").write_bytes(_new_database())
    return {"uri": f"sqlite:///{directory}/mlflow.db", "artifacts": str(directory / "artifacts")}


def vector_tree(directory: Path, **changes: Any) -> dict[str, Any]:
    """Return an experiment file's tree over `write_vector_corpora`, with dotted changes applied by the caller."""
    return {
        "name": "vectors",
        "store": str(directory / "store"),
        "tracking": tracking_in(directory),
        "target": "target",
        "corpora": {
            name: {"modality": "vector", "format": "embeddings", "path": str(directory / f"{name}.parquet")}
            for name in ("target", "names")
        },
        "train": {"max_steps": 40, "eval_every": 20, "batch_size": 8},
        **changes,
    }


@pytest.fixture
def vector_experiment(tmp_path: Path) -> Experiment:
    """An experiment over two small corpora of ready embeddings, not embedded yet."""
    write_vector_corpora(tmp_path)
    return parse_experiment(vector_tree(tmp_path))


def table(embeddings: Any, labels: list[str | None], splits: list[str] | None = None) -> CorpusTable:
    """Build a CorpusTable in memory."""
    splits = splits or ["train"] * len(labels)
    label_names = tuple(sorted({label for label in labels if label is not None}))
    split_names = tuple(sorted(set(splits)))
    return CorpusTable(
        np.asarray(embeddings, dtype=np.float32),
        np.array([-1 if label is None else label_names.index(label) for label in labels], dtype=np.int64),
        label_names,
        np.array([split_names.index(split) for split in splits], dtype=np.int64),
        split_names,
    )


def draw(label: str, rng: np.random.Generator, side: int = 40) -> Image.Image:
    """Draw a small picture of a class."""
    pixels = np.full((side, side, 3), 255, dtype=np.uint8)
    y, x = np.mgrid[:side, :side]
    centre, size = rng.integers(15, 25, size=2), rng.integers(8, 14)
    shapes = {
        "circle": (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < size**2,
        "square": (abs(x - centre[0]) < size) & (abs(y - centre[1]) < size),
        "stripes": (x // 4) % 2 == 0,
    }
    pixels[shapes[label]] = rng.integers(0, 200, size=3)
    return Image.fromarray(pixels)


def write_picture_corpora(directory: Path, *, counts: Mapping[str, int] | None = None, seed: int = 0) -> Path:
    """Write pictures/SPLIT/CLASS/FILE.png and names.jsonl."""
    rng = np.random.default_rng(seed)
    for split, count in (counts or {"train": 4, "val": 2, "test": 3, "dark": 2}).items():
        for label in CLASSES:
            folder = directory / "pictures" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                draw(label, rng).save(folder / f"{index}.png")
    sentences = {label: [f"a {label}", f"the {label} shape", f"one more {label}"] for label in CLASSES}
    lines = [json.dumps({"text": text, "label": label}) for label, texts in sentences.items() for text in texts]
    (directory / "names.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


def picture_tree(directory: Path) -> dict[str, Any]:
    """Return an experiment file's tree over `write_picture_corpora`."""
    return {
        "name": "shapes",
        "store": str(directory / "store"),
        "tracking": tracking_in(directory),
        "target": "pictures",
        "corpora": {
            "pictures": {"modality": "image", "format": "folder", "path": str(directory / "pictures")},
            "names": {"modality": "text", "format": "table", "path": str(directory / "names.jsonl")},
        },
        "embed": {"part_rows": 8, "batch_size": 8},
        "train": {"max_steps": 40, "eval_every": 20, "batch_size": 8},
    }


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A local server that speaks S3, without faults; its address stands in the environment, as a user gives it."""
    server = FaultyS3()
    for name, value in s3_settings(server.url).items():
        monkeypatch.setenv(name, value)
    filesystem_of.cache_clear()  # of an earlier server's address
    yield server
    server.stop()
    filesystem_of.cache_clear()


@pytest.fixture
def s3_bucket(s3_server: FaultyS3) -> str:
    """An empty bucket of that server."""
    filesystem, _ = pafs.FileSystem.from_uri("s3://uml-tests?allow_bucket_creation=true")
    filesystem.create_dir("uml-tests")
    return "s3://uml-tests"
