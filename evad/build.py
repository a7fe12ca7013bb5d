"""From a composed config to the objects of a run."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from evad.config import build_model
from evad.lightning_module import EVADModule
from evad.models.criterion import SetCriterion


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
        criterion=SetCriterion(),
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
    options: dict = {
        "callbacks": [instantiate(callback) for callback in cfg.callbacks.values() if callback],
        "logger": [instantiate(logger) for logger in cfg.logger.values() if logger],
    }
    return instantiate(cfg.trainer, **{**options, **changes}, _convert_="partial")
