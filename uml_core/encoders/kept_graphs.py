"""Graphs that OpenVINO runs, kept in the user's cache folder: tracing one takes seconds, in every process.

A graph is that of one encoder's settings and weights, traced by one version of the libraries and of our code, and was
checked against torch before it was kept. With it an encoder is loaded without torch.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from uml_core.config import hash_of
from uml_core.encoders.weights import cache_folder, file_digest

LIBRARIES = ("torch", "openvino", "timm", "transformers")
DIGEST = re.compile("[0-9a-f]{12,40}")
CODE = ("openvino_engine.py", "image/folding.py", "image/timm_encoder.py", "text/sentence_encoders.py")


def kept_graph(identity: dict[str, Any], precision: str) -> Path | None:
    """The file for the graph of an encoder in a precision, there or not.

    None where no digest names its weights, or the user has no home.
    """
    if not DIGEST.fullmatch(str(identity.get("weights"))):
        return None
    code = [file_digest(Path(__file__).parent / name) for name in CODE]
    made_by = {"libraries": {name: version(name) for name in LIBRARIES}, "code": code}
    folder = cache_folder("graphs")
    name = f"{hash_of({'identity': identity, 'precision': precision, **made_by})}.onnx"
    return None if folder is None else folder / name


def keep(made: Path, graph: Path) -> None:
    """Copy a file to where a graph is kept, in one rename; where the disk is full, say, nothing is kept."""
    new = graph.with_suffix(".new")
    try:
        shutil.copyfile(made, new)
        new.replace(graph)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


@contextlib.contextmanager
def one_maker(graph: Path | None) -> Iterator[Path | None]:
    """Let one process of this machine make a graph, while others wait for it; None where nothing can be kept."""
    if graph is None:
        yield None
        return
    try:
        graph.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{graph}.lock")
        lock.acquire()
    except OSError:  # a folder that cannot be written
        yield None
        return
    try:
        yield graph
    finally:
        lock.release()
