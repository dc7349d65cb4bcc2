"""One experiment, validated as a whole: its sections, the checks across them, reading it from a file.

In: a YAML file and dotted `key=value` overrides. Out: one `Experiment`, validated as a whole, whose hash names every
folder and run made from it. Nothing changes an `Experiment`; derived ones go through `Experiment.override`.

    from uml_core.config import load_experiment
    experiment = load_experiment("examples/demo.yaml", ["mixing.batch_ratio.names=2"])
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError, model_validator

from uml_core.config.checks import CHECKS
from uml_core.config.dotted import flatten, hash_of, set_dotted
from uml_core.config.errors import describe_validation_error
from uml_core.config.sections import Sections
from uml_core.errors import InputError


class Experiment(Sections):
    """One experiment file, resolved and validated."""

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        for check in CHECKS:
            check(self)
        return self

    @property
    def config_hash(self) -> str:
        """12 hex digits over every resolved setting: the one key of run folders and the tag `uml.config_hash`."""
        return hash_of(self.model_dump(mode="json"))

    def override(self, values: Mapping[str, Any]) -> Experiment:
        """A new experiment with dotted keys replaced, e.g. `{"optim.lr": 1e-4}`; validated as a whole.

        Raises:
            InputError: a key is unknown or a value is not allowed.
        """
        tree = self.model_dump(mode="json")
        for key, value in values.items():
            set_dotted(tree, key, copy.deepcopy(value))  # a later, deeper key must not write into what was given
        return parse_experiment(tree)

    def unimodal_twin(self) -> Experiment:
        """The matched baseline: same model shape, steps and target batches; λ = 0 and a random head.

        It is idle while an auxiliary corpus warms up (`MixingPlan.step`). Patience may end either run before the other.
        """
        weights = {f"mixing.loss_weight.{name}": 0.0 for name in self.auxiliaries}
        return self.override({**weights, "model.head_init": "random", "train.twin": False})

    def flattened(self) -> dict[str, Any]:
        """Every setting under its dotted key (MLflow's parameters)."""
        return flatten(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The resolved experiment as YAML; loading it again gives an equal experiment."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_experiment(tree: Mapping[str, Any]) -> Experiment:
    """Validate a nested mapping. Raises InputError with one line naming the first wrong setting."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, Experiment)) from None


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply `key=value` overrides (values are read as YAML).

    Raises:
        InputError: the file is missing, is not YAML, or a setting is unknown or not allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"experiment file {file} does not exist; give the path of a YAML file (see examples/)")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} holds a {type(tree).__name__}; expected a mapping of settings (see examples/)")
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise InputError(f"override '{item}' is not key=value; for example optim.lr=1e-4")
        set_dotted(tree, key, _parse_value(item, text))
    return parse_experiment({str(key): value for key, value in tree.items()})


def _parse_value(item: str, text: str) -> Any:
    # OmegaConf's loader, not yaml's: it reads 1e-4 as a number, and so does the file.
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}" if text else "value: ''"))["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"override '{item}' has an unreadable value: {' '.join(str(error).split())}") from None
