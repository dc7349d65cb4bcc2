"""What synthetic corpora share: independent random streams, files that stay as they are, and the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from uml_core.files.atomic import LOCAL, read_if_there, write_whole


def stream(seed: int, number: int) -> np.random.Generator:
    """One of a seed's independent streams: what is drawn from one leaves the others alone."""
    return np.random.default_rng([seed % 2**32, number])


def write_synthetic(
    folder: Path, name: str, corpora: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> Path:
    """Write one Parquet file a corpus and experiment.yaml, which is returned.

    A corpus that is there already keeps its file's time, by which the store knows it.

    Args:
        folder: for the files; the store will lie in it, too.
        name: of the experiment.
        corpora: the columns of each, with embeddings in `embedding` or tokens in `tokens`; ids are added.
        settings: of the experiment, besides names and places.
    """
    places = {}
    for corpus, columns in corpora.items():
        count = len(columns["split"])
        ids = [f"synthetic-{corpus}-{index:0{len(str(count))}d}" for index in range(count)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ids, **columns}), sink)
        file, content = folder / f"{corpus}.parquet", sink.getvalue().to_pybytes()
        if read_if_there(LOCAL, str(file)) != content:
            write_whole(LOCAL, str(file), content)
        kind = ("sequence", "tokens") if "tokens" in columns else ("vector", "embeddings")
        places[corpus] = {"modality": kind[0], "format": kind[1], "path": file.as_posix()}
    tree = {"name": name, "store": (folder / "store").as_posix(), "target": "target", "corpora": places, **settings}
    experiment = folder / "experiment.yaml"
    header = f"# SYNTHETIC known-answer experiment ({name}): no real data.\n"
    experiment.write_text(header + yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return experiment


def command(
    module: str, write: Callable[..., Path], forms: tuple[str, str], help: str, arguments: Sequence[str] | None = None
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
        experiment = write(options.output / options.form, shared=options.form == forms[0], seed=options.seed)
    except OSError as error:
        print(f"error: --output {options.output} cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    print(f"synthetic experiment: {experiment}")
    return 0
