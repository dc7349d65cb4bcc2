"""Exchange rate: a planted plane is recovered, the surface never falls, extrapolation is flagged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sweep_records import parent_record, trial
from uml_core.analysis.exchange_rate import Surface, exchange_rate, fit_plane, fit_surface, is_grid
from uml_core.reporting.collect import collect_sweep
from uml_core.reporting.exchange import exchange_data, exchange_section
from uml_core.reporting.page import build_report
from uml_core.tracking.records import RunRecord

TARGET, AUXILIARY = (1.0, 2.0, 4.0, 8.0), (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


def grid(slope: float, auxiliary_slope: float, *, noise: float = 0.0, seeds: int = 8, draw: int = 0) -> pd.DataFrame:
    """Accuracies of a plane; a seed has its own level and every trial its own noise."""
    rng = np.random.default_rng(draw)
    x, y, seed = (axis.ravel() for axis in np.meshgrid(TARGET, AUXILIARY, np.arange(seeds), indexing="ij"))
    accuracy = 0.3 + slope * x + auxiliary_slope * y + noise * rng.normal(size=seeds)[seed.astype(int)]
    return trials_of(x, y, accuracy + noise * rng.normal(size=len(x)), seed.astype(np.int64))


def trials_of(x: np.ndarray, y: np.ndarray, accuracy: np.ndarray, seed: np.ndarray | int = 0) -> pd.DataFrame:
    return pd.DataFrame({"target_rows": x, "auxiliary_rows": y, "accuracy": accuracy, "seed": seed})


def test_a_planted_plane_without_noise_is_exact() -> None:
    found = exchange_rate(grid(0.02, 0.005))
    assert (found.plane.rate, found.low, found.high) == pytest.approx((4.0, 4.0, 4.0))
    assert found.plane.r_squared == pytest.approx(1.0)
    assert (found.plane.target_slope, found.plane.auxiliary_slope, found.plane.intercept) == pytest.approx(
        (0.02, 0.005, 0.3)
    )
    assert not found.out_of_grid


def test_the_interval_holds_the_planted_rate() -> None:
    """Eight seeds, trial noise of two points: percentile intervals of 95 % hold it in most of 20 draws."""
    intervals = [exchange_rate(grid(0.02, 0.005, noise=0.02, draw=draw)) for draw in range(20)]
    assert sum(found.low <= 4.0 <= found.high for found in intervals) >= 16
    assert np.median([found.plane.rate for found in intervals]) == pytest.approx(4.0, rel=0.1)
    assert all(found.low < found.plane.rate < found.high for found in intervals)


def test_a_rate_beyond_the_grid_is_flagged() -> None:
    beyond = exchange_rate(grid(0.02, 0.0005))
    assert beyond.plane.rate == pytest.approx(40.0)
    assert beyond.auxiliary_span == 16
    assert beyond.out_of_grid
    local = exchange_rate(grid(0.02, 0.005)).local
    assert local.out_of_grid[local.auxiliary_rows == 16].all(), "no more rows are left at the edge"


def test_useless_auxiliary_rows_have_no_rate() -> None:
    found = exchange_rate(grid(0.02, -0.001, noise=0.001))
    assert math.isinf(found.plane.rate)
    assert math.isinf(found.high)
    assert found.out_of_grid
    assert np.isinf(found.local.rate).all()


def test_surface_recovers_a_log_surface_with_diminishing_returns() -> None:
    x, y = (axis.ravel() for axis in np.meshgrid(TARGET, AUXILIARY, indexing="ij"))
    u, v = np.log2(1 + x), np.log2(1 + y)
    data = trials_of(x, y, 0.2 + 0.1 * u + 0.03 * v - 0.008 * u * v)
    surface = fit_surface(data)
    assert surface.coefficients == pytest.approx((0.2, 0.1, 0.03, -0.008), abs=1e-6)
    assert surface.r_squared == pytest.approx(1.0)
    # At (1, 0): slopes 0.1/2 and (0.03 − 0.008)/1, both over ln 2.
    assert surface.rate(1, 0) == pytest.approx(0.05 / 0.022)
    assert fit_plane(data).r_squared < 0.95


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_surface_never_falls_and_is_the_best_of_its_kind(seed: int, slope: float, auxiliary_slope: float) -> None:
    data = grid(slope, auxiliary_slope, noise=0.05, seeds=2, draw=seed)
    surface = fit_surface(data)
    x, y = np.meshgrid(np.linspace(1, 8, 9), np.linspace(0, 16, 9), indexing="ij")
    fitted = surface.accuracy(x, y)
    assert (np.diff(fitted, axis=0) >= -1e-9).all()
    assert (np.diff(fitted, axis=1) >= -1e-9).all()
    ours = ((data.accuracy - surface.accuracy(data.target_rows, data.auxiliary_rows)) ** 2).sum()
    free = np.stack([np.ones(len(data.seed)), *log_terms(data.target_rows, data.auxiliary_rows)], axis=1)
    coefficients, *_ = np.linalg.lstsq(free, data.accuracy, rcond=None)
    unconstrained = Surface(tuple(coefficients), math.nan)
    best = ((data.accuracy - unconstrained.accuracy(data.target_rows, data.auxiliary_rows)) ** 2).sum()
    assert ours >= best - 1e-9
    free_fit = unconstrained.accuracy(x, y)
    if (np.diff(free_fit, axis=0) >= 0).all() and (np.diff(free_fit, axis=1) >= 0).all():
        assert ours == pytest.approx(best, rel=1e-5), "where the free fit rises anyway, it is the answer"


def log_terms(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    u, v = np.log2(1 + x), np.log2(1 + y)
    return [u, v, u * v]


def test_a_reliable_fall_is_told_and_chance_is_not() -> None:
    data = grid(0.02, 0.005, noise=0.001)
    dip = (data.target_rows == 2) & (data.auxiliary_rows == 1)
    dented = data.assign(accuracy=data.accuracy - 0.05 * dip)
    (fall,) = exchange_rate(dented).falls
    assert (fall.target_rows, fall.fewer, fall.more) == (2, 0, 1)
    assert fall.change == pytest.approx(-0.045, abs=0.002)
    assert not exchange_rate(grid(0.02, 0.0, noise=0.02)).falls


def test_amounts_that_move_together_are_no_grid() -> None:
    amounts = np.array([1.0, 2.0, 4.0])
    assert not is_grid(trials_of(amounts, amounts, amounts / 10))


def sweep(slope: float, auxiliary_slope: float, *, words: float | None = 3.0, noise: float = 0.002) -> list[RunRecord]:
    """A sweep of space exchange_rate as MLflow has it: 10 classes; one selected and one lost trial in each cell."""
    parent = parent_record("exchange_rate", headline="auxiliary_16", uml_corpora="pictures,names,other")
    params = {"corpora.other.control": "unrelated"}
    parent = replace(parent, params=params, metrics={"data/mean_words/names": words} if words else {})
    runs = [parent]
    data = grid(slope, auxiliary_slope, noise=noise, seeds=5)
    for x, y, accuracy, seed in zip(data.target_rows, data.auxiliary_rows, data.accuracy, data.seed, strict=True):
        arm = f"auxiliary_{y:.0f}" if y else "unimodal"
        weights = {"mixing.loss_weight.names": 1.0 if y else 0.0, "mixing.loss_weight.other": 0.0}
        rows = {"data/classes": 10, "data/train_rows/pictures": 10 * x, "data/train_rows/names": 10 * (y or 20)}
        for selected in (True, False):
            run = trial(parent, arm, int(seed), accuracy, shots=int(x), params=weights, selected=selected)
            runs.append(RunRecord(**{**vars(run), "metrics": {**run.metrics, **rows}}))
    return runs


def test_section_reads_the_rows_that_took_part() -> None:
    records = sweep(0.02, 0.005)
    data = exchange_data(collect_sweep(records, records[0]))
    assert len(data.seed) == 4 * 6 * 5, "selected trials only"
    assert sorted(set(data.auxiliary_rows)) == list(AUXILIARY), "λ = 0 uses none of the rows it has"
    section = exchange_section(collect_sweep(records, records[0]))
    assert section is not None
    assert section.lines[0].startswith("Exchange rate: one more row of pictures per class is worth 4 rows of names, or")
    assert "12 words (5 seeds, 95 % interval" in section.lines[0]
    assert section.metrics["analysis/exchange_rate/rate"] == pytest.approx(4.0, rel=0.1)
    assert not any(line.startswith("Out of the grid") for line in section.lines)


def test_report_tells_rate_flag_and_figure() -> None:
    report = build_report("demo", sweep(0.02, 0.0004, words=None), tracking_uri="sqlite:////mlflow.db")
    assert "<h3>Exchange rate</h3>" in report.html
    assert "Out of the grid: that is more than the 16 rows per class the grid spans" in report.html
    assert "In words" not in report.html
    assert "exchange_rate_iso_accuracy" in [figure.name for figure in report.figures]
    assert "at most 16 rows per class of every auxiliary corpus" in report.html
    assert "unequal search budgets" not in report.html


@pytest.mark.parametrize(
    ("auxiliary_slope", "words"),
    [(0.0002, "No reliable exchange rate: one more row of pictures"), (-0.002, "No exchange rate: over the grid")],
)
def test_what_chance_may_explain_is_no_rate(auxiliary_slope: float, words: str) -> None:
    records = sweep(0.02, auxiliary_slope, noise=0.03)
    section = exchange_section(collect_sweep(records, records[0]))
    assert section is not None
    assert section.lines[0].startswith(words)
    assert section.as_json()["rate_high"] is None


def test_a_sweep_without_a_grid_has_no_section() -> None:
    records = sweep(0.02, 0.005)
    one_shot = [run for run in records if run.kind == "sweep" or run.params["data.shots"] == "1"]
    assert exchange_section(collect_sweep(one_shot, records[0])) is None
    other = parent_record("controls")
    assert exchange_section(collect_sweep([other], other)) is None
