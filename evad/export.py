"""Write a detector as one file that runs without this package.

    python -m evad.export ckpt_path=outputs/mini/.../checkpoints/best.ckpt export.size=[360,640]

Writes `detector.pt2`, a program of `torch.export` for videos of that height and width, and `detector.json`, which says
what goes in and comes out. With `import torch, torchvision` alone:

    detector = torch.export.load("detector.pt2").module()
    boxes, person_scores, action_scores = detector(frames)

`frames` are decoded frames of a video; resizing, normalisation and padding are part of the program.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from evad.commandline import run_command_on_checkpoint
from evad.data.clips.transforms import VideoTransform
from evad.detector import Detector
from evad.models.evad import EVAD
from evad.models.heads.external import ExternalBoxes
from evad.models.postprocess import PostProcess
from evad.precision import precision_name, prepare

log = logging.getLogger(__name__)

PROGRAM, DESCRIPTION = "detector.pt2", "detector.json"


class FrameDetector(nn.Module):
    """A detector that takes decoded frames of one size and returns the scored boxes of all queries.

    Args:
        model: The detector; must find its boxes itself.
        transform: The transform of validation clips.
        postprocess: Gives the rule for action scores.
        size: Height and width of the videos.
        pad_multiple: Height and width of the padded clips are multiples of this.
    """

    def __init__(
        self, model: EVAD, transform: VideoTransform, postprocess: PostProcess, size: tuple[int, int], pad_multiple: int
    ) -> None:
        super().__init__()
        if isinstance(model.localization, ExternalBoxes):
            raise ValueError(
                "this detector classifies boxes that another detector found, so it needs more than frames: export a "
                "detector trained with model/localization=queries"
            )
        self.model = model.requires_grad_(False)  # so that the program stores nothing for a backward pass
        self.transform = transform
        self.postprocess = postprocess
        self.resized, _ = transform.resized(*size, transform.short_side_range[0])
        height, width = self.resized
        self.padding = (0, -width % pad_multiple, 0, -height % pad_multiple)

    @torch.no_grad()  # otherwise a program loaded by torch 2.9 would record gradients
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect the actors in the frame T // 2 of each clip.

        Args:
            frames: (B, T, H, W, 3) uint8 RGB.

        Returns:
            boxes: (B, Q, 4) xyxy as fractions of width and height.
            person_scores: (B, Q).
            action_scores: (B, Q, K), computed as in the run's evaluation.
        """
        batch, length = frames.shape[:2]
        video = frames.flatten(0, 1).permute(0, 3, 1, 2)  # B T H W 3 -> BT 3 H W
        clips = self.transform.to_clip(video, self.resized).unflatten(1, (batch, length)).transpose(0, 1)
        sizes = torch.tensor(self.resized, device=frames.device).expand(batch, 2)
        output = self.model(F.pad(clips, self.padding), sizes)
        person_scores, action_scores = self.postprocess.scores(output)
        height, width = self.resized
        boxes = output.boxes[-1].float() / output.boxes.new_tensor((width, height, width, height))
        return boxes.clamp(0, 1), person_scores, action_scores


def export(cfg: DictConfig) -> Path:
    """Write the program and its description, check that the written program gives the model's outputs; its path.

    Raises:
        ValueError: if this detector cannot be exported.
        RuntimeError: if the outputs differ.
    """
    options = cfg.export
    size = options.size
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"export.size is {size}; give height and width of your videos: export.size=[360,640]")
    size = (size[0], size[1])
    if (precision := precision_name(cfg.trainer.precision)) != "32-true":
        raise ValueError(
            f"trainer.precision={precision}: torch.export cannot write mixed precision into a program; add "
            "trainer.precision=32-true"
        )
    output = Path(HydraConfig.get().runtime.output_dir)
    device = torch.device(options.device)
    prepare(device, cfg.trainer.precision, cfg.matmul_precision)
    parts = Detector.of(cfg, cfg.ckpt_path)
    detector = (
        FrameDetector(parts.model, parts.transform, parts.postprocess, size, parts.collate.multiple).to(device).eval()
    )

    shape = (options.batch_size, cfg.model.num_frames, *size, 3)
    traced, others = (random_frames(shape, seed).to(device) for seed in (0, 1))
    log.info("tracing a clip of %d frames of %d x %d", shape[1], *size)
    path, draft = output / PROGRAM, output / f"draft_{PROGRAM}"
    torch.export.save(torch.export.export(detector, (traced,)), draft)
    difference = largest_difference(draft, detector, others)
    draft.replace(path)
    (output / DESCRIPTION).write_text(json.dumps(describe(cfg, detector, shape, parts.names), indent=2) + "\n")
    megabytes = path.stat().st_size / 1e6
    log.info("%s, %.0f MB; largest difference from the model on other frames %.1e", path, megabytes, difference)
    return path


def random_frames(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def largest_difference(path: Path, detector: FrameDetector, frames: Tensor) -> float:
    """Largest difference of a written program's outputs from the detector's; RuntimeError if it exceeds rounding."""
    program, ours = torch.export.load(path).module(), detector(frames)
    calls = [program(frames) for _ in range(2)]  # the second call must not depend on the first
    difference = max(float((one - other).abs().max()) for theirs in calls for one, other in zip(theirs, ours))
    if not difference < 1e-3:
        raise RuntimeError(f"{path} gives outputs that differ from the model's by {difference:.1e}")
    return difference


def describe(cfg: DictConfig, detector: FrameDetector, shape: tuple[int, ...], names: dict[str, str]) -> dict[str, Any]:
    """Content of detector.json: what goes in, what comes out, and the classes."""
    sampler = cfg.data.sampler
    spacing = sampler.frame_stride / sampler.annotated_fps if sampler.annotated_fps else None
    return {
        "input": {
            "shape": list(shape),
            "axes": ["clip", "frame", "height", "width", "RGB"],
            "dtype": "uint8",
            "keyframe": shape[1] // 2,
            "beyond the video's ends": "its first or last frame, repeated",
            "seconds_between_frames": spacing,
            "frames_between_frames": None if spacing else sampler.frame_stride,
        },
        "outputs": {
            "boxes": "xyxy as fractions of width and height, one per query; a box without area is outside the picture",
            "person_scores": f"queries below {cfg.export.person_threshold:g} should not count as actors",
            "action_scores": f"one per class, {detector.postprocess.score.replace('_', ' ')}",
        },
        "classes": names,
        "resized_to": list(detector.resized),
        "checkpoint": str(Path(cfg.ckpt_path).absolute()),
        "device": str(next(detector.parameters()).device),
        "torch": torch.__version__,
    }


def main() -> None:
    run_command_on_checkpoint(export, "export", __doc__)


if __name__ == "__main__":
    main()
