"""Unpickling of arrays and plain containers, and of nothing else: a pickle names functions, and loading it calls them.

In: a pickle from anywhere. Out: dicts, lists, tuples, text, numbers and numpy arrays of them. A pickle that asks
for anything else is refused before anything of it is called.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

PLAIN_KINDS = "biufcSUO"  # of dtypes: numbers, text, and objects, which go through this unpickler themselves


class UnsafePickleError(ValueError):
    """The pickle asks for something that is neither an array nor a plain container."""


class _ArrayType:
    """Stands for numpy.ndarray where a pickle names it: it can be handed to `_empty_array`, and not called."""


def load_arrays(file: IO[bytes]) -> Any:
    """What a pickle of arrays and plain containers holds.

    Raises:
        UnsafePickleError: it asks for another class or function; the message names it.
        ValueError: it is no pickle, or is damaged.
    """
    try:
        return _ArrayUnpickler(file).load()
    except UnsafePickleError:
        raise
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"no pickle, or a damaged one ({type(error).__name__})") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the few names that pickles of arrays hold, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module.replace('numpy.core', 'numpy._core')}.{name}"  # as numpy 1 called it
        if full_name in _OWN:
            return _OWN[full_name]
        # Both take an array's bytes and a dtype, which is one of the plain kinds, and refuse objects.
        if full_name in ("numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer"):
            return super().find_class(module, name)
        raise UnsafePickleError(
            f"asks for {module}.{name}, which is neither an array nor a plain container; it was not loaded"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise UnsafePickleError("refers to something outside the file; it was not loaded")


def _empty_array(kind: object, shape: object, typecode: object) -> npt.NDArray[Any]:
    """The empty array whose content the pickle sets next."""
    if kind is not _ArrayType:
        raise UnsafePickleError("builds an array of another class; it was not loaded")
    return np.empty(0, dtype=np.int8)


def _plain_dtype(name: object, *_: object) -> np.dtype[Any]:
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in PLAIN_KINDS:
        raise UnsafePickleError(f"holds an array of type {name!r}, which is no plain number or text; it was not loaded")
    return dtype


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnsafePickleError(f"asks for the codec {encoding!r}; it was not loaded")
    return text.encode("latin1")


_OWN: Mapping[str, Any] = {
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.ndarray": _ArrayType,
    "numpy.dtype": _plain_dtype,
    "_codecs.encode": _latin1,  # how protocol 2 writes bytes
}
