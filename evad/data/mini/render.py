"""Describes scenes of the generated data set as geometry, and draws their pixels and boxes.

Everything that moves is a `Limb`: a capsule (a line segment with a radius) with two end points per frame. The distance
of a point to a capsule is a short formula, so limbs are drawn anti-aliased, and boxes are computed from the end points.

Letters: T frames, n actors; points are (x, y) in pixels from the top left corner of the image, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BACKGROUND_MARGIN = 6  # extra pixels of background beyond each edge of the image, which camera motion brings into view


@dataclass(frozen=True)
class Limb:
    """A moving capsule of one colour; a disc if both ends coincide.

    Attributes:
        ends: (2, T, 2) float64, the two end points in pixels.
        radius: Half the thickness in pixels.
        color: Red, green and blue in [0, 1].
    """

    ends: np.ndarray
    radius: float
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Actor:
    """A person made of limbs.

    Attributes:
        limbs: From back to front.
        visible: (T,) bool, True where the person is in the scene.
    """

    limbs: tuple[Limb, ...]
    actions: tuple[str, ...]
    visible: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Content of one clip.

    Attributes:
        background: (height + 2 * BACKGROUND_MARGIN, width + 2 * BACKGROUND_MARGIN, 3) float32 RGB in [0, 1].
        camera: (T, 2) float64, shift of the whole image in pixels, from 1 - BACKGROUND_MARGIN to BACKGROUND_MARGIN - 1.
        props: Objects, drawn behind all persons.
        actors: From back to front.
    """

    background: np.ndarray
    camera: np.ndarray
    props: tuple[Limb, ...]
    actors: tuple[Actor, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width, _ = self.background.shape
        return height - 2 * BACKGROUND_MARGIN, width - 2 * BACKGROUND_MARGIN


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: (T, height, width, 3) uint8 RGB."""
    canvas = np.stack([_shifted_background(scene, x, y) for x, y in scene.camera])
    everywhere = np.ones(len(scene.camera), dtype=bool)
    for limb in scene.props:
        _paint(canvas, limb, scene.camera, everywhere)
    for actor in scene.actors:
        for limb in actor.limbs:
            _paint(canvas, limb, scene.camera, actor.visible)
    return (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8)


def actor_boxes(scene: Scene) -> np.ndarray:
    """The tightest box around every actor in every frame, including parts hidden by other actors.

    Returns:
        (T, n, 4) float64, xyxy in pixels, clipped to the image; NaN while an actor is not visible.
    """
    height, width = scene.size
    boxes = np.full((len(scene.camera), len(scene.actors), 4), np.nan)
    for index, actor in enumerate(scene.actors):
        low = np.min([limb.ends.min(axis=0) - limb.radius for limb in actor.limbs], axis=0) + scene.camera
        high = np.max([limb.ends.max(axis=0) + limb.radius for limb in actor.limbs], axis=0) + scene.camera
        corners = np.concatenate([low, high], axis=1).clip(0, (width, height, width, height))
        boxes[actor.visible, index] = corners[actor.visible]
    return boxes


def _shifted_background(scene: Scene, x: float, y: float) -> np.ndarray:
    """The (height, width, 3) background shifted by `x` and `y` pixels, with bilinear interpolation."""
    height, width = scene.size
    left, top = BACKGROUND_MARGIN - x, BACKGROUND_MARGIN - y
    column, row = int(np.floor(left)), int(np.floor(top))
    right_share, bottom_share = np.float32(left - column), np.float32(top - row)
    window = scene.background[row : row + height + 1, column : column + width + 1]
    rows = window[:-1] + bottom_share * (window[1:] - window[:-1])
    return rows[:, :-1] + right_share * (rows[:, 1:] - rows[:, :-1])


def _paint(canvas: np.ndarray, limb: Limb, camera: np.ndarray, visible: np.ndarray) -> None:
    """Blend a limb into `canvas` (T, height, width, 3) in place, with soft edges one pixel wide."""
    height, width = canvas.shape[1:3]
    start, end = (limb.ends + camera).astype(np.float32)  # 2 x (T, 2)
    reach = limb.radius + 1
    low = np.floor(np.minimum(start, end).min(axis=0) - reach).astype(int).clip(0, (width, height))
    high = np.ceil(np.maximum(start, end).max(axis=0) + reach).astype(int).clip(0, (width, height))
    if (low >= high).any() or not visible.any():
        return
    xs = np.arange(low[0], high[0], dtype=np.float32) + 0.5  # pixel centres
    ys = np.arange(low[1], high[1], dtype=np.float32) + 0.5
    dx = xs[None, None, :] - start[:, 0, None, None]  # (T, 1, window width)
    dy = ys[None, :, None] - start[:, 1, None, None]  # (T, window height, 1)
    axis_x, axis_y = np.moveaxis(end - start, 1, 0)[:, :, None, None]  # each (T, 1, 1)
    length = np.maximum(axis_x**2 + axis_y**2, np.float32(1e-6))
    along = ((dx * axis_x + dy * axis_y) / length).clip(0, 1)
    distance = np.hypot(dx - along * axis_x, dy - along * axis_y)
    weight = (np.float32(limb.radius + 0.5) - distance).clip(0, 1) * visible[:, None, None]
    window = canvas[:, low[1] : high[1], low[0] : high[0]]
    window += weight[..., None] * (np.asarray(limb.color, dtype=np.float32) - window)
