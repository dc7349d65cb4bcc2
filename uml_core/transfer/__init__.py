"""Weight transfer: transformer blocks that start from a text model's (docs/method.md, Analyses)."""

from uml_core.transfer.start import Frozen, load_backbone, start_blocks, transfer_plan, without_gradients

__all__ = ["Frozen", "load_backbone", "start_blocks", "transfer_plan", "without_gradients"]
