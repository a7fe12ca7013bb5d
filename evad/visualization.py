"""Pictures: detections drawn on frames, annotated videos, learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from evad.colours import COLOURS  # one per actor
from evad.structures import Detections

READABLE_HEIGHT = 512
_MPEG_CLOCK = Fraction(1, 90_000)  # s


def readable_scale(height: int) -> int:
    """Whole-number enlargement that makes a frame of `height` pixels large enough to write on."""
    return max(1, -(-READABLE_HEIGHT // height))


def draw_detections(
    frame: np.ndarray,
    detections: Detections,
    names: Sequence[str],
    score_threshold: float = 0.3,
    top_actions: int = 3,
    scale: int = 1,
    truth: Sequence[tuple[Sequence[float], str]] = (),
) -> np.ndarray:
    """Frame with a box per actor and its best actions beside it.

    Args:
        frame: (H, W, 3) uint8 RGB.
        detections: Boxes in pixels of the frame.
        names: K class names.
        score_threshold: Actions scored lower are not named.
        top_actions: At most this many actions per actor.
        scale: Whole-number enlargement, so that small frames stay readable.
        truth: Ground-truth boxes (pixels) with their text, drawn in white.

    Returns:
        (H * scale, W * scale, 3) uint8.
    """
    height, width = frame.shape[:2]
    image = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(11, image.height // 40))
    for box, text in truth:
        _labelled_box(draw, [value * scale for value in box], text, "white", font, below=True)
    for number, (box, actions) in enumerate(zip(detections.boxes.tolist(), detections.action_scores)):
        order = torch.argsort(actions, descending=True)[:top_actions].tolist()
        best = [k for k in order if actions[k] >= score_threshold]
        text = "\n".join(f"{names[k]} {actions[k]:.2f}" for k in best)
        _labelled_box(draw, [value * scale for value in box], text, COLOURS[number % len(COLOURS)], font)
    return np.asarray(image)


def _labelled_box(draw: ImageDraw.ImageDraw, box: list, text: str, colour: str, font, below: bool = False) -> None:
    draw.rectangle(box, outline=colour, width=max(1, font.size // 6))
    if not text:
        return
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    image_width, image_height = draw.im.size
    x = min(max(box[0], 0), max(image_width - width, 0))
    y = min(box[3], image_height - height) if below else max(box[1] - height, 0)
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    draw.multiline_text((x + 2 - left, y + 2 - top), text, fill="black", font=font)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, times: np.ndarray | None = None) -> int:
    """Encode frames (H, W, 3) uint8 RGB as H.264 and return how many there were.

    Odd sizes are padded by one pixel, which the codec needs.

    Args:
        path: The file.
        frames: The pictures.
        fps: Frames per second.
        times: Second at which each frame is shown; None: frame k at k / fps.
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


def plot_learning_curve(metrics: pd.DataFrame, path: Path) -> None:
    """Training loss and validation AP over epochs, from a run's metrics.csv."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "train/loss" in metrics:  # runs shorter than trainer.log_every_n_steps log none
        train = metrics.dropna(subset=["train/loss"])
        left.plot(train["step"], train["train/loss"], color=COLOURS[4])
    left.set(xlabel="optimizer step", ylabel="training loss", title="Loss")
    valid = metrics.dropna(subset=["val/mAP"])
    right.plot(valid["epoch"] + 1, 100 * valid["val/mAP"], marker="o", label="action mAP@0.5", color=COLOURS[5])
    right.plot(valid["epoch"] + 1, 100 * valid["val/person_AP"], marker="s", label="person AP@0.5", color=COLOURS[2])
    right.set(xlabel="epoch", ylabel="AP in %", title="Validation", ylim=(0, 100))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_training_cost(table: pd.DataFrame, path: Path) -> None:
    """Memory and time of a training step by keep rate, one line per image size (Fig. 6)."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    columns = [("peak_memory_mb", "peak memory in MiB"), ("latency_ms", "training step in ms")]
    for axis, (column, label) in zip(axes, columns):
        for colour, (size, rows) in zip(COLOURS[1:], table.groupby("size")):
            axis.plot(rows["keep_rate"], rows[column], marker="o", label=f"{size} pixels", color=colour)
        axis.set(xlabel="keep rate", ylabel=label, ylim=(0, None))
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def plot_keep_rates(table: pd.DataFrame, path: Path) -> None:
    """AP against keep rate at test time, with the cost of each point written beside it (Fig. 7)."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(table["keep_rate"], 100 * table["mAP"], marker="o", color=COLOURS[5], label="action mAP@0.5")
    axis.plot(table["keep_rate"], 100 * table["person_AP"], marker="s", color=COLOURS[2], label="person AP@0.5")
    for row in table.to_dict("records"):
        point = (row["keep_rate"], 100 * row["mAP"])
        axis.annotate(f"{row['gflops']:.3g} GFLOPs", point, xytext=(0, -14), textcoords="offset points", ha="center")
    axis.set(xlabel="keep rate at test", ylabel="AP in %", ylim=(0, 102))
    axis.invert_xaxis()
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    figure.savefig(path, dpi=120)
