"""True pairs, for evaluation only: a table of ids that belong together, as rows of the corpora's tables.

In: a file with one column a corpus (its name) and one pair a row. Out: row numbers of each corpus, pair by pair.
Training never reads it: that corpora are unpaired there is an invariant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from uml_core.errors import InputError, listing, nearest

READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
}


def read_pairs(file: str, ids: Mapping[str, Sequence[str]], *, target: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return each corpus's table rows (P,), pair by pair.

    Args:
        file: .csv, .jsonl or .parquet with the column of the target and at least one other corpus; values are ids.
        ids: every corpus's ids in the order of its table.
        target: the target corpus.

    Raises:
        InputError: the file is missing or unreadable, a column is no corpus, or an id is unknown.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--pairs is {file}, which does not exist; give a table of ids, one column a corpus")
    if path.suffix not in READERS:
        raise InputError(f"--pairs is {file}; a table of pairs ends in {listing(READERS)}")
    try:
        table = READERS[path.suffix](path)
    except (ValueError, OSError) as error:
        raise InputError(f"--pairs {file} cannot be read: {' '.join(str(error).split())[:200]}") from None
    columns = [str(column) for column in table.columns]
    unknown = [column for column in columns if column not in ids]
    if unknown or target not in columns or len(columns) < 2:
        hint = nearest(unknown[0], ids) if unknown else ""
        raise InputError(
            f"--pairs {file} has columns {listing(columns)}; expected the target '{target}' and at least one other "
            f"corpus of {listing(ids)}{hint}"
        )
    return {column: _rows(file, column, table[column], ids[column]) for column in columns}


def _rows(file: str, corpus: str, values: Any, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    position = {row_id: index for index, row_id in enumerate(ids)}
    given = [str(value) for value in values]
    missing = [value for value in given if value not in position]
    if missing:
        raise InputError(
            f"--pairs {file}: {len(missing)} ids are not in the store of corpus {corpus}, first '{missing[0]}'"
            f"{nearest(missing[0], list(ids)[:1000])}; its ids look like '{ids[0]}'"
        )
    return np.array([position[value] for value in given], dtype=np.int64)
