"""Pydantic's validation errors as one line a user can act on: setting, what was given, what is allowed."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from uml_core.errors import listing, nearest


def describe_validation_error(error: ValidationError, root: type[BaseModel]) -> str:
    """One line for the first problem, and how many further ones there are."""
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
