"""Data structures of the program: keyframes, clips, batches, model outputs and detections.

Letters: B clips, T frames, H x W padded pixels, h x w valid pixels, Q queries, K action classes, n boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

_T = TypeVar("_T")


def map_tensors(value: _T, function: Any) -> _T:
    """Copy of a (nested) dataclass, list or tuple with `function` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, function) for item in value)  # type: ignore[call-arg]
    return value


class Movable:
    """Base of dataclasses of tensors, with the methods that data loaders and Lightning trainers call."""

    def to(self: _T, *args: Any, **kwargs: Any) -> _T:
        """Copy with `Tensor.to(*args, **kwargs)` applied to every tensor."""
        return map_tensors(self, lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self: _T) -> _T:
        """Copy in page-locked memory (called by data loaders on CUDA machines)."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Keyframe:
    """One annotated moment of a video, as the annotation readers in `evad.data` return it, without pixels.

    Attributes:
        video: Name of the video, as in the annotation file.
        timestamp: The moment as written in result files: the second (AVA, as in the csv: `"902"`) or the 1-based frame
            number (UCF101-24, JHMDB).
        position: The moment in frames, counted from 0 at the annotations' frame rate; AVA: (second - 900) * 30.
        boxes: (n, 4) float64, xyxy as fractions of the frame's width and height.
        labels: (n, K) float32, 1 if the person in the box performs action k.
        actors: (n,) int64, identity of each person within the video; -1 if the data set gives none.
        proposals: (m, 4) float64 fractions, boxes of an external detector; None if the model locates the actors itself.
        proposal_scores: (m,) float64 in [0, 1], the detector's confidence in each box.
    """

    video: str
    timestamp: str
    position: float
    boxes: np.ndarray
    labels: np.ndarray
    actors: np.ndarray
    proposals: np.ndarray | None = None
    proposal_scores: np.ndarray | None = None


@dataclass
class Target(Movable):
    """Ground truth of one clip.

    Attributes:
        boxes: (n, 4) float, xyxy in pixels of the resized, unpadded keyframe.
        labels: (n, K) float, 1 for the actions of each person.
    """

    boxes: Tensor
    labels: Tensor


@dataclass
class Proposals(Movable):
    """Boxes of an external person detector in one clip.

    Attributes:
        boxes: (m, 4) float, xyxy in pixels of the resized, unpadded keyframe.
        scores: (m,) float in [0, 1].
    """

    boxes: Tensor
    scores: Tensor


@dataclass
class Clip(Movable):
    """One sample of a data set.

    Attributes:
        frames: (3, T, h, w) float32, normalised.
        target: Boxes and actions of the keyframe.
        keyframe: () int64, index of the keyframe in its data set.
        original_size: (2,) int64, height and width of the video in pixels.
        proposals: Boxes of an external detector, if there is one.
    """

    frames: Tensor
    target: Target
    keyframe: Tensor
    original_size: Tensor
    proposals: Proposals | None = None


@dataclass
class Batch(Movable):
    """Clips padded on the right and at the bottom to one size.

    Attributes:
        clips: (B, 3, T, H, W) float32, normalised, 0 in the padding.
        sizes: (B, 2) int64, valid height and width of each clip in pixels.
        targets: Ground truth of each clip.
        keyframes: (B,) int64, index of each clip's keyframe in its data set.
        original_sizes: (B, 2) int64, height and width of each video in pixels.
        proposals: Boxes of an external detector in each clip, if there is one.
    """

    clips: Tensor
    sizes: Tensor
    targets: list[Target]
    keyframes: Tensor
    original_sizes: Tensor
    proposals: list[Proposals] | None = None

    def __len__(self) -> int:
        return self.clips.shape[0]


@dataclass
class Detections(Movable):
    """Actors found in one keyframe, after postprocessing.

    Attributes:
        boxes: (n, 4) float, xyxy in pixels of the original video.
        person_scores: (n,) float in [0, 1].
        action_scores: (n, K) float in [0, 1]; the evaluation ranks detections by them.
        size: (2,) int64, height and width of the original video in pixels.
    """

    boxes: Tensor
    person_scores: Tensor
    action_scores: Tensor
    size: Tensor


@dataclass
class EVADOutput(Movable):
    """Output of the detector, in training and in evaluation.

    Attributes:
        person_logits: (S, B, Q, 2), one per localization stage; 0 = person, 1 = background.
        boxes: (S, B, Q, 4) xyxy pixels of the resized, unpadded clip; boxes may extend beyond the image.
        action_logits: (D', B, Q, K), of every decoder block in training, only of the last one otherwise.
        roi_features: (B, Q, D) actor features before refinement.
        tokens: (B, N, C) surviving tokens after the final norm, keyframe first; with `decoder_input: all` the dropped
            tokens follow them.
        positions: (B, N) int64 grid position of each token.
        kept: For each pruning stage, (B, n) grid positions of the surviving tokens.
        valid: (B, Q) bool mask of valid actors, False for padding; None if all are valid.
    """

    person_logits: Tensor
    boxes: Tensor
    action_logits: Tensor
    roi_features: Tensor
    tokens: Tensor
    positions: Tensor
    kept: list[Tensor]
    valid: Tensor | None = None
