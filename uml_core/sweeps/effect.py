"""What of an experiment a trial is trained on: two experiments that differ elsewhere train the same model.

A sweep reads the store once: keys that change encoders or places would change nothing in its trials, and so would the
weight of a corpus that is not there, or a learning rate where nothing is trained. Such spaces are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uml_core.config import Experiment
from uml_core.config.used_by import OF_ADAMW
from uml_core.errors import InputError

NOT_TRAINED_ON = ("name", "store", "tracking", "encoders", "embed", "tune")
# Of optim: what a backbone does not use. One that is frozen does not use the section pictures either.
UNUSED_RATES = {"frozen": ("backbone_lr", "lora_lr", "layer_decay"), "lora": ("backbone_lr",)}
WITHOUT_ADAPTERS = ("lora_lr",)
NOT_TRAINED_ON_IN_TRAIN = (
    *("workers", "use_gpu", "report_every_s", "report_share", "twin", "seeds", "gradient_cosine", "compile"),
)


def trained_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that enter training, with defaults written out and what is switched off left out."""
    tree = experiment.model_dump(mode="json")
    settings = {section: value for section, value in tree.items() if section not in NOT_TRAINED_ON}
    settings["corpora"] = {name: corpus.control for name, corpus in experiment.corpora.items()}
    active = [name for name in experiment.auxiliaries if experiment.loss_weight(name) and experiment.batch_ratio(name)]
    settings["mixing"] = {
        "loss_weight": {name: tree["mixing"]["loss_weight"].get(name, 1.0) for name in active},
        "batch_ratio": {name: experiment.batch_ratio(name) for name in active},
        # With one corpus in a step, jointly and in turn are the same.
        "schedule": tree["mixing"]["schedule"] if active else None,
        "warm_start": _warm_start(experiment, active),
    }
    trained = [name for name in experiment.model.trained_auxiliaries if name in active]
    settings["model"] = {**tree["model"], "trained_auxiliaries": trained}
    settings["train"] = {key: value for key, value in tree["train"].items() if key not in NOT_TRAINED_ON_IN_TRAIN}
    unused = UNUSED_RATES.get(experiment.model.backbone, WITHOUT_ADAPTERS)
    optim = {key: value for key, value in tree["optim"].items() if key not in unused}
    if experiment.model.backbone == "frozen":
        settings.pop("pictures")
    if not optim["warmup_steps"]:
        optim.pop("warmup_lr")
    settings["optim"] = optim
    if experiment.optim.name == "lbfgs":
        for section, name in (key.split(".") for key in OF_ADAMW):
            settings[section].pop(name, None)
    if not experiment.train.max_steps:
        untrained = ("optim", "mixing")
        settings = {section: value for section, value in settings.items() if section not in untrained}
        settings["train"] = {"max_steps": 0}
    return settings


def _warm_start(experiment: Experiment, active: Sequence[str]) -> dict[str, Any] | None:
    """Return who warms up (None: nobody, the target waits) for how long, where that changes what is trained."""
    warm_start = experiment.mixing.warm_start
    if not warm_start.steps or (warm_start.corpus == experiment.target and not active):
        return None
    takes_part = warm_start.corpus in (experiment.target, *active)
    return {"corpus": warm_start.corpus if takes_part else None, "steps": warm_start.steps}


def refuse_what_changes_nothing(what: str, tried: Sequence[Sequence[Experiment]]) -> None:
    """Refuse a key whose values train the same model in every arm.

    Args:
        what: the key or arms, for the message.
        tried: for each arm, the experiments that differ in this key alone.

    Raises:
        InputError: in no arm do two of them differ in what is trained.
    """
    trained = [[trained_settings(experiment) for experiment in experiments] for experiments in tried]
    if any(len(settings) > 1 for settings in trained) and not any(
        any(other != settings[0] for other in settings[1:]) for settings in trained
    ):
        raise InputError(
            f"{what}: nothing that is trained changes, so the space compares a model with itself; leave it out, or "
            "check that the experiment uses what is changed (corpora, their loss weights; a sweep embeds nothing anew)"
        )
