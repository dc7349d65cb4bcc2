"""What an evaluator is: a function from a trained run to (name, value) pairs.

A float is a metric under that name. Text is an artifact of that file name. A `ReportFigure` becomes NAME.svg and
NAME.png with its caption in NAME.txt. Files lie below evaluation/ of the run. Its
docstring says when a number must not be compared with another; it raises InputError where it asks for what the run
does not have. Your own is a function in a file:

    def evaluate_confidence(run):  # --evaluators test,my_evaluators.py:evaluate_confidence
        yield "confidence/mean", float(run.probabilities("test").max(axis=1).mean())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from uml_core.evaluation.run import EvaluatedRun
from uml_core.figures.drawing import ReportFigure

Results = Iterator[tuple[str, float | str | ReportFigure]]
Evaluator = Callable[[EvaluatedRun], Results]
