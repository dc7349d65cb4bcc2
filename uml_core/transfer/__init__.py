"""Weight transfer: transformer blocks that start from a text model's (docs/method.md, Analyses)."""

from uml_core.transfer.start import Frozen, load_backbone, start_blocks, transfer_plan, without_gradients
from uml_core.transfer.trunks import own_trunk, vit_trunk

__all__ = [
    "Frozen",
    "load_backbone",
    "own_trunk",
    "start_blocks",
    "transfer_plan",
    "vit_trunk",
    "without_gradients",
]
