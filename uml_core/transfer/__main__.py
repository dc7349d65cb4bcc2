"""The table of a weight transfer, before any training: python -m uml_core.transfer EXPERIMENT.yaml [key=value ...]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from uml_core.config import load_experiment
from uml_core.errors import InputError
from uml_core.transfer.start import transfer_plan


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m uml_core.transfer",
        description="Print which tensors of a text model start which of ours, and which do not. "
        "Example: python -m uml_core.transfer examples/paper/weight_transfer.yaml",
    )
    parser.add_argument("experiment", help="experiment file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that override the file")
    options = parser.parse_args(arguments)
    try:
        plan = transfer_plan(load_experiment(options.experiment, options.overrides))
        if plan is None:
            raise InputError("the experiment has no model.transfer; give one: model.transfer.source=DIR")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(plan.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
