"""From a composed config to the objects of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from evad.config import build_criterion, build_model
from evad.device import keep_freed_memory
from evad.training.callbacks import quiet_lightning
from evad.training.module import EVADModule

log = logging.getLogger(__name__)


def absolute_paths(cfg: DictConfig) -> None:
    """Make paths absolute and counted classes a number, so that the saved config works from any directory."""
    with open_dict(cfg):
        cfg.paths.data = str(Path(cfg.paths.data).absolute())
        cfg.data.num_classes = cfg.data.num_classes
        if not OmegaConf.is_interpolation(cfg.data, "root"):
            cfg.data.root = str(Path(cfg.data.root).absolute())
        if cfg.init_from:
            cfg.init_from = str(Path(cfg.init_from).absolute())


def build_module(cfg: DictConfig) -> EVADModule:
    """The LightningModule the config describes."""
    return EVADModule(
        model=build_model(cfg),
        criterion=build_criterion(cfg),
        recipe=instantiate(cfg.recipe),
        postprocess=instantiate(cfg.postprocess),
        protocol=cfg.protocol,
        compile=cfg.compile,
    )


def build_datamodule(cfg: DictConfig) -> L.LightningDataModule:
    """The DataModule the config describes."""
    return instantiate(cfg.data)


def build_trainer(cfg: DictConfig, **changes: object) -> L.Trainer:
    """Trainer with the config's callbacks and loggers.

    Args:
        cfg: Composed config.
        **changes: Trainer arguments that replace the config's.
    """
    quiet_lightning()
    options: dict = {
        "callbacks": [instantiate(callback) for callback in cfg.callbacks.values() if callback],
        "logger": [instantiate(logger) for logger in cfg.logger.values() if logger],
        "enable_progress_bar": bool(cfg.callbacks.get("progress")),  # else Lightning would add one of its own
    }
    trainer = instantiate(cfg.trainer, **{**options, **changes}, _convert_="partial")
    warn_of_slow_bfloat16(cfg.trainer.precision, trainer.strategy.root_device)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def warn_of_slow_bfloat16(precision: str | int, device: torch.device) -> None:
    """Say so where bfloat16 was chosen on a processor that has to emulate it: hundreds of times slower than float32."""
    if "bf16" in str(precision) and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        log.warning(
            "precision %s on a processor without AVX-512: its bfloat16 matrix products are emulated and may take "
            "hundreds of times as long as float32; use precision 32 here",
            precision,
        )
