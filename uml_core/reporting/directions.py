"""One table of every direction: each corpus as the target in turn, with every subset of the others beside it.

In: the newest sweep of space modalities for each target. Out: one row an arm and condition, one cell a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uml_core.figures.words import percent, points
from uml_core.reporting.collect import MODALITIES, Condition, SweepResults
from uml_core.reporting.space_rows import SubsetRow, subset_rows
from uml_core.reporting.tables import ArmRow


@dataclass(frozen=True)
class DirectionRow:
    """What takes part beside a target, and how each target does with it; None where the target is among it."""

    corpora: tuple[str, ...]
    initialised: bool
    condition: Condition
    cells: tuple[ArmRow | None, ...]

    @property
    def words(self) -> str:
        """What takes part, for the row's head."""
        beside = " + ".join(self.corpora) or "the target alone"
        return f"{beside}, head from class means" if self.initialised else beside


@dataclass(frozen=True)
class Directions:
    """The table: its targets (columns) and rows."""

    targets: tuple[str, ...]
    rows: tuple[DirectionRow, ...]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that rows are of."""
        return tuple(dict.fromkeys(row.condition for row in self.rows))

    def lines(self) -> list[str]:
        """Return the table as text: test accuracy in percent, and the paired difference to the target alone."""
        many = len(self.conditions) > 1
        heads = [f"{row.words}{' ' + row.condition.words if many else ''}" for row in self.rows]
        width = max(map(len, [*heads, "beside the target"]))
        columns = max(22, *(len(target) + 2 for target in self.targets))
        lines = ["beside the target".ljust(width) + "".join(target.rjust(columns) for target in self.targets)]
        for head, row in zip(heads, self.rows, strict=True):
            lines.append(head.ljust(width) + "".join(_cell(cell).rjust(columns) for cell in row.cells))
        return lines

    def as_json(self) -> list[dict[str, object]]:
        """Return the rows as JSON values."""
        return [
            {
                "target": target,
                "beside": list(row.corpora),
                "head_init": row.initialised,
                "shots": row.condition.shots,
                "test_accuracy": cell.test.mean,
                "seeds": cell.test.count,
                **({} if cell.difference is None else {"difference": cell.difference.mean}),
            }
            for row in self.rows
            for target, cell in zip(self.targets, row.cells, strict=True)
            if cell is not None and cell.test is not None
        ]


def directions_of(sweeps: Sequence[SweepResults]) -> Directions | None:
    """Return the table over all sweeps of space modalities; None where there is but one target."""
    by_target = {sweep.target: sweep for sweep in sweeps if sweep.space == MODALITIES}
    if len(by_target) < 2:
        return None
    cells: dict[tuple[tuple[str, ...], bool, Condition], dict[str, SubsetRow]] = {}
    for target, sweep in by_target.items():
        for row in subset_rows(sweep):
            key = tuple(sorted(row.corpora)), row.initialised, row.result.condition
            cells.setdefault(key, {})[target] = row
    targets = tuple(sorted(by_target))
    ordered = sorted(cells, key=lambda key: (key[2].shots is None, key[2].shots or 0, len(key[0]), key[0], key[1]))
    rows = [
        DirectionRow(*key, tuple(found.result if (found := cells[key].get(target)) else None for target in targets))
        for key in ordered
    ]
    return Directions(targets, tuple(rows))


def _cell(row: ArmRow | None) -> str:
    if row is None or row.test is None:
        return "–"
    difference = "" if row.difference is None else f" ({points(row.difference.mean)})"
    return f"{percent(row.test.mean)}{difference}"
