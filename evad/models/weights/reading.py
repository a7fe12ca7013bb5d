"""Reads weight files of any program without running code from them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Keys under which training programs save the state dict; if several occur, the outermost is first.
_WRAPPERS = ("model_state", "state_dict", "model", "module")
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Plain data that training programs save with the weights: command line arguments and NumPy numbers.
_PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


class RefusedWeightsError(ValueError):
    """A file contains more than tensors and plain values, so that reading it could run code."""


@dataclass
class WeightFile:
    """Content of a weight file.

    Attributes:
        path: File or folder.
        tensors: The state dict, under the file's own names.
        metadata: Metadata of a safetensors file; empty for other files.
        config: Content of `config.json` in the same folder (Hugging Face); empty if there is none.
        ignored: Names of everything else in the file: optimizer, epoch, arguments, ...
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read_weights(path: str | Path) -> WeightFile:
    """Read a state dict onto the CPU.

    Args:
        path: A `.safetensors` file, a file by `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`) with the state dict at the
            top or below `model_state`, `state_dict`, `model` or `module`, or a Hugging Face folder.

    Raises:
        FileNotFoundError: if there is no such file, or no weights in the folder.
        RefusedWeightsError: if reading would run code; none was run.
        ValueError: if the file is damaged or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        file = _read_folder(path)
    elif not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    elif path.suffix == ".safetensors":
        file = _read_safetensors(path)
    else:
        file = _read_pickle(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if config.is_file():
        file.config = json.loads(config.read_text())
    return file


def _read_folder(folder: Path) -> WeightFile:
    found = next((folder / name for name in _FOLDER_FILES if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no weights in the folder {folder}: expected one of {', '.join(_FOLDER_FILES)}")
    parts = [found]
    if found.suffix == ".json":
        parts = [folder / name for name in sorted(set(json.loads(found.read_text())["weight_map"].values()))]
    whole = WeightFile(folder, {})
    for part in parts:
        file = _read_safetensors(part) if part.suffix == ".safetensors" else _read_pickle(part)
        whole.tensors.update(file.tensors)
        whole.metadata.update(file.metadata)
        whole.ignored += file.ignored
    return whole


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return WeightFile(path, tensors, metadata=file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> WeightFile:
    try:
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named:
            raise RefusedWeightsError(
                f"{path} is refused: reading it would call {named[1]}, but weights are read only from files of tensors "
                "and plain values; nothing was run. If you trust the file, save its bare state dict again"
            ) from None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is damaged or not a weight file: {reason[-1].strip()}") from error
    return _unwrap(path, content)


def _unwrap(path: Path, content: Any) -> WeightFile:
    ignored: list[str] = []
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        ignored += [str(key) for key in content if key != wrapper]
        content = content[wrapper]
    entries = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} holds no weights: no dictionary of tensors at its top or below {', '.join(_WRAPPERS)} "
            f"(found {', '.join(map(str, list(entries)[:8])) or type(content).__name__})"
        )
    return WeightFile(path, tensors, ignored=ignored + [str(name) for name in entries if name not in tensors])
