"""Will it help? Before any training, from the store alone: what each auxiliary corpus is worth to the target.

In: an experiment whose corpora are embedded. Out: a table with a word per auxiliary corpus (helps, neutral, harms, not
enough evidence), a line with such a word per bridge and unlabelled pile, and how far the corpora repeat each other.
Nothing is logged; no Ray is started; test rows are not looked at.

    python -m pipelines.advise examples/demo.yaml data.shots=1

Of the target's labelled rows it draws the shots, `--draws` times, and judges by the others. Bridges and piles take part
as in the head. `gain` is that of the head whose prior the corpus writes over the best of ridge, a linear discriminant,
logistic regression, the pile alone and the untrained zero-shot head. What a person does not need stands in the JSON:
`worth`, the gain over the same head without the corpus; `takes_part`, the share of draws in which its true class names
beat permuted ones; `trivial_gain`, what would be predicted without looking; `redundancy` of two corpora. How often the
word was right: docs/measured.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Any

import numpy as np

from pipelines.command_line import Summary
from pipelines.progress import StepProgress
from pipelines.stores import store_tables
from pipelines.timings import timed
from uml_core.analysis.relevance import (
    NEUTRAL_SHARE,
    Addition,
    Draw,
    Evidence,
    Relevance,
    addition,
    labelled_pool,
    redrawn,
    redundancy,
    relevance,
)
from uml_core.config import Experiment
from uml_core.data.training_data import TrainingData, build_training_data
from uml_core.errors import InputError
from uml_core.sweeps.space import related_auxiliaries

logger = logging.getLogger(__name__)

SAME = 0.9  # redundancy of two corpora
LEGEND = f"""\
gain     points of accuracy with the corpus, above the best model without it, on labelled rows that were left out
helps    a gain of a point or more, and the interval lies above 0
neutral  no gain of a point (said without a look, 'neutral' was right of {100 * NEUTRAL_SHARE:.0f} % in our calibration)
harms    a point or more below the same model without it"""


@timed("measure")
def run(experiment: Experiment, num_draws: int = 10) -> Summary:
    """Judge every auxiliary corpus under its own control and say what is likely.

    Raises InputError where there is no auxiliary corpus, one is not embedded, or the target has fewer than two classes.
    """
    related = related_auxiliaries(experiment)  # refuses an experiment without any
    with StepProgress("reading embeddings") as shown:
        draws = _draws(experiment, num_draws, shown)
        beside = (*experiment.bridges, *draws[0].data.unlabelled)
        shown.counts("judging corpora", len(experiment.auxiliaries) + len(beside), unit="corpora")
        found, added = list[Relevance](), list[Addition]()
        for corpus in experiment.auxiliaries:
            found.append(relevance(draws, corpus))
            shown.adds()
        for name in beside:
            added.append(addition(draws, name, related))
            shown.adds()
        pairs = {
            (one, other): redundancy(draws[0].data, one, other)
            for one, other in itertools.combinations(experiment.auxiliaries, 2)
        }
    return Summary(_text(experiment, found, added, pairs, draws), _results(experiment, found, added, pairs))


def _draws(experiment: Experiment, num_draws: int, shown: StepProgress) -> list[Draw]:
    """The target alone in every draw; one draw where the seed changes nothing."""
    if experiment.objective != "supervised":
        raise InputError(
            "advise predicts gains of objective supervised; for self_supervised run tune --space self_supervised"
        )
    tables, shots = store_tables(experiment), experiment.data.shots
    first = build_training_data(experiment, tables)
    for line in first.warnings():
        logger.warning("%s", line)
    pool = labelled_pool(build_training_data(experiment.override({"data.shots": None}), tables))
    draws: list[Draw] = []
    start = experiment.data.split_seed
    shown.counts("judging the target alone", num_draws, unit="draws")
    for seed in range(start, start + num_draws):
        data = build_training_data(experiment.override({"data.split_seed": seed}), tables)
        if shots is not None:
            data = redrawn(data, pool, shots=shots, seed=seed)
        if draws and _same_rows(data, draws[0].data):
            break
        draws.append(Draw.from_data(data, normalize=experiment.model.normalize))
        shown.adds()
    return draws


def _same_rows(one: TrainingData, other: TrainingData) -> bool:
    pairs = ((one.labelled, other.labelled), (one.val, other.val))
    return all(np.array_equal(left.rows, right.rows) for left, right in pairs)


def _text(
    experiment: Experiment,
    found: list[Relevance],
    added: list[Addition],
    pairs: dict[tuple[str, str], float | None],
    draws: list[Draw],
) -> str:
    count = experiment.data.shots
    shots = "all shots" if count is None else f"{count} {'shot' if count == 1 else 'shots'} a class"
    drawn = "1 draw" if len(draws) == 1 else f"{len(draws)} draws"
    width = max(len("corpus"), *(len(each.corpus) for each in found))
    lines = [
        f"{experiment.target}: {found[0].num_classes} classes, {shots}, {drawn}; the best without other corpora, "
        f"{found[0].alone[0].replace('_', '-')}, has {100 * found[0].alone[1]:.1f} % of the rows left out",
        f"{'corpus':<{width}}  {'verdict':<19}  {'gain (95 % interval)':<22}  why",
    ]
    lines += [
        f"{each.corpus:<{width}}  {each.verdict[0]:<19}  {_points(each):<22}  {each.verdict[1]}{_lacking(each)}"
        for each in found
    ]
    for each in found:
        if each.zero_shot_first:
            lines.append(
                f"{each.corpus} lies in the target's space: try zero-shot first, it has "
                f"{100 * each.accuracies['zero_shot']:.1f} % untrained (tune --space controls has the arm)"
            )
    lines += [_line(each) for each in added]
    data = draws[0].data
    without_rows = len(set(range(len(data.classes))) - set(data.labelled.labels.tolist()))
    if without_rows:
        lines.append(
            f"{without_rows} of the classes have no labelled row: what corpora or a bridge are worth there, such rows "
            "cannot tell (tune --space controls measures it where test has rows of them)"
        )
    lines += [
        f"{left} and {right} tell the classes apart in the same way: one of them may do"
        for (left, right), value in pairs.items()
        if value is not None and value >= SAME
    ]
    lines.append(LEGEND)
    lines.append(
        "A prediction, not a measurement: python -m pipelines.tune EXPERIMENT.yaml --space controls measures the gain."
    )
    return "\n".join(lines)


def _line(each: Addition) -> str:
    what = f"unlabelled pile, {each.rows} rows"
    if each.kind == "bridge":
        what = f"bridge, {each.classes} classes, {each.overlap} of them named as the target's"
    numbers = f"gain {_points(each)}, {100 * each.worth.mean:+.1f} over the same head without it"
    told = "".join(f"; {reason}" for reason in each.reasons)
    used = f"takes part in {100 * each.takes_part:.0f} % of draws"
    return f"{each.corpus} ({what})  {each.verdict[0]}: {each.verdict[1]}; {numbers}; {used}{told}"


def _points(each: Evidence) -> str:
    return f"{100 * each.gain.mean:+.1f} ({100 * each.gain.low:+.1f} to {100 * each.gain.high:+.1f})"


def _lacking(each: Relevance) -> str:
    """How many classes of the target it has, where it lacks some."""
    lacks = each.covered_classes < each.num_classes
    return f" (it has {each.covered_classes} of {each.num_classes} classes)" if lacks else ""


def _results(
    experiment: Experiment,
    found: list[Relevance],
    added: list[Addition],
    pairs: dict[tuple[str, str], float | None],
) -> dict[str, Any]:
    def judged(each: Evidence) -> dict[str, Any]:
        return {"verdict": each.verdict[0], "why": each.verdict[1], **dataclasses.asdict(each)}

    return {
        "target": experiment.target,
        "shots": experiment.data.shots,
        "baseline": found[0].alone[1],
        "corpora": {
            each.corpus: judged(each) | {"zero_shot_first": each.zero_shot_first, "trivial_gain": each.trivial_gain}
            for each in found
        },
        "bridges": {each.corpus: judged(each) for each in added if each.kind == "bridge"},
        "piles": {each.corpus: judged(each) for each in added if each.kind == "pile"},
        "redundancy": {f"{one}+{other}": value for (one, other), value in pairs.items()},
    }
