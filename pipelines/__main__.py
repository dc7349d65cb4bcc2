"""The console command: `uml STEP ...` is `python -m pipelines.STEP ...`. Without a step it imports nothing heavy.

uml --help
uml embed pets.yaml
"""

from __future__ import annotations

import importlib
import sys

from pipelines import STEPS, step_module
from uml_core.errors import nearest


def main(argv: list[str] | None = None) -> int:
    """Run a step; the exit status is the step's, 2 where there is no such step."""
    step, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if step in ("-h", "--help"):
        print(usage())
        return 0
    if step not in STEPS:
        given = f"unknown step '{step}'{nearest(step, STEPS)}" if step else "no step is given"
        print(f"error: {given}; steps: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(step_module(step)).main(rest)
    return status


def usage() -> str:
    width = max(map(len, STEPS))
    lines = [f"  {step:<{width}}  {line}" for step, line in STEPS.items()]
    return "\n".join(["usage: uml STEP ...", "", *lines, "", "uml STEP --help says what a step takes."])


if __name__ == "__main__":
    raise SystemExit(main())
