"""Every step as a function: an experiment in, a typed result (`pipelines.results`) out.

    from pipelines import steps

    pets = steps.experiment("pets.yaml", data={"shots": 4})
    steps.embed(pets)
    steps.advise(pets).corpora["captions"].verdict
    steps.tune(pets, "controls").verdict

Every step but `predict` and `export`, which take a model, takes the path of an experiment file, a mapping of its
settings, or an `Experiment`. Relative places start at $UML_ROOT, or at the working directory, as on the command line.
Users' mistakes raise InputError. Ray starts where a step needs it and stops with it; `session` keeps it over several.
What is not needed is not imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import results
from pipelines.command_line import with_absolute_paths
from pipelines.places import absolute_path, written_place
from pipelines.timings import CLOCK
from uml_core.config import EmbedConfig, Experiment, TrackingConfig, load_experiment, parse_experiment
from uml_core.errors import InputError
from uml_core.serving import EXPORT_FORMATS

if TYPE_CHECKING:
    from uml_core.corpora.ready.arrays import Arrays

Given = Experiment | Mapping[str, Any] | str | Path


def experiment(given: Given | None = None, **settings: Any) -> Experiment:
    """An experiment with absolute places: what is given, and settings over it, section by section.

        steps.experiment("pets.yaml", data={"shots": 1})
        steps.experiment(name="pets", store="runs/pets/store", target="photos", corpora={"photos": frame, ...})

    A corpus may also be what `arrays` makes, or a data frame; it is written into the store's folder.

    Raises:
        InputError: there is no such file, or a setting is unknown or not allowed.
    """
    if given is None:
        tree: Mapping[str, Any] = {}
    elif isinstance(given, Mapping):
        tree = given
    else:
        found = given if isinstance(given, Experiment) else load_experiment(given)
        tree = found.model_dump(mode="json")
    return with_absolute_paths(parse_experiment(_written(_merged(_merged({}, tree), settings))))


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with changes in it; places may be paths."""
    merged = dict(tree)
    for key, value in changes.items():
        if isinstance(value, Mapping):
            before = merged.get(key)
            merged[key] = _merged(before if isinstance(before, Mapping) else {}, value)
        else:
            merged[key] = str(value) if isinstance(value, Path) else value
    return merged


def _written(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings with the corpora in memory replaced by those that read their files."""
    in_memory = {name: each for name, each in tree.get("corpora", {}).items() if not isinstance(each, Mapping)}
    if not in_memory:
        return tree
    if not isinstance(store := tree.get("store"), str):
        raise InputError("key 'store' is missing; corpora in memory are written into its folder")
    from uml_core.corpora.ready.arrays import Arrays

    for name, each in in_memory.items():
        corpus = each if isinstance(each, Arrays) else arrays(each)
        in_memory[name] = corpus.written(absolute_path(store))
    return {**tree, "corpora": {**tree["corpora"], **in_memory}}


def arrays(rows: Any, labels: Any = None, *, split: Any = None, ids: Any = None, **settings: Any) -> Arrays:
    """A corpus from embeddings (N, D) or a data frame in memory; see `uml_core.corpora.ready.arrays`."""
    from uml_core.corpora.ready.arrays import arrays  # pandas takes half a second

    return arrays(rows, labels, split=split, ids=ids, **settings)


def session() -> contextlib.AbstractContextManager[None]:
    """Keep the Ray that the first step in need of one starts for all steps within: `with steps.session(): ...`."""
    from pipelines.ray_session import ray_kept

    return ray_kept()


def embed(given: Given) -> results.Embedded:
    """Embed every corpus into the store; does nothing where it is up to date."""
    from pipelines.embed.step import run

    return results.Embedded.of(run(experiment(given)))


def advise(given: Given, *, draws: int = 10) -> results.Advice:
    """Estimate, before any training, which corpora are likely to help."""
    from pipelines.advise.step import run

    return results.Advice.of(run(experiment(given), draws))


def train(given: Given) -> results.Trained:
    """Train the model, over train.seeds, beside its twin where train.twin is set."""
    CLOCK.begin_run()
    from pipelines.train.step import run

    return results.Trained.of(run(experiment(given)))


def tune(given: Given, space: str = "controls", *, trials: int | None = None, resume: bool = False) -> results.Swept:
    """Sweep over a space of tune_spaces/, or a file of yours, and say what to ship."""
    from pipelines.tune.step import run

    return results.Swept.of(run(experiment(given), space, max_trials=trials, resume=resume))


def evaluate(
    given: Given,
    runs: str | Sequence[str] | None = None,
    *,
    evaluators: str | Sequence[str] = (),
    against: str | Sequence[str] = (),
    analyses: str | Sequence[str] = (),
    pairs: str | Path | None = None,
    classes: tuple[str, str] | None = None,
) -> results.Evaluated:
    """Evaluate training runs, by default the one registered last; `evaluators` stand for evaluation.evaluators."""
    from pipelines.evaluate.step import run
    from uml_core.analysis.registry import chosen_analyses

    chosen = {"evaluators": _names(evaluators)} if evaluators else {}
    return results.Evaluated.of(
        run(
            experiment(given, evaluation=chosen),
            runs,
            against=_names(against),
            analyses=chosen_analyses(_names(analyses)),
            pairs_file=None if pairs is None else absolute_path(str(pairs)),
            plane_classes=classes,
        )
    )


def report(given: Given, output: str | Path | None = None) -> results.Reported:
    """Write one HTML page on all runs, into folder report beside the store by default."""
    from pipelines.report.step import run

    return results.Reported.of(run(experiment(given), None if output is None else written_place("output", str(output))))


def predict(
    model: str,
    inputs: str | Path,
    output: str | Path,
    *,
    tracking_uri: str | None = None,
    root: str | Path | None = None,
    max_rejected: float = EmbedConfig().max_rejected,
    top: int | None = None,
) -> results.Predicted:
    """Predict new files of the target's modality, or a table, into a Parquet file; `top` 0 gives every class."""
    from pipelines.predict.step import run

    start = None if root is None else str(root)
    places = model, str(inputs), str(output), _tracking(tracking_uri)
    return results.Predicted.of(run(*places, root=start, max_rejected=max_rejected, top=top))


def export(
    model: str, output: str | Path, *, tracking_uri: str | None = None, formats: str | Sequence[str] = ()
) -> results.Exported:
    """Write a model as safetensors and ONNX, or as one of them."""
    from pipelines.export.step import run

    return results.Exported.of(
        run(model, str(output), _tracking(tracking_uri), formats=_names(formats) or EXPORT_FORMATS)
    )


def directions(
    given: Given, targets: str | Sequence[str] = (), *, trials: int | None = None, resume: bool = False
) -> results.Directions:
    """Sweep all subsets of corpora around each target in turn."""
    from pipelines.directions.step import run

    return results.Directions.of(run(experiment(given), _names(targets), max_trials=trials, resume=resume))


def bridge(given: Given, output: str | Path) -> results.Bridge:
    """Write the image encoder's own classifier as a bridge."""
    from pipelines.bridge import run

    return results.Bridge.of(run(experiment(given), str(output)))


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _tracking(uri: str | None) -> str:
    return absolute_path(uri or TrackingConfig().uri)
