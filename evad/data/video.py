"""Frames of a video by exact index, from video files (decord or PyAV) and from folders of extracted images.

Readers hold open files and native decoders, so they are never pickled: what travels to DataLoader workers is the
small description of where the pixels are (`VideoFiles`, `FrameFolders`), and each process opens its own readers.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from torchvision.io import ImageReadMode, decode_image

from evad.data.video_times import measured_rate

try:
    import decord
except ImportError:  # pyproject.toml leaves it out on macOS
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Backend = Literal["auto", "decord", "pyav"]

_REENCODE = "download it again or re-encode it (ffmpeg -i OLD -c:v libx264 -crf 18 NEW.mp4)"


class VideoError(RuntimeError):
    """A video that cannot be opened or decoded; the text names it, the reason and a remedy."""


class VideoReader(Protocol):
    """Random access to the frames of one video.

    Attributes:
        num_frames: Number of frames.
        fps: Frames per second, see `Timed`.
        times: When each frame is shown where the rate varies, see `Timed`.
        height: Height of a frame in pixels, as displayed.
        width: Width of a frame in pixels, as displayed.
    """

    num_frames: int
    fps: float
    times: np.ndarray | None
    height: int
    width: int

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames `indices` (any order, repeats allowed) as (T, H, W, 3) uint8 RGB.

        Raises:
            IndexError: An index is outside [0, num_frames).
            VideoError: A frame cannot be decoded.
        """
        ...


def open_video(path: str | Path, backend: Backend = "auto") -> VideoReader:
    """Reader of one video file.

    Both backends decode with one thread: clips are read by several DataLoader workers at once, and for the few frames
    of a clip starting threads costs more than it saves.

    Args:
        path: The file.
        backend: `auto` is decord, and PyAV where decord is not installed, cannot read the file (decord 0.6 refuses
            some narrow ones, 48 pixels wide for example) or is not exact: in AVI files with B-frames, and in files
            whose first frames an edit list hides, it returns neighbouring frames. The pixels are identical.

    Raises:
        FileNotFoundError: There is no such file.
        VideoError: The file cannot be read; names the reason given by each backend.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file; check the data root and the file's name")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the video file is empty (0 bytes); {_REENCODE}")
    if backend not in _READERS:
        raise ValueError(f"video backend {backend!r} is unknown; choose one of {', '.join(_READERS)}")
    candidates = _READERS[backend] if not (backend == "auto" and _is_avi(path)) else (PyAVReader,)
    reasons = []
    for candidate in candidates:
        try:
            return candidate(path)
        except VideoError as error:
            reasons.append(str(error))
    raise VideoError("; ".join(reasons))


def _is_avi(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(12)
    return header[:4] == b"RIFF" and header[8:] == b"AVI "


def _check_indices(indices: Sequence[int] | np.ndarray, num_frames: int, name: object) -> tuple[np.ndarray, np.ndarray]:
    """Distinct indices in ascending order, and where each requested one is among them."""
    requested = np.asarray(indices, dtype=np.int64)
    if requested.ndim != 1 or not len(requested):
        raise ValueError(f"{name}: frame indices must be a non-empty list, got shape {requested.shape}")
    wrong = requested[(requested < 0) | (requested >= num_frames)]
    if len(wrong):
        raise IndexError(f"{name}: frame {wrong[0]} is outside the video, which has frames 0 to {num_frames - 1}")
    return np.unique(requested, return_inverse=True)


class DecordReader:
    """Video file decoded by decord."""

    def __init__(self, path: str | Path) -> None:
        if decord is None:
            raise VideoError(f"{path}: decord is not installed; install it or use backend=pyav")
        self._path = path
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
            # Read one frame now, so that a file decord opens but cannot decode is found here.
            self.height, self.width, _ = self._reader[0].shape
            self.num_frames = len(self._reader)
            starts = self._reader.get_frame_timestamp(np.arange(self.num_frames))[:, 0].astype(np.float64)
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(f"{path}: decord cannot read the video ({_first_line(error)}); {_REENCODE}") from error
        self.fps = float(self._reader.get_avg_fps())
        self.times: np.ndarray | None = None
        if _is_avi(Path(path)):  # stores no presentation times
            return
        if starts[0] < 0:
            raise VideoError(
                f"{path}: decord miscounts frames that an edit list hides, as cutting without encoding leaves them; "
                "use backend=pyav or auto"
            )
        self.fps, self.times = measured_rate(starts, self.fps)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `VideoReader.read`."""
        wanted, inverse = _check_indices(indices, self.num_frames, self._path)
        try:
            frames = self._reader.get_batch(wanted).asnumpy()
        except (RuntimeError, decord.DECORDError) as error:
            message = f"{self._path}: decord cannot decode frames {wanted.tolist()} ({_first_line(error)}); {_REENCODE}"
            raise VideoError(message) from error
        return frames[inverse]


