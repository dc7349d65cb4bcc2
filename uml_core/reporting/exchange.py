"""The exchange rate of a sweep over target shots × auxiliary amounts: numbers, words and figure, from MLflow alone.

In: a `SweepResults` whose arms are amounts of auxiliary rows. Out: an `ExchangeSection` for the page, and
lines for a step's summary.
Amounts are the rows per class that trials really had, not those asked for: a small corpus may have had fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from uml_core.analysis.exchange_rate import AMOUNTS, ExchangeRate, exchange_rate, is_grid
from uml_core.figures.drawing import BLACK, ReportFigure, drawn, house_style, printable, stacked_panels
from uml_core.reporting.collect import SweepResults, is_selected, seed_of

MIN_SEEDS = 5  # with fewer the bootstrap has too few resamples to be trusted


@dataclass(frozen=True)
class ExchangeSection:
    """What the page says of a sweep's exchange rate."""

    lines: tuple[str, ...]
    rate: ExchangeRate
    mean_words: float  # of an auxiliary row; NaN where the auxiliary corpora are not all sentences
    figure: ReportFigure
    metrics: dict[str, float]

    @property
    def has_words(self) -> bool:
        """Whether amounts can be given in words."""
        return not math.isnan(self.mean_words)

    def as_json(self) -> dict[str, float | None]:
        """The numbers as JSON values; what is infinite or unknown is null."""
        return {
            name.rpartition("/")[2]: value if math.isfinite(value) else None for name, value in self.metrics.items()
        }


def exchange_section(sweep: SweepResults) -> ExchangeSection | None:
    """The exchange rate of a sweep; None where its arms are no amounts, or too few trials make up a grid."""
    data = exchange_data(sweep) if sweep.design.has_exchange_rate else None
    if data is None or not is_grid(data):
        return None
    counts = [sweep.parent.metrics.get(f"data/mean_words/{corpus}", math.nan) for corpus in sweep.auxiliaries]
    rate, mean_words = exchange_rate(data), float(np.mean(counts or [math.nan]))
    lines = _lines(sweep, rate, mean_words)
    corpora = _corpora(sweep)
    caption = (
        f"Lines of equal test accuracy of the fitted surface over rows per class of {corpora} (across) and "
        f"{sweep.target} (up), on logarithmic scales; points are measured means over seeds, in percent. Along a line, "
        "the two kinds of data are exchanged at equal accuracy; where lines run upright, the target's rows do nothing, "
        "where they lie flat, the auxiliary rows do nothing."
    )
    figure = iso_accuracy(data, rate, names=(sweep.target or "the target", corpora))
    figure_files = drawn("exchange_rate_iso_accuracy", figure, caption=caption, alternative=" ".join(lines))
    return ExchangeSection(lines, rate, mean_words, figure_files, _metrics(rate, mean_words))


def exchange_data(sweep: SweepResults) -> pd.DataFrame:
    """The selected trials of a sweep: rows per class that took part, test accuracy, seed."""
    found = []
    for trial in sweep.trials:
        classes = trial.metrics.get("data/classes", 0.0)
        if not is_selected(trial) or "test/accuracy" not in trial.metrics or not classes:
            continue
        if sweep.design.arm(trial.arm).facts.auxiliary_rows is None:  # a control, or a probe
            continue
        target = trial.metrics[f"data/train_rows/{sweep.target}"] / classes
        auxiliary = sum(
            trial.metrics.get(f"data/train_rows/{corpus}", 0.0) / classes
            for corpus in sweep.auxiliaries
            if float(trial.params.get(f"mixing.loss_weight.{corpus}", "1.0")) > 0
        )
        found.append((target, auxiliary, trial.metrics["test/accuracy"], seed_of(trial)))
    return pd.DataFrame(found, columns=[*AMOUNTS, "accuracy", "seed"])


