"""Write annotated videos."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_MPEG_CLOCK = Fraction(1, 90_000)  # s


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, times: np.ndarray | None = None) -> int:
    """Encode frames as H.264.

    Odd heights and widths are padded by one pixel, because the codec needs even ones.

    Args:
        path: The file to write.
        frames: (H, W, 3) uint8 RGB each.
        fps: Frames per second.
        times: Second at which each frame is shown; None for frame k at k / fps.

    Returns:
        Number of frames.
    """
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = _MPEG_CLOCK
        for frame in frames:
            padded = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            if count == 0:
                stream.height, stream.width = padded.shape[:2]
            picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(times[count] / _MPEG_CLOCK), _MPEG_CLOCK
            for packet in stream.encode(picture):
                container.mux(packet)
            count += 1
        for packet in stream.encode():
            container.mux(packet)
    return count