@dataclass(frozen=True)
class _Timeline:
    """When each frame of a file is shown, and where decoding can start.

    Attributes:
        num_frames: Number of frames.
        pts: (num_frames,) int64, ascending presentation timestamps; None where the container's are unusable and
            frames are counted from the beginning.
        keyframes: (k,) int64, ascending indices of the frames decoding can start at.
        seek: (k, 2) int64, timestamps to seek to for each of them: presentation, decoding.
    """

    num_frames: int
    pts: np.ndarray | None
    keyframes: np.ndarray
    seek: np.ndarray


@lru_cache(maxsize=4096)
def _timeline(path: str, mtime_ns: int, size: int) -> _Timeline:
    """Timeline of a file, kept between readers: scanning a 15-minute video takes longer than decoding a clip."""
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = [(p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.pts is not None]
        # AVI stores no presentation times; what the demuxer makes up is wrong as soon as frames are reordered.
        invented = "avi" in container.format.name and any(pts != dts for pts, dts in times)
    usable = len({pts for pts, _ in times}) == len(packets) and any(packet.is_keyframe for packet in packets)
    if invented or not usable:
        with av.open(path) as container:
            count = sum(1 for _ in container.decode(video=0))
        return _Timeline(count, None, np.zeros(1, np.int64), np.zeros((1, 2), np.int64))
    # Packets that an edit list hides are decoded, because others refer to them, but never shown.
    pts = np.array(sorted(pts for (pts, _), p in zip(times, packets) if not p.is_discard), dtype=np.int64)
    seek = np.array(sorted(time for time, p in zip(times, packets) if p.is_keyframe), dtype=np.int64).reshape(-1, 2)
    return _Timeline(len(pts), pts, np.searchsorted(pts, seek[:, 0]), seek)


class PyAVReader:
    """Video file decoded by PyAV: seeks to the keyframe before the wanted frame and decodes up to its timestamp."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._position = -1
        self._frame: av.VideoFrame | None = None
        self._to_rgb = VideoReformatter()  # one for all frames: it keeps its conversion tables
        try:
            stat = Path(path).stat()
            self._timeline = _timeline(self._path, stat.st_mtime_ns, stat.st_size)
            self._open()
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not self._timeline.num_frames or not rate:
                raise VideoError(f"{path}: the video stream has no frames; {_REENCODE}")
            self.height, self.width, _ = self._rgb(0).shape
        except (av.error.FFmpegError, IndexError) as error:
            raise VideoError(f"{path}: PyAV cannot read the video ({_first_line(error)}); {_REENCODE}") from error
        self.num_frames = self._timeline.num_frames
        self.fps = float(rate)
        self.times: np.ndarray | None = None
        if self._timeline.pts is not None and self._stream.time_base is not None:
            self.fps, self.times = measured_rate(self._timeline.pts * float(self._stream.time_base), self.fps)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `VideoReader.read`."""
        wanted, inverse = _check_indices(indices, self.num_frames, self._path)
        try:
            frames = np.stack([self._rgb(int(index)) for index in wanted])
        except av.error.FFmpegError as error:
            message = f"{self._path}: PyAV cannot decode frames {wanted.tolist()} ({_first_line(error)}); {_REENCODE}"
            raise VideoError(message) from error
        return frames[inverse]

    def _rgb(self, index: int) -> np.ndarray:
        """Frame `index` as (H, W, 3) uint8, upright."""
        frame = self._decode(index)
        image = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image

    def _decode(self, index: int) -> av.VideoFrame:
        keyframe = max(int(np.searchsorted(self._timeline.keyframes, index, side="right")) - 1, 0)
        ahead = self._timeline.keyframes[keyframe] <= self._position <= index
        if ahead and (frame := self._advance(index)):
            return frame
        # Containers index packets by presentation time (Matroska) or by decoding time (MP4), so a seek by one of the
        # two may land behind the keyframe; starting over always works.
        seeks = self._timeline.seek[keyframe].tolist() if self._timeline.pts is not None else []
        for timestamp in [*seeks, None]:
            self._restart(timestamp)
            if frame := self._advance(index):
                return frame
        raise VideoError(f"{self._path}: frame {index} of {self._timeline.num_frames} is damaged; {_REENCODE}")

    def _restart(self, timestamp: int | None) -> None:
        """Place the decoder at a timestamp, or at the beginning."""
        if timestamp is None:
            self._open()
        else:
            self._container.seek(timestamp, stream=self._stream)
            self._start()

    def _open(self) -> None:
        self._container = av.open(self._path)
        self._stream = self._container.streams.video[0]
        self._stream.thread_count = 1
        self._start()

    def _start(self) -> None:
        self._position, self._frame = -1, None
        self._frames = self._container.decode(self._stream)

    def _advance(self, index: int) -> av.VideoFrame | None:
        """Decode up to frame `index`; None if the stream jumps over it or ends before it."""
        pts = self._timeline.pts
        while self._position < index:
            self._frame = next(self._frames, None)
            if self._frame is None:
                return None
            self._position = self._position + 1 if pts is None else _position(pts, self._frame.pts)
        return self._frame if self._position == index else None


def _position(pts: np.ndarray, frame_pts: int | None) -> int:
    """Index of a decoded frame; -1 for one that no packet announced."""
    if frame_pts is None:
        return -1
    position = int(np.searchsorted(pts, frame_pts))
    return position if position < len(pts) and pts[position] == frame_pts else -1


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_READERS: dict[str, tuple[Callable[[Path], VideoReader], ...]] = {
    "auto": (DecordReader, PyAVReader),
    "decord": (DecordReader,),
    "pyav": (PyAVReader,),
}


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


class VideoFiles:
    """Opens the video files of a data set by video name.

    Args:
        root: Folder of the files; a video `v` is `root/v.mp4` (or .mkv, .webm, .avi, .mov).
        backend: See `open_video`.
    """

    def __init__(self, root: str | Path, backend: Backend = "auto") -> None:
        self.root = Path(root)
        self.backend: Backend = backend
        self.paths = self._list()

    def _list(self) -> dict[str, str]:
        found: dict[str, Path] = {}
        for path in sorted(self.root.rglob("*")):
            suffix = path.suffix.lower()
            if suffix not in VIDEO_SUFFIXES:
                continue
            name = path.relative_to(self.root).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} are both video {name!r}; keep one of them")
            found[name] = path
        return {name: str(path) for name, path in found.items()}

    def __call__(self, video: str) -> VideoReader:
        """Reader of `video`."""
        if video not in self.paths:
            raise FileNotFoundError(f"video {video!r} has no file in {self.root} ({', '.join(VIDEO_SUFFIXES)})")
        return open_video(self.paths[video], self.backend)

    def missing(self, videos: Sequence[str]) -> list[str]:
        """Those of `videos` that have no file."""
        return [video for video in videos if video not in self.paths]


