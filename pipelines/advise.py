"""Will it help? Before any training, from the store alone: which auxiliary corpora are likely to help the target.

In: an experiment whose corpora are embedded. Out: a table with a verdict word per auxiliary corpus, and how far the
corpora repeat each other. Nothing is logged; no Ray is started; test rows are not looked at.

    python -m pipelines.advise examples/demo.yaml data.shots=1

It reads train and validation rows as `tune` would draw them, `--draws` times, from data.split_seed on. The columns:
predicted gain of text-initialised UML, in points, with its interval over validation rows; `permuted`, the same with the
auxiliary classes permuted, and p; `CKA` and `map`, alignment and linear predictability of class means, less permuted;
`k-NN`, their mutual neighbours, less chance; `nats`, information about a class mean beyond the shots.
How often the verdict was right: docs/measured.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.command_line import Summary, experiment_parser, step_main
from pipelines.stores import store_tables
from uml_core.analysis.relevance import Draw, Relevance, redundancy, relevance
from uml_core.config import Experiment
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.sweeps.space import related_auxiliaries

logger = logging.getLogger(__name__)

DRAWS = 10


def main(argv: list[str] | None = None) -> int:
    parser = experiment_parser("advise", description="Estimate, before any training, which corpora are likely to help.")
    parser.add_argument("--draws", type=_count, default=DRAWS, help=f"draws of shots and validation (default {DRAWS})")
    return step_main(parser, lambda experiment, arguments: run(experiment, arguments.draws), argv)


def run(experiment: Experiment, num_draws: int = DRAWS) -> Summary:
    """Measure every auxiliary corpus under its own control and say what is likely.

    Raises InputError where there is no auxiliary corpus, one is not embedded, or the target has fewer than two classes.
    """
    related_auxiliaries(experiment)  # refuses an experiment without any
    draws = _draws(experiment, num_draws)
    found = [
        relevance(draws, corpus)
        for corpus in tqdm(experiment.auxiliaries, desc="advise", unit="corpus", disable=None, file=sys.stderr)
    ]
    pairs = {
        (one, other): redundancy(draws[0].data, one, other)
        for one, other in itertools.combinations(experiment.auxiliaries, 2)
    }
    return Summary(_text(experiment, found, pairs, len(draws)), _results(experiment, found, pairs))


def _draws(experiment: Experiment, num_draws: int) -> list[Draw]:
    """The target alone under consecutive split seeds; one draw where the seed changes nothing."""
    if experiment.objective != "supervised":
        raise InputError(
            "advise predicts gains of objective supervised; for self_supervised run tune --space self_supervised"
        )
    tables = store_tables(experiment)
    first = experiment.data.split_seed
    draws: list[Draw] = []
    for seed in tqdm(range(first, first + num_draws), desc="target alone", unit="draw", disable=None, file=sys.stderr):
        data = build_training_data(experiment.override({"data.split_seed": seed}), tables)
        if not draws:
            if len(data.classes) < 2:
                raise InputError(
                    f"corpora.{experiment.target} has one class ({data.classes[0]}) in its train split; "
                    "telling classes apart needs at least two"
                )
            for line in data.warnings():
                logger.warning("%s", line)
        elif _same_rows(data, draws[0].data):
            break
        draws.append(Draw.from_data(data))
    return draws


def _same_rows(one: TrainingData, other: TrainingData) -> bool:
    pairs = ((one.train[one.target], other.train[other.target]), (one.val, other.val))
    return all(np.array_equal(left.rows, right.rows) for left, right in pairs)


def _text(
    experiment: Experiment, found: list[Relevance], pairs: dict[tuple[str, str], float | None], num_draws: int
) -> str:
    count = experiment.data.shots
    shots = "all shots" if count is None else f"{count} {'shot' if count == 1 else 'shots'} a class"
    drawn = "1 draw" if num_draws == 1 else f"{num_draws} draws"
    one = found[0]
    width = max(len("corpus"), *(len(each.corpus) for each in found))
    lines = [
        f"{experiment.target}: {one.num_classes} classes, {shots}, {drawn}; "
        f"the target alone {100 * one.gain.baseline:.1f} % on validation (ridge regression)",
        f"{'corpus':<{width}}  classes  predicted gain (95 %)  permuted      p    CKA    map   k-NN   nats  verdict",
    ]
    lines += [f"{each.corpus:<{width}}  {_numbers(each)}  {each.verdict[0]}: {each.verdict[1]}" for each in found]
    for (left, right), value in pairs.items():
        lines.append(f"{left} and {right}: redundancy {_shown(value)} (0 independent, 1 the same about the classes)")
    lines.append(
        "A prediction, not a measurement: python -m pipelines.tune EXPERIMENT.yaml --space controls measures the gain."
    )
    if experiment.model.head_init == "random":
        lines.append(
            "model.head_init is random: the predicted gain is that of zero_shot, started from the corpus of each row."
        )
    if not all(each.same_width for each in found):
        lines.append(
            "Experimental where widths differ: on real data such corpora gained too seldom to check (docs/measured.md)."
        )
    return "\n".join(lines)


def _numbers(each: Relevance) -> str:
    gain = each.gain
    interval = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    aligned = "–" if each.alignment is None else f"{each.alignment.excess:+.2f}"
    mapped = "–" if each.agreement is None else f"{each.agreement.excess:+.2f}"
    return (
        f"{f'{each.covered_classes}/{each.num_classes}':>7}  {interval:>21}  {100 * gain.test.null:>+8.1f}  "
        f"{gain.test.p_value:.3f}  {aligned:>5}  {mapped:>5}  {_shown(each.neighbours):>5}  "
        f"{_shown(each.information_gain):>5}"
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _results(
    experiment: Experiment, found: list[Relevance], pairs: dict[tuple[str, str], float | None]
) -> dict[str, Any]:
    return {
        "target": experiment.target,
        "shots": experiment.data.shots,
        "baseline": found[0].gain.baseline,
        "corpora": {
            each.corpus: {"verdict": each.verdict[0], "why": each.verdict[1], **dataclasses.asdict(each)}
            for each in found
        },
        "redundancy": {f"{one}+{other}": value for (one, other), value in pairs.items()},
    }


def _count(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
