"""Where a run trains: device, rank and world size, and how ranks agree on a number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed


@dataclass(frozen=True)
class Place:
    """Where a run trains: its device, and which of how many ranks it is."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def cpu(cls) -> Place:
        """Return the place of a run that is only measured."""
        return cls(torch.device("cpu"))

    def of_rank_zero(self, *values: float) -> tuple[float, ...]:
        """Return rank 0's numbers on every rank: by clocks and rounding, ranks would not decide alike."""
        if self.world_size == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return tuple(shared.tolist())
