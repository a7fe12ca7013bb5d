"""What flows through the program: keyframes, clips, batches, model outputs and detections.

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
    """Gives a dataclass of tensors the two methods loaders and trainers look for."""

    def to(self: _T, *args: Any, **kwargs: Any) -> _T:
        """Same contents with every tensor passed through `Tensor.to(*args, **kwargs)`."""
        return map_tensors(self, lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self: _T) -> _T:
        """Same contents in page-locked memory (called by DataLoader workers on CUDA machines)."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Keyframe:
    """One annotated instant of a video: what the readers in `evad.data` produce, before any pixel is read.

    Attributes:
        video: Name of the video as the annotation file spells it.
        timestamp: The instant as result files name it: the second (AVA, as in the csv: `"902"`) or the 1-based
            frame number (UCF101-24, JHMDB).
        position: The instant in frames of the annotation's clock, from 0; AVA: (second - 900) * 30.
        boxes: (n, 4) float64, xyxy as fractions of the frame's width and height.
        labels: (n, K) float32, 1 where the person of that box performs action k.
        actors: (n,) int64, identity of each person inside its video; -1 where the data set gives none.
        proposals: (m, 4) float64 fractions, actors of an external detector; None: the model looks for them itself.
        proposal_scores: (m,) float64 in [0, 1], the detector's confidence in each.
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
    """One sample.

    Attributes:
        frames: (3, T, h, w) float32, normalised.
        target: Boxes and actions of the keyframe.
        keyframe: () int64, index of the keyframe in its data set.
        original_size: (2,) int64, height and width of the video in pixels.
        proposals: Actors of an external detector, if there is one.
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
        targets: B targets.
        keyframes: (B,) int64, index of each clip's keyframe in its data set.
        original_sizes: (B, 2) int64, height and width of each video in pixels.
        proposals: B times the actors of an external detector, if there is one.
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
        action_scores: (n, K) float in [0, 1]; what ranks a detection in the evaluation.
        size: (2,) int64, height and width of the original video in pixels.
    """

    boxes: Tensor
    person_scores: Tensor
    action_scores: Tensor
    size: Tensor


@dataclass
class EVADOutput(Movable):
    """What the detector returns, in training and in evaluation alike.

    Attributes:
        person_logits: (S, B, Q, 2), one per localization stage; 0 = person, 1 = background.
        boxes: (S, B, Q, 4) xyxy pixels of the resized, unpadded clip, not clipped.
        action_logits: (D', B, Q, K): D' = every decoder block in training, only the last one otherwise.
        roi_features: (B, Q, D) actor features before refinement.
        tokens: (B, N, C) surviving tokens after the final norm, keyframe first; with `decoder_input: all` then the
            dropped ones.
        positions: (B, N) int64 grid position of each token.
        kept: Per pruning stage, (B, n) grid positions of the tokens that survived it.
        valid: (B, Q) bool mask of queries, False where a clip's list of actors is only padded; None: all are valid.
    """

    person_logits: Tensor
    boxes: Tensor
    action_logits: Tensor
    roi_features: Tensor
    tokens: Tensor
    positions: Tensor
    kept: list[Tensor]
    valid: Tensor | None = None
