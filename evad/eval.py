"""Evaluate a checkpoint on the validation set of its run, or on other data.

    python -m evad.eval ckpt_path=outputs/mini/.../checkpoints/best.ckpt
    python -m evad.eval ckpt_path=... model.keep_rate=0.8            # other keep rate, same weights (Fig. 7)
    python -m evad.eval --multirun ckpt_path=... model.keep_rate=1.0,0.9,0.8,0.7,0.6

    python -m evad.eval ckpt_path=... data=custom data.root=my_videos   # other data with the same classes

Model and data come from the checkpoint's run unless a key or group replaces them. Writes detections.csv,
metrics.json and frames/*.png, and says whether boxes or classes limit the detector (not with `decompose=false`).
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
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from evad.commandline import run_command_on_checkpoint
from evad.drawing.frames import draw_detections, readable_scale
from evad.files.csv_rows import write_rows
from evad.metrics.cost import paper_macs
from evad.metrics.tube_map import TubeMAP
from evad.models.postprocess import PostProcess
from evad.runs.build import build, effective_keep_rate, pruning_name
from evad.runs.checkpoints import class_names, load_weights, run_of_checkpoint
from evad.training.build import build_datamodule, build_module, build_trainer
from evad.training.decomposing import DecomposingModule
from evad.training.module import EVADModule

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float:
    """Validate once, write the results and return mAP as a fraction of 1."""
    output = Path(HydraConfig.get().runtime.output_dir)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = matching_datamodule(cfg)
    module = build_module(cfg)
    load_weights(module.model, cfg.ckpt_path)
    if cfg.decompose:
        module = DecomposingModule.of(module)
    progress = [build(cfg.callbacks.progress)] if cfg.callbacks.get("progress") else []
    trainer = build_trainer(cfg, logger=False, callbacks=progress)
    trainer.validate(module, datamodule, verbose=False)
    module.to(
        trainer.strategy.root_device
    )  # Lightning moved it to the CPU, but processes on GPUs exchange tensors on GPUs
    metric: Any = module.metric
    detections = metric.detections_frame()
    warn_of_other_classes(cfg, datamodule)
    report = metrics_report(cfg, module, datamodule)
    if isinstance(module, DecomposingModule):
        decomposition = module.decomposition()
        report["decomposition"] = decomposition.as_json()
        log.info("what limits the detector:\n%s", decomposition.table())
    if not trainer.is_global_zero:
        return report["mAP"]
    # As the evaluation commands read them: `evad.metrics.tubes` needs a header, `evad.metrics.ava` has none.
    write_rows(detections, output / "detections.csv", header=isinstance(metric, TubeMAP))
    (output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    module.eval()  # Lightning restores the mode that the module had before
    draw_examples(module, datamodule, output / "frames", cfg.examples)
    log.info("%s; %s", summary(module.scores), output)
    if report["mixed_sizes"]:
        log.warning(
            "clips of different sizes were padded to one size per batch, which changes their scores a little: compare "
            "only evaluations with the same data.batch_size, or use data.batch_size=1"
        )
    return report["mAP"]


def matching_datamodule(cfg: DictConfig) -> Any:
    """The data to evaluate on; ValueError if they have more or fewer classes than the detector."""
    if cfg.data.num_classes is None:
        cfg.data.num_classes = cfg.model.num_classes  # the data module compares it with the number in the annotations
    if cfg.data.num_classes != cfg.model.num_classes:
        raise ValueError(
            f"the detector scores {cfg.model.num_classes} classes, the data have {cfg.data.num_classes}: evaluate on "
            "data with the classes it was trained for"
        )
    return build_datamodule(cfg)


@rank_zero_only
def warn_of_other_classes(cfg: DictConfig, datamodule: Any) -> None:
    """Warn if the data's classes have other names than the detector's."""
    trained = list(class_names(run_of_checkpoint(cfg.ckpt_path), cfg.model.num_classes).values())
    given = [datamodule.class_names.get(number, f"action {number}") for number in datamodule.class_ids]
    different = [f"{ours!r} instead of {theirs!r}" for ours, theirs in zip(given, trained) if ours != theirs]
    if different:
        log.warning("%d classes of the data have other names than the detector's: %s", len(different), different[0])


def summary(scores: dict[str, float]) -> str:
    """All scores except those of single classes, in one line."""
    names = {"mAP": "mAP@0.5", "person_AP": "person AP"}
    overall = {name: score for name, score in scores.items() if not name.startswith("AP/")}
    return ", ".join(f"{names.get(name, name.replace('_', '-'))} {score:.4f}" for name, score in overall.items())


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
    sizes = {tuple(size.tolist()) for sizes in module.metric.seen_sizes for size in sizes}  # type: ignore[union-attr]
    report["mixed_sizes"] = len(sizes) > 1 and datamodule.batch_size > 1
    report["checkpoint"] = str(Path(cfg.ckpt_path).absolute())
    return report


def draw_examples(module: EVADModule, datamodule: Any, folder: Path, count: int) -> None:
    """Pictures of `count` keyframes, evenly spaced over the validation set: detections coloured, ground truth white.

    Only queries with a person score of 0.5 or more are drawn.
    """
    folder.mkdir(exist_ok=True)
    dataset = datamodule.val_dataset
    names = [datamodule.class_names.get(i, f"action {i}") for i in datamodule.class_ids]
    precision = module.trainer.precision_plugin
    show = PostProcess(module.postprocess.score, person_threshold=0.5, keep_all_if_none=False)
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
        keyframe = dataset.keyframes[index]
        batch = datamodule.collate([dataset[index]]).to(module.device)
        with torch.inference_mode(), precision.forward_context():
            found = show(module.run(precision.convert_input(batch)), batch.sizes, batch.original_sizes)[0].to("cpu")
        frame = dataset.keyframe_image(index)
        height, width = frame.shape[:2]
        truth = [
            (box * (width, height, width, height), "\n".join(names[k] for k in np.flatnonzero(labels)))
            for box, labels in zip(keyframe.boxes, keyframe.labels)
        ]
        picture = draw_detections(frame, found, names, scale=readable_scale(height), truth=truth)
        Image.fromarray(picture).save(folder / f"{keyframe.video.replace('/', '_')}_{keyframe.timestamp}.png")


def main() -> None:
    run_command_on_checkpoint(evaluate, "eval", __doc__)


if __name__ == "__main__":
    main()
