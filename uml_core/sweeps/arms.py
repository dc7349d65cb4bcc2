"""The arms that several spaces share, and what arms are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from uml_core.config import Experiment
from uml_core.sweeps.space import (
    Arm,
    Control,
    Facts,
    Overrides,
    Space,
    lr_grid,
    related_auxiliaries,
    seeds_of,
    shots_conditions,
)

FROZEN: dict[str, Any] = {
    "model.backbone": "frozen",
    "model.trained_blocks": None,
    "model.lora": {},
    "model.trained_auxiliaries": [],
    "model.drop_path": 0.0,
    "train.compile": False,
}
RANDOM_HEAD, TEXT_HEAD = {"model.head_init": "random"}, {"model.head_init": "zero_shot"}
INITIALISED = Facts(initialised=True)  # the head starts from class means
SAYS = {
    "linear_probe": "the target alone without projection: a plain linear probe on its embeddings.",
    "unimodal": "the matched baseline: same model, steps and target batches with the projection kept, a random head, "
    "and auxiliary loss weight λ = 0.",
    "unimodal_init": "as unimodal (λ = 0), but the head starts from the auxiliary corpus's class means.",
    "uml": "the target and the auxiliary corpora train one shared head (λ > 0), which starts at random.",
    "uml_init": "as uml (λ > 0), and the head starts from the auxiliary corpus's class means.",
    "shuffled": "with the auxiliary labels shuffled over rows: same data, wrong meaning.",
    "noise": "with noise of the same mean and scale in place of the auxiliary embeddings.",
    "unrelated": "with an auxiliary corpus about something else.",
    "zero_shot": "the head as the auxiliary corpus's class means initialise it, not trained at all.",
    "ridge": "the target alone: ridge regression in closed form, its penalty by leaving one row out.",
    "discriminant": "the target alone: a linear discriminant in closed form, its penalty by leaving one row out; at "
    "one row a class it is ridge.",
    "logistic": "the target alone: logistic regression, its penalty by validation.",
    "pile": "the target and its unlabelled pile alone: discriminant, which learns from the pile as prior does.",
    "prior": "discriminant under a prior that the auxiliary corpora write, in closed form; where their class names are "
    "worth no more than shuffled ones, it is discriminant.",
    "shuffled_prior": "as prior, with the auxiliary labels shuffled over rows.",
    "shuffled_bridge": "as prior, with the names of the bridge's classes shuffled: what prior gains over it is the "
    "bridge's.",
}


def weights_of(experiment: Experiment, corpora: tuple[str, ...]) -> dict[str, Any]:
    """A loss weight for every auxiliary corpus: the experiment's own (1 where that is 0) for these, else 0.

    One that follows a schedule stays one.
    """
    own = experiment.mixing.model_dump(mode="json")["loss_weight"]
    return {name: (own.get(name, 1.0) or 1.0) if name in corpora else 0.0 for name in experiment.auxiliaries}


def without_auxiliaries(experiment: Experiment) -> dict[str, Any]:
    """Overrides of the matched baseline: every corpus stays, at λ = 0, and the head starts at random.

    While an auxiliary corpus warms up in other arms it is idle, so that all have the same target batches.
    """
    return {"mixing.loss_weight": weights_of(experiment, ()), **RANDOM_HEAD}


def standard_arms(experiment: Experiment) -> dict[str, Arm]:
    """The arms of docs/method.md, Controls, by name; `unrelated`, `pile`, `shuffled_bridge` only where the
    experiment has such a corpus.

    NAME starts from a random head, NAME_init from the class means of an auxiliary corpus.
    """
    related = related_auxiliaries(experiment)
    unrelated = tuple(name for name in experiment.auxiliaries if name not in related)
    alone = without_auxiliaries(experiment)
    cotrained = {"mixing.loss_weight": weights_of(experiment, related)}
    shuffled = {f"corpora.{name}.control": "shuffled_labels" for name in related}
    # Noise takes the place of embeddings: an encoder that makes them anew would leave none of it.
    noise = {"model.trained_auxiliaries": [], **{f"corpora.{name}.control": "noise" for name in related}}
    untrained = {**alone, **TEXT_HEAD, **FROZEN, "train.max_steps": 0}
    prior = {**RANDOM_HEAD, **FROZEN, "model.head": "prior"}
    arms = [
        *alone_arms(experiment),
        Arm("unimodal", alone, role="baseline"),
        Arm("unimodal_init", {**alone, **TEXT_HEAD}, role="baseline", facts=INITIALISED),
        Arm("uml", {**cotrained, **RANDOM_HEAD}, role="method"),
        Arm("uml_init", {**cotrained, **TEXT_HEAD}, role="method", facts=INITIALISED),
        *_controls("shuffled", {**cotrained, **shuffled}),
        *_controls("noise", {**cotrained, **noise}),
        Arm("zero_shot", untrained, role="zero_shot"),
        Arm("prior", {**cotrained, **prior}, role="method"),
        Arm("shuffled_prior", {**cotrained, **shuffled, **prior}, role="shuffled", controls="prior"),
    ]
    if experiment.bridges:
        misled = {f"corpora.{name}.control": "shuffled_labels" for name in experiment.bridges}
        arms.append(Arm("shuffled_bridge", {**cotrained, **misled, **prior}, role="shuffled_bridge", controls="prior"))
    if unrelated:
        swapped = {"mixing.loss_weight": {name: float(name in unrelated) for name in experiment.auxiliaries}}
        arms += _controls("unrelated", swapped, {"model.init_corpus": unrelated[0]})
    return {arm.name: _described(arm) for arm in arms}


def alone_arms(experiment: Experiment) -> list[Arm]:
    """The heads that one could use without another corpus, or with an unlabelled pile of the target's modality."""
    plain = _target_only(experiment)
    arms = [
        Arm("linear_probe", plain, role="probe"),
        Arm("ridge", {**plain, "model.head": "ridge"}, role="ridge"),
        Arm("discriminant", {**plain, "model.head": "discriminant"}, role="discriminant"),
        Arm("logistic", {**plain, "model.head": "logistic"}, role="logistic"),
    ]
    if experiment.unlabelled_corpora:
        with_pile = _target_only(experiment, beside=experiment.unlabelled_corpora)
        arms.append(Arm("pile", {**with_pile, "model.head": "discriminant"}, role="pile"))
    return [_described(arm) for arm in arms]


