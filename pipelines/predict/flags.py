"""What `predict` is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from pipelines.places import check_no_password, written_place
from uml_core.config import EmbedConfig
from uml_core.errors import InputError

MAX_REJECTED = EmbedConfig().max_rejected


def output_place(given: str) -> str:
    """Where predictions are to lie, absolute. Raises InputError for what is no Parquet file, or goes with its job."""
    if not given.partition("?")[0].endswith(".parquet"):
        raise InputError(f"--output is {given}; give a file, a path or URI, that ends in .parquet")
    place = written_place("--output", given)
    check_no_password("--output", place)
    return place


def share_of(given: str | float) -> float:
    """The share of inputs that may be unreadable. Raises InputError for what is none."""
    try:
        share = float(given)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InputError(f"--max-rejected is {given}; give a number from 0 to 1")
    return share


def count_of(given: str | int) -> int:
    """A number of classes; 0 stands for all of them. Raises InputError for what is no number."""
    if given != "all" and not str(given).isdecimal():
        raise InputError(f"--top is {given}; give a number of classes, or all")
    return 0 if given == "all" else int(given)
