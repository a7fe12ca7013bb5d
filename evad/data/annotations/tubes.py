"""Turns annotated tubes into keyframes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np

from evad.files.tube_packages import TubeAnnotations
from evad.structures import Keyframe


def tube_keyframes(
    annotations: TubeAnnotations,
    split: int,
    subset: Literal["train", "test"] = "train",
    every_frame: bool = False,
) -> list[Keyframe]:
    """Turn every annotated frame of a subset into a keyframe.

    A box includes its corner pixels, so pixels 0 to width - 1, the whole frame, become fractions 0 to 1. Boxes that
    reach outside the frame are clipped, boxes completely outside are left out, and warnings report how many.

    Args:
        split: Number of the split, from 1.
        every_frame: Also turn frames without annotation into keyframes, without boxes. Evaluation needs them:
            detections there are false positives, and tubes are linked through them.

    Returns:
        Keyframes ordered by video, as in the split, then by frame. The timestamp is the frame number from 1, the
        position is the frame number from 0, the actor is the number of the tube in its video, labels are one-hot.
    """
    result: list[Keyframe] = []
    clipped: list[str] = []
    outside: list[str] = []
    for video in annotations.videos(split, subset):
        result += _video_keyframes(annotations, video, every_frame, clipped, outside)
    for places, fate in (
        (clipped, "reach outside the frame and were clipped"),
        (outside, "are outside the frame: left out"),
    ):
        if places:
            warnings.warn(f"{len(places)} boxes {fate} (first: {places[0]})", stacklevel=2)
    return result


def _video_keyframes(
    annotations: TubeAnnotations, video: str, every_frame: bool, clipped: list[str], outside: list[str]
) -> Iterator[Keyframe]:
    """Keyframes of a video; adds the places of boxes to `clipped` and `outside`."""
    tubes = annotations.tubes[video]
    height, width = annotations.resolution[video]
    frames = np.concatenate([np.zeros(0, dtype=np.int64), *(tube.frames for tube in tubes)])
    corners = np.concatenate([np.zeros((0, 4)), *(tube.boxes for tube in tubes)])
    actors = np.repeat(np.arange(len(tubes)), np.array([len(tube.boxes) for tube in tubes], dtype=np.int64))
    classes = np.array([tube.label for tube in tubes], dtype=np.int64)[actors]
    edges = (corners + np.array([0, 0, 1, 1])) / [width, height, width, height]
    boxes = np.clip(edges, 0.0, 1.0)
    inside = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    clipped += [f"video {video}, frame {frame}" for frame in frames[inside & (boxes != edges).any(axis=1)]]
    outside += [f"video {video}, frame {frame}" for frame in frames[~inside]]
    rows = np.flatnonzero(inside)
    rows = rows[np.argsort(frames[rows], kind="stable")]
    labels = np.eye(len(annotations.labels), dtype=np.float32)[classes]
    wanted = np.arange(1, annotations.nframes[video] + 1) if every_frame else np.unique(frames[rows])
    starts, ends = (np.searchsorted(frames[rows], wanted, side) for side in ("left", "right"))
    for frame, start, end in zip(wanted.tolist(), starts.tolist(), ends.tolist()):
        chosen = rows[start:end]
        yield Keyframe(video, str(frame), float(frame - 1), boxes[chosen], labels[chosen], actors[chosen])
