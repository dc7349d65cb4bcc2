"""What synthetic corpora share: independent random streams, checks of settings, and files that stay as they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from uml_core.errors import InputError
from uml_core.files.atomic import LOCAL, write_whole


@dataclass(frozen=True)
class SyntheticSummary:
    directory: Path
    experiment: Path
    name: str
    target_rows: dict[str, int]  # per split
    auxiliary_rows: int

    def __str__(self) -> str:
        rows = ", ".join(f"{count} {split}" for split, count in self.target_rows.items())
        return (
            f"{self.name} (synthetic): target rows {rows}; {self.auxiliary_rows} auxiliary rows\n"
            f"Experiment: {self.experiment}"
        )


def stream(seed: int, number: int) -> np.random.Generator:
    """Return one of a seed's independent streams: what is drawn from one leaves the others alone."""
    return np.random.default_rng([seed % 2**32, number])


def check_settings(counts: Mapping[str, int], scales: Mapping[str, float]) -> None:
    """Raise InputError where a count is below 1, or a scale is negative or not finite."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; expected a whole number of at least 1")
    for name, scale in scales.items():
        if not (np.isfinite(scale) and scale >= 0):
            raise InputError(f"{name} is {scale}; expected a finite number of at least 0")


def row_ids(corpus: str, count: int) -> list[str]:
    """Return an id for every row that says it is synthetic."""
    width = len(str(count))
    return [f"synthetic-{corpus}-{index:0{width}d}" for index in range(count)]


def write_rows(file: Path, columns: Mapping[str, Any]) -> None:
    """Write columns as Parquet; a file that holds them already keeps its time, by which the store knows it."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    content = sink.getvalue().to_pybytes()
    if file.is_file() and file.read_bytes() == content:
        return
    write_whole(LOCAL, str(file), content)


def write_experiment(directory: Path, settings: Mapping[str, Any], header: str) -> Path:
    """Write experiment.yaml under a line of comment; returns the file."""
    file = directory / "experiment.yaml"
    file.write_text(f"# {header}\n" + yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    return file


def command(
    module: str,
    arguments: Sequence[str] | None,
    write: Callable[..., SyntheticSummary],
    *,
    forms: tuple[str, str],
    help: str,
) -> int:
    """Write one form of a synthetic experiment from the command line; `write` is told whether it is the first form."""
    name = f"uml_core.corpora.examples.{module}"
    output = f"runs/{module.replace('_', '-')}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description="Write synthetic corpora with a known answer. "
        f"Example: python -m {name} --output {output} --form {forms[0]}",
    )
    parser.add_argument("--output", type=Path, required=True, help="the form's folder is made inside this one")
    parser.add_argument("--form", choices=forms, required=True, help=help)
    parser.add_argument("--seed", type=int, default=0, help="draws everything (default 0)")
    options = parser.parse_args(arguments)
    try:
        print(write(options.output / options.form, shared=options.form == forms[0], seed=options.seed))
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
