"""Runs that train the target's encoder on small pictures or sounds, without a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from tests.conftest import table, write_picture_corpora
from uml_core.config import Experiment, parse_experiment
from uml_core.corpora.content import Raw
from uml_core.corpora.readers import rows_of
from uml_core.corpora.rows import Row
from uml_core.data.training_data import build_training_data
from uml_core.encoders import Embeddings, Encoder, fingerprint
from uml_core.feed.pictures import PictureData, picture_data
from uml_core.feed.sentences import text_encoder
from uml_core.serving.predictor import Predictions
from uml_core.serving.target_predictor import TargetPredictor
from uml_core.store.corpus_table import CorpusTable
from uml_core.training.fine_tuning import target_encoder
from uml_core.training.run import TrainingRun

NAMES = np.random.default_rng(1).normal(size=(9, 8))


def write_corpus(directory: Path) -> Path:
    """Write pictures of three shapes, and a tiny vision transformer with random weights."""
    write_picture_corpora(directory, counts={"train": 6, "val": 4, "test": 4})
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), directory / "weights.pth")
    return directory


def experiment_of(directory: Path, **changes: Any) -> Experiment:
    tree = {
        "name": "x",
        "store": str(directory / "store"),
        "target": "pictures",
        "corpora": {
            "pictures": {"modality": "image", "format": "folder", "path": str(directory / "pictures")},
            "names": {"modality": "vector", "format": "embeddings", "path": "names"},
        },
        "encoders": {
            "image": {"source": "timm", "name": "test_vit", "image_size": 32, "weights": str(directory / "weights.pth")}
        },
        "model": {"backbone": "finetune"},
        "train": {"max_steps": 6, "eval_every": 3, "batch_size": 6},
        "optim": {"lr": 1e-3, "backbone_lr": 1e-3, "warmup_steps": 0, "schedule": "constant"},
    }
    return parse_experiment(tree).override(changes)


EMBEDDED: dict[tuple[str, tuple[Raw, ...]], Embeddings] = {}


def embeddings_of(encoder: Encoder, rows: Sequence[Row], batch_size: int) -> Embeddings:
    """What an encoder makes of rows, once in a process: to load it compiles it, which is half of a run's seconds."""
    raw = tuple(row.read() for row in rows)
    key = fingerprint(encoder, dtype="float32", precision="float32"), raw
    if key not in EMBEDDED:
        encoder.load()
        EMBEDDED[key] = encoder.encode_all([encoder.decode(each) for each in raw], batch_size)
    return EMBEDDED[key].copy()


def tables_of(experiment: Experiment) -> tuple[dict[str, CorpusTable], list[Row]]:
    """The store's tables without a store: the frozen encoder's embeddings, and random ones of the auxiliary corpus."""
    rows = list(rows_of(experiment, experiment.target))
    embeddings = embeddings_of(target_encoder(experiment), rows, 32)
    target = table(embeddings, [row.label for row in rows], [row.split for row in rows])
    classes = sorted({row.label or "" for row in rows})
    names = table(NAMES[: 3 * len(classes)], [label for label in classes for _ in range(3)])
    return {experiment.target: target, "names": names}, rows


def data_of(experiment: Experiment) -> PictureData:
    tables, rows = tables_of(experiment)
    data, ids = build_training_data(experiment, tables), [row.id for row in rows]
    return picture_data(experiment, data, ids, {row.id: row for row in rows}, target_encoder(experiment))


def run_of(directory: Path, **changes: Any) -> TrainingRun:
    experiment = experiment_of(directory, **changes)
    return TrainingRun(experiment, data_of(experiment))


def run_with_text(directory: Path, sentences: dict[str, Any], **changes: Any) -> TrainingRun:
    """A run whose auxiliary table is what the text encoder makes of the sentences."""
    experiment = experiment_of(directory, **sentences, **changes)
    tables, rows = tables_of(experiment)
    texts = list(rows_of(experiment, "names"))
    embeddings = embeddings_of(text_encoder(experiment, "names"), texts, 8)
    tables["names"] = table(embeddings, [row.label for row in texts])
    data = build_training_data(experiment, tables)
    pictures = picture_data(
        experiment, data, [row.id for row in rows], {row.id: row for row in rows}, target_encoder(experiment)
    )
    return TrainingRun(experiment, replace(pictures, sentences={"names": tuple(texts)}))


def predictions_of(predictor: TargetPredictor, raw: Sequence[Raw], *, batch_size: int = 32) -> Predictions:
    """Decode, encode and classify raw inputs on this process's CPU."""
    encoder = predictor.build_encoder()
    assert encoder is not None
    predictor.load_encoder(encoder)
    return predictor.classify_decoded(encoder, [encoder.decode(row) for row in raw], batch_size=batch_size)
