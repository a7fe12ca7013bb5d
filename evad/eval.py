"""Evaluate a checkpoint on the validation set of its run.

    python -m evad.eval ckpt_path=outputs/mini/.../checkpoints/best.ckpt
    python -m evad.eval ckpt_path=... model.keep_rate=0.8            # other keep rate, same weights (Fig. 7)
    python -m evad.eval --multirun ckpt_path=... model.keep_rate=1.0,0.9,0.8,0.7,0.6

Model and data come from the run's config; any key can be overridden. Writes detections.csv and metrics.json, and says
whether boxes or classes limit the detector (`evad.metrics.decomposition`; `decompose=false` leaves that out).
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from evad.commandline import argument, hydra_command_from_run, run_of_argument
from evad.config import effective_keep_rate, pruning_name
from evad.drawing.frames import draw_detections, readable_scale
from evad.files.csv_rows import write_rows
from evad.metrics.cost import paper_macs
from evad.metrics.tube_map import TubeMAP
from evad.models.postprocess import PostProcess
from evad.runs.checkpoints import load_weights
from evad.training.build import build_datamodule, build_module, build_trainer
from evad.training.decomposing import DecomposingModule
from evad.training.module import EVADModule

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float:
    """Validate once and write what was found.

    Returns:
        mAP, as a fraction of 1.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = build_datamodule(cfg)
    module = build_module(cfg)
    load_weights(module.model, cfg.ckpt_path)
    if cfg.decompose:
        module = DecomposingModule.of(module)
    trainer = build_trainer(cfg, logger=False, callbacks=progress_only(cfg))
    trainer.validate(module, datamodule, verbose=False)
    module.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU, where several GPUs gather nothing
    metric: Any = module.metric
    detections = metric.detections_frame()
    report = metrics_report(cfg, module, datamodule)
    if isinstance(module, DecomposingModule):
        decomposition = module.decomposition()
        report["decomposition"] = decomposition.as_json()
        log.info("what limits the detector:\n%s", decomposition.table())
    if not trainer.is_global_zero:
        return report["mAP"]
    # Each as its evaluation command reads it: `evad.metrics.tubes` wants the names of the columns.
    write_rows(detections, output / "detections.csv", header=isinstance(metric, TubeMAP))
    (output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    module.eval()  # Lightning left it in the mode it found it in
    draw_examples(module, datamodule, output / "frames", cfg.examples)
    log.info("%s; %s", summary(module.scores), output)
    return report["mAP"]


def summary(scores: dict[str, float]) -> str:
    """The scores that are not of one class, in a line."""
    names = {"mAP": "mAP@0.5", "person_AP": "person AP"}
    overall = {name: score for name, score in scores.items() if not name.startswith("AP/")}
    return ", ".join(f"{names.get(name, name.replace('_', '-'))} {score:.4f}" for name, score in overall.items())


def progress_only(cfg: DictConfig) -> list[Any]:
    """The config's progress bar, no other callback."""
    return [instantiate(cfg.callbacks.progress)] if cfg.callbacks.get("progress") else []


def metrics_report(cfg: DictConfig, module: EVADModule, datamodule: Any) -> dict[str, Any]:
    """Content of metrics.json; NaN (a class without ground truth) becomes null."""
    scores = {name: None if math.isnan(value) else value for name, value in module.scores.items()}
    names = datamodule.class_names
    per_class = {names.get(int(name[3:]), name[3:]): value for name, value in scores.items() if name.startswith("AP/")}
    report: dict[str, Any] = {name: value for name, value in scores.items() if not name.startswith("AP/")}
    report["per_class"] = per_class
    keep_rate = effective_keep_rate(cfg)
    report["keep_rate"] = list(keep_rate) if OmegaConf.is_list(keep_rate) else keep_rate
    report["pruning"] = pruning_name(cfg)
    clips = datamodule.collate([datamodule.val_dataset[0]]).clips
    report["gflops"] = sum(paper_macs(module.model, *clips.shape[2:]).values()) / 1e9
    report["checkpoint"] = str(Path(cfg.ckpt_path).absolute())
    return report


def draw_examples(module: EVADModule, datamodule: Any, folder: Path, count: int) -> None:
    """Pictures of `count` keyframes, evenly spaced over the validation set: detections coloured, ground truth white.

    Only queries with a person score of 0.5 or more are drawn.
    """
    folder.mkdir(exist_ok=True)
    dataset = datamodule.val_dataset
    names = [datamodule.class_names.get(i, f"action {i}") for i in datamodule.class_ids]
    show = PostProcess(module.postprocess.score, person_threshold=0.5, keep_all_if_none=False)
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
        keyframe = dataset.keyframes[index]
        batch = datamodule.collate([dataset[index]]).to(module.device)
        with torch.inference_mode():
            found = show(module.run(batch), batch.sizes, batch.original_sizes)[0].to("cpu")
        frame = dataset.keyframe_image(index)
        height, width = frame.shape[:2]
        truth = [
            (box * (width, height, width, height), "\n".join(names[k] for k in np.flatnonzero(labels)))
            for box, labels in zip(keyframe.boxes, keyframe.labels)
        ]
        picture = draw_detections(frame, found, names, scale=readable_scale(height), truth=truth)
        Image.fromarray(picture).save(folder / f"{keyframe.video.replace('/', '_')}_{keyframe.timestamp}.png")


def main() -> None:
    """Command line; the configuration is that of the checkpoint's run."""
    checkpoint = argument("ckpt_path")
    if checkpoint is None:
        raise SystemExit("python -m evad.eval needs ckpt_path=<run>/checkpoints/best.ckpt")
    hydra_command_from_run(evaluate, run_of_argument(checkpoint), output="eval/${now:%Y-%m-%d_%H-%M-%S}")


if __name__ == "__main__":
    main()
