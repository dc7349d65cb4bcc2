"""What of an experiment a trial is trained on: two experiments that differ elsewhere train the same model.

A sweep reads the store once: keys that change encoders or paths would change nothing in its trials, and so would the
weight of a corpus that is not there, or a learning rate where nothing is trained. Such spaces are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uml_core.config import Experiment
from uml_core.config.used_by import deciding
from uml_core.errors import InputError

UNTRAINED = ("optim.", "mixing.", "pictures.", "train.")  # sections without effect where no step is made


def trained_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that enter training, with defaults written out and what is switched off left out."""
    settings = {key: value for key, value in deciding(experiment, "model").items() if not key.startswith("mixing.")}
    active = experiment.active_auxiliaries
    if "model.trained_auxiliaries" in settings:
        trained = experiment.model.trained_auxiliaries
        settings["model.trained_auxiliaries"] = [name for name in trained if name in active]
    settings["mixing.loss_weight"] = {name: experiment.loss_weight_setting(name) for name in active}
    settings["mixing.batch_ratio"] = {name: experiment.batch_ratio(name) for name in active}
    # With one corpus in a step, jointly and in turn are the same.
    settings["mixing.schedule"] = experiment.mixing.schedule if active else None
    settings["mixing.warm_start"] = _warm_start(experiment, active)
    if experiment.num_steps:
        return settings
    if experiment.model.head == "prior":
        settings["corpora of the prior"] = list(active)
    return {"train.max_steps": 0, **{key: each for key, each in settings.items() if not key.startswith(UNTRAINED)}}


def _warm_start(experiment: Experiment, active: Sequence[str]) -> dict[str, Any] | None:
    """Who warms up (None: nobody, the target waits) for how long, where that changes what is trained."""
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
