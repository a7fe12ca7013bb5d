"""Reads pickles of plain data and NumPy arrays without running code from the file.

`pickle.load` calls any function that a file names. `load_plain` returns only dict, list, tuple, str, bytes, numbers and
NumPy arrays of numbers or text. The classes and functions below replace NumPy's unpickling code, and rebuild arrays
from their bytes. Files written by Python 2 are decoded as latin1, which keeps the bytes of arrays unchanged.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

_PLAIN_TYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,4}")


class RefusedPickleError(ValueError):
    """A pickle contains something other than plain data and NumPy arrays of numbers or text."""


class _Dtype:
    """Replaces `numpy.dtype`; the byte order of the element type follows in `__setstate__`."""

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not _PLAIN_TYPE.fullmatch(code):
            raise RefusedPickleError(f"refused array type {code!r}: only numbers and text are read")
        self.code = code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "|"

    def decode(self, data: object) -> np.ndarray:
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)  # type: ignore[call-overload]
        return np.frombuffer(raw, dtype=np.dtype(self.order + self.code))


class _Array:
    """Replaces `numpy.core.multiarray._reconstruct`; the content of the array follows in `__setstate__`."""

    def __init__(self, *placeholder: object) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = dtype.decode(data).reshape(shape, order="F" if fortran else "C")


def _array_from_buffer(data: object, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Replaces `numpy._core.numeric._frombuffer`, which protocol 5 uses."""
    array = _Array()
    array.value = dtype.decode(data).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: _Dtype, data: object) -> int | float | bool | str | bytes:
    """Replaces `numpy.core.multiarray.scalar`."""
    return dtype.decode(data)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode`, with which Python 3 writes bytes in the protocols of Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedPickleError(f"refused _codecs.encode with the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Replaces `bytes`, with which Python 3 writes empty bytes in the protocols of Python 2."""
    return b""


class _NDArray:
    """Replaces `numpy.ndarray`, which valid files name only as an argument of `_reconstruct`."""

    def __init__(self, *arguments: object) -> None:
        raise RefusedPickleError("refused numpy.ndarray called with arguments")


_REPLACEMENTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _REPLACEMENTS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _REPLACEMENTS[f"{_core}.multiarray", "scalar"] = _scalar
    _REPLACEMENTS[f"{_core}.numeric", "_frombuffer"] = _array_from_buffer


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that can load nothing but `_REPLACEMENTS`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _REPLACEMENTS:
            raise RefusedPickleError(f"refused {module}.{name}: only plain data and NumPy arrays are read")
        return _REPLACEMENTS[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise RefusedPickleError(f"refused the external object {pid!r}")


def load_plain(path: str | Path) -> Any:
    """Read a pickle of plain data and NumPy arrays.

    Args:
        path: Pickle of any protocol, written by Python 2 or 3.

    Returns:
        Nested dict, list, tuple, str, bytes, int, float, bool, None and read-only arrays.

    Raises:
        RefusedPickleError: The file contains anything else; no code of it was run.
        ValueError: The file is truncated or not a pickle.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _with_arrays(_PlainUnpickler(file, encoding="latin1").load())
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path}: {error}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged pickle can fail with any exception
        raise ValueError(f"{path} is truncated or not a pickle: {error or type(error).__name__}") from error


def _with_arrays(value: Any) -> Any:
    """Replace every `_Array` in nested plain data by its array."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_with_arrays(key): _with_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_arrays(item) for item in value)
    if isinstance(value, (str, bytes, int, float, type(None))):
        return value
    raise RefusedPickleError(f"refused a {type(value).__name__}: only plain data and NumPy arrays are read")
