"""Synthetic corpora whose answer is known: a pipeline must find the gain in one, and report none in the other.

Linear-Gaussian, after the model of section 5 of UML (arXiv 2510.08492), with classes in place of its one fixed θ:

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

    python -m uml_core.corpora.known_answer --output runs/known-answer --form shared

Shape legend: C classes, L latent width, N rows, D embedding width.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from uml_core.errors import InputError

Floats = npt.NDArray[np.float32]
SPLIT_ROWS = {"train": 4, "val": 4, "test": 20}  # target rows of a class; few shots are drawn from train
# Independent streams, so that switching the form or one size leaves the other draws alone.
STREAMS = {"latents": 0, "target_map": 1, "target_noise": 2, "auxiliary_map": 3, "auxiliary_noise": 4, "unrelated": 5}


@dataclass(frozen=True)
class KnownAnswerSummary:
    """Where a synthetic experiment was written, and how large it is."""

    directory: Path
    experiment: Path
    name: str
    target_rows: dict[str, int]  # per split
    auxiliary_rows: int


def write_known_answer(
    output_dir: Path,
    *,
    shared: bool,
    num_classes: int = 100,
    latent_dim: int = 8,
    target_dim: int = 128,
    auxiliary_dim: int = 32,
    target_signal: float = 1.0,
    target_noise: float = 1.0,
    auxiliary_noise: float = 0.5,
    auxiliary_rows: int = 20,
    seed: int = 0,
) -> KnownAnswerSummary:
    """Write one synthetic experiment; the same arguments give the same files, and a second call keeps them.

    Args:
        output_dir: folder for the two corpora and experiment.yaml; the store will lie in it, too.
        shared: whether the auxiliary corpus comes from the target's latents, or from its own.
        num_classes: C.
        latent_dim: L.
        target_dim: width of the target's embeddings.
        auxiliary_dim: width of the auxiliary embeddings.
        target_signal: standard deviation of a coordinate that class latents give the target.
        target_noise: standard deviation of the noise on it.
        auxiliary_noise: the same for the auxiliary corpus, whose signal has standard deviation 1.
        auxiliary_rows: auxiliary rows of a class.
        seed: draws everything.

    Raises:
        InputError: a count is below 1, or a scale is negative or not finite.
    """
    counts = {
        "num_classes": num_classes,
        "latent_dim": latent_dim,
        "target_dim": target_dim,
        "auxiliary_dim": auxiliary_dim,
        "auxiliary_rows": auxiliary_rows,
    }
    _check(counts, {"target_signal": target_signal, "target_noise": target_noise, "auxiliary_noise": auxiliary_noise})
    latents_CL = class_latents(num_classes, latent_dim, seed=seed)
    target_map = _draw("target_map", seed, (target_dim, latent_dim)) / np.sqrt(latent_dim)
    auxiliary_map = _draw("auxiliary_map", seed, (auxiliary_dim, latent_dim)) / np.sqrt(latent_dim)
    auxiliary_latents_CL = latents_CL if shared else _draw("unrelated", seed, (num_classes, latent_dim))
    names = [f"class-{index:0{len(str(num_classes - 1))}d}" for index in range(num_classes)]
    splits = [split for split, rows in SPLIT_ROWS.items() for _ in range(rows)]

    target_means_CD = target_signal * latents_CL @ target_map.T
    target = _rows(target_means_CD, len(splits), target_noise, _stream("target_noise", seed))
    auxiliary_means_CD = auxiliary_latents_CL @ auxiliary_map.T
    auxiliary = _rows(auxiliary_means_CD, auxiliary_rows, auxiliary_noise, _stream("auxiliary_noise", seed))
    output_dir.mkdir(parents=True, exist_ok=True)
    labels = [name for name in names for _ in splits]
    _write_corpus(output_dir / "target.parquet", "target", labels, splits * num_classes, target)
    auxiliary_labels = [name for name in names for _ in range(auxiliary_rows)]
    _write_corpus(
        output_dir / "auxiliary.parquet", "auxiliary", auxiliary_labels, ["train"] * len(auxiliary_labels), auxiliary
    )
    name = f"synthetic-{'shared' if shared else 'unrelated'}"
    experiment = output_dir / "experiment.yaml"
    experiment.write_text(_experiment(name, output_dir, seed), encoding="utf-8")
    target_rows = {split: rows * num_classes for split, rows in SPLIT_ROWS.items()}
    return KnownAnswerSummary(output_dir, experiment, name, target_rows, len(auxiliary))


def class_latents(num_classes: int, latent_dim: int, *, seed: int) -> npt.NDArray[np.float64]:
    """Return the target's class latents z (C, L): the ground truth that tests compare with."""
    return _draw("latents", seed, (num_classes, latent_dim))


def _stream(purpose: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**32, STREAMS[purpose]])


def _draw(purpose: str, seed: int, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return _stream(purpose, seed).standard_normal(shape)


def _rows(means_CD: npt.NDArray[np.float64], repeats: int, noise: float, rng: np.random.Generator) -> Floats:
    """Return `repeats` noisy rows of every class in class order (C·repeats, D)."""
    rows_ND = np.repeat(means_CD, repeats, axis=0)
    return (rows_ND + noise * rng.standard_normal(rows_ND.shape)).astype(np.float32)


def _write_corpus(file: Path, corpus: str, labels: Sequence[str], splits: Sequence[str], embeddings_ND: Floats) -> None:
    width = len(str(len(labels)))
    columns = {
        "id": [f"synthetic-{corpus}-{index:0{width}d}" for index in range(len(labels))],
        "label": list(labels),
        "split": list(splits),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings_ND.reshape(-1)), embeddings_ND.shape[1]),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    content = sink.getvalue().to_pybytes()
    if file.is_file() and file.read_bytes() == content:  # keep its time: the store knows ready embeddings by it
        return
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_bytes(content)
    temporary.replace(file)


def _experiment(name: str, folder: Path, seed: int) -> str:
    def corpus(file: str) -> dict[str, str]:
        return {"modality": "vector", "format": "embeddings", "path": (folder / file).as_posix()}

    settings = {
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
    header = f"# SYNTHETIC known-answer experiment ({name}): linear-Gaussian embeddings, no real data.\n"
    return header + yaml.safe_dump(settings, sort_keys=False)


def _check(counts: dict[str, int], scales: dict[str, float]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; expected a whole number of at least 1")
    for name, scale in scales.items():
        if not (np.isfinite(scale) and scale >= 0):
            raise InputError(f"{name} is {scale}; expected a finite number of at least 0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one synthetic experiment from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m uml_core.corpora.known_answer",
        description="Write synthetic corpora with a known answer. "
        "Example: python -m uml_core.corpora.known_answer --output runs/known-answer --form shared",
    )
    parser.add_argument("--output", type=Path, required=True, help="the form's folder is made inside this one")
    parser.add_argument(
        "--form", choices=("shared", "unrelated"), required=True, help="what the auxiliary corpus knows"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws everything (default 0)")
    options = parser.parse_args(arguments)
    try:
        summary = write_known_answer(options.output / options.form, shared=options.form == "shared", seed=options.seed)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    rows = ", ".join(f"{count} {split}" for split, count in summary.target_rows.items())
    print(f"{summary.name} (synthetic): target rows {rows}; {summary.auxiliary_rows} auxiliary rows")
    print(f"Experiment: {summary.experiment}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
