"""What a training run prints and records beside losses and AP."""

import logging
import warnings

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from evad.config import load_config
from evad.training.build import build_datamodule, build_module, build_trainer
from evad.training.callbacks import wandb_id, wandb_logger


@pytest.fixture
def trained(tmp_path, caplog, capsys, short_training):
    """A tiny run in this process, and everything it said."""
    folder = [f"data.root={tmp_path}/data", f"logger.csv.save_dir={tmp_path}/run"]
    options = ["trainer.max_epochs=1", "~callbacks.best", "~callbacks.last"]
    cfg = load_config([*short_training, *options, *folder])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train.log").touch()  # as Hydra does
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO), warnings.catch_warnings(record=True) as warned:
        trainer = build_trainer(cfg)
        trainer.fit(build_module(cfg), build_datamodule(cfg))
        rank_zero_info("another message")
    logger.removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.records] + [str(each.message) for each in warned]
    return trainer, "\n".join([*messages, *capsys.readouterr()])


def test_output_says_how_large_the_detector_is_and_advertises_nothing(trained):
    trainer, printed = trained
    millions = sum(parameter.numel() for parameter in trainer.model.model.parameters()) / 1e6
    gflops = float(trainer.callback_metrics["cost/gflops"])
    line = f"detector: {millions:.1f} M parameters, {gflops:.1f} GFLOPs for a clip of 8 x 64 x 64"
    assert printed.count(line) == 1
    assert "another message" in printed  # the rest of what Lightning says arrives
    for unwanted in (
        "Tip:",
        "litlogger",
        "litmodels",
        "TPU",
        "FLOPs: 0",
        "┃ FLOPs",
        "not empty",
        "limit_train_batches",
    ):
        assert unwanted not in printed


def test_wandb_run_keeps_its_id(tmp_path):
    with pytest.raises(ValueError, match="'on' is neither 'offline' nor 'online'"):
        wandb_logger(str(tmp_path), mode="on")
    name = wandb_id(tmp_path / "run")
    assert name
    assert wandb_id(tmp_path / "run") == name
    assert wandb_id(tmp_path / "another") != name
