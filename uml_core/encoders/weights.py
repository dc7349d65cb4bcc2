"""Where weights and configs come from, a local directory or the hub's local cache, and what identifies them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import urllib.error
import urllib.request
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
from safetensors import SafetensorError

from uml_core.errors import InputError

PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
HUB_TIMEOUT_S = 5.0
# What the libraries raise of files that are missing, cut off, of another model, or need another package.
UNREADABLE = (OSError, ValueError, ImportError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError)


def local_weights(path: str, *, setting: str) -> Path:
    """Return the weights file at a path, or the first one in a directory. Raises InputError if there is none."""
    return _weights_files(path, setting=setting)[0]


def weights_revision(path: str, *, setting: str) -> str:
    """Return 12 hex digits over the weights at a path: of the one file, or of all shards of a model in several."""
    files = _weights_files(path, setting=setting)
    shards = [file for file in files if "-of-" in file.name]
    if not shards:
        return file_digest(files[0])
    digests = "".join(file_digest(file) for file in shards)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def _weights_files(path: str, *, setting: str) -> list[Path]:
    place = Path(path)
    if place.is_file():
        return [place]
    files = sorted(file for pattern in PATTERNS for file in place.glob(pattern))
    if not files:
        raise InputError(f"{setting} is {path}; no file, or no folder with a .safetensors, .bin, .pth or .pt file")
    return files


def file_digest(path: Path) -> str:
    """Return 12 hex digits of a file's SHA-256: the revision of weights that come without one."""
    status = path.stat()
    return _digest_at(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest_at(path: Path, size: int, modified_ns: int) -> str:
    # Kept for as long as the file keeps its size and time: billions of weights take seconds to hash.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def source_digest(cls: type) -> str:
    """Return 12 hex digits of the file a class is written in, or its name where there is no file."""
    try:
        return file_digest(Path(inspect.getfile(cls)))
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


def from_hub(factory: Any, location: str, *, setting: str, place: str | None = None, **options: Any) -> Any:
    """Call `factory.from_pretrained` on a local directory, the hub's local cache, or the hub, in this order.

    Args:
        factory: a class of transformers.
        location: a directory, or a name on the hub.
        setting: what named it, for messages: encoders.text, say.
        place: the setting that takes a directory; None: SETTING.weights.
        options: for `from_pretrained`.

    Raises:
        InputError: the model is in none of them, or is damaged, or needs a package that is not installed.
    """
    from transformers.utils import logging  # half a second that encoders of other sources need not wait for

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    is_directory = Path(location).is_dir()
    try:
        return factory.from_pretrained(location, local_files_only=True, **options)
    except UNREADABLE as error:
        if isinstance(error, ImportError) or is_directory or not hub_reachable():
            raise InputError(_explain(error, location, setting, place or f"{setting}.weights")) from None
    try:
        return factory.from_pretrained(location, **options)
    except UNREADABLE as error:
        raise InputError(_explain(error, location, setting, place or f"{setting}.weights")) from None


def hub_reachable() -> bool:
    """Return whether the hub answers at all: its own client would try for half a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _explain(error: Exception, location: str, setting: str, place: str) -> str:
    reason = first_line(error)
    if "sentencepiece" in str(error) or "tiktoken" in str(error):  # transformers names the one, either reads the file
        return f"{setting} '{location}' has a sentencepiece tokenizer (tokenizer.model); run pip install sentencepiece"
    if isinstance(error, ImportError):
        return f"{setting} '{location}' needs a package that is not installed: {reason}"
    if Path(location).is_dir():
        return (
            f"{place} is {location}, which does not hold a whole model ({reason}); "
            "it needs config.json, the weights, and the files of its tokenizer or preprocessor"
        )
    if location.startswith((".", "/", "~")):
        return f"{place} is {location}, which is no directory; set {place}=DIR to a local model"
    return (
        f"{setting} '{location}' is not in the local hub cache {huggingface_hub.constants.HF_HUB_CACHE} and cannot be "
        f"fetched; set {place}=DIR to a local directory that holds the model, or HF_HOME to another cache"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
