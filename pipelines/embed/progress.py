"""Progress of an embedding run: rows, rejects, and where the workers' seconds went, so that the bottleneck is seen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from uml_core.errors import InputError

STAGES = ("read", "decode", "encode", "write")


@dataclass
class EmbedProgress:
    """What the parts of this run amount to so far."""

    corpus: str
    total: int  # rows of the corpus
    max_rejected: float  # share of them
    started_at: float = field(default_factory=time.time)
    rejected: int = 0
    encoded: int = 0
    batch_size: int = 0
    stage_s: Counter[str] = field(default_factory=Counter)
    finished: list[tuple[float, int]] = field(default_factory=list)  # when a part was done, and its rows
    first_of: dict[str, float] = field(default_factory=dict)  # when each actor was done with its first part

    def add(self, part: Mapping[str, Any]) -> None:
        """Take in what EncodePart says of a part. Raises InputError as soon as too many rows are unreadable."""
        self.stage_s.update({stage: float(part[f"{stage}_s"]) for stage in STAGES})
        done_at = float(part["finished_at"])
        self.finished.append((done_at, int(part["rows"])))
        self.first_of[str(part["actor"])] = min(done_at, self.first_of.get(str(part["actor"]), done_at))
        self.encoded += int(part["encoded"])
        self.batch_size = int(part["batch_size"])
        self.rejected += int(part["rejected"])
        if self.rejected > self.max_rejected * self.total:
            self.refuse(self.rejected, str(part["first_reject"]))

    def refuse(self, rejected: int, first: str) -> NoReturn:
        """End the step, before it reads rows for nothing."""
        raise InputError(
            f"corpora.{self.corpus}: {rejected} of {self.total} rows cannot be read ({rejected / self.total:.1%}; "
            f"embed.max_rejected is {self.max_rejected:.0%}); first {first}; mend them, or raise the limit (what is "
            "embedded stays)"
        )

    def facts(self) -> dict[str, Any]:
        """The manifest's entries. The steady rate starts when every actor has finished its first part."""
        ordered = sorted(self.finished)
        ready_at = max(self.first_of.values(), default=ordered[0][0] if ordered else 0.0)
        rows = sum(rows for _, rows in ordered)
        later_rows = sum(rows for done_at, rows in ordered if done_at > ready_at)
        steady_s = ordered[-1][0] - ready_at if later_rows else 0.0
        first_part_s = ordered[0][0] - self.started_at if ordered else 0.0
        wall_s, total_s = time.time() - self.started_at, sum(self.stage_s.values())
        return {
            "wall_s": round(wall_s, 3),
            "rows_per_s": round(rows / wall_s, 2) if wall_s else 0.0,
            "steady_rows_per_s": round(later_rows / steady_s, 2) if steady_s else None,
            "first_part_s": round(first_part_s, 3),
            "stage_s": {stage: round(self.stage_s[stage], 3) for stage in STAGES},
            "stage_share": {stage: round(self.stage_s[stage] / total_s, 4) if total_s else 0.0 for stage in STAGES},
            "encoded_rows": self.encoded,
            "repeated_inputs": rows - self.rejected - self.encoded,
            "batch_size": self.batch_size,
        }
