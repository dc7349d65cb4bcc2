"""Which names of one set of classes are also names of another, however they are spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable


def same_names(names: Iterable[str], classes: Iterable[str]) -> tuple[str, ...]:
    """The names, sorted, that are a class's but for case, spaces and punctuation."""
    known = {_bare(name) for name in classes}
    return tuple(sorted(name for name in names if _bare(name) in known))


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
