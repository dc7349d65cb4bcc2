"""The section on how trained runs are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from uml_core.config.base import PositiveCount, Settings


class EvaluationConfig(Settings):
    """What `pipelines.evaluate` measures; training and sweeps measure test and shifted test sets alone."""

    evaluators: tuple[str, ...] = ()
    """What is measured: names (uml_core/evaluation/registry.py), `default` for those that run unasked, and your own as
    package.module:function or FILE.py:function. Empty: the default ones."""
    shots: Annotated[tuple[PositiveCount, ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    """Rows per class that few_shot_probe is fitted on."""
    seeds: PositiveCount = 3
    """Draws of few_shot_probe, counted from data.split_seed."""
    corruptions: tuple[str, ...] = ()
    """Kinds of corruption that the evaluator `corruptions` applies; empty: all of the modality."""
    corruption_rows: PositiveCount = 1000
    """Test rows that are corrupted, at most."""
    class_maps: Mapping[str, str] = Field(default_factory=dict)
    """By shifted test set, a file that maps its class names to the target's: JSON {theirs: ours}, or CSV without a
    header."""
