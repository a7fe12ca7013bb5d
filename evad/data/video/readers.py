"""Reads frames of a video file by exact index, with PyAV or decord.

Readers hold open files and native decoders, so they are never pickled: DataLoader workers receive a `VideoFiles` or
`FrameFolders` object, which knows the paths, and each process opens its own readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from evad.data.video.clock import measured_rate
from evad.data.video.errors import REENCODE, VideoError, VideoReader, check_indices, first_line

try:
    import decord
except ImportError:  # has no wheels for some platforms
    decord = None
else:
    decord.logging.set_level(decord.logging.QUIET)

Backend = Literal["auto", "decord", "pyav"]


def open_video(path: str | Path, backend: Backend = "auto") -> VideoReader:
    """Open a video file.

    Both backends decode with one thread: several DataLoader workers read clips at the same time, and starting threads
    for the few frames of a clip costs more time than it saves.

    Args:
        backend: `auto` is PyAV, with decord for files that PyAV cannot read. The pixels are identical. decord 0.6 needs
            60 to 200 MB per open video, indexes the file whenever it opens it, cannot read some narrow videos (16 or 48
            pixels wide), and may return the wrong neighbouring frame of AVI files with B-frames.

    Raises:
        FileNotFoundError: There is no such file.
        VideoError: The file cannot be read; the text gives the reason of each backend.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file; check the data root and the file's name")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the video file is empty (0 bytes); {REENCODE}")
    if backend not in _READERS:
        raise ValueError(f"video backend {backend!r} is unknown; choose one of {', '.join(_READERS)}")
    reasons = []
    for reader in _READERS[backend]:
        try:
            return reader(path)
        except VideoError as error:
            reasons.append(str(error).removeprefix(f"{path}: ").removesuffix(f"; {REENCODE}"))
    raise VideoError(f"{path}: {', '.join(reasons)}; {REENCODE}")


