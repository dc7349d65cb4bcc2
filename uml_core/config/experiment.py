"""One experiment, validated as a whole: its sections, the checks across them, reading it from a file.

In: a YAML file and dotted `key=value` overrides. Out: one `Experiment`, validated as a whole, whose hash names every
folder and run made from it. Nothing changes an `Experiment`; derived ones go through `Experiment.override`.

    from uml_core.config import load_experiment
    experiment = load_experiment("examples/demo.yaml", ["mixing.batch_ratio.names=2"])
"""

from __future__ import annotations

import copy
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError, model_validator

from uml_core.config.checks import CHECKS
from uml_core.config.sections import Sections
from uml_core.errors import InputError, listing, nearest


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
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
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
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"override '{item}' has an unreadable value: {' '.join(str(error).split())}") from None


def describe_validation_error(error: ValidationError, root: type[BaseModel]) -> str:
    """Pydantic's errors as one line a user can act on: the first problem, and how many further ones there are."""
    # An unknown key comes first: it is often the misspelling of one that is then missing.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    first = details[0]
    path = _setting_path(first["loc"])
    setting = ".".join(path)
    given = repr(first.get("input"))
    given = given if len(given) <= 60 else given[:57] + "..."
    kind = first["type"]
    if kind == "extra_forbidden":
        allowed = _fields_at(root, path[:-1])
        line = f"unknown key '{setting}'{nearest(path[-1], allowed)}; allowed here: {listing(allowed, limit=20)}"
    elif kind == "missing":
        line = f"key '{setting}' is missing; add it to the experiment file (see examples/)"
    elif kind == "value_error":
        line = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
        line = line if line.startswith(setting) else f"{setting}: {line}"
    elif kind == "literal_error":
        choices = first["ctx"]["expected"]
        options = [option.strip(" '") for option in choices.replace(" or ", ",").split(",")]
        line = f"{setting} is {given}; allowed: {choices}{nearest(str(first.get('input')), options)}"
        others = [detail for detail in details[1:] if _setting_path(detail["loc"]) == path]  # of a union: auto, or 3
        if others:
            line += f"; else {others[0]['msg'][0].lower()}{others[0]['msg'][1:]}"
    elif first["loc"] and first["loc"][-1] == "[key]":
        line = f"'{path[-1]}' is not a usable name; use letters, digits, '-' and '_', starting with a letter or digit"
    else:
        line = f"{setting} is {given}; {first['msg'][0].lower()}{first['msg'][1:]}"
    more = len({tuple(_setting_path(detail["loc"])) for detail in details}) - 1
    return line + (f" (and {more} more {'problem' if more == 1 else 'problems'})" if more else "")


def _setting_path(location: tuple[int | str, ...]) -> list[str]:
    """The dotted key's parts: pydantic also names the branch of a union it tried (bool, literal[...])."""
    parts = [str(part) for part in location if not str(part).startswith("[")]  # [key], and the tags of our own unions
    branches = ("bool", "int", "float", "str", "constrained-int")
    while len(parts) > 1 and (parts[-1] in branches or parts[-1].startswith("literal[")):
        parts.pop()
    return parts


def _fields_at(annotation: object, path: list[str]) -> list[str]:
    """The field names of the section a path leads to: through `X | None`, the like, and mappings by name."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, typing.Union, types.UnionType):
        kinds = inner[:1] if origin is typing.Annotated else inner
        return next(filter(None, (_fields_at(kind, path) for kind in kinds)), [])
    if origin is Mapping:
        return _fields_at(inner[1], path[1:]) if path else []
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    if not path:
        return list(annotation.model_fields)
    field = annotation.model_fields.get(path[0])
    return [] if field is None else _fields_at(field.annotation, path[1:])


def set_dotted(tree: dict[Any, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        child = tree.get(section)
        if not isinstance(child, dict):
            child = tree[section] = {}
        tree = child
    tree[leaf] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys; empty mappings are left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def hash_of(value: Any) -> str:
    """12 hex digits over the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
