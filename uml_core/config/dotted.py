"""Nested settings by dotted keys, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def set_dotted(tree: dict[Any, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        child = tree.get(section)
        if not isinstance(child, dict):
            child = tree[section] = {}
        tree = child
    tree[leaf] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys; empty mappings are left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def hash_of(value: Any) -> str:
    """12 hex digits over the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
