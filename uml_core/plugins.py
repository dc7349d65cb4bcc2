"""A user's own code, by name: `package.module:function`, or a Python file beside them, `FILE.py[:function]`.

Encoders, spaces of a sweep and evaluators are all found this way.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from uml_core.errors import InputError, first_line, nearest


def imported_callable(given: str, *, setting: str, kind: str) -> Callable[..., Any]:
    """What `package.module:name` or `FILE.py:name` names.

    Args:
        given: the name.
        setting: how a message starts, for example "encoders.image.name is 'x'".
        kind: what it should be, with an example, for the message.

    Raises:
        InputError: it is neither form, the module cannot be imported, or has no such function or class.
    """
    module_name, separator, attribute = given.rpartition(":")
    if not (module_name and separator and attribute):
        raise InputError(f"{setting}; {kind}")
    is_file = module_name.endswith(".py")
    module = module_of_file(Path(module_name), setting=setting) if is_file else _imported(module_name, setting)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [public for public in vars(module) if not public.startswith("_")]
        raise InputError(
            f"{setting}, but {module_name} has no function or class '{attribute}'{nearest(attribute, known)}"
        )
    function: Callable[..., Any] = found
    return function


def module_of_file(file: Path, *, setting: str) -> ModuleType:
    """Run a Python file as a module of its own. Raises InputError where it is not there or cannot be run."""
    if not file.is_file():
        raise InputError(f"{setting}, but the file {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"uml_own_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise InputError(f"{setting}, but {file} cannot be read: {error}") from None
    return module


def _imported(name: str, setting: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{setting}, but importing {name} fails ({first_line(error)}); it must be importable from the working "
            "directory or installed, here and on every worker"
        ) from None
