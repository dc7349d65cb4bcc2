"""Evaluators by name, a user's own beside ours, and what some of them measure. One of ours is one entry here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uml_core.errors import InputError, listing, nearest
from uml_core.plugins import imported_callable

if TYPE_CHECKING:
    from uml_core.evaluation.run import EvaluatedRun, Evaluator

EVALUATORS = {
    "test": "uml_core.evaluation.classification:evaluate_test",
    "shift": "uml_core.evaluation.classification:evaluate_shift",
    "classes": "uml_core.evaluation.classification:evaluate_classes",
    "linear_probe": "uml_core.evaluation.probes:evaluate_linear_probe",
    "raw_probe": "uml_core.evaluation.probes:evaluate_raw_probe",
    "knn_probe": "uml_core.evaluation.probes:evaluate_knn_probe",
    "zero_shot": "uml_core.evaluation.probes:evaluate_zero_shot",
    "untrained": "uml_core.evaluation.probes:evaluate_untrained",
    "few_shot_probe": "uml_core.evaluation.probes:evaluate_few_shot_probe",
    "corruptions": "uml_core.evaluation.corruptions:evaluate_corruptions",
}  # imported when they are asked for: the command line names them
ON_REQUEST = ("few_shot_probe", "corruptions")  # dozens of fits, or passes over the test rows
DEFAULT = tuple(name for name in EVALUATORS if name not in ON_REQUEST)


@dataclass
class Measured:
    """What evaluators have yielded: metrics by name, and files by name, their folder included."""

    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def evaluator_names(names: Sequence[str]) -> list[str]:
    """The names in their order, without repeats; `default` stands for those that run unasked, as does an empty list.

    Raises InputError for a name that is none of ours, nor package.module:function or FILE.py:function.
    """
    chosen = [each for name in names or ("default",) for each in (DEFAULT if name == "default" else (name,))]
    for name in chosen:
        if name not in EVALUATORS and ":" not in name:
            known = (*EVALUATORS, "default")
            raise InputError(
                f"evaluation.evaluators names '{name}'{nearest(name, known)}; evaluators are "
                f"{listing(known, limit=20)}, or your own as package.module:function or FILE.py:function"
            )
    return list(dict.fromkeys(chosen))


def chosen_evaluators(names: Sequence[str]) -> dict[str, Evaluator]:
    """Evaluators by name: ours, or a user's own as package.module:function or FILE.py:function.

    Raises:
        InputError: a name is unknown, or a user's own cannot be loaded.
    """
    kind = "an evaluator of yours is package.module:function or FILE.py:function"
    return {
        name: imported_callable(EVALUATORS.get(name, name), setting=f"evaluation.evaluators names '{name}'", kind=kind)
        for name in evaluator_names(names)
    }


def measure(run: EvaluatedRun, evaluators: Mapping[str, Evaluator]) -> Measured:
    """What every evaluator yields.

    Raises:
        InputError: a user's evaluator yields something else than (name, value), or a name that another has yielded.
    """
    from uml_core.figures.drawing import ReportFigure

    measured, owners = Measured(), dict[str, str]()
    for evaluator_name, evaluator in evaluators.items():
        results = evaluator(run)
        if not hasattr(results, "__iter__"):
            found = type(results).__name__
            raise InputError(f"evaluator {evaluator_name} returns a {found}; expected (name, value) pairs")
        for item in results:
            _check_item(evaluator_name, item, str | ReportFigure)
            name, value = item
            if name in owners:
                raise InputError(
                    f"evaluator {evaluator_name} yields '{name}', which evaluator {owners[name]} has yielded; "
                    "give it a name of its own"
                )
            owners[name] = evaluator_name
            if isinstance(value, ReportFigure):
                measured.files |= {f"{name}.svg": value.svg, f"{name}.txt": value.caption.encode()}
            elif isinstance(value, str):
                measured.files[name] = value.encode()
            else:
                measured.metrics[name] = float(value)
    return measured


def _check_item(evaluator_name: str, item: Any, files: Any) -> None:
    is_pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
    is_number = is_pair and hasattr(item[1], "__float__") and not isinstance(item[1], bool)
    if not is_pair or not (isinstance(item[1], files) or is_number):
        raise InputError(
            f"evaluator {evaluator_name} yields {item!r:.80}; expected a name and a number, a text (a file) or a "
            "ReportFigure"
        )
    if item[0].startswith("/") or ".." in item[0].split("/"):
        raise InputError(f"evaluator {evaluator_name} yields '{item[0]}'; a name leads to no other folder")
