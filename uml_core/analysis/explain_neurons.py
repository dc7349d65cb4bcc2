"""A trained run's multimodal neurons: which shared units respond alike to both modalities, and to what.

Two layers are shared. `shared`: the coordinates of the shared space, where both modalities must speak one language
before the head reads them. `logits`: the outputs of the shared head; supervision itself asks those to agree, so they
are the weaker evidence. A later shared trunk is one more layer here.

True pairs are for evaluation only and come from the user. Without them, class means stand in for pairs: the target's
held-out rows of a class against the corpus's rows of it. That measures agreement about classes, not about single
inputs, which the summary says.

Shape legend: N pairs, U units, M untrained networks, H shared width, C classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from uml_core.analysis.neurons import (
    MIN_PAIRS,
    SIGNIFICANCE,
    PairedActivations,
    UnitCorrelations,
    partial_correlations,
    unit_correlations,
)
from uml_core.analysis.shared_space import AnalysisResult, Codes, Floats, TrainedRun, class_means
from uml_core.data.labelled_rows import LabelledRows
from uml_core.figures.drawing import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    ReportFigure,
    canvas,
    drawn,
    house_style,
    printable,
    stacked_panels,
)
from uml_core.models import SharedHeadModel, build_model

NUM_TOP_UNITS, NUM_INPUTS = 4, 4
NUM_UNTRAINED = 20  # a single untrained network's largest r moves by a tenth from seed to seed
MAX_PAIRS = 1000  # more true pairs than this are sampled: every shuffle reads them all


@dataclass(frozen=True)
class PairRows:
    """Rows of the target and of another corpus, and how they form pairs: row by row, or by class means."""

    target: LabelledRows
    other: LabelledRows
    by_class: bool
    given: int = 0  # true pairs before sampling

    @property
    def words(self) -> str:
        """For a sentence."""
        if self.by_class:
            return "class-mean pairs (no true pairs were given)"
        return "true pairs" + (f" drawn by lot from {self.given}" if self.given > len(self.target) else "")


def shared_layer(model: SharedHeadModel, run: TrainedRun, corpus: str, rows: LabelledRows) -> Floats:
    return run.embeddings(corpus, rows, model=model)


def logits_layer(model: SharedHeadModel, run: TrainedRun, corpus: str, rows: LabelledRows) -> Floats:
    """The shared head's outputs (N, C), without the corpora's scales."""
    logits_NC: Floats = run.embeddings(corpus, rows, model=model) @ run.head(corpus, model=model).T
    return logits_NC


LAYERS: dict[str, Callable[[SharedHeadModel, TrainedRun, str, LabelledRows], Floats]] = {
    "shared": shared_layer,
    "logits": logits_layer,
}


def explain_neurons(run: TrainedRun) -> AnalysisResult:
    """Test every unit of every shared layer between the target and each auxiliary corpus."""
    metrics: dict[str, float] = {}
    tables: dict[str, str] = {}
    figures: list[ReportFigure] = []
    summary: list[str] = []
    untrained = untrained_models(run)
    for corpus in run.experiment.auxiliaries:
        rows = pair_rows(run, corpus)
        for layer in LAYERS:
            pairs = paired_activations(run, run.model, layer, corpus, rows)
            if pairs is None:
                summary.append(f"neurons, {corpus}: fewer than {MIN_PAIRS} {rows.words}, so no unit can be tested")
                break
            found = unit_correlations(pairs, seed=run.experiment.seed)
            baselines = [paired_activations(run, model, layer, corpus, rows) for model in untrained]
            baseline_MU = np.stack([partial_correlations(other) for other in baselines if other is not None])
            metrics.update(_metrics(f"analysis/neurons/{corpus}/{layer}", found, baseline_MU))
            tables[f"neurons_{corpus}_{layer}.csv"] = unit_table(found, run.data.classes)
            line = _line(corpus, layer, rows, found, baseline_MU)
            summary.append(line)
            histogram = correlation_histogram(found, baseline_MU, pairs=rows.words)
            figures.append(drawn(f"neurons_{corpus}_{layer}", histogram, caption=line, alternative=line))
            if layer == "shared":
                figures.append(_picture(run, corpus, rows, found))
    return AnalysisResult(metrics, tuple(figures), tables, tuple(summary))


def untrained_models(run: TrainedRun) -> list[SharedHeadModel]:
    """The run's model as it was initialised, and as further seeds would have initialised it."""
    seeds = [run.experiment.seed + index for index in range(NUM_UNTRAINED)]
    return [build_model(run.experiment.override({"seed": seed}), run.data) for seed in seeds]


def pair_rows(run: TrainedRun, corpus: str) -> PairRows:
    """The rows that form pairs of the target and a corpus: the user's, else all held-out and train rows."""
    target = run.data.target
    if run.pairs is None or corpus not in run.pairs:
        return PairRows(run.held_out, run.data.train[corpus], by_class=True)
    given = len(run.pairs[target])
    order = np.random.default_rng(run.experiment.seed).permutation(given)
    chosen = np.sort(order[:MAX_PAIRS])
    target_rows, other_rows = (_table_rows(run, name, run.pairs[name][chosen]) for name in (target, corpus))
    return PairRows(target_rows, other_rows, by_class=False, given=given)


