"""What `evaluate` is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence

from uml_core.errors import InputError


def check_flags(
    runs: Sequence[str],
    against: Sequence[str],
    analyses: Sequence[str],
    pairs_file: str | None,
    plane_classes: tuple[str, str] | None,
) -> None:
    """Raise InputError for flags that do not go together; no runs stand for the one that is found."""
    for flag, value, analysis in (("pairs", pairs_file, "neurons"), ("classes", plane_classes, "decision_plane")):
        if value is not None and analysis not in analyses:
            raise InputError(f"--{flag} is for analysis {analysis}, which is not asked for; add --analyses {analysis}")
    count = len(runs) or 1
    if against and len(against) != count:
        raise InputError(f"--run has {count} runs and --against {len(against)}; give as many, paired in their order")
