"""Libraries that take seconds to import, imported where something of them is first used.

A fingerprint, a missing store and a step that finds everything done need none of torch, timm and transformers.

    if TYPE_CHECKING:
        import torch
    else:
        torch = Lazy("torch")
"""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
