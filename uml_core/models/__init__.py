"""Shared-weight models: projections into one width, and a head that every corpus goes through.

What needs torch is imported when it is asked for: the heads in closed form do without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uml_core.models.shared_head import SharedHeadModel, build_model, folded_target_head

__all__ = ["SharedHeadModel", "build_model", "folded_target_head"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from uml_core.models import shared_head

    return getattr(shared_head, name)
