"""Shared-weight models: projections into one width, and a head that every corpus goes through."""

from uml_core.models.shared_head import SharedHeadModel, build_model, folded_target_head

__all__ = ["SharedHeadModel", "build_model", "folded_target_head"]