def paired_activations(
    run: TrainedRun, model: SharedHeadModel, layer: str, corpus: str, rows: PairRows
) -> PairedActivations | None:
    """A layer's activations on both sides of the pairs, or None where there are too few pairs."""
    target = run.data.target
    first_NU = LAYERS[layer](model, run, target, rows.target)
    second_NU = LAYERS[layer](model, run, corpus, rows.other)
    first_length, second_length = _words(run, target, rows.target), _words(run, corpus, rows.other)
    if not rows.by_class:
        if len(first_NU) < MIN_PAIRS:
            return None
        return PairedActivations(first_NU, second_NU, rows.target.labels, first_length, second_length)
    num_classes = len(run.data.classes)
    first_CU = class_means(first_NU, rows.target.labels, num_classes)
    second_CU = class_means(second_NU, rows.other.labels, num_classes)
    both_C = np.isfinite(first_CU[:, 0]) & np.isfinite(second_CU[:, 0])
    if both_C.sum() < MIN_PAIRS:
        return None
    lengths = [
        None if length is None else class_means(length[:, None], labels, num_classes)[both_C, 0]
        for length, labels in ((first_length, rows.target.labels), (second_length, rows.other.labels))
    ]
    return PairedActivations(first_CU[both_C], second_CU[both_C], None, *lengths)