class FrameFolders:
    """Opens the extracted frames of a data set by video name.

    Args:
        root: Folder with one folder of images per video.
        fps: Frames per second they were extracted at.
        frame_lists: Image files per video, where a frame list names them; None reads the folders.
    """

    def __init__(self, root: str | Path, fps: float, frame_lists: Mapping[str, Sequence[str]] | None = None) -> None:
        self.root = Path(root)
        self.fps = fps
        self.frame_lists = frame_lists

    def __call__(self, video: str) -> VideoReader:
        """Reader of `video`."""
        if self.frame_lists is None:
            return FrameReader(list_frames(str(self.root / video)), self.fps, video)
        if video not in self.frame_lists:
            raise FileNotFoundError(f"video {video!r} is not in the frame lists; add its frames to the list file")
        return FrameReader(self.frame_lists[video], self.fps, video)

    def missing(self, videos: Sequence[str]) -> list[str]:
        """Those of `videos` that have no folder or are in no frame list."""
        if self.frame_lists is None:
            return [video for video in videos if not (self.root / video).is_dir()]
        return [video for video in videos if video not in self.frame_lists]


# Readers a forked process got from its parent. Their decoding threads exist in the parent only, and decord's
# destructor waits for them: it hangs or aborts the process, so these readers are never released.
_INHERITED: list[OrderedDict[str, VideoReader]] = []


class ReaderCache:
    """The most recently used readers of this process; pickled or forked copies start empty.

    Args:
        open_reader: Opens a video by name.
        size: Number of readers kept open.
    """

    def __init__(self, open_reader: Callable[[str], VideoReader], size: int = 8) -> None:
        self.open_reader = open_reader
        self.size = size
        self._readers: OrderedDict[str, VideoReader] = OrderedDict()
        self._process = os.getpid()

    def __call__(self, video: str) -> VideoReader:
        """Reader of `video`, opened if it is not among the last `size` used."""
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
