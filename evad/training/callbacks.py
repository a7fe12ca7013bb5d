"""Callbacks and loggers: cost, speed and memory of training, class names, W&B, and a filter of Lightning's messages."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from evad.device import peak_memory_mb, reset_peak_memory
from evad.metrics.cost import paper_macs
from evad.runs.files import CLASSES, WANDB_ID
from evad.structures import Batch


class EfficiencyMonitor(Callback):
    """Logs GFLOPs of the detector, training speed and peak memory once per epoch.

    GFLOPs follow the paper's convention: 10^9 multiply-accumulates for one clip, counted at the size of the first
    training batch. Memory is the peak of the epoch; NaN in later jobs of a sweep if the peak of the earlier jobs cannot
    be reset.
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
            millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
            size = " x ".join(map(str, batch.clips.shape[2:]))
            # Replaces Lightning's summary table. The module prints it, so that the progress bar stays intact.
            module.print(f"detector: {millions:.1f} M parameters, {self.gflops:.1f} GFLOPs for a clip of {size}")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Validation at the end of an epoch runs before this hook; `on_validation_*` subtract its time.
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
    """Writes the class name of every model output into the run folder, so that a run can be used without its data."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / CLASSES

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        names = {str(i): datamodule.class_names.get(i, f"action {i}") for i in datamodule.class_ids}
        self.path.write_text(json.dumps(names, indent=2) + "\n")


def wandb_logger(save_dir: str, mode: str = "offline", **options: Any) -> WandbLogger:
    """W&B logger that uploads nothing unless online logging is requested.

    Args:
        save_dir: Folder in which `wandb/` is created.
        mode: `offline` or `online`; offline runs can be uploaded later with `wandb sync`.
        **options: Options of `wandb.init` such as `project`, `name`, `group`, `tags`. Without an `id`, a resumed run is
            resumed in W&B too.

    Raises:
        ValueError: if `mode` is neither.
    """
    if mode not in ("offline", "online"):
        raise ValueError(f"logger.wandb.mode {mode!r} is neither 'offline' nor 'online'")
    options.setdefault("id", wandb_id(Path(save_dir)))
    return WandbLogger(save_dir=save_dir, offline=mode == "offline", resume="allow", **options)


def wandb_id(run_dir: Path) -> str | None:
    """W&B's id of the run in a folder, created when the run first starts; None in processes that do not log."""
    path = run_dir / WANDB_ID
    if not path.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
        from wandb.sdk.lib.runid import generate_id

        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(generate_id())
    return path.read_text() if path.is_file() else None


def finish_wandb() -> None:
    """Close the W&B run if there is one, also after a failure, so that the next job of a sweep starts its own."""
    wandb = sys.modules.get("wandb")  # if it was not imported, there is no run to close
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(sys.exc_info()[0] is not None))


def quiet_lightning() -> None:
    """Hide Lightning's advertisements and the messages that are the same in every run."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_informative)
    for message in UNINFORMATIVE_WARNINGS:
        warnings.filterwarnings("ignore", message)


UNINFORMATIVE_MESSAGES = ("\N{ELECTRIC LIGHT BULB} Tip:", "TPU available: False", "Loading `train_dataloader` to")
UNINFORMATIVE_WARNINGS = (
    "Experiment logs directory .* exists and is not empty",  # Hydra creates the run folder before the logger does
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by torch, in Lightning's own code
)


def is_informative(record: logging.LogRecord) -> bool:
    """Filter for Lightning's logger. It is a module-level function, because a logger adds the same filter only once."""
    return not record.getMessage().startswith(UNINFORMATIVE_MESSAGES)
