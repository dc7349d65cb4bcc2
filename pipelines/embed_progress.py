"""Progress of an embedding run: rows, rejects, and where the workers' seconds went, so that the bottleneck is seen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uml_core.errors import InputError

STAGES = ("read", "decode", "encode", "write")


@dataclass
class EmbedProgress:
    """What the parts of this run amount to so far: rows, rejects, and where the seconds went."""

    max_rejects: float
    corpus: str = ""
    started_at: float = field(default_factory=time.time)
    rejected: int = 0
    encoded: int = 0
    batch_size: int = 0
    stage_s: Counter[str] = field(default_factory=Counter)
    finished: list[tuple[float, int]] = field(default_factory=list)  # when a part was done, and its rows

    def add(self, part: Mapping[str, Any]) -> None:
        """Take in what EncodePart says of a part. Raises InputError as soon as too many rows are unreadable."""
        self.stage_s.update({stage: float(part[f"{stage}_s"]) for stage in STAGES})
        self.finished.append((float(part["finished_at"]), int(part["rows"])))
        self.encoded += int(part["encoded"])
        self.batch_size = int(part["batch_size"])
        self.rejected += int(part["rejected"])
        if self.rejected > self.max_rejects:
            raise InputError(
                f"corpora.{self.corpus}: {self.rejected} rows cannot be read already, past embed.max_rejected, so the "
                f"step stops; last {part['first_reject']}; mend them, or raise the limit (what is done is kept)"
            )

    def facts(self) -> dict[str, Any]:
        """Return the manifest's entries. The steady rate leaves out everything up to the first finished part."""
        ordered = sorted(self.finished)
        rows, later_rows = sum(rows for _, rows in ordered), sum(rows for _, rows in ordered[1:])
        steady_s = ordered[-1][0] - ordered[0][0] if later_rows else 0.0
        first_part_s = ordered[0][0] - self.started_at if ordered else 0.0
        wall_s = time.time() - self.started_at
        return {
            "wall_s": round(wall_s, 3),
            "rows_per_s": round(rows / wall_s, 2) if wall_s else 0.0,
            "steady_rows_per_s": round(later_rows / steady_s, 2) if steady_s else None,
            "first_part_s": round(first_part_s, 3),
            "stage_s": {stage: round(self.stage_s[stage], 3) for stage in STAGES},
            "stage_share": shares(self.stage_s),
            "encoded_rows": self.encoded,
            "repeated_inputs": rows - self.rejected - self.encoded,
            "batch_size": self.batch_size,
        }


def shares(stage_s: Mapping[str, float]) -> dict[str, float]:
    """Return each stage's share of all worker seconds, in [0, 1]."""
    total = sum(stage_s.values())
    return {stage: round(stage_s[stage] / total, 4) if total else 0.0 for stage in STAGES}