def _is_avi(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(12)
    return header[:4] == b"RIFF" and header[8:] == b"AVI "


class DecordReader:
    def __init__(self, path: str | Path) -> None:
        if decord is None:
            raise VideoError(f"{path}: decord is not installed; install it or use backend=pyav")
        self._path = path
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
            # Read a frame, because decord opens some files that it cannot decode.
            _, self.height, self.width, _ = self._reader.get_batch([0]).shape
            self.num_frames = len(self._reader)
            starts = self._reader.get_frame_timestamp(np.arange(self.num_frames))[:, 0].astype(np.float64)
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(f"{path}: decord cannot read the video ({first_line(error)}); {REENCODE}") from error
        self.fps = float(self._reader.get_avg_fps())
        self.times: np.ndarray | None = None
        if _is_avi(Path(path)):  # AVI stores no presentation times
            return
        if starts[0] < 0:
            raise VideoError(
                f"{path}: decord miscounts the hidden frames of videos that were cut without re-encoding; "
                "use backend=pyav or auto"
            )
        self.fps, self.times = measured_rate(starts, self.fps)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted, inverse = check_indices(indices, self.num_frames, self._path)
        try:
            frames = self._reader.get_batch(wanted).asnumpy()
        except (RuntimeError, decord.DECORDError) as error:
            message = f"{self._path}: decord cannot decode frames {wanted.tolist()} ({first_line(error)}); {REENCODE}"
            raise VideoError(message) from error
        return frames[inverse]


@dataclass(frozen=True)
class _Timeline:
    """Times of the frames of a file, and the keyframes at which decoding can start.

    Attributes:
        pts: (num_frames,) int64, ascending presentation timestamps; None if the file has no usable timestamps, so that
            frames must be counted from the beginning.
        keyframes: (k,) int64, ascending indices of the keyframes.
        seek: (k, 2) int64, presentation and decoding timestamp of each keyframe, to seek to.
    """

    num_frames: int
    pts: np.ndarray | None
    keyframes: np.ndarray
    seek: np.ndarray


@lru_cache(maxsize=4096)
def _timeline(path: str, mtime_ns: int, size: int) -> _Timeline:
    """Timeline of a file, cached because scanning a 15-minute video takes longer than decoding a clip.

    Forked workers inherit the cache.
    """
    with av.open(path) as container:
        # Keep only numbers: 27 000 packets would need much memory.
        packets = [(p.pts, p.dts, p.is_keyframe, p.is_discard) for p in container.demux(video=0) if p.size]
        is_avi = "avi" in container.format.name
    timed = [(pts, pts if dts is None else dts, *flags) for pts, dts, *flags in packets if pts is not None]
    pts, dts, is_key, is_hidden = np.array(timed, dtype=np.int64).reshape(-1, 4).T
    # AVI stores no presentation times; the demuxer's guesses are wrong if frames are reordered.
    invented = is_avi and (pts != dts).any()
    usable = len(np.unique(pts)) == len(packets) and is_key.any()
    if invented or not usable:
        with av.open(path) as container:
            count = sum(1 for _ in container.decode(video=0))
        return _Timeline(count, None, np.zeros(1, np.int64), np.zeros((1, 2), np.int64))
    order = np.argsort(pts)
    # Packets hidden by an edit list are decoded, because others depend on them, but never shown.
    shown = pts[order][is_hidden[order] == 0]
    seek = np.stack([pts, dts], axis=1)[order][is_key[order] == 1]
    return _Timeline(len(shown), shown, np.searchsorted(shown, seek[:, 0]), seek)


class PyAVReader:
    """Decodes with PyAV: seeks to the last keyframe before the wanted frame and decodes up to its timestamp."""

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        self._position = -1
        self._frame: av.VideoFrame | None = None
        self._to_rgb = VideoReformatter()  # reused for all frames, as it caches conversion tables
        try:
            stat = Path(path).stat()
            self._timeline = _timeline(self._path, stat.st_mtime_ns, stat.st_size)
            self._open()
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not self._timeline.num_frames or not rate:
                raise VideoError(f"{path}: the video stream has no frames; {REENCODE}")
            self.height, self.width, _ = self._rgb(0).shape
        except (av.error.FFmpegError, IndexError) as error:
            raise VideoError(f"{path}: PyAV cannot read the video ({first_line(error)}); {REENCODE}") from error
        self.num_frames = self._timeline.num_frames
        self.fps = float(rate)
        self.times: np.ndarray | None = None
        if self._timeline.pts is not None and self._stream.time_base is not None:
            self.fps, self.times = measured_rate(self._timeline.pts * float(self._stream.time_base), self.fps)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted, inverse = check_indices(indices, self.num_frames, self._path)
        try:
            frames = np.stack([self._rgb(int(index)) for index in wanted])
        except av.error.FFmpegError as error:
            message = f"{self._path}: PyAV cannot decode frames {wanted.tolist()} ({first_line(error)}); {REENCODE}"
            raise VideoError(message) from error
        return frames[inverse]

    def _rgb(self, index: int) -> np.ndarray:
        """Frame `index` as (H, W, 3) uint8, rotated as displayed."""
        frame = self._decode(index)
        image = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image

    def _decode(self, index: int) -> av.VideoFrame:
        keyframe = max(int(np.searchsorted(self._timeline.keyframes, index, side="right")) - 1, 0)
        ahead = self._timeline.keyframes[keyframe] <= self._position <= index
        if ahead and (frame := self._advance(index)):
            return frame
        # Containers index packets by presentation time (Matroska) or by decoding time (MP4), so seeking to either one
        # may miss the keyframe. Decoding from the beginning always works.
        seeks = self._timeline.seek[keyframe].tolist() if self._timeline.pts is not None else []
        for timestamp in [*seeks, None]:
            self._restart(timestamp)
            if frame := self._advance(index):
                return frame
        raise VideoError(f"{self._path}: frame {index} of {self._timeline.num_frames} is damaged; {REENCODE}")

    def _restart(self, timestamp: int | None) -> None:
        """Seek to a timestamp, or to the beginning if it is None."""
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
        """Decode up to frame `index`; None if the stream skips it or ends before it."""
        pts = self._timeline.pts
        while self._position < index:
            self._frame = next(self._frames, None)
            if self._frame is None:
                return None
            self._position = self._position + 1 if pts is None else _position(pts, self._frame.pts)
        return self._frame if self._position == index else None


def _position(pts: np.ndarray, frame_pts: int | None) -> int:
    """Index of a decoded frame; -1 if no packet has its timestamp."""
    if frame_pts is None:
        return -1
    position = int(np.searchsorted(pts, frame_pts))
    return position if position < len(pts) and pts[position] == frame_pts else -1


_READERS: dict[str, tuple[Callable[[Path], VideoReader], ...]] = {
    "auto": (PyAVReader, DecordReader),
    "decord": (DecordReader,),
    "pyav": (PyAVReader,),
}
