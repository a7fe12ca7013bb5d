"""Figures of tokens: which survive, how many lie on actors, what actors attend to (Figs 1, 4, 8, 11, 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from evad.analysis.figures import BLUE, ORANGE, decorate

DROPPED = 0.85
"""Grey level that dropped tokens fade to."""


def survival_figure(
    images: np.ndarray, survival: np.ndarray, patch: int, boxes: Sequence[Sequence[float]] = ()
) -> Figure:
    """Draw the preserved tokens of a clip: the input, then one row per pruning stage; a column per time slice (Fig. 4).

    Dropped tokens are faded to grey.

    Args:
        images: (T', h, w, 3) float in [0, 1], one picture per slice.
        survival: (S, T', H', W') bool, True = preserved.
        patch: Pixels along each side of a token.
        boxes: (n, 4) xyxy pixels of the keyframe's actors, drawn on the input.
    """
    slices = len(images)
    rows = [("input", images)]
    for stage, alive in enumerate(survival, start=1):
        kept = np.stack([pixels_of(cells, patch, images.shape[1:3]) for cells in alive])
        faded = np.where(kept[..., None], images, DROPPED + 0.15 * (images - 0.5))
        rows.append((f"stage {stage}\n{alive.mean():.0%} of tokens", faded))
    figure, axes = picture_grid(len(rows), slices, images.shape[1:3])
    for line, (label, pictures) in zip(axes, rows):
        show_row(line, pictures, label)
    draw_boxes(axes[0][slices // 2], boxes)
    title_slices(axes[0])
    return figure


def pixels_of(cells: np.ndarray, patch: int, size: tuple[int, ...]) -> np.ndarray:
    """Enlarge values of tokens (H', W') to the pixels (h, w) of the unpadded picture."""
    return np.kron(cells, np.ones((patch, patch), dtype=cells.dtype))[: size[0], : size[1]]


def picture_grid(rows: int, columns: int, size: tuple[int, ...]) -> tuple[Figure, np.ndarray]:
    wide = min(1.6, 13 / columns)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(columns * wide + 1.2, rows * wide * size[0] / size[1] + 0.5), layout=tight)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def show_row(axes: Sequence[Axes], pictures: np.ndarray, label: str) -> None:
    for axis, picture in zip(axes, pictures):
        axis.imshow(picture.clip(0, 1), interpolation="nearest")
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)


def title_slices(axes: Sequence[Axes]) -> None:
    for number, axis in enumerate(axes):
        key = number == len(axes) // 2
        axis.set_title(
            "keyframe" if key else f"slice {number + 1}", fontsize=10, fontweight="bold" if key else "normal"
        )


def draw_boxes(axis: Axes, boxes: Sequence[Sequence[float]], shade: str = ORANGE) -> None:
    """Draw the outlines of boxes, xyxy in pixels of the picture."""
    for x1, y1, x2, y2 in boxes:
        outline = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=shade, linewidth=1.8)
        axis.add_patch(outline)


def area_share_figure(shares: pd.DataFrame) -> Figure:
    """Draw the share of preserved tokens inside the true boxes by stage, and the boxes' share of the area (Fig. 8).

    Bars are means over clips with the standard error of the mean.

    Args:
        shares: Result of `evad.analysis.tokens.gt_area_shares`.

    Raises:
        ValueError: if no clip has a box, or the model does not prune.
    """
    known = shares.dropna(subset=["gt_area"])
    if known.empty:
        raise ValueError("no clip has a true box, or the model does not prune: there is no share to show")
    statistics = known.groupby("stage")[["preserved", "context"]].agg(["mean", "sem"])
    area, clips = known["gt_area"].mean(), known["keyframe"].nunique()
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    x = np.arange(len(statistics))
    kinds = ((-0.2, "preserved", "all preserved tokens", BLUE), (0.2, "context", "without the keyframe's", ORANGE))
    for offset, column, label, shade in kinds:
        mean, error = 100 * statistics[column]["mean"], 100 * statistics[column]["sem"].fillna(0)
        bars = axis.bar(x + offset, mean, 0.38, yerr=error, color=shade, capsize=4, label=label)
        axis.bar_label(bars, [f"{value:.1f}" for value in mean], padding=2, fontsize=9)
    label = f"area of the boxes: {100 * area:.1f} % of the picture"
    axis.axhline(100 * area, color="black", linestyle="--", linewidth=1, label=label)
    axis.set_xticks(x, [f"stage {stage}" for stage in statistics.index])
    axis.set(ylabel="tokens inside true boxes in %", xlabel="pruning stage", title=f"mean over {clips} clips")
    axis.margins(y=0.15)
    decorate(axis)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def attention_figure(
    images: np.ndarray, maps: Mapping[str, np.ndarray], patch: int, boxes: Sequence[Sequence[float]] = ()
) -> Figure:
    """Draw what actors attend to: the input, then a row of attention over the slices per entry of `maps` (Fig. 12).

    Attention is shown relative to a uniform distribution over the preserved tokens, so that rows with different
    numbers of tokens can be compared. Colours end at the 99th percentile of a row; dropped tokens are grey.

    Args:
        images: (T', h, w, 3) float in [0, 1].
        maps: Row label -> (T', H', W') attention, NaN where a token was dropped.
        patch: Pixels along each side of a token.
        boxes: (n, 4) xyxy pixels of the actors, drawn on the keyframe.
    """
    slices, size = len(images), images.shape[1:3]
    figure, axes = picture_grid(len(maps) + 1, slices, size)
    show_row(axes[0], images, "input")
    palette = matplotlib.colormaps["magma"]
    for line, (label, attention) in zip(axes[1:], maps.items()):
        relative = attention * np.isfinite(attention).sum() / np.nansum(attention)
        limit = float(np.nanpercentile(relative, 99))
        pictures = []
        for image, cells in zip(images, relative):
            heat = pixels_of(cells, patch, size)
            grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
            colours = palette(np.nan_to_num(heat) / limit)[..., :3]
            pictures.append(np.where(np.isnan(heat)[..., None], DROPPED, 0.25 * grey + 0.75 * colours))
        show_row(line, np.stack(pictures), label)
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, limit), palette)
        bar = figure.colorbar(scale, ax=list(line), fraction=0.03, aspect=8, pad=0.01)
        bar.set_label("times uniform", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    draw_boxes(axes[0][slices // 2], boxes)
    for axis in axes[1:, slices // 2]:
        draw_boxes(axis, boxes, shade="cyan")
    title_slices(axes[0])
    return figure
