"""What a sweep is asked for, checked before anything heavy is imported."""

from __future__ import annotations

from tune_spaces import Space, load_space
from uml_core.config import Experiment
from uml_core.errors import InputError


def checked_space(name: str, experiment: Experiment) -> Space:
    """Build a space by its name or file. Raises InputError where there is none, or a sweep cannot train its trials."""
    check_worker(experiment)  # before an arm's own settings get in its way
    return load_space(name, experiment)


def check_worker(experiment: Experiment) -> None:
    """Refuse what a sweep's trial, which trains in one process, cannot do."""
    train, trains_encoder = experiment.train, experiment.model.backbone != "frozen"
    asked = {
        "sharding": train.sharding if train.sharding != "none" else None,
        "min_workers": train.min_workers,
        # Heads are as fast on one worker, so a sweep of them leaves the setting to `train`.
        "workers": train.workers if trains_encoder and train.num_workers > 1 else None,
    }
    for setting, given in asked.items():
        if given is not None:
            mend = "set train.workers=1" if setting == "workers" else f"remove train.{setting}"
            raise InputError(
                f"train.{setting} is {given}, which python -m pipelines.train alone has: a sweep trains an encoder on "
                f"one worker, several trials side by side; {mend} here, and train the chosen arm with it"
            )
