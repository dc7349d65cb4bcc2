"""Small corpora of token sequences: classes are frequencies, seen through another random map in every corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from uml_core.config import Experiment, parse_experiment
from uml_core.store.sequence_table import SequenceTable

NUM_CLASSES = 3
SPLITS = ("train",) * 8 + ("val",) * 4 + ("test",) * 6


def waves(width: int, *, seed: int, splits: tuple[str, ...] = SPLITS) -> tuple[list[Any], list[str], list[str]]:
    """Return sequences (T, width) of 3 to 12 tokens, their labels and splits."""
    rng = np.random.default_rng(seed)
    view = rng.normal(size=(2, width))
    sequences, labels = [], []
    for code in range(NUM_CLASSES):
        for _ in splits:
            time = np.arange(rng.integers(3, 13)) * (0.4 + 0.7 * code) + rng.uniform(0, 2 * np.pi)
            wave = np.stack([np.sin(time), np.cos(time)], axis=1) @ view
            sequences.append((wave + 0.1 * rng.normal(size=wave.shape) + 5).astype(np.float32))
            labels.append(f"class-{code}")
    return sequences, labels, list(splits) * NUM_CLASSES


def sequence_table(
    sequences: list[Any], labels: list[str | None], splits: list[str], *, vocabulary: int | None = None
) -> SequenceTable:
    """Build a SequenceTable in memory."""
    lengths = np.array([len(sequence) for sequence in sequences])
    label_names = tuple(sorted({label for label in labels if label is not None}))
    split_names = tuple(sorted(set(splits)))
    return SequenceTable(
        np.concatenate(sequences).astype(np.float32),
        np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        lengths,
        vocabulary,
        np.array([-1 if label is None else label_names.index(label) for label in labels], dtype=np.int64),
        label_names,
        np.array([split_names.index(split) for split in splits], dtype=np.int64),
        split_names,
    )


def wave_tables() -> dict[str, SequenceTable]:
    """Return a target of width 4, an unlabelled corpus of width 6, discrete tokens, and vectors (length 1)."""
    rng = np.random.default_rng(0)
    others, _, _ = waves(6, seed=2, splits=("train",) * 9)
    letters = [rng.integers(0, 5, size=(rng.integers(2, 7), 1)) for _ in range(20)]
    return {
        "target": sequence_table(*waves(4, seed=1)),
        "other": sequence_table(others, [None] * len(others), ["train"] * len(others)),
        "letters": sequence_table(letters, [None] * 20, ["train"] * 20, vocabulary=5),
        "vectors": sequence_table(list(rng.normal(size=(15, 1, 3))), [None] * 15, ["train"] * 15),
    }


def sequence_experiment(**changes: Any) -> Experiment:
    """Return an experiment over `wave_tables`, small and fast."""
    tree: dict[str, Any] = {
        "name": "waves",
        "store": "store",
        "objective": "self_supervised",
        "target": "target",
        "corpora": {
            name: {"modality": "sequence", "format": "tokens", "path": name}
            for name in ("target", "other", "letters", "vectors")
        },
        "sequence_model": {"width": 8, "heads": 2, "layers": 2, "feedforward": 16},
        "train": {"max_steps": 20, "eval_every": 10, "batch_size": 6},
        "optim": {"warmup_steps": 0, "lr": 0.01},
    }
    return parse_experiment(tree).override(changes)
