"""One rule for places: a path that a user gives, of any step, is local, or a URI that pyarrow or fsspec opens.

A relative one starts at $UML_ROOT (a folder or a URI), else at the working directory. Inside a Ray job that is a copy
which goes with the job: what a step would write into it is refused before any work.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from uml_core.errors import InputError

if TYPE_CHECKING:
    import pyarrow.fs as pafs


def in_uploaded_copy() -> bool:
    """Whether the working directory is the copy that `ray job submit --working-dir` uploads."""
    return "runtime_resources" in Path.cwd().parts


def absolute_path(given: str) -> str:
    """A path or SQLite URI made absolute from $UML_ROOT or the working directory; other URIs as they are."""
    root = os.environ.get("UML_ROOT") or str(Path.cwd())
    if given == "databricks":  # MLflow's word for the workspace it runs in
        return given
    scheme, separator, rest = given.partition(":///")
    if separator and scheme == "sqlite":
        if "://" in root and not rest.startswith("/"):
            raise InputError(
                f"{given} is a SQLite file relative to UML_ROOT={root}, which is no folder of this machine; give a "
                "tracking server (tracking.uri=http://..., or MLFLOW_TRACKING_URI), or an absolute file"
            )
        return given if rest.startswith("/") else f"sqlite:///{(Path(root) / rest).resolve()}"
    if "://" in given or given.startswith("/"):
        return given
    if "://" in root:
        from uml_core.files.paths import join

        return join(root, given)
    return str((Path(root) / given).resolve())


def check_no_password(setting: str, place: str) -> None:
    """Raise InputError for a URI with a password in it: places are written into runs, manifests and messages."""
    if re.match(r"\w+://[^@?/]*:(?!\d+/)[^@?]*@", place):  # a secret may hold a slash; a port is none
        raise InputError(
            f"{setting} holds a key and its secret before the @; give them in the environment of every node "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the storage's own variables), and the URI without them"
        )


def written_place(setting: str, given: str) -> str:
    """Where a result is to lie, absolute.

    Raises:
        InputError: the place would go with the Ray job that writes it.
    """
    if not given:
        raise InputError(f"{setting} is empty; give a path or a URI")
    place = absolute_path(given)
    if in_uploaded_copy() and place.removeprefix("sqlite:///").startswith(f"{Path.cwd()}/"):
        raise InputError(
            f"{setting} is {given}, relative to a Ray job's working directory, which is a temporary copy; give an "
            "absolute place, or set UML_ROOT in the job's environment"
        )
    return place


def opened(setting: str, place: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of an absolute place to write into, and the path in it.

    Raises InputError where none opens it, or its storage is not there: what a run waits for was there once.
    """
    from uml_core.files import paths  # pyarrow: not on top, help and mistakes are answered without it
    from uml_core.files.paths import STORAGE_ERRORS, one_line

    try:
        paths.check_there(place)
        return paths.opened(place)
    except STORAGE_ERRORS as error:
        raise InputError(f"{setting} is {place}, which cannot be opened: {one_line(error)}") from None


class OutputFolder:
    """A folder to write results into, each file in one rename. Raises InputError where it cannot be written."""

    def __init__(self, setting: str, given: str | Path) -> None:
        from uml_core.files.paths import STORAGE_ERRORS, kind_of, one_line

        self.place = written_place(setting, str(given))
        check_no_password(setting, self.place)
        self._setting = setting
        self._fs, self._path = opened(setting, self.place)
        if kind_of(self.place, setting) == "file":
            raise InputError(f"{setting} is {self.place}, which is a file; give a folder")
        try:
            self._fs.create_dir(self._path, recursive=True)
        except STORAGE_ERRORS as error:
            raise self._refusal(one_line(error)) from None

    def location(self, name: str) -> str:
        """The path or URI of a file in it."""
        from uml_core.files.paths import join

        return join(self.place, name)

    def write(self, name: str, content: bytes) -> str:
        """Write a file, in place of one that is there; returns its path or URI."""
        from uml_core.files.atomic import write_whole
        from uml_core.files.paths import STORAGE_ERRORS, one_line

        try:
            write_whole(self._fs, f"{self._path}/{name}", content)
        except STORAGE_ERRORS as error:
            raise self._refusal(one_line(error)) from None
        return self.location(name)

    def _refusal(self, reason: str) -> InputError:
        return InputError(f"{self._setting} {self.place} cannot be written ({reason}); give another folder")
