"""What a run reports besides losses and AP: cost, speed and memory; and the W&B logger."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from evad.metrics.efficiency import paper_macs
from evad.runs import CLASSES
from evad.structures import Batch


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far: allocated on a CUDA device, resident set of the process elsewhere. In MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class EfficiencyMonitor(Callback):
    """Logs GFLOPs of the detector, training speed and peak memory, once per epoch.

    GFLOPs follow the paper's convention: multiply-accumulates of one clip (10^9), counted at the size of the first
    training batch.
    """

    def __init__(self) -> None:
        self.started = 0.0
        self.clips = 0
        self.gflops: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started, self.clips = time.perf_counter(), 0
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.clips += len(batch)
        if self.gflops is None:
            self.gflops = sum(paper_macs(module.model, *batch.clips.shape[2:]).values()) / 1e9

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Validation runs before this hook where it follows the epoch; its time is taken out by `on_validation_*`.
        elapsed = time.perf_counter() - self.started
        module.log_dict(
            {
                "cost/gflops": self.gflops or float("nan"),
                "cost/train_clips_per_s": self.clips * trainer.world_size / elapsed,
                "cost/peak_memory_mb": peak_memory_mb(module.device),
            },
            sync_dist=trainer.world_size > 1,
        )

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started += time.perf_counter() - self.paused


class ClassNames(Callback):
    """Writes the name of every model output into the run folder, so that a run can be used without its data."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / CLASSES

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        names = {str(i): datamodule.class_names.get(i, f"action {i}") for i in datamodule.class_ids}
        self.path.write_text(json.dumps(names, indent=2) + "\n")


def wandb_logger(save_dir: str, mode: str = "offline", **options: Any) -> WandbLogger:
    """W&B logger that stays offline unless online logging is asked for.

    Args:
        save_dir: Folder that receives `wandb/`.
        mode: `offline` or `online`; offline runs are uploaded later with `wandb sync`.
        **options: `project`, `name`, `group`, `tags` and so on, for `wandb.init`.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("offline", "online"):
        raise ValueError(f"logger.wandb.mode {mode!r} is neither 'offline' nor 'online'")
    return WandbLogger(save_dir=save_dir, offline=mode == "offline", **options)
