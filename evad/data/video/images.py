"""Reads frames that were extracted as image files."""

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

from evad.data.video.errors import VideoError, check_indices, first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameReader:
    """Reader of extracted frames, one image file per frame.

    Args:
        paths: Image files in order.
        fps: Rate in frames per second at which the frames were extracted.
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
        wanted, inverse = check_indices(indices, self.num_frames, self._name)
        images = [self._read_image(int(index)) for index in wanted]
        for index, image in zip(wanted, images):
            if image.shape != (self.height, self.width, 3):
                raise VideoError(
                    f"{self._paths[index]}: the frame has {image.shape[1]}x{image.shape[0]} pixels, but the "
                    f"first frame of {self._name} has {self.width}x{self.height}; extract the video's frames again"
                )
        return np.stack(images)[inverse]

    def _read_image(self, index: int) -> np.ndarray:
        path = self._paths[index]
        if not os.path.isfile(path):  # noqa: PTH113 (creating a Path takes longer than the check)
            raise FileNotFoundError(f"{path}: frame {index} of {self._name} is missing; extract the frames again")
        try:
            return decode_image(path, ImageReadMode.RGB).permute(1, 2, 0).numpy()  # 3 H W -> H W 3
        except RuntimeError as error:
            message = f"{path}: the image cannot be read ({first_line(error)}); extract the frames again"
            raise VideoError(message) from error


@dataclass(frozen=True)
class NumberedFrames(Sequence[str]):
    """Paths that differ only in a running number; takes far less memory than the 27 030 strings of an AVA video."""

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
            raise IndexError(f"frame {index} does not exist; there are {self.length} frames")
        return f"{self.prefix}{self.first + index % self.length:0{self.digits}d}{self.suffix}"


_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.\w+)")


def compact_paths(paths: Sequence[str]) -> Sequence[str]:
    """Convert paths to `NumberedFrames` if they are numbered consecutively, else to a tuple."""
    match = _NUMBERED.fullmatch(paths[0]) if len(paths) else None
    if match:
        prefix, number, suffix = match.group("prefix", "number", "suffix")
        numbered = NumberedFrames(prefix, len(number), suffix, int(number), len(paths))
        if all(path == expected for path, expected in zip(paths, numbered)):
            return numbered
    return tuple(paths)


_NUMBER_IN_PATTERN = re.compile(r"%0?\d*d")


def check_pattern(pattern: str) -> None:
    """Check a pattern for `matching_frames`.

    Raises:
        ValueError: The pattern lacks `{video}`, or does not have exactly one frame number, after its last slash.
    """
    name = pattern.rpartition("/")[2]
    numbers = _NUMBER_IN_PATTERN.findall(pattern)
    if "{video}" not in pattern or len(numbers) != 1 or numbers[0] not in name:
        raise ValueError(
            f"data.frame_pattern {pattern!r} must contain {{video}} and, in the file name, one frame number, such as "
            "{video}/img_%05d.jpg"
        )


@cache
def matching_frames(root: str, pattern: str, video: str) -> Sequence[str]:
    """Image files of a video that match a pattern, in order; empty if nothing matches.

    Args:
        root: Folder to which the pattern is relative.
        pattern: Path with `{video}` and one printf-like frame number, such as `{video}/img_%05d.jpg`.

    Raises:
        VideoError: A frame between the first and the last is missing.
    """
    folder, _, name = f"{root}/{pattern.replace('{video}', video)}".rpartition("/")
    before, after = map(re.escape, _NUMBER_IN_PATTERN.split(name))
    matches = [re.fullmatch(f"{before}(\\d+){after}", path) for path in _names(folder)]
    frames = {int(match[1]): match[0] for match in matches if match}
    numbers = sorted(frames)
    gaps = set(range(numbers[0], numbers[-1])) - set(numbers) if numbers else ()
    if gaps:
        raise VideoError(f"video {video}: frame {min(gaps)} of {root}/{pattern} is missing; extract the frames again")
    return compact_paths([f"{folder}/{frames[number]}" for number in numbers])


def unmatched(root: str, pattern: str, video: str) -> str:
    """Explain that no image matches: the expected path and the files found in its folder."""
    wanted = f"{root}/{pattern.replace('{video}', video)}"
    there = sorted(_names(wanted.rpartition("/")[0]))
    found = f"its folder has {', '.join(there[:3])}{', ...' if len(there) > 3 else ''}" if there else "no such folder"
    return f"{root}: no file matches data.frame_pattern {pattern!r}; expected {wanted} ({found})"


def _names(folder: str) -> list[str]:
    """Names in a folder; empty if there is no such folder."""
    return os.listdir(folder) if Path(folder).is_dir() else []  # noqa: PTH208 (faster in folders of 27 030 images)


@cache
def list_frames(folder: str) -> Sequence[str]:
    """Image files of a folder, ordered by the number at the end of their names.

    Such names are `<video>_%06d.jpg`, `img_%05d.jpg` and `%05d.png`.

    Raises:
        FileNotFoundError: The folder is missing, or the numbers of the images have a gap.
        VideoError: There are no images, or an image whose name does not end in a number.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of frames; check the data root and the video's name")
    numbers: dict[int, str] = {}
    for name in _names(folder):
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