def iso_accuracy(data: pd.DataFrame, rate: ExchangeRate, *, names: tuple[str, str]) -> Figure:
    """Lines of equal accuracy of the surface, and the measured means, in percent."""
    target, auxiliary = names
    across, up = (np.log2(1 + np.unique(data[name])) for name in reversed(AMOUNTS))
    fine_across, fine_up = (np.linspace(ends.min(), ends.max(), 80) for ends in (across, up))
    grid_across, grid_up = np.meshgrid(fine_across, fine_up)
    fitted = 100 * rate.surface.accuracy(2**grid_up - 1, 2**grid_across - 1)
    with house_style():
        figure, (axis,) = stacked_panels([3.6])
        if np.ptp(fitted) > 0:
            lines = axis.contour(grid_across, grid_up, fitted, levels=7, cmap="cividis", linewidths=1.8)
            axis.clabel(lines, fmt="%g %%", fontsize=8)
        for point in rate.local.itertuples():
            position = (math.log2(1 + point.auxiliary_rows), math.log2(1 + point.target_rows))
            axis.plot(*position, marker="o", color=BLACK, markersize=4, zorder=4)
            axis.annotate(
                f"{100 * point.accuracy:.1f}",
                position,
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )
        for ends, set_ticks, set_limits in (
            (across, axis.set_xticks, axis.set_xlim),
            (up, axis.set_yticks, axis.set_ylim),
        ):
            set_ticks(list(ends), [f"{2**end - 1:.3g}" for end in ends])
            margin = 0.09 * np.ptp(ends)
            set_limits(ends.min() - margin, ends.max() + margin)
        axis.set_xlabel(f"rows per class of {printable(auxiliary, limit=40)} (count)")
        axis.set_ylabel(f"rows per class of {printable(target)} (count)")
        axis.set_title("Test accuracy (%): measured, and equal by the fit", fontsize=9.5)
    return figure


def _lines(sweep: SweepResults, rate: ExchangeRate, mean_words: float) -> tuple[str, ...]:
    """What a person should read, the number first and what limits it after it."""
    corpora = _corpora(sweep)
    plane = rate.plane
    seeds = f"{rate.num_seeds} seed{'' if rate.num_seeds == 1 else 's'}"
    words = "" if math.isnan(mean_words) else f", or {_amount(plane.rate * mean_words)} words"
    worth = f"{_amount(plane.rate)} rows of {corpora}{words}"
    if math.isinf(plane.rate):
        first = (
            f"No exchange rate: over the grid, more rows of {corpora} do not raise test accuracy on {sweep.target} "
            f"({100 * plane.auxiliary_slope:+.2f} points per row a class, {seeds}{_at_least(rate)})."
        )
    elif math.isinf(rate.high):
        first = (
            f"No reliable exchange rate: one more row of {sweep.target} per class would be worth {worth}, but some "
            f"resamples of the {seeds} show no effect of auxiliary rows at all{_at_least(rate)}."
        )
    else:
        interval = "" if math.isnan(rate.low) else f", 95 % interval {_amount(rate.low)} to {_amount(rate.high)}"
        first = f"Exchange rate: one more row of {sweep.target} per class is worth {worth} ({seeds}{interval})."
    lines = [first]
    if rate.out_of_grid and not math.isinf(plane.rate):
        lines.append(
            f"Out of the grid: that is more than the {_amount(rate.auxiliary_span)} rows per class the grid spans, so "
            "it is extrapolated, not measured."
        )
    lines.append(
        f"Fit: the plane explains {_share(plane.r_squared)} of the variance of the grid's means, the monotone surface "
        f"{_share(rate.surface.r_squared)}; read the local rates where the plane's share is low. The interval covers "
        "chance over seeds, not a fit that is wrong."
    )
    if rate.falls:
        worst = rate.falls[0]
        lines.append(
            f"More is not always better: at {_amount(worst.target_rows)} rows of {sweep.target} per class, going from "
            f"{_amount(worst.fewer)} to {_amount(worst.more)} rows of {corpora} changes test accuracy by "
            f"{100 * worst.change:+.1f} points; {len(rate.falls)} of the grid's steps fall reliably. Both fits rise "
            "everywhere and smooth over such steps."
        )
    if 1 < rate.num_seeds < MIN_SEEDS:
        lines.append(f"With {seeds} the interval is too narrow; run at least {MIN_SEEDS} (tune.seeds={MIN_SEEDS}).")
    return tuple(lines)


def _corpora(sweep: SweepResults) -> str:
    return " and ".join(sweep.auxiliaries) or "the auxiliary data"


def _metrics(rate: ExchangeRate, mean_words: float) -> dict[str, float]:
    values = {
        "rate": rate.plane.rate,
        "rate_low": rate.low,
        "rate_high": rate.high,
        "rate_words": rate.plane.rate * mean_words,
        "target_slope": rate.plane.target_slope,
        "auxiliary_slope": rate.plane.auxiliary_slope,
        "plane_r_squared": rate.plane.r_squared,
        "surface_r_squared": rate.surface.r_squared,
        "out_of_grid": float(rate.out_of_grid),
    }
    return {f"analysis/exchange_rate/{name}": value for name, value in values.items()}


def _at_least(rate: ExchangeRate) -> str:
    """Say where an interval without upper end begins, if it does."""
    if math.isnan(rate.low) or math.isinf(rate.low):
        return ""
    return f"; the 95 % interval of the rate begins at {_amount(rate.low)} rows"


def _amount(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"
