"""Unpickling of arrays and plain containers, and of nothing else: a pickle names functions, and loading it calls them.

In: a pickle from anywhere. Out: dicts, lists, tuples, text, numbers and numpy arrays of them. A pickle that asks
for anything else is refused before anything of it is called.
"""

from __future__ import annotations

import pickle
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
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
    """Resolves the few names that pickles of arrays hold to functions of this module, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ARRAY_MODULES and name in ("_reconstruct", "scalar"):
            return _empty_array if name == "_reconstruct" else _scalar
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _array_of_buffer
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayType
        if (module, name) == ("numpy", "dtype"):
            return _plain_dtype
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin1
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


def _scalar(dtype: np.dtype[Any], content: object = b"") -> Any:
    if not isinstance(dtype, np.dtype) or dtype.kind not in PLAIN_KINDS or dtype.hasobject:
        raise UnsafePickleError("holds a scalar of no plain type; it was not loaded")
    if not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise ValueError("a damaged number")
    return np.frombuffer(content, dtype=dtype)[0]


def _array_of_buffer(content: Any, dtype: np.dtype[Any], shape: Any, order: str) -> npt.NDArray[Any]:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise UnsafePickleError("holds objects as raw memory; it was not loaded")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise UnsafePickleError(f"asks for the codec {encoding!r}; it was not loaded")
    return text.encode("latin1")
