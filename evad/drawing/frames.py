"""Draw detections on frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from evad.drawing.colours import COLOURS
from evad.structures import Detections

READABLE_HEIGHT = 512


def readable_scale(height: int) -> int:
    """Integer factor that enlarges a frame of `height` pixels so that text on it is readable."""
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
    """Draw a box around each actor, with its most confident actions.

    Args:
        frame: (H, W, 3) uint8 RGB.
        detections: Boxes in pixels of the frame.
        names: K class names.
        score_threshold: Actions with a lower score are not named.
        top_actions: At most this many actions per actor.
        scale: Integer factor by which the frame is enlarged, see `readable_scale`.
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
