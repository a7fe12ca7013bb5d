"""What a run reports besides losses and AP: cost, speed and memory; and the W&B logger."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.sdk.lib.runid import generate_id

from evad.device import peak_memory_mb, reset_peak_memory
from evad.metrics.cost import paper_macs
from evad.runs.files import CLASSES, WANDB_ID
from evad.structures import Batch


class EfficiencyMonitor(Callback):
    """Logs GFLOPs of the detector, training speed and peak memory, once per epoch.

    GFLOPs follow the paper's convention: multiply-accumulates of one clip (10^9), counted at the size of the first
    training batch. Memory is the largest of the epoch; in later jobs of a sweep NaN where a process cannot forget the
    peak of the earlier ones.
    """

    process_has_trained = False

    def __init__(self) -> None:
        self.started = 0.0
        self.clips = 0
        self.gflops: float | None = None
        self.memory_is_own = True

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.memory_is_own = not EfficiencyMonitor.process_has_trained
        EfficiencyMonitor.process_has_trained = True

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started, self.clips = time.perf_counter(), 0
        self.memory_is_own = reset_peak_memory(module.device) or self.memory_is_own

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
                "cost/peak_memory_mb": peak_memory_mb(module.device) if self.memory_is_own else float("nan"),
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
        **options: `project`, `name`, `group`, `tags` and so on, for `wandb.init`. Without `id`, a run that goes on in
            its folder goes on in W&B.

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("offline", "online"):
        raise ValueError(f"logger.wandb.mode {mode!r} is neither 'offline' nor 'online'")
    options.setdefault("id", wandb_id(Path(save_dir)))
    return WandbLogger(save_dir=save_dir, offline=mode == "offline", resume="allow", **options)


def wandb_id(run_dir: Path) -> str | None:
    """W&B's id of the run in a folder, drawn at its first start; None for processes that don't log."""
    path = run_dir / WANDB_ID
    if not path.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(generate_id())
    return path.read_text() if path.is_file() else None
