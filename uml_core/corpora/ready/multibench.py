"""MultiBench's published pickles: MOSI, MOSEI, MUStARD, UR-FUNNY and MIMIC, one array of a file as one corpus.

In: `mosi_data.pkl`, `mosei_senti_data.pkl`, `sarcasm.pkl`, `humor.pkl` ({split: {vision, audio, text, labels, id}}), or
`im.pk` ({ep_tdata, adm_features_final, y_icd9}). Out: labelled sequences with their splits. Vision and text of one
file are two corpora, and nothing says which rows belong together.

Label rules (docs/method.md, Self-supervised): MOSI and MOSEI are positive where the sentiment is >= 0; MUStARD and
UR-FUNNY count -1 as 0; MIMIC is task 7 of y_icd9. Splits are MultiBench's own, test apart from validation, MIMIC's
drawn by its seed.

Shape legend: N rows, T tokens of a sequence, D width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from uml_core.corpora.readers.base import CorpusSource
from uml_core.corpora.rows import Row
from uml_core.errors import InputError, listing
from uml_core.files.paths import STORAGE_ERRORS, one_line, open_bytes
from uml_core.files.safe_pickle import load_arrays

AFFECT_SPLITS = {"train": "train", "valid": "val", "test": "test"}
MIMIC_TASK = 7  # the ICD-9 group the paper predicts
MIMIC_SEED = 10  # MultiBench's: a tenth of the shuffled rows is validation, the next tenth test
MIMIC_FIELDS = {"series": "ep_tdata", "static": "adm_features_final"}

Tokens = npt.NDArray[np.float32]  # (T, D)


def read_multibench(source: CorpusSource) -> Iterator[tuple[Row, Tokens, bool]]:
    """Yield the rows of one array of a file with their tokens; a row that cannot be used carries its fault.

    Values that are NaN or infinite become 0, as in MultiBench; the zeros it pads with are cut off at both ends.

    Raises:
        InputError: the file is missing, is no pickle of arrays, or lacks an array the dataset has.
    """
    source.kind()
    try:
        with open_bytes(source.location) as file:
            tree = load_arrays(file)
    except STORAGE_ERRORS as error:
        raise InputError(f"{source.setting} {source.location} is not a pickle of arrays: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise InputError(
            f"{source.setting} {source.location} holds a {type(tree).__name__}; MultiBench's files hold a dict"
        )
    yield from (_mimic if source.corpus.dataset == "mimic" else _affect)(source, tree)


def _affect(source: CorpusSource, tree: Mapping[str, Any]) -> Iterator[tuple[Row, Tokens, bool]]:
    """Yield the rows of the affect files; rows without any text are left out in all arrays, as in MultiBench."""
    field = str(source.corpus.field)
    for name, split in AFFECT_SPLITS.items():
        part = _array(source, tree, name)
        values, text, labels = (_array(source, part, key) for key in (field, "text", "labels"))
        if not len(values) == len(text) == len(labels):
            raise InputError(
                f"{source.setting} {source.location}: split {name} has {len(values)} rows of {field}, {len(text)} of "
                f"text and {len(labels)} labels; expected as many of each"
            )
        for index in range(len(values)):
            row_id, tokens = f"{name}-{index}", _tokens(values[index])
            label, fault = affect_label(str(source.corpus.dataset), float(np.ravel(labels[index])[0]))
            if not np.any(np.asarray(text[index], dtype=np.float64)):
                fault = "no text: MultiBench leaves the row out"
            elif not len(tokens):
                fault = f"no {field}: every value is 0"
            yield Row(row_id, label, split, fault=fault), tokens, False


def affect_label(dataset: str, value: float) -> tuple[str | None, str | None]:
    if dataset in ("mosi", "mosei"):
        return (None, "label is NaN") if np.isnan(value) else ("positive" if value >= 0 else "negative", None)
    if value in (-1, 0, 1):
        return str(int(max(value, 0))), None
    return None, f"label {value} is none of -1, 0, 1"


def _mimic(source: CorpusSource, tree: Mapping[str, Any]) -> Iterator[tuple[Row, Tokens, bool]]:
    """Yield admissions: their 5 static features as one token, or 24 hours of 12 measurements."""
    values = _array(source, tree, MIMIC_FIELDS[str(source.corpus.field)])
    codes = _array(source, tree, "y_icd9")
    order = list(range(len(values)))
    random.Random(MIMIC_SEED).shuffle(order)
    tenth, fifth = len(order) // 10, len(order) // 5
    for position, index in enumerate(order):
        split = "val" if position < tenth else "test" if position < fifth else "train"
        # Neither end is cut: a value of 0 is a measurement here, not padding.
        tokens = _finite(np.atleast_2d(np.asarray(values[index])))
        yield Row(f"admission-{index}", str(int(codes[index][MIMIC_TASK])), split), tokens, False


def _array(source: CorpusSource, tree: Any, key: str) -> Any:
    if not isinstance(tree, dict) or key not in tree:
        found = listing(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise InputError(
            f"{source.setting} {source.location} has no '{key}' (it has {found}), which {source.corpus.dataset} has; "
            "check dataset and field"
        )
    return tree[key]


def _tokens(values: Any) -> Tokens:
    """One row as (T, D), without the zeros before and after it."""
    tokens_TD = _finite(np.asarray(values))
    used = np.flatnonzero(tokens_TD.any(axis=1))
    return tokens_TD[used[0] : used[-1] + 1] if len(used) else tokens_TD[:0]


def _finite(values: npt.NDArray[Any]) -> Tokens:
    with np.errstate(over="ignore", invalid="ignore"):
        tokens: Tokens = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return tokens
