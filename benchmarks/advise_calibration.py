"""Does `pipelines.advise` predict what training then measures? Over cases that help, do nothing, and harm.

    python -m benchmarks.advise_calibration examples/demo.yaml examples/tuxpaint/experiment.yaml --output runs/advise

The experiment files must be embedded; without any, only the built-in cases run. Short trainings over 8 paired seeds in
this process, one thread: about 12 s a case, kept in DIR/gains.jsonl, so that a second call only scores again. Prints
Markdown tables for docs/measured.md and draws DIR/calibration.png. A "gain" is a paired 95 % interval above 0.

No number in the prediction is fitted to these cases, but it was chosen among the measures of the first table with part
of them in sight. The intervals resample whole targets, because cases of one target depend on each other.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks.advise_cases import Case, all_cases
from benchmarks.advise_gains import MeasuredCase, measure_gains
from benchmarks.figures import machine
from pipelines.advise import DRAWS
from pipelines.command_line import absolute_places
from uml_core.analysis.relevance import Draw, Relevance, relevance
from uml_core.config import load_experiment
from uml_core.data.training_data import build_training_data
from uml_core.evaluation.statistics import PairedDifference

SEEDS = 8
RESAMPLES = 1000
WORDS = ("likely", "unclear", "unlikely")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
MEASURES: dict[str, Callable[[Relevance], float]] = {
    "predicted gain (the verdict's score)": lambda found: found.gain.mean,
    "predicted gain less permuted": lambda found: found.gain.test.excess,
    "class-mean CKA less permuted": lambda found: found.alignment.excess if found.alignment else math.nan,
    "left-out class means explained, less permuted": lambda found: (
        found.agreement.excess if found.agreement else math.nan
    ),
    "mutual k-NN of class means, less chance": lambda found: _or_nan(found.neighbours),
    "information gain": lambda found: _or_nan(found.information_gain),
}


@dataclass(frozen=True)
class Scored:
    """A case with what was predicted from its store and what training measured."""

    case: Case
    found: Relevance
    gain: PairedDifference  # uml_init against unimodal
    cotraining: PairedDifference  # uml (random head) against unimodal

    @property
    def group(self) -> str:
        """What is resampled as a whole."""
        return f"{self.case.dataset}/{self.case.target}"


def main() -> None:
    """Measure, score, print and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.advise_calibration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT.yaml", help="embedded experiments")
    parser.add_argument("--output", type=Path, default=Path("runs/advise-calibration"), metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are small: more threads are slower
    arguments.output.mkdir(parents=True, exist_ok=True)
    cases = all_cases([absolute_places(load_experiment(file)) for file in arguments.experiments])
    measured = measure_gains(cases, arguments.output / "gains.jsonl", num_seeds=SEEDS)
    scored = [score(case) for case in tqdm(measured, desc="predict", unit="case")]
    draw(scored).savefig(arguments.output / "calibration.png", dpi=150)
    print(f"\n{machine()}\n")
    print("\n".join([*quality_table(scored), "", *verdict_table(scored), "", *case_table(scored)]))
    print(json.dumps({"cases": len(scored), **quality(scored, MEASURES["predicted gain (the verdict's score)"])}))


def score(measured: MeasuredCase) -> Scored:
    """Predict a case as `pipelines.advise` does."""
    case = measured.case
    experiments = [case.experiment.override({"data.split_seed": seed}) for seed in range(DRAWS)]
    draws = [Draw.of(build_training_data(experiment, case.tables)) for experiment in experiments]
    return Scored(case, relevance(draws, "auxiliary"), measured.gain("uml_init"), measured.gain("uml"))


def quality(scored: Sequence[Scored], measure: Callable[[Relevance], float]) -> dict[str, float]:
    """Return Spearman's ρ with the measured gain and the ROC AUC for gain or not, with 95 % cluster bootstraps."""
    scores = np.array([measure(each.found) for each in scored])
    gains = np.array([each.gain.mean for each in scored])
    positive = np.array([each.gain.above_zero for each in scored])
    if len(set(positive.tolist())) < 2:  # all gained or none did: nothing to rank
        return dict.fromkeys(("rho", "rho_low", "rho_high", "auc", "auc_low", "auc_high"), math.nan)
    groups = np.array([each.group for each in scored])
    rng = np.random.default_rng(0)
    names = np.unique(groups)
    resampled = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([np.flatnonzero(groups == name) for name in rng.choice(names, len(names))])
        if 0 < positive[rows].sum() < len(rows):
            resampled.append((spearmanr(scores[rows], gains[rows])[0], roc_auc_score(positive[rows], scores[rows])))
    low, high = np.nanquantile(np.array(resampled), [0.025, 0.975], axis=0)
    return {
        "rho": float(spearmanr(scores, gains)[0]),
        "rho_low": float(low[0]),
        "rho_high": float(high[0]),
        "auc": float(roc_auc_score(positive, scores)),
        "auc_low": float(low[1]),
        "auc_high": float(high[1]),
    }


def quality_table(scored: Sequence[Scored]) -> list[str]:
    """Return how well each measure ranks the cases with at least 4 classes: all, real data, and projected real data."""
    measurable = [each for each in scored if each.found.alignment is not None]
    real = [each for each in measurable if each.case.dataset != "synthetic"]
    projected = [each for each in real if not each.found.same_width]
    columns = {"all": measurable, "real data": real, "real data, different widths": projected}
    headings = [
        f"{name}: {len(each)} cases, {sum(one.gain.above_zero for one in each)} gains" for name, each in columns.items()
    ]
    lines = [f"| measure | {' | '.join(headings)} |", f"|---|{'---|' * len(columns)}"]
    for name, measure in MEASURES.items():
        cells = []
        for chosen in columns.values():
            found = quality(chosen, measure)
            cells.append(
                f"ρ {found['rho']:.2f} [{found['rho_low']:.2f}, {found['rho_high']:.2f}], "
                f"AUC {found['auc']:.2f} [{found['auc_low']:.2f}, {found['auc_high']:.2f}]"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def verdict_table(scored: Sequence[Scored]) -> list[str]:
    """Return what training measured under each verdict word, and the AUC with each dataset left out."""
    lines = ["| verdict | cases | gain | no difference | harm | mean measured gain |", "|---|--:|--:|--:|--:|--:|"]
    for word in WORDS:
        chosen = [each for each in scored if each.found.verdict[0] == word]
        up, down = (sum(getattr(each.gain, side) for each in chosen) for side in ("above_zero", "below_zero"))
        mean = f"{100 * np.mean([each.gain.mean for each in chosen]):+.1f}" if chosen else "–"
        lines.append(f"| {word} | {len(chosen)} | {up} | {len(chosen) - up - down} | {down} | {mean} |")
    aucs = []
    for dataset in sorted({each.case.dataset for each in scored}):
        rest = [each for each in scored if each.case.dataset != dataset]
        gained = [each.gain.above_zero for each in rest]
        if len(set(gained)) < 2:
            continue
        auc = roc_auc_score(gained, [each.found.gain.mean for each in rest])
        aucs.append(f"{dataset} {auc:.2f}")
    return [*lines, "", f"AUC of the predicted gain without one dataset: {', '.join(aucs)}."]


def case_table(scored: Sequence[Scored]) -> list[str]:
    """Return one row a case."""
    lines = [
        "| case (dataset/target/corpus/kind/shots) | predicted | verdict | text-initialised UML | UML, random head |",
        "|---|--:|---|--:|--:|",
    ]
    for each in scored:
        measured = " | ".join(
            f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            for gain in (each.gain, each.cotraining)
        )
        lines.append(f"| {each.case.name} | {100 * each.found.gain.mean:+.1f} | {each.found.verdict[0]} | {measured} |")
    return lines


def draw(scored: Sequence[Scored]) -> Figure:
    """Draw measured against predicted gain, a colour and marker per dataset; filled where the gain is significant."""
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for index, dataset in enumerate(sorted({each.case.dataset for each in scored})):
        chosen = [each for each in scored if each.case.dataset == dataset]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        predicted, measured = (
            100 * np.array(values)
            for values in ([each.found.gain.mean for each in chosen], [each.gain.mean for each in chosen])
        )
        fills = [colour if each.gain.above_zero or each.gain.below_zero else "none" for each in chosen]
        axis.scatter(predicted, measured, c=fills, edgecolors=colour, marker=marker, s=34, linewidths=1.1)
        axis.scatter([], [], c=colour, marker=marker, label=f"{dataset} ({len(chosen)})")
    limits = (-40.0, 60.0)
    axis.plot(limits, limits, color="#767676", linewidth=0.8, linestyle="--", label="as predicted")
    axis.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.set(xlabel="predicted gain (points)", ylabel=f"measured gain of text-initialised UML, {SEEDS} seeds (points)")
    axis.set_title("Predicted from the store, measured by training (hollow: not significant)", fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


if __name__ == "__main__":
    main()
