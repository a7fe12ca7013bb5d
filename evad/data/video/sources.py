"""Finds the videos of a data set by name, and caches open readers."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evad.data.video.errors import VideoReader
from evad.data.video.images import FrameReader, check_pattern, list_frames, matching_frames, unmatched
from evad.data.video.readers import Backend, open_video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


class ReaderSource(Protocol):
    """Opens the videos of a data set by name: `VideoFiles` or `FrameFolders`."""

    def __call__(self, video: str) -> VideoReader: ...

    def missing(self, videos: Sequence[str]) -> list[str]:
        """The names in `videos` for which there are no files."""
        ...

    def where(self, video: str) -> str:
        """The place where a missing video was expected, for error messages."""
        ...


class VideoFiles:
    """Opens the video files of a data set by video name.

    Args:
        root: Folder of the files; video `v` is `root/v.mp4` (or .mkv, .webm, .avi, .mov).
        backend: See `open_video`.
    """

    def __init__(self, root: str | Path, backend: Backend = "auto") -> None:
        self.root = Path(root)
        self.backend: Backend = backend
        found: dict[str, Path] = {}
        for path in sorted(self.root.rglob("*")):
            suffix = path.suffix.lower()
            if suffix not in VIDEO_SUFFIXES:
                continue
            name = path.relative_to(self.root).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} are both video {name!r}; keep one of them")
            found[name] = path
        self.paths = {name: str(path) for name, path in found.items()}

    def __call__(self, video: str) -> VideoReader:
        if video not in self.paths:
            raise FileNotFoundError(f"video {video!r} has no file in {self.root} ({', '.join(VIDEO_SUFFIXES)})")
        return open_video(self.paths[video], self.backend)

    def missing(self, videos: Sequence[str]) -> list[str]:
        return [video for video in videos if video not in self.paths]

    def where(self, video: str) -> str:
        return str(self.root)


@dataclass(frozen=True)
class FrameFolders:
    """Opens the extracted frames of a data set by video name.

    Without frame lists and pattern, all images of folder `{video}` are read in the order of the numbers in their names.

    Attributes:
        root: Folder with one folder of images per video.
        fps: Rate in frames per second at which the frames were extracted.
        pattern: Path of a video's images below `root`, such as `{video}/img_%05d.jpg`.
    """

    root: Path
    fps: float
    frame_lists: Mapping[str, Sequence[str]] | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            check_pattern(self.pattern)

    def __call__(self, video: str) -> VideoReader:
        return FrameReader(self._frames(video), self.fps, video)

    def _frames(self, video: str) -> Sequence[str]:
        if self.frame_lists is not None:
            if video not in self.frame_lists:
                raise FileNotFoundError(f"video {video!r} is not in the frame lists; add its frames to the list file")
            return self.frame_lists[video]
        if self.pattern is None:
            return list_frames(str(self.root / video))
        if frames := matching_frames(str(self.root), self.pattern, video):
            return frames
        raise FileNotFoundError(f"video {video!r} is not in {self.where(video)}")

    def missing(self, videos: Sequence[str]) -> list[str]:
        if self.frame_lists is not None:
            return [video for video in videos if video not in self.frame_lists]
        if self.pattern is None:
            return [video for video in videos if not (self.root / video).is_dir()]
        return [video for video in videos if not matching_frames(str(self.root), self.pattern, video)]

    def where(self, video: str) -> str:
        if self.frame_lists is None and self.pattern is not None:
            return unmatched(str(self.root), self.pattern, video)
        return str(self.root)


# Readers that a forked process inherited. They are never released: their decoding threads exist only in the parent, so
# decord's destructor would wait for them and hang or abort the process.
_INHERITED: list[OrderedDict[str, VideoReader]] = []


class ReaderCache:
    """Keeps the `size` most recently used readers of this process open; pickled or forked copies start empty."""

    def __init__(self, open_reader: Callable[[str], VideoReader], size: int) -> None:
        if size < 1:
            raise ValueError(f"data.open_videos is {size}; it must be 1 or more")
        self.open_reader = open_reader
        self.size = size
        self._readers: OrderedDict[str, VideoReader] = OrderedDict()
        self._process = os.getpid()

    def __call__(self, video: str) -> VideoReader:
        if self._process != os.getpid():
            _INHERITED.append(self._readers)
            self._readers, self._process = OrderedDict(), os.getpid()
        reader = self._readers.pop(video, None) or self.open_reader(video)
        self._readers[video] = reader
        while len(self._readers) > self.size:
            self._readers.popitem(last=False)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict()}
