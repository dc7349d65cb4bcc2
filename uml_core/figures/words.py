"""Numbers as a report writes them: the filters of its templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any


def percent(fraction: float | None) -> str:
    """An accuracy in percent with one decimal; a dash where there is none."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def points(fraction: float) -> str:
    """A difference in percent points with its sign; a dash where there is none."""
    if math.isnan(fraction):
        return "–"
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: float) -> str:
    """A number of rows or words in three digits; a dash where there is none, ∞ where none is enough."""
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:,.3g}".replace("-", "−")


def whole(value: float) -> str:
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M") if milliseconds else "–"


def spread_text(value: Any) -> str:
    """Mean ± standard deviation in percent; the mean alone for one seed."""
    if value is None:
        return "–"
    return percent(value.mean) if math.isnan(value.std) else f"{percent(value.mean)} ± {percent(value.std)}"


def unbroken(text: str) -> str:
    """Text whose numbers stay on one line with what belongs to them."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")


FILTERS: Mapping[str, Callable[..., str]] = {
    "percent": percent,
    "points": points,
    "p_value": p_value,
    "amount": amount,
    "whole": whole,
    "seconds": seconds,
    "date": date,
    "spread": spread_text,
    "unbroken": unbroken,
}
