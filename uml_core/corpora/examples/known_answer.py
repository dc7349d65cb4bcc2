"""Synthetic corpora whose answer is known: a pipeline must find the gain in one, and report none in the other.

Linear-Gaussian, after the model of the paper (docs/method.md, Theory), with classes in place of its one fixed θ:

    z_c ~ N(0, I_L)                                     one latent a class: what the two modalities can share
    x = target_signal · A z_c + target_noise · ε        target row of class c;     A (target_dim, L)
    y = B w_c + auxiliary_noise · ε                     auxiliary row of class c;  B (auxiliary_dim, L)

    shared:    w_c = z_c        the auxiliary corpus tells about the target's classes, by construction
    unrelated: w_c ~ N(0, I_L)  fresh latents under the same class names: it tells nothing, and costs

A and B have independent N(0, 1/L) entries, so a coordinate of A z or B w has variance about 1. Target rows of the two
forms are identical for one seed. With few shots the target's own rows show the range of A (L of target_dim directions)
badly; the auxiliary corpus shows how classes lie in the latent space, which is what a shared head can hand over.

Out, in one folder: target.parquet (id, label, split, embedding), auxiliary.parquet (the same, all train), and
experiment.yaml, ready to run. Everything says "synthetic".

    python -m uml_core.corpora.examples.known_answer --output runs/known-answer --form shared

Shape legend: C classes, L latent width, N rows, D embedding width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from uml_core.corpora.examples.synthetic_files import (
    SyntheticSummary,
    check_settings,
    command,
    row_ids,
    stream,
    write_experiment,
    write_rows,
)

Floats = npt.NDArray[np.float32]
SPLIT_ROWS = {"train": 4, "val": 4, "test": 20}  # target rows of a class; few shots are drawn from train
# Independent streams, so that switching the form or one size leaves the other draws alone.
STREAMS = {"latents": 0, "target_map": 1, "target_noise": 2, "auxiliary_map": 3, "auxiliary_noise": 4, "unrelated": 5}


@dataclass(frozen=True)
class LinearGaussian:
    """Sizes and scales. Raises InputError for a count below 1, or a scale that is negative or not finite."""

    num_classes: int = 100  # C
    latent_dim: int = 8  # L
    target_dim: int = 128
    auxiliary_dim: int = 32
    auxiliary_rows: int = 20  # of a class
    target_signal: float = 1.0  # standard deviation of a coordinate that class latents give the target
    target_noise: float = 1.0  # standard deviation of the noise on it
    auxiliary_noise: float = 0.5  # the same for the auxiliary corpus, whose signal has standard deviation 1

    def __post_init__(self) -> None:
        scales = {name: value for name, value in vars(self).items() if name.endswith(("signal", "noise"))}
        check_settings({name: value for name, value in vars(self).items() if name not in scales}, scales)

    @property
    def class_names(self) -> list[str]:
        return [f"class-{index:0{len(str(self.num_classes - 1))}d}" for index in range(self.num_classes)]


def write_known_answer(
    output_dir: Path, settings: LinearGaussian | None = None, *, shared: bool, seed: int = 0
) -> SyntheticSummary:
    """Write one synthetic experiment; the same arguments give the same files, and a second call keeps them.

    Args:
        output_dir: folder for the two corpora and experiment.yaml; the store will lie in it, too.
        settings: sizes and scales; None: the defaults.
        shared: whether the auxiliary corpus comes from the target's latents, or from its own.
        seed: draws everything.
    """
    settings = settings or LinearGaussian()
    splits = [split for split, rows in SPLIT_ROWS.items() for _ in range(rows)] * settings.num_classes
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_corpus(output_dir, "target", settings, splits, target_rows(settings, seed=seed))
    auxiliary_ND = auxiliary_rows(settings, shared=shared, seed=seed)
    _write_corpus(output_dir, "auxiliary", settings, ["train"] * len(auxiliary_ND), auxiliary_ND)
    name = f"synthetic-{'shared' if shared else 'unrelated'}"
    experiment = write_experiment(
        output_dir,
        _experiment(name, output_dir, seed),
        f"SYNTHETIC known-answer experiment ({name}): linear-Gaussian embeddings, no real data.",
    )
    rows = {split: rows * settings.num_classes for split, rows in SPLIT_ROWS.items()}
    return SyntheticSummary(output_dir, experiment, name, rows, len(auxiliary_ND))


def class_latents(settings: LinearGaussian, *, seed: int) -> npt.NDArray[np.float64]:
    """Return the target's class latents z (C, L): the ground truth that tests compare with."""
    return _draw("latents", seed, (settings.num_classes, settings.latent_dim))


