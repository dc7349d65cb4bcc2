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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from uml_core.corpora.examples.synthetic_files import command, stream, write_synthetic

Floats = npt.NDArray[np.float64]
SPLIT_ROWS = {"train": 4, "val": 4, "test": 20}  # target rows of a class; few shots are drawn from train
# Independent streams, so that switching the form or one size leaves the other draws alone.
STREAMS = {"latents": 0, "target_map": 1, "target_noise": 2, "auxiliary_map": 3, "auxiliary_noise": 4, "unrelated": 5}


@dataclass(frozen=True)
class LinearGaussian:
    """Sizes and scales."""

    num_classes: int = 100  # C
    latent_dim: int = 8  # L
    target_dim: int = 128
    auxiliary_dim: int = 32
    auxiliary_rows: int = 20  # of a class
    target_signal: float = 1.0  # standard deviation of a coordinate that class latents give the target
    target_noise: float = 1.0  # standard deviation of the noise on it
    auxiliary_noise: float = 0.5  # the same for the auxiliary corpus, whose signal has standard deviation 1


def write_known_answer(
    output_dir: Path, settings: LinearGaussian | None = None, *, shared: bool, seed: int = 0
) -> Path:
    """Write one synthetic experiment; the same arguments give the same files, and a second call keeps them.

    Args:
        output_dir: folder for the two corpora and experiment.yaml, which is returned.
        settings: sizes and scales; None: the defaults.
        shared: whether the auxiliary corpus comes from the target's latents, or from its own.
        seed: draws everything.
    """
    sizes = settings or LinearGaussian()
    latents_CL = class_latents(sizes, seed=seed)
    own_CL = _draw("unrelated", seed, (sizes.num_classes, sizes.latent_dim))
    target_CD = sizes.target_signal * latents_CL @ _map("target_map", seed, sizes.target_dim, sizes)
    auxiliary_CD = (latents_CL if shared else own_CL) @ _map("auxiliary_map", seed, sizes.auxiliary_dim, sizes)
    splits = [split for split, rows in SPLIT_ROWS.items() for _ in range(rows)]
    corpora = {
        "target": _columns(target_CD, splits, sizes.target_noise, stream(seed, STREAMS["target_noise"])),
        "auxiliary": _columns(
            auxiliary_CD,
            ["train"] * sizes.auxiliary_rows,
            sizes.auxiliary_noise,
            stream(seed, STREAMS["auxiliary_noise"]),
        ),
    }
    experiment = {
        "seed": seed,
        "model": {"head_init": "random"},
        "data": {"shots": 1, "val_shots": "same"},
        "optim": {"lr": 0.01, "weight_decay": 0.01},
        "train": {"max_steps": 600, "batch_size": 32, "eval_every": 50, "patience": 12},
    }
    return write_synthetic(output_dir, f"synthetic-{'shared' if shared else 'unrelated'}", corpora, experiment)


def class_latents(settings: LinearGaussian, *, seed: int) -> Floats:
    """The target's class latents z (C, L): the ground truth that tests compare with."""
    return _draw("latents", seed, (settings.num_classes, settings.latent_dim))


def _map(purpose: str, seed: int, dim: int, settings: LinearGaussian) -> Floats:
    map_DL: Floats = _draw(purpose, seed, (dim, settings.latent_dim)) / np.sqrt(settings.latent_dim)
    return map_DL.T


def _draw(purpose: str, seed: int, shape: tuple[int, int]) -> Floats:
    return stream(seed, STREAMS[purpose]).standard_normal(shape)


def _columns(means_CD: Floats, splits: list[str], noise: float, rng: np.random.Generator) -> dict[str, Any]:
    """A noisy row of every class for each of the splits, in the order of classes."""
    num_classes, dim = means_CD.shape
    rows_ND = np.repeat(means_CD, len(splits), axis=0)
    rows_ND = (rows_ND + noise * rng.standard_normal(rows_ND.shape)).astype(np.float32)
    names = [f"class-{index:0{len(str(num_classes - 1))}d}" for index in range(num_classes)]
    return {
        "label": np.repeat(names, len(splits)).tolist(),
        "split": splits * num_classes,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows_ND.reshape(-1)), dim),
    }


main = partial(command, "known_answer", write_known_answer, ("shared", "unrelated"), "what the auxiliary corpus knows")

if __name__ == "__main__":
    sys.exit(main())
