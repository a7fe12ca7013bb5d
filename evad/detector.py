"""A trained detector for use: from a checkpoint to the actors of a video's frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from evad.data.clips.collate import PaddingCollate
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.video.errors import VideoReader
from evad.models.evad import EVAD
from evad.models.postprocess import PostProcess
from evad.precision import autocast
from evad.runs.build import build_model, build_part
from evad.runs.checkpoints import class_names, load_weights, run_of_checkpoint
from evad.structures import Clip, Detections, Target


@dataclass
class Detector:
    """A detector with everything that belongs to its input and output.

    Attributes:
        model: The network, in evaluation mode.
        sampler: Chooses the frames of a clip.
        transform: Resizes and normalises them, as in validation.
        postprocess: Turns outputs into detections.
        collate: Pads clips to a batch.
        names: Action id -> name of every model output.
        precision: 32-true, bf16-mixed or 16-mixed, as in `trainer.precision`.
    """

    model: EVAD
    sampler: ClipSampler
    transform: VideoTransform
    postprocess: PostProcess
    collate: PaddingCollate
    names: dict[str, str]
    precision: str = "32-true"

    @classmethod
    def of(cls, cfg: DictConfig, checkpoint: str | Path) -> Detector:
        """Build the detector of a configuration on the CPU and load a checkpoint.

        Args:
            cfg: The whole configuration.
            checkpoint: A checkpoint inside its run folder.

        Raises:
            FileNotFoundError: if the checkpoint or its run folder is missing.
            ValueError: if the weights do not fit the configuration, or it names classes that are not allowed.
        """
        model = build_model(cfg)
        load_weights(model, checkpoint)
        return cls(
            model=model.eval(),
            sampler=build_part(cfg, "data.sampler"),
            transform=build_part(cfg, "data.val_transform"),
            postprocess=build_part(cfg, "postprocess"),
            collate=PaddingCollate(cfg.data.pad_multiple),
            names=class_names(run_of_checkpoint(checkpoint), cfg.model.num_classes),
            precision=str(cfg.trainer.precision),
        )

    def to(self, device: torch.device) -> Detector:
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def read_clip(self, reader: VideoReader, frame: int) -> Clip:
        """The clip around a frame of a video, sampled and transformed as in validation."""
        frames = reader.read(self.sampler.around(frame, reader))
        clip, _ = self.transform(frames, np.zeros((0, 4)))
        empty = Target(torch.zeros(0, 4), torch.zeros(0, len(self.names)))
        return Clip(clip, empty, torch.tensor(frame), torch.tensor(frames.shape[1:3]))

    @torch.inference_mode()
    def detect(self, clips: list[Clip]) -> list[Detections]:
        """The actors in each clip's keyframe, boxes in pixels of the video, on the CPU."""
        batch = self.collate(clips).to(self.device)
        with autocast(self.precision, self.device.type):
            output = self.model(batch.clips, batch.sizes)
        return [found.to("cpu") for found in self.postprocess(output, batch.sizes, batch.original_sizes)]
