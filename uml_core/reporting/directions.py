"""One table of every direction: each corpus as the target in turn, with every subset of the others beside it.

In: a sweep of space modalities for each target. Out: rows as JSON values, and the table as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uml_core.figures.words import percent, points
from uml_core.reporting.collect import Condition, SweepResults
from uml_core.reporting.space_rows import subset_rows


def table_rows(sweeps: Sequence[SweepResults]) -> list[dict[str, Any]]:
    """One row for every target and subset of the others, by shots and then by the size of the subset."""
    found = [
        (row.condition, sorted(row.facts.corpora or ()), sweep.target, row)
        for sweep in sweeps
        for row in subset_rows(sweep)
    ]
    found.sort(key=lambda each: (each[0].order, len(each[1]), each[1], each[3].facts.initialised, each[2]))
    return [
        {
            "target": target,
            "beside": beside,
            "head_init": row.facts.initialised,
            "shots": condition.shots,
            "test_accuracy": row.test.mean,
            "seeds": row.test.count,
            **({} if row.difference is None else {"difference": row.difference.mean}),
        }
        for condition, beside, target, row in found
        if row.test is not None
    ]


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as text: what takes part beside the target, and a column for each target."""
    targets = sorted({row["target"] for row in rows})
    many = len({row["shots"] for row in rows}) > 1
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        head = " + ".join(row["beside"]) or "the target alone"
        head += ", head from class means" if row["head_init"] else ""
        head += f" {Condition(row['shots']).words}" if many else ""
        difference = f" ({points(row['difference'])})" if "difference" in row else ""
        cells.setdefault(head, {})[row["target"]] = percent(row["test_accuracy"]) + difference
    width = max(map(len, [*cells, "beside the target"]))
    columns = max(22, *(len(target) + 2 for target in targets), 0)
    heading = "beside the target".ljust(width) + "".join(target.rjust(columns) for target in targets)
    body = [
        head.ljust(width) + "".join(row.get(target, "–").rjust(columns) for target in targets)
        for head, row in cells.items()
    ]
    return [heading, *body]
