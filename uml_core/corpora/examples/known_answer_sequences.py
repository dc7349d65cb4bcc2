"""Synthetic token sequences with a known answer: what the auxiliary corpus knows helps in one form, and is gone in the
other.

Two modalities see, each through a linear map of its own, the same kind of hidden motion; the class is how it moves:

    z_1 ~ N(0, I_2),   z_t+1 = ρ R(2π c / C) z_t + √(1 − ρ²) ε      class c of C: a turn of the plane a step
    x_t = A z_t + target_noise · ε                                  target, A (target_dim, 2)
    y_t = B z_t + auxiliary_noise · ε                               auxiliary, B (auxiliary_dim, 2), unlabelled

    shared:   the auxiliary sequences as they are
    shuffled: the tokens of each auxiliary sequence in an order drawn by lot: the same tokens, without the motion

A token has the same distribution in every class, and a sequence's mean is 0 in expectation (only its variance differs):
a linear probe on the mean token stays near chance. To predict the next token a model must find out from those before it
how the plane turns. The target has few sequences and much noise to learn that from, the auxiliary corpus many and
little. A and B have nothing in common; the trunk is what both modalities need alike.

Out, in one folder: target.parquet (id, label, split, tokens), auxiliary.parquet (id, split, tokens) and
experiment.yaml, ready to run. Target files of the two forms are identical for one seed. Everything says "synthetic".

    python -m uml_core.corpora.examples.known_answer_sequences --output runs/known-answer-sequences --form shared

Shape legend: C classes, N sequences, T tokens, D width of a token.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from uml_core.corpora.examples.synthetic_files import command, stream, write_synthetic

Tokens = npt.NDArray[np.float32]  # (N, T, D)
PLANE = 2
STREAMS = {"maps": 10, "target": 11, "auxiliary": 12, "shuffle": 13}


@dataclass(frozen=True)
class Turning:
    """Sizes and scales."""

    num_classes: int = 4  # C
    num_tokens: int = 32  # T
    target_dim: int = 8
    auxiliary_dim: int = 8
    train_sequences: int = 20  # of the target, a class
    val_sequences: int = 15
    test_sequences: int = 100
    auxiliary_sequences: int = 200
    memory: float = 0.9  # ρ, below 1
    target_noise: float = 0.4  # standard deviation; that of a token without noise is about 1
    auxiliary_noise: float = 0.2

    @property
    def splits(self) -> list[str]:
        """The split of each of a class's target sequences."""
        counts = {"train": self.train_sequences, "val": self.val_sequences, "test": self.test_sequences}
        return [split for split, count in counts.items() for _ in range(count)]


def write_known_answer_sequences(
    output_dir: Path, settings: Turning | None = None, *, shared: bool, seed: int = 0
) -> Path:
    """Write one synthetic experiment; the same arguments give the same files, and a second call keeps them.

    Args:
        output_dir: folder for the two corpora and experiment.yaml, which is returned.
        settings: sizes and scales; None: the defaults.
        shared: whether auxiliary sequences keep the order of their tokens.
        seed: draws everything.
    """
    settings = settings or Turning()
    classes, splits = range(settings.num_classes), settings.splits
    auxiliary_NTD = auxiliary_sequences(settings, shared=shared, seed=seed)
    corpora = {
        "target": {
            "label": [f"turn-{code}" for code in classes for _ in splits],
            "split": splits * settings.num_classes,
            "tokens": _lists(target_sequences(settings, seed=seed)),
        },
        "auxiliary": {"split": ["train"] * len(auxiliary_NTD), "tokens": _lists(auxiliary_NTD)},
    }
    experiment = {
        "seed": seed,
        "objective": "self_supervised",
        "sequence_model": {"width": 40, "layers": 2, "heads": 5, "feedforward": 64, "max_tokens": 64},
        "mixing": {"loss_weight": {"auxiliary": 2.0}},
        "optim": {"lr": 0.003, "weight_decay": 0.01},
        "train": {"max_steps": 700, "batch_size": 32, "eval_every": 100, "patience": 7},
        "tune": {"seeds": 5},
    }
    name = f"synthetic-sequences-{'shared' if shared else 'shuffled'}"
    return write_synthetic(output_dir, name, corpora, experiment)


def target_sequences(settings: Turning, *, seed: int) -> Tokens:
    """The target's sequences (N, T, D), classes in order."""
    map_D2, _ = _maps(settings, seed)
    rng = stream(seed, STREAMS["target"])
    return _seen(settings, len(settings.splits), map_D2, settings.target_noise, rng)


def auxiliary_sequences(settings: Turning, *, shared: bool, seed: int) -> Tokens:
    """The auxiliary sequences (N, T, D), classes in order; unless shared, each with its tokens in any order."""
    _, map_D2 = _maps(settings, seed)
    rng = stream(seed, STREAMS["auxiliary"])
    seen_NTD = _seen(settings, settings.auxiliary_sequences, map_D2, settings.auxiliary_noise, rng)
    if shared:
        return seen_NTD
    in_time_NT = np.tile(np.arange(settings.num_tokens), (len(seen_NTD), 1))
    by_lot_NT = stream(seed, STREAMS["shuffle"]).permuted(in_time_NT, axis=1)
    return np.take_along_axis(seen_NTD, by_lot_NT[:, :, None], axis=1)


def hidden_motion(
    turn: float, memory: float, *, count: int, num_tokens: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """`count` stationary motions (N, T, 2) that turn by an angle a step."""
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    noise_NT2 = rng.standard_normal((count, num_tokens, PLANE))
    motion_NT2 = noise_NT2.copy()
    for time in range(1, num_tokens):
        kept = memory * motion_NT2[:, time - 1] @ rotation.T
        motion_NT2[:, time] = kept + np.sqrt(1 - memory**2) * noise_NT2[:, time]
    return motion_NT2


def _maps(settings: Turning, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A and B: entries N(0, 1/2), so that a coordinate without noise has variance about 1."""
    rng = stream(seed, STREAMS["maps"])
    dims = (settings.target_dim, settings.auxiliary_dim)
    target, auxiliary = (rng.standard_normal((dim, PLANE)) / np.sqrt(PLANE) for dim in dims)
    return target, auxiliary


def _seen(
    settings: Turning, count: int, map_D2: npt.NDArray[np.float64], noise: float, rng: np.random.Generator
) -> Tokens:
    """`count` sequences of every class through a map, with noise (C·count, T, D)."""
    turns = 2 * np.pi * np.arange(settings.num_classes) / settings.num_classes
    motions = [
        hidden_motion(turn, settings.memory, count=count, num_tokens=settings.num_tokens, rng=rng) for turn in turns
    ]
    clean_NTD = np.concatenate(motions) @ map_D2.T
    return (clean_NTD + noise * rng.standard_normal(clean_NTD.shape)).astype(np.float32)


def _lists(tokens_NTD: Tokens) -> pa.ListArray:
    count, length, width = tokens_NTD.shape
    rows = pa.FixedSizeListArray.from_arrays(pa.array(tokens_NTD.reshape(-1)), width)
    return pa.ListArray.from_arrays(np.arange(0, count * length + 1, length, dtype=np.int32), rows)


FORMS = ("shared", "shuffled")
main = partial(command, "known_answer_sequences", write_known_answer_sequences, FORMS, "whether the motion is kept")

if __name__ == "__main__":
    sys.exit(main())
