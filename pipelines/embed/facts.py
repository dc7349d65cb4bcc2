"""What an embedding run says of each corpus: where the workers' seconds went, the manifest's entries, the summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uml_core.errors import InputError
from uml_core.store.parts import PartFooter

STAGES = ("read", "decode", "encode", "write")


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    head = f"{'corpus':<16}{'rows':>9}{'rejected':>10}{'rows/s':>9}" + "".join(f"{stage:>8}" for stage in STAGES)
    lines = [head]
    for corpus, facts in results.items():
        line = f"{corpus:<16}{facts['rows']:>9}{facts['rejected_rows']:>10}{facts['rows_per_s']:>9.0f}"
        line += "".join(f"{100 * facts['stage_share'][stage]:>6.0f} %" for stage in STAGES)
        state = "up to date" if facts["up_to_date"] else f"{facts['wall_s']:.1f} s"
        changes = [f"{facts[name]} {name}" for name in ("new", "changed", "removed") if facts.get(name)]
        lines.append(f"{line}  {', '.join([state, *changes])}")
    return "\n".join(lines)


def facts_of(manifest: Mapping[str, Any], *, up_to_date: bool) -> dict[str, Any]:
    names = (
        *("fingerprint", "dim", "rows", "rejected_rows", "rows_per_split", "rows_per_s", "steady_rows_per_s"),
        *("wall_s", "first_part_s", "stage_s", "stage_share", "encoded_rows", "repeated_inputs", "batch_size"),
        *("new", "changed", "removed"),
    )
    return {**{name: manifest[name] for name in names if name in manifest}, "up_to_date": up_to_date}


def check_rejected(progress: EmbedProgress, parts: Sequence[PartFooter]) -> None:
    """Refuse a corpus with too many unreadable rows; its parts stay, so that a raised limit costs nothing."""
    progress.total = sum(len(part.keys) for part in parts)
    rejected = [row for part in parts for row in part.rejected]
    if rejected:
        progress.check(len(rejected), f"{rejected[0].id}: {rejected[0].reason}")


@dataclass
class EmbedProgress:
    """What the parts of this run amount to so far, and where the workers' seconds went: a bottleneck is to be seen."""

    corpus: str
    total: int  # rows of the corpus
    max_rejected: float  # share of them
    started_at: float = field(default_factory=time.time)  # at the latest: a part may have been begun before
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
        self.started_at = min(self.started_at, float(part["started_at"]))
        self.first_of[str(part["actor"])] = min(done_at, self.first_of.get(str(part["actor"]), done_at))
        self.encoded += int(part["encoded"])
        self.batch_size = int(part["batch_size"])
        self.rejected += int(part["rejected"])
        self.check(self.rejected, str(part["first_reject"]))

    @property
    def rows(self) -> int:
        """Rows done so far."""
        return sum(rows for _, rows in self.finished)

    def check(self, rejected: int, first: str) -> None:
        """Raise InputError where more rows are unreadable than may be."""
        if rejected > self.max_rejected * self.total:
            raise InputError(
                f"corpora.{self.corpus}: {rejected} of {self.total} rows cannot be read ({rejected / self.total:.1%}; "
                f"embed.max_rejected is {self.max_rejected:.0%}); first {first}; mend them, or raise the limit (what "
                "is embedded stays)"
            )

    def facts(self) -> dict[str, Any]:
        """The manifest's entries. The steady rate starts when every actor has finished its first part."""
        ordered = sorted(self.finished)
        ready_at = max(self.first_of.values(), default=ordered[0][0] if ordered else 0.0)
        later_rows = sum(rows for done_at, rows in ordered if done_at > ready_at)
        steady_s = ordered[-1][0] - ready_at if later_rows else 0.0
        first_part_s = ordered[0][0] - self.started_at if ordered else 0.0
        wall_s, total_s = time.time() - min(self.started_at, time.time()), sum(self.stage_s.values())
        return {
            "wall_s": round(wall_s, 3),
            "rows_per_s": round(self.rows / wall_s, 2) if wall_s else 0.0,
            "steady_rows_per_s": round(later_rows / steady_s, 2) if steady_s else None,
            "first_part_s": round(first_part_s, 3),
            "stage_s": {stage: round(self.stage_s[stage], 3) for stage in STAGES},
            "stage_share": {stage: round(self.stage_s[stage] / total_s, 4) if total_s else 0.0 for stage in STAGES},
            "encoded_rows": self.encoded,
            "repeated_inputs": self.rows - self.rejected - self.encoded,
            "batch_size": self.batch_size,
        }
