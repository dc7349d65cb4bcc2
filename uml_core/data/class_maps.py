"""A user's table from the class names of a shifted test set to those of the target (evaluation.class_maps)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pydantic import TypeAdapter

from uml_core.errors import InputError, listing, nearest
from uml_core.files.paths import STORAGE_ERRORS, one_line, open_bytes


def read_class_map(path: str, split: str, classes: Sequence[str]) -> dict[str, str]:
    """The class of the target for each class of the shifted set that the file names.

    Raises:
        InputError: the file cannot be read, is neither form, or names a class that the target lacks.
    """
    setting = f"evaluation.class_maps.{split} is {path}"
    try:
        with open_bytes(path) as file:
            text = file.read().decode("utf-8-sig")
    except (*STORAGE_ERRORS, UnicodeDecodeError) as error:
        raise InputError(f"{setting}, which cannot be read: {one_line(error)}") from None
    try:
        if path.endswith(".json"):
            pairs = TypeAdapter(dict[str, str]).validate_json(text)
        else:
            pairs = dict([cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if row)
    except ValueError:
        pairs = {}
    if not pairs:
        raise InputError(f"{setting}; expected a JSON object {{theirs: ours}}, or a CSV file with two columns")
    known = set(classes)
    for theirs, ours in pairs.items():
        if ours not in known:
            raise InputError(
                f"{setting}, which maps '{theirs}' to '{ours}', no class of the target{nearest(ours, classes)}; "
                f"its classes are {listing(classes)}"
            )
    return pairs
