"""Frames extracted as image files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.io import ImageReadMode, decode_image

try:
    import decord
except ImportError:  # pyproject.toml leaves it out on macOS
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)
from evad.data.video.errors import VideoError, _check_indices, _first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameReader:
    """Extracted frames: one image file per frame.

    Args:
        paths: Image files in order.
        fps: Frames per second they were extracted at.
        name: The video, for messages.
    """

    def __init__(self, paths: Sequence[str], fps: float, name: str) -> None:
        if not len(paths):
            raise VideoError(f"{name}: the video has no frames; extract its frames again")
        self._paths = paths
        self._name = name
        self.num_frames = len(paths)
        self.fps = fps
        self.times: np.ndarray | None = None
        self.height, self.width, _ = self._read_image(0).shape

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `VideoReader.read`."""
        wanted, inverse = _check_indices(indices, self.num_frames, self._name)
        images = [self._read_image(int(index)) for index in wanted]
        for index, image in zip(wanted, images):
            if image.shape != (self.height, self.width, 3):
                raise VideoError(
                    f"{self._paths[index]}: the frame has {image.shape[1]}x{image.shape[0]} pixels, the first frame of "
                    f"{self._name} {self.width}x{self.height}; extract the frames of this video again"
                )
        return np.stack(images)[inverse]

    def _read_image(self, index: int) -> np.ndarray:
        path = self._paths[index]
        if not os.path.isfile(path):  # noqa: PTH113 (a Path per frame costs more than the check)
            raise FileNotFoundError(f"{path}: frame {index} of {self._name} is missing; extract the frames again")
        try:
            return decode_image(path, ImageReadMode.RGB).permute(1, 2, 0).numpy()  # 3 H W -> H W 3
        except RuntimeError as error:
            message = f"{path}: the image cannot be read ({_first_line(error)}); extract the frames again"
            raise VideoError(message) from error


@dataclass(frozen=True)
class NumberedFrames(Sequence[str]):
    """Paths that differ in a running number only: a few bytes instead of 27 030 strings per AVA video."""

    prefix: str
    digits: int
    suffix: str
    first: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(f"frame {index} of {self.length}")
        return f"{self.prefix}{self.first + index % self.length:0{self.digits}d}{self.suffix}"


_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.\w+)")


def compact_paths(paths: Sequence[str]) -> Sequence[str]:
    """The same paths, as `NumberedFrames` if they are consecutively numbered, else as a tuple."""
    match = _NUMBERED.fullmatch(paths[0]) if len(paths) else None
    if match:
        prefix, number, suffix = match.group("prefix", "number", "suffix")
        numbered = NumberedFrames(prefix, len(number), suffix, int(number), len(paths))
        if all(path == expected for path, expected in zip(paths, numbered)):
            return numbered
    return tuple(paths)


@cache
def list_frames(folder: str) -> Sequence[str]:
    """Image files of a folder, ordered by the number their names end in.

    Names like `<video>_%06d.jpg`, `img_%05d.jpg` and `%05d.png` all do.

    Raises:
        FileNotFoundError: The folder is missing, or a number between the first and the last has no image.
        VideoError: It has no images, or images whose names do not end in a number.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of frames; check the data root and the video's name")
    numbers: dict[int, str] = {}
    for name in os.listdir(folder):  # noqa: PTH208 (names only: a folder may hold 27 030)
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
            match = _NUMBERED.fullmatch(name)
            if not match:
                raise VideoError(f"{folder}/{name}: the image's name does not end in a frame number; rename or move it")
            if int(match["number"]) in numbers:
                raise VideoError(f"{folder}: {numbers[int(match['number'])]} and {name} have the same frame number")
            numbers[int(match["number"])] = name
    if not numbers:
        raise VideoError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} images in this folder; extract the frames again")
    ordered = sorted(numbers)
    for before, after in pairwise(ordered):
        if after != before + 1:
            raise FileNotFoundError(
                f"{folder}: frame {before + 1} is missing ({numbers[before]} is followed by {numbers[after]}); "
                f"extract the frames again"
            )
    return compact_paths([f"{folder}/{numbers[number]}" for number in ordered])