def target_rows(settings: LinearGaussian, *, seed: int) -> Floats:
    """Return the target's rows (N, D), classes and in them splits in order."""
    map_DL = _draw("target_map", seed, (settings.target_dim, settings.latent_dim)) / np.sqrt(settings.latent_dim)
    means_CD = settings.target_signal * class_latents(settings, seed=seed) @ map_DL.T
    return _rows(means_CD, sum(SPLIT_ROWS.values()), settings.target_noise, stream(seed, STREAMS["target_noise"]))


def auxiliary_rows(settings: LinearGaussian, *, shared: bool, seed: int) -> Floats:
    """Return the auxiliary corpus's rows (N, D), classes in order: from the target's latents, or from their own."""
    map_DL = _draw("auxiliary_map", seed, (settings.auxiliary_dim, settings.latent_dim)) / np.sqrt(settings.latent_dim)
    own_CL = _draw("unrelated", seed, (settings.num_classes, settings.latent_dim))
    means_CD = (class_latents(settings, seed=seed) if shared else own_CL) @ map_DL.T
    return _rows(means_CD, settings.auxiliary_rows, settings.auxiliary_noise, stream(seed, STREAMS["auxiliary_noise"]))


def _draw(purpose: str, seed: int, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return stream(seed, STREAMS[purpose]).standard_normal(shape)


def _rows(means_CD: npt.NDArray[np.float64], repeats: int, noise: float, rng: np.random.Generator) -> Floats:
    """Return `repeats` noisy rows of every class in class order (C·repeats, D)."""
    rows_ND = np.repeat(means_CD, repeats, axis=0)
    return (rows_ND + noise * rng.standard_normal(rows_ND.shape)).astype(np.float32)


def _write_corpus(
    directory: Path, corpus: str, settings: LinearGaussian, splits: Sequence[str], embeddings_ND: Floats
) -> None:
    labels = np.repeat(settings.class_names, len(splits) // settings.num_classes)
    columns = {
        "id": row_ids(corpus, len(labels)),
        "label": labels.tolist(),
        "split": list(splits),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings_ND.reshape(-1)), embeddings_ND.shape[1]),
    }
    write_rows(directory / f"{corpus}.parquet", columns)


def _experiment(name: str, folder: Path, seed: int) -> dict[str, Any]:
    def corpus(file: str) -> dict[str, str]:
        return {"modality": "vector", "format": "embeddings", "path": (folder / file).as_posix()}

    return {
        "name": name,
        "seed": seed,
        "store": (folder / "store").as_posix(),
        "target": "target",
        "corpora": {"target": corpus("target.parquet"), "auxiliary": corpus("auxiliary.parquet")},
        "model": {"head_init": "random"},
        "data": {"shots": 1},
        "optim": {"lr": 0.01, "weight_decay": 0.01},
        "train": {"max_steps": 600, "batch_size": 32, "eval_every": 50, "patience": 12},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    return command(
        "known_answer",
        arguments,
        write_known_answer,
        forms=("shared", "unrelated"),
        help="what the auxiliary corpus knows",
    )


if __name__ == "__main__":
    sys.exit(main())
