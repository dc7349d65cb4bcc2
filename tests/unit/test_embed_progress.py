"""What an embedding run says of itself, by hand."""

from __future__ import annotations

import pytest

from pipelines.embed.facts import STAGES, EmbedProgress


def part(actor: str, finished_at: float, rows: int = 10) -> dict[str, object]:
    seconds = {f"{stage}_s": 0.5 for stage in STAGES}
    counts = {"rows": rows, "rejected": 0, "encoded": rows, "batch_size": 4, "first_reject": ""}
    return {"actor": actor, "started_at": finished_at, "finished_at": finished_at, **counts, **seconds}


def test_the_steady_rate_starts_when_every_actor_has_finished_a_part() -> None:
    progress = EmbedProgress("names", total=60, max_rejected=0.0, started_at=100.0)
    for actor, finished_at in (("a", 110.0), ("b", 112.0), ("a", 114.0), ("b", 116.0), ("a", 118.0), ("b", 120.0)):
        progress.add(part(actor, finished_at))
    facts = progress.facts()
    # Four parts of 10 rows between 112 and 120 s. Counting from 110 s would make 50 rows in 10 s of them: the second
    # actor's first part was done before.
    assert facts["steady_rows_per_s"] == pytest.approx(40 / 8)
    assert facts["first_part_s"] == pytest.approx(10.0)


def test_one_part_an_actor_has_no_steady_rate() -> None:
    progress = EmbedProgress("names", total=20, max_rejected=0.0, started_at=100.0)
    for actor, finished_at in (("b", 112.0), ("a", 110.0)):
        progress.add(part(actor, finished_at))
    assert progress.facts()["steady_rows_per_s"] is None
