"""Videos and images that tests write: every frame differs, none loses a pixel."""

import av
import numpy as np
import pytest
import torch
from torchvision.io import write_png

HEIGHT, WIDTH = 32, 40


def numbered_frames(count, height=HEIGHT, width=WIDTH):
    """(count, height, width, 3) uint8; the corners differ, and no two frames are equal."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    return np.stack((t * 5 % 256, (3 * y + 7 * t) % 256, (x * 2 + t // 51) % 256), axis=-1).astype(np.uint8)


def write_video(path, frames, fps=30, x264="bframes=0:keyint=12", codec="libx264rgb", rotation=None):
    """Encode frames (T, H, W, 3) without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"qp": "0", "preset": "medium", "x264-params": x264} if codec == "libx264rgb" else {}
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "bgr0"
        if rotation is not None:
            if not hasattr(stream.codec_context, "set_display_rotation"):
                pytest.skip("PyAV before 18 cannot write a rotation")
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(folder, frames, pattern):
    """One PNG per frame under names from `pattern`, numbered from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=1):
        write_png(torch.from_numpy(frame).permute(2, 0, 1).contiguous(), str(folder / (pattern % number)))
    return folder
