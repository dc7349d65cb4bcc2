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

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from uml_core.analysis.neurons import (
    MIN_PAIRS,
    SIGNIFICANCE,
    PairedActivations,
    UnitCorrelations,
    partial_correlations,
    unit_correlations,
)
from uml_core.analysis.shared_space import AnalysisResult, Floats, MatchedRows, TrainedRun
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
from uml_core.models.shared_head import SharedHeadModel, build_model

NUM_TOP_UNITS, NUM_INPUTS = 4, 4
NUM_UNTRAINED = 20  # a single untrained network's largest r moves by a tenth from seed to seed
MAX_PAIRS = 1000  # more true pairs than this are sampled: every shuffle reads them all
LAYERS = ("shared", "logits")
Shown = Sequence[tuple[object, str]]  # a row as a thumbnail or words, and its class


def explain_neurons(run: TrainedRun) -> AnalysisResult:
    """Test every unit of every shared layer between the target and each auxiliary corpus."""
    metrics: dict[str, float] = {}
    tables: dict[str, str] = {}
    figures: list[ReportFigure] = []
    summary: list[str] = []
    untrained = untrained_models(run)
    for corpus in run.experiment.auxiliaries:
        rows = run.matched(corpus, at_most=MAX_PAIRS)
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


def paired_activations(
    run: TrainedRun, model: SharedHeadModel, layer: str, corpus: str, rows: MatchedRows
) -> PairedActivations | None:
    """A layer's activations on both sides of the pairs, and the words of sentences; None for too few pairs."""
    activations: list[Floats] = []
    lengths: list[Floats | None] = []
    for name, side in ((run.data.target, rows.target), (corpus, rows.other)):
        activations.append(rows.by_pair(_activations(run, model, layer, name, side), side))
        words = run.raw[name].words(side.rows) if name in run.raw else None
        lengths.append(None if words is None else rows.by_pair(words[:, None], side)[:, 0])
    if len(activations[0]) < MIN_PAIRS:
        return None
    (first_NU, second_NU), labels = activations, None if rows.by_class else rows.target.labels
    return PairedActivations(first_NU, second_NU, labels, *lengths)


def _activations(run: TrainedRun, model: SharedHeadModel, layer: str, corpus: str, rows: LabelledRows) -> Floats:
    """The rows in the shared space (N, H), or the shared head's outputs (N, C) without the corpora's scales."""
    shared_NH = run.embeddings(corpus, rows, model=model)
    return shared_NH if layer == "shared" else shared_NH @ run.head(corpus, model=model).T


def unit_table(found: UnitCorrelations, classes: tuple[str, ...]) -> str:
    """Every unit as CSV, the largest partial correlation first."""
    columns = {
        "r": found.r,
        "partial_r": found.partial_r,
        "p": found.p_value,
        "q_bh": found.q_value,
        "p_holm": found.holm_p,
        **{f"r within {classes[label] if label >= 0 else '(no class)'}": r_U for label, r_U in found.per_label.items()},
    }
    table = pd.DataFrame(columns).sort_values("partial_r", ascending=False, kind="stable")
    return str(table.to_csv(index_label="unit", float_format="%.6g"))


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


def _line(corpus: str, layer: str, rows: MatchedRows, found: UnitCorrelations, baseline_MU: Floats) -> str:
    return (
        f"neurons, {corpus}, {layer} layer: {len(found.beyond(baseline_MU))} of {len(found.r)} units respond alike "
        f"beyond any unit of {len(baseline_MU)} untrained networks (r without confounds up to "
        f"{found.partial_r.max():.2f}, untrained up to {baseline_MU.max():.2f}), over {found.num_pairs} {rows.words}; "
        f"beyond chance alone {len(found.found)} (false discovery rate 5 %), "
        f"{int((found.holm_p < SIGNIFICANCE).sum())} after Holm"
    )


def _picture(run: TrainedRun, corpus: str, rows: MatchedRows, found: UnitCorrelations) -> ReportFigure:
    """Draw the units of the largest partial correlation with what excites them most on either side."""
    target = run.data.target
    units = np.argsort(-found.partial_r, kind="stable")[:NUM_TOP_UNITS].tolist()
    exciting = []  # of the target, and of the corpus, each by unit
    for name, side in ((target, rows.target), (corpus, rows.other)):
        activation_NU = _activations(run, run.model, "shared", name, side)
        exciting.append([_exciting(run, name, side, activation_NU[:, unit]) for unit in units])
    titles = [
        f"unit {unit}: r {found.r[unit]:.2f}, without confounds {found.partial_r[unit]:.2f}, "
        f"q {found.q_value[unit]:.3g}"
        for unit in units
    ]
    caption = (
        f"The {len(units)} units of the shared space with the largest correlation without confounds, over "
        f"{found.num_pairs} {rows.words}: the {NUM_INPUTS} rows of {target} (left) and {corpus} (right) that excite "
        "each of them most. A q above 0.05 may be chance."
    )
    figure = top_units(titles, zip(*exciting, strict=True), names=(target, corpus))
    return drawn(f"neurons_{corpus}_inputs", figure, caption=caption, alternative="; ".join(titles))


def _exciting(run: TrainedRun, corpus: str, rows: LabelledRows, activation_N: Floats) -> Shown:
    """The rows with the largest activation, rows of one content once."""
    shown: list[tuple[object, str]] = []
    raw = run.raw.get(corpus)
    for row in np.argsort(-activation_N, kind="stable"):
        label = int(rows.labels[row])
        name = run.data.classes[label] if label >= 0 else "no class"
        content: object = f"row {rows.rows[row]}" if raw is None else raw.show(int(rows.rows[row]))
        if isinstance(content, str) and (content, name) in shown:
            continue
        shown.append((content, name))
        if len(shown) == NUM_INPUTS:
            break
    return shown


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


def top_units(titles: Sequence[str], exciting: Iterable[tuple[Shown, ...]], *, names: tuple[str, str]) -> Figure:
    """Draw one band a unit: what excites it in the first modality on the left, in the second on the right."""
    with house_style(**{"axes.grid": False}):
        figure = canvas(1.35 * len(titles) + 0.3)
        bands = figure.subfigures(len(titles), 1, squeeze=False)[:, 0]
        for band, title, sides in zip(bands, titles, exciting, strict=True):
            band.suptitle(title, fontsize=9, x=0.01, ha="left")
            for half, inputs in zip(band.subfigures(1, 2), sides, strict=True):
                _half(half, inputs)
        first, second = (printable(name) for name in names)
        figure.supxlabel(f"left: rows of {first}; right: rows of {second}", fontsize=9)
    return figure


def _half(half: Any, inputs: Shown) -> None:
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
