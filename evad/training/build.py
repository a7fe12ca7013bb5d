"""Build the objects of a run from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf, open_dict

from evad.data.clips.datamodule import ActionDataModule
from evad.precision import prepare
from evad.runs.build import build, build_criterion, build_model, build_part
from evad.training.callbacks import quiet_lightning
from evad.training.module import EVADModule


def absolute_paths(cfg: DictConfig) -> None:
    """Make all paths absolute, so that the saved configuration works from any directory."""
    with open_dict(cfg):
        cfg.paths.data = str(Path(cfg.paths.data).absolute())
        if not OmegaConf.is_interpolation(cfg.data, "root"):
            cfg.data.root = str(Path(cfg.data.root).absolute())
        if cfg.init_from:
            cfg.init_from = str(Path(cfg.init_from).absolute())


def build_module(cfg: DictConfig) -> EVADModule:
    return EVADModule(
        model=build_model(cfg),
        criterion=build_criterion(cfg),
        recipe=build_part(cfg, "recipe"),
        postprocess=build_part(cfg, "postprocess"),
        protocol=cfg.protocol,
        compile=cfg.compile,
    )


def build_datamodule(cfg: DictConfig) -> ActionDataModule:
    """The DataModule of a configuration. If `data.num_classes` is null, it is set to the number of annotated classes.

    Raises:
        ValueError, OSError: if the annotations cannot be read.
    """
    datamodule = build_part(cfg, "data")
    if cfg.data.num_classes is None:
        cfg.data.num_classes = datamodule.count_classes()
    return datamodule


def build_trainer(cfg: DictConfig, **changes: Any) -> L.Trainer:
    """The Trainer of a configuration with its callbacks and loggers; also prepares the device.

    Args:
        cfg: The whole configuration.
        **changes: Trainer arguments that replace the configured ones.
    """
    quiet_lightning()
    trust = cfg.get("trust")
    callbacks = changes.pop("callbacks", None)
    if callbacks is None:
        callbacks = [build(callback, trust) for callback in cfg.callbacks.values() if callback]
    if "logger" not in changes:
        changes["logger"] = [build(logger, trust) for logger in cfg.logger.values() if logger]
    options: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    progress = bool(cfg.callbacks.get("progress"))  # if None were passed, Lightning would add its own progress bar
    make = build({**options, "_partial_": True}, trust)
    trainer = make(callbacks=callbacks, enable_progress_bar=progress, **changes)
    prepare(trainer.strategy.root_device, cfg.trainer.precision, cfg.matmul_precision)
    return trainer