def _described(arm: Arm) -> Arm:
    return replace(arm, says=arm.says or SAYS[arm.name])


def _controls(role: Control, overrides: Overrides, init: Overrides | None = None) -> list[Arm]:
    """The control of uml and that of uml_init, which has `init` beside it."""
    initialised = {**overrides, **(init or {}), **TEXT_HEAD}
    return [
        Arm(method_control, each, says=f"as {method}, {SAYS[role]}", role=role, controls=method, facts=facts)
        for method_control, method, each, facts in (
            (role, "uml", {**overrides, **RANDOM_HEAD}, Facts()),
            (f"{role}_init", "uml_init", initialised, INITIALISED),
        )
    ]


def headline_suffix(experiment: Experiment) -> str:
    """What the headline's name ends in: "_init" where the experiment starts its head from an auxiliary corpus."""
    return "_init" if experiment.model.head_init == "zero_shot" else ""


def deciding_arms(experiment: Experiment) -> tuple[str, ...]:
    """The fewest arms a verdict rests on: what one could use instead, the baseline, the methods and their controls."""
    suffix = headline_suffix(experiment)
    initialised = ("unimodal_init", "uml_init") if suffix else ()
    pile = ("pile",) if experiment.unlabelled_corpora else ()
    bridge = ("shuffled_bridge",) if experiment.bridges else ()
    alternatives = ("linear_probe", "ridge", "discriminant", "logistic", *pile, "zero_shot")
    return (*alternatives, "unimodal", "uml", *initialised, f"shuffled{suffix}", "prior", "shuffled_prior", *bridge)


def deciding_space(experiment: Experiment, question: str, arms: Iterable[Arm], **others: Any) -> Space:
    """A space that decides whether uml (or uml_init) gains: shuffled labels must do worse, and a plain linear probe.

    `others` are fields of the space that the experiment does not say: conditions, grid.
    """
    suffix = headline_suffix(experiment)
    fields = {"seeds": seeds_of(experiment), "conditions": shots_conditions(experiment), "grid": lr_grid(experiment)}
    needs = f"shuffled{suffix}", "linear_probe"
    return Space(question, tuple(arms), "unimodal", f"uml{suffix}", needs=needs, **{**fields, **others})


def alone_space(experiment: Experiment, **others: Any) -> Space:
    """A space for a target that has no other corpus: which of the heads for it to ship."""
    fields = {"seeds": seeds_of(experiment), "conditions": shots_conditions(experiment), "grid": lr_grid(experiment)}
    question = f"Which head tells the classes of {experiment.target} apart best, without other data?"
    arms = tuple(alone_arms(experiment))
    return Space(question, arms, "linear_probe", "discriminant", needs=(), **{**fields, **others})


def _target_only(experiment: Experiment, beside: tuple[str, ...] = ()) -> dict[str, Any]:
    """Overrides of a plain linear probe: a frozen encoder, no other corpus but those `beside`, and so no projection.

    In the union of classes auxiliary corpora stay, idle: they say which classes there are.
    """
    is_union = experiment.data.classes == "union"
    left_out = set(experiment.unlabelled_corpora if is_union else experiment.corpora) - {experiment.target, *beside}
    corpora = {
        name: corpus.model_dump(mode="json") for name, corpus in experiment.corpora.items() if name not in left_out
    }
    warm_start = experiment.mixing.warm_start
    idle = warm_start.steps if warm_start.corpus != experiment.target else 0  # in which the matched baseline waits
    return {
        **({"train.max_steps": max(0, experiment.train.max_steps - idle)} if idle else {}),
        **FROZEN,
        "corpora": corpora,
        "mixing.loss_weight": weights_of(experiment, ()) if is_union else {},
        "model.init_corpus": experiment.target if is_union else None,
        "mixing.batch_ratio": {},
        "mixing.warm_start": {},
        "data.auxiliary_shots": {},
        "model.shared_width": None,
        "model.head_init": "random",
    }