def unit_table(found: UnitCorrelations, classes: tuple[str, ...]) -> str:
    """Every unit as CSV, the largest partial correlation first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    labels = [classes[label] if 0 <= label < len(classes) else "(no class)" for label in found.per_label]
    writer.writerow(["unit", "r", "partial_r", "p", "q_bh", "p_holm", *(f"r within {label}" for label in labels)])
    for unit in np.argsort(-found.partial_r, kind="stable"):
        values = [found.r, found.partial_r, found.p_value, found.q_value, found.holm_p, *found.per_label.values()]
        writer.writerow([int(unit), *(f"{value[unit]:.6g}" for value in values)])
    return buffer.getvalue()


def _table_rows(run: TrainedRun, corpus: str, chosen: Codes) -> LabelledRows:
    """Rows of a corpus's table; one outside the run's splits has class −1."""
    everything = run.data.train[corpus]
    labels = np.full(len(everything.embeddings), -1, dtype=np.int64)
    known = [everything]
    if corpus == run.data.target:
        known += [*run.data.shifted.values(), run.data.val, *([run.data.test] if run.data.test is not None else [])]
    for rows in known:
        labels[rows.rows] = rows.labels
    return LabelledRows(everything.embeddings, chosen, labels[chosen])


def _words(run: TrainedRun, corpus: str, rows: LabelledRows) -> Floats | None:
    return run.raw[corpus].words(rows.rows) if corpus in run.raw else None


def _metrics(prefix: str, found: UnitCorrelations, baseline_MU: Floats) -> dict[str, float]:
    within = [float(r_U.max()) for r_U in found.per_label.values()]
    return {
        f"{prefix}/units": float(len(found.r)),
        f"{prefix}/pairs": float(found.num_pairs),
        f"{prefix}/max_r": float(found.r.max()),
        f"{prefix}/max_partial_r": float(found.partial_r.max()),
        f"{prefix}/untrained_max_partial_r": float(baseline_MU.max()),
        f"{prefix}/found_bh": float(len(found.found)),
        f"{prefix}/found_holm": float((found.holm_p < SIGNIFICANCE).sum()),
        f"{prefix}/found_beyond_untrained": float(len(found.beyond(baseline_MU))),
        **({f"{prefix}/max_r_within_label": max(within)} if within else {}),
    }


def _line(corpus: str, layer: str, rows: PairRows, found: UnitCorrelations, baseline_MU: Floats) -> str:
    return (
        f"neurons, {corpus}, {layer} layer: {len(found.beyond(baseline_MU))} of {len(found.r)} units respond alike "
        f"beyond any unit of {len(baseline_MU)} untrained networks (r without confounds up to "
        f"{found.partial_r.max():.2f}, untrained up to {baseline_MU.max():.2f}), over {found.num_pairs} {rows.words}; "
        f"beyond chance alone {len(found.found)} (false discovery rate 5 %), "
        f"{int((found.holm_p < SIGNIFICANCE).sum())} after Holm"
    )


def _picture(run: TrainedRun, corpus: str, rows: PairRows, found: UnitCorrelations) -> ReportFigure:
    """Draw the units of the largest partial correlation with what excites them most on either side."""
    target = run.data.target
    first_NU = LAYERS["shared"](run.model, run, target, rows.target)
    second_NU = LAYERS["shared"](run.model, run, corpus, rows.other)
    units = np.argsort(-found.partial_r, kind="stable")[:NUM_TOP_UNITS]
    inputs = [
        ExcitingInputs(
            title=f"unit {unit}: r {found.r[unit]:.2f}, without confounds {found.partial_r[unit]:.2f}, "
            f"q {found.q_value[unit]:.3g}",
            first=_exciting(run, target, rows.target, first_NU[:, unit]),
            second=_exciting(run, corpus, rows.other, second_NU[:, unit]),
        )
        for unit in (int(unit) for unit in units)
    ]
    caption = (
        f"The {len(inputs)} units of the shared space with the largest correlation without confounds, over "
        f"{found.num_pairs} {rows.words}: the {NUM_INPUTS} rows of {target} (left) and {corpus} (right) that excite "
        "each of them most. A q above 0.05 may be chance."
    )
    figure = top_units(inputs, names=(target, corpus))
    alternative = "; ".join(part.title for part in inputs)
    return drawn(f"neurons_{corpus}_inputs", figure, caption=caption, alternative=alternative)


def _exciting(run: TrainedRun, corpus: str, rows: LabelledRows, activation_N: Floats) -> list[tuple[object, str]]:
    """Return (what to show, class) of the rows with the largest activation, rows of one content once."""
    shown: list[tuple[object, str]] = []
    order: Codes = np.argsort(-activation_N, kind="stable")
    for row in order:
        label = int(rows.labels[row])
        name = run.data.classes[label] if label >= 0 else "no class"
        raw = run.raw.get(corpus)
        content: object = raw.show(int(rows.rows[row])) if raw is not None else f"row {rows.rows[row]}"
        if isinstance(content, str) and (content, name) in shown:
            continue
        shown.append((content, name))
        if len(shown) == NUM_INPUTS:
            break
    return shown


@dataclass(frozen=True)
class ExcitingInputs:
    """A unit in words, and what excites it in either modality: (thumbnail or text, class) pairs."""

    title: str
    first: Sequence[tuple[object, str]]
    second: Sequence[tuple[object, str]]


def correlation_histogram(found: UnitCorrelations, baseline_MU: Floats, *, pairs: str) -> Figure:
    """Draw the units' partial correlations beside those of untrained networks, with what chance reaches."""
    with house_style():
        figure, (axis,) = stacked_panels([2.8])
        low = min(-0.05, float(min(found.partial_r.min(), baseline_MU.min())))
        edges = np.linspace(low, 1.0, 41)
        axis.hist(found.partial_r, bins=list(edges), color=BLUE, alpha=0.8, label="trained")
        counts = np.histogram(baseline_MU, bins=edges)[0] / len(baseline_MU)
        axis.stairs(counts, edges, color=BLACK, linewidth=1.5, label=f"mean of {len(baseline_MU)} untrained")
        axis.axvline(float(baseline_MU.max()), color=GREY, linestyle="--", linewidth=1.5, label="untrained maximum")
        chance = float(np.quantile(found.null_maxima, 0.95))
        axis.axvline(chance, color=VERMILION, linestyle=":", linewidth=2, label="95 % of shuffles stay below")
        axis.set_xlim(low, 1.0)
        axis.set_xlabel(f"r without confounds (no unit), over {found.num_pairs}\n{pairs}")
        axis.set_ylabel("units (count)")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def top_units(units: Sequence[ExcitingInputs], *, names: tuple[str, str]) -> Figure:
    """Draw one band a unit: what excites it in the first modality on the left, in the second on the right."""
    with house_style(**{"axes.grid": False}):
        figure = canvas(1.35 * len(units) + 0.3)
        bands = figure.subfigures(len(units), 1, squeeze=False)[:, 0]
        for band, unit in zip(bands, units, strict=True):
            band.suptitle(unit.title, fontsize=9, x=0.01, ha="left")
            halves = band.subfigures(1, 2)
            for half, inputs in zip(halves, (unit.first, unit.second), strict=True):
                _half(half, inputs)
        first, second = (printable(name) for name in names)
        figure.supxlabel(f"left: rows of {first}; right: rows of {second}", fontsize=9)
    return figure


def _half(half: Any, inputs: Sequence[tuple[object, str]]) -> None:
    """Draw thumbnails side by side, or texts one below the other."""
    if any(isinstance(content, np.ndarray) for content, _ in inputs):
        for axis, (content, label) in zip(half.subplots(1, len(inputs), squeeze=False)[0], inputs, strict=True):
            if isinstance(content, np.ndarray):
                axis.imshow(content)
            axis.set_axis_off()
            axis.set_title(printable(label, limit=11), fontsize=5.5, loc="center", pad=2)
        return
    axis = half.subplots()
    axis.set_axis_off()
    for index, (content, label) in enumerate(inputs):
        height = 1 - (index + 0.5) / len(inputs)
        text = printable(str(content), limit=38)
        axis.text(0, height, f"{text}  [{printable(label, limit=14)}]", fontsize=6.5, va="center")
