"""Load logged models in a process that has what their requirements name, and print what they say of their own examples.

    python -I tests/serving_process.py REQUIREMENTS_FILE TRACKING_URI MODEL_URI ...

Other packages are hidden as if they were not installed, before anything is imported; this repository is not on the
path. Not a test: one runs it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS_FILE, TRACKING_URI, *MODEL_URIS = sys.argv[1:]


def closure_of(requirements: list[str]) -> set[str]:
    """Return the names of everything that pip would install for some requirements."""
    left, found = [Requirement(line) for line in requirements], set()
    while left:
        name = canonicalize_name(left.pop().name)
        if name in found:
            continue
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one, or one for another platform
        found.add(name)
        parsed = [Requirement(line) for line in needed]
        left += [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


class Only:
    """A finder of modules that does not find some of them."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] in self._hidden else self._finder.find_spec(name, path, target)


def hide_all_but(requirements: list[str]) -> set[str]:
    """Hide what the requirements do not bring; returns the modules that are hidden."""
    allowed = closure_of(requirements)
    owners = importlib.metadata.packages_distributions()
    hidden = {module for module, names in owners.items() if not {canonicalize_name(name) for name in names} & allowed}
    sys.meta_path[:] = [Only(finder, hidden) for finder in sys.meta_path]
    return hidden


assert importlib.util.find_spec("uml_core") is None, "the repository is on the path"
hidden = hide_all_but(Path(REQUIREMENTS_FILE).read_text(encoding="utf-8").split())
import mlflow  # noqa: E402

mlflow.set_tracking_uri(TRACKING_URI)
answers = []
for uri in MODEL_URIS:
    model = mlflow.pyfunc.load_model(uri)
    answers.append(model.predict(model.input_example).to_dict("records"))
loaded = {name.split(".")[0] for name in sys.modules}
code = sys.modules["uml_core"].__file__
print(json.dumps({"answers": answers, "hidden": sorted(hidden), "loaded": sorted(hidden & loaded), "code": code}))
