"""Detect actors and their actions in a video file.

    python -m evad.predict ckpt_path=outputs/mini/.../checkpoints/best.ckpt video=clip.mp4

Writes `<video>.mp4` with the detections drawn in (same length and frame rate) and `detections.csv`.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import track

from evad.commandline import argument, run_command_on_checkpoint
from evad.data.video.clock import second_at, shown_at
from evad.data.video.errors import VideoReader
from evad.data.video.readers import open_video
from evad.detector import Detector
from evad.device import chosen_device
from evad.drawing.frames import draw_detections, readable_scale
from evad.drawing.video import write_video
from evad.models.postprocess import PostProcess
from evad.precision import prepare
from evad.structures import Detections

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> Path:
    """Annotate one video and return the path of the annotated file."""
    output = Path(HydraConfig.get().runtime.output_dir)
    device = chosen_device(cfg.trainer.accelerator)
    prepare(device, cfg.trainer.precision, cfg.matmul_precision)
    detector = Detector.of(cfg, cfg.ckpt_path).to(device)
    # An empty frame stays empty: the released rule, to keep all queries if none passes, is for evaluation only.
    detector.postprocess = PostProcess(cfg.postprocess.score, cfg.predict.person_threshold, keep_all_if_none=False)
    names = detector.names

    reader = open_video(cfg.video)
    keyframes = keyframe_indices(reader, cfg.predict.keyframes_per_second)
    found = {}
    for index in track(keyframes, description="Detecting"):
        (found[index],) = detector.detect([detector.read_clip(reader, index)])

    seconds = second_at(reader, np.arange(reader.num_frames, dtype=np.float64))
    write_detections(output / "detections.csv", found, names, seconds)
    path = output / f"{Path(cfg.video).stem}.mp4"
    frames = annotated_frames(reader, found, list(names.values()), cfg.predict.score_threshold, seconds)
    count = write_video(path, track(frames, description="Drawing", total=reader.num_frames), reader.fps, reader.times)
    log.info(
        "%d frames, %d keyframes, %d actors; %s", count, len(found), sum(len(d.boxes) for d in found.values()), path
    )
    return path


def keyframe_indices(reader: VideoReader, per_second: float) -> list[int]:
    """Frames at which actors are detected, evenly spaced in time; ValueError if `per_second` is not above 0."""
    if not per_second > 0:
        raise ValueError(f"predict.keyframes_per_second is {per_second}; it must be above 0")
    if reader.times is None:
        instants = np.arange(0, reader.num_frames, max(reader.fps / per_second, 1.0))
    else:
        instants = shown_at(reader, np.arange(0, reader.times[-1], 1 / per_second))
    return sorted({0, *(int(index) for index in instants)})


def annotated_frames(
    reader: VideoReader, found: dict[int, Detections], names: list[str], score_threshold: float, seconds: np.ndarray
) -> Iterator[np.ndarray]:
    """Every frame with the detections of the keyframe nearest in time."""
    keyframes = np.array(sorted(found))
    scale = readable_scale(reader.height)
    for index in range(reader.num_frames):
        nearest = int(keyframes[np.abs(seconds[keyframes] - seconds[index]).argmin()])
        yield draw_detections(reader.read([index])[0], found[nearest], names, score_threshold, scale=scale)


def write_detections(path: Path, found: dict[int, Detections], names: dict[str, str], seconds: np.ndarray) -> None:
    """One row per actor and action: frame, its second, box in pixels, person score, action id, name, score."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["frame", "second", "x1", "y1", "x2", "y2", "person_score", "action_id", "action", "action_score"]
        )
        for index, detections in sorted(found.items()):
            instant = [index, round(float(seconds[index]), 4)]
            for box, person, actions in zip(detections.boxes, detections.person_scores, detections.action_scores):
                place = [*instant, *(round(v, 2) for v in box.tolist()), round(float(person), 4)]
                writer.writerows(
                    [*place, action_id, name, round(score, 5)]
                    for (action_id, name), score in zip(names.items(), actions.tolist())
                )


def main() -> None:
    if (video := argument("video")) and not Path(video).is_file():
        raise SystemExit(f"video: {video} does not exist")
    run_command_on_checkpoint(predict, "predict", __doc__, needs=("ckpt_path", "video"))


if __name__ == "__main__":
    main()
