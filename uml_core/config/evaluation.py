"""The section on how trained runs are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from uml_core.config.base import PositiveCount, Settings


class EvaluationConfig(Settings):
    """What `pipelines.evaluate` measures; training and sweeps measure test and shifted test sets alone."""

    # Names (uml_core/evaluation/registry.py), default for those that run unasked, and your own as
    # package.module:function or FILE.py:function. Empty: the default ones.
    evaluators: tuple[str, ...] = ()
    shots: Annotated[tuple[PositiveCount, ...], Field(min_length=1)] = (1, 2, 4, 8, 16)  # of few_shot_probe, per class
    seeds: PositiveCount = 3  # of few_shot_probe, counted from data.split_seed
    corruptions: tuple[str, ...] = ()  # of evaluators corruptions and embedding_corruptions; empty: every one
    corruption_rows: PositiveCount = 1000  # test rows they take at most
    # Shifted test set -> a file of its class names with the target's: JSON {theirs: ours}, or CSV without a header.
    class_maps: Mapping[str, str] = Field(default_factory=dict)
