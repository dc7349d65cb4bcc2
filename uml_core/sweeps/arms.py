"""The arms that several spaces share, and what arms are made of."""

from __future__ import annotations

from typing import Any

from uml_core.config import Experiment
from uml_core.sweeps.space import Arm, related_auxiliaries

FROZEN: dict[str, Any] = {
    "model.backbone": "frozen",
    "model.trained_blocks": None,
    "model.lora": {},
    "model.trained_auxiliaries": [],
    "model.drop_path": 0.0,
    "train.compile": False,
}


def weights_of(experiment: Experiment, corpora: tuple[str, ...]) -> dict[str, Any]:
    """Return a loss weight for every auxiliary corpus: the experiment's own (1 where that is 0) for these, else 0.

    One that follows a schedule stays one.
    """
    own = experiment.mixing.model_dump(mode="json")["loss_weight"]
    return {name: (own.get(name, 1.0) or 1.0) if name in corpora else 0.0 for name in experiment.auxiliaries}


def without_auxiliaries(experiment: Experiment) -> dict[str, Any]:
    """Return the overrides of the matched baseline: every corpus stays, at λ = 0, and the head starts at random.

    While an auxiliary corpus warms up in other arms it is idle, so that all have the same target batches.
    """
    return {"mixing.loss_weight": weights_of(experiment, ()), "model.head_init": "random"}


def standard_arms(experiment: Experiment) -> dict[str, Arm]:
    """The arms of docs/method.md, Controls, by name; `unrelated` ones only where the experiment has such a corpus."""
    related = related_auxiliaries(experiment)
    unrelated = tuple(name for name in experiment.auxiliaries if name not in related)
    random_head, text_head = {"model.head_init": "random"}, {"model.head_init": "zero_shot"}
    alone = without_auxiliaries(experiment)
    cotrained = {"mixing.loss_weight": weights_of(experiment, related)}

    def control(kind: str) -> dict[str, Any]:
        # Noise takes the place of embeddings: an encoder that makes them anew would leave none of it.
        frozen_text: dict[str, Any] = {"model.trained_auxiliaries": []} if kind == "noise" else {}
        return {**frozen_text, **{f"corpora.{name}.control": kind for name in related}}

    overrides: dict[str, dict[str, Any]] = {
        "linear_probe": _target_only(experiment),
        "unimodal": alone,
        "unimodal_init": {**alone, **text_head},
        "uml": {**cotrained, **random_head},
        "uml_init": {**cotrained, **text_head},
        "shuffled": {**cotrained, **random_head, **control("shuffled_labels")},
        "shuffled_init": {**cotrained, **text_head, **control("shuffled_labels")},
        "noise": {**cotrained, **random_head, **control("noise")},
        "noise_init": {**cotrained, **text_head, **control("noise")},
        "zero_shot": {**alone, **text_head, **FROZEN, "train.max_steps": 0},
    }
    if unrelated:
        swapped = {"mixing.loss_weight": {name: float(name in unrelated) for name in experiment.auxiliaries}}
        overrides["unrelated"] = {**swapped, **random_head}
        overrides["unrelated_init"] = {**swapped, **text_head, "model.init_corpus": unrelated[0]}
    return {name: Arm(name, values) for name, values in overrides.items()}


def headline_suffix(experiment: Experiment) -> str:
    """Return "_init" where the experiment starts its head from an auxiliary corpus, as the headline arm then does."""
    return "_init" if experiment.model.head_init == "zero_shot" else ""


def deciding_arms(experiment: Experiment) -> tuple[str, ...]:
    """Return the fewest arms a verdict rests on: probe, baseline, the method, and its shuffled control."""
    suffix = headline_suffix(experiment)
    initialised = ("unimodal_init", "uml_init") if suffix else ()
    return ("linear_probe", "unimodal", "uml", *initialised, f"shuffled{suffix}")


def _target_only(experiment: Experiment) -> dict[str, Any]:
    """Return the overrides of a plain linear probe: a frozen encoder, no other corpus, and so no projection."""
    target = experiment.corpora[experiment.target].model_dump(mode="json")
    warm_start = experiment.mixing.warm_start
    idle = warm_start.steps if warm_start.corpus != experiment.target else 0  # in which the matched baseline waits
    return {
        **({"train.max_steps": max(0, experiment.train.max_steps - idle)} if idle else {}),
        **FROZEN,
        "corpora": {experiment.target: target},
        "mixing.loss_weight": {},
        "mixing.batch_ratio": {},
        "mixing.warm_start": {},
        "data.auxiliary_shots": {},
        "model.init_corpus": None,
        "model.shared_width": None,
        "model.head_init": "random",
    }
