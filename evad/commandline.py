"""Hydra commands of this package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from evad.config import conf_dir
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.files import CONFIG
from evad.runs.names import split_override


def run_of_argument(checkpoint: str) -> Path:
    """As `run_of_checkpoint`; a command ends with the sentence alone."""
    try:
        return run_of_checkpoint(checkpoint)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error


def argument(name: str) -> str | None:
    """Value of `name=value` on the command line, or None."""
    values = [arg.partition("=")[2] for arg in sys.argv[1:] if arg.startswith(f"{name}=")]
    return values[-1].strip("'\"") if values and values[-1] not in ("", "null") else None


def hydra_command(function: Callable[[DictConfig], Any]) -> None:
    """Run `function` with the training configuration and the command line's overrides."""
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(function)()


def hydra_command_from_run(function: Callable[[DictConfig], Any], run_dir: Path, output: str) -> None:
    """Run `function` with the configuration of an earlier run; the command line overrides any key of it.

    Args:
        function: Takes the config.
        run_dir: The earlier run.
        output: Where Hydra writes, below the run folder unless absolute.
    """
    given = {arg.partition("=")[0] for arg in sys.argv[1:]}
    if groups := [arg for arg in sys.argv[1:] if "=" in arg and is_group(split_override(arg)[0])]:
        raise SystemExit(
            f"{' '.join(groups)}: the configuration of a run has no groups to choose from; change their keys, as in "
            "trainer.max_epochs=20"
        )
    target = run_dir / output
    defaults = {
        "hydra.run.dir": str(target),
        "hydra.sweep.dir": str(target),
        "hydra.sweep.subdir": "${hydra.job.override_dirname}",
    }
    sys.argv = [quoted(*split_override(arg)) if is_file_argument(arg) else arg for arg in sys.argv]
    sys.argv += [quoted(key, value) for key, value in defaults.items() if key not in given]
    hydra.main(version_base="1.3", config_path=str(run_dir), config_name=Path(CONFIG).stem)(function)()


def is_group(key: str) -> bool:
    """Whether a key of the command line chooses a file below conf/, as `data=` and `model/pruning=` do."""
    return bool(key) and not key.startswith("hydra") and (conf_dir() / key).is_dir()


def is_file_argument(text: str) -> bool:
    """Whether `key=value` names a file that is there, in whatever characters."""
    key, value = split_override(text)
    return key in ("ckpt_path", "video", "resume") and Path(value).exists()


def quoted(key: str, value: str) -> str:
    """Override that Hydra's grammar reads as this very text."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
