"""Run folders: what a run leaves behind, and how later commands start from it.

A run folder holds `config.yaml` (as composed, interpolations kept), `config.resolved.yaml`, `metrics.csv`,
`classes.json` (action id -> name, one entry per model output), `checkpoints/last.ckpt`, `checkpoints/best.ckpt`, a log
and `run.json`, which says how it went:

    status       "running" (or killed), "finished" or "failed"
    overrides    what the command line changed: ["model.keep_rate=0.7", "seed=0"]
    config       digest of the configuration, without what doesn't change the result
    attempts     1, and one more for every time the run was started again
    seconds      wall time of the last attempt
    value        what `train` returned: the best value of `optimized_metric`
    best         {"epoch": ..., "val/mAP": ..., ...} of the epoch with the highest val/mAP
    error        of a failed run
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.types import Quote, QuotedString
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from evad.config import conf_dir
from evad.identity import split_override
from evad.models.checkpoint_io import read_weights
from evad.models.pretrained import compare
from evad.run_files import CLASSES, CONFIG, RECORD, RESOLVED, metric_files, read_metrics


@rank_zero_only
def save_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write the run's configuration, with interpolations and resolved."""
    OmegaConf.save(cfg, run_dir / CONFIG)
    OmegaConf.save(cfg, run_dir / RESOLVED, resolve=True)


def read_record(run_dir: Path) -> dict[str, Any]:
    """What `run.json` says; nothing for a folder without a run, or with one that says nothing."""
    try:
        return json.loads((run_dir / RECORD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


@rank_zero_only
def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Replace `run.json` at once, so that a reader never sees half of it."""
    draft = run_dir / f"{RECORD}.draft"
    draft.write_text(json.dumps(record, indent=2) + "\n")
    draft.replace(run_dir / RECORD)


@contextmanager
def recorded(run_dir: Path, overrides: list[str], digest: str) -> Iterator[dict[str, Any]]:
    """Keep `run.json` while a run is under way: "running", then "finished" or "failed" with the error.

    Args:
        run_dir: The run folder.
        overrides: Task overrides of the command line.
        digest: By `evad.identity.config_digest`.

    Yields:
        The record; the run adds its `value`.
    """
    attempts = read_record(run_dir).get("attempts", 0) + 1
    record: dict[str, Any] = {"status": "running", "overrides": overrides, "config": digest, "attempts": attempts}
    write_record(run_dir, record)
    started = time.perf_counter()
    try:
        yield record
        record |= {"status": "finished", "best": best_epoch(run_dir)}
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        record["seconds"] = round(time.perf_counter() - started, 1)
        write_record(run_dir, record)


def best_epoch(run_dir: Path) -> dict[str, float]:
    """Validation scores (without those of single classes) of the epoch with the highest val/mAP, {} without one."""
    if not metric_files(run_dir):
        return {}
    metrics = read_metrics(run_dir)
    if "val/mAP" not in metrics or metrics["val/mAP"].isna().all():
        return {}
    best = {str(name): value for name, value in metrics.loc[[metrics["val/mAP"].idxmax()]].iloc[0].items()}
    names = [name for name in best if name.startswith("val/") and not name.startswith("val/AP/")]
    return {"epoch": int(best["epoch"]), **{name: float(best[name]) for name in names if best[name] == best[name]}}


def run_of_checkpoint(checkpoint: str | Path) -> Path:
    """The run folder a checkpoint lies in.

    Raises:
        FileNotFoundError: if the checkpoint or the run's `config.yaml` is missing.
    """
    path = Path(checkpoint).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path: no checkpoint at {path}")
    for folder in path.parents[:2]:
        if (folder / CONFIG).is_file():
            return folder
    raise FileNotFoundError(
        f"ckpt_path: no {CONFIG} beside or above {path}; a checkpoint is read together with its run folder"
    )


def run_of_argument(checkpoint: str) -> Path:
    """As `run_of_checkpoint`; a command ends with the sentence alone."""
    try:
        return run_of_checkpoint(checkpoint)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error


def class_names(run_dir: Path, num_classes: int) -> dict[str, str]:
    """Action id -> name of every model output; numbers alone where the weights came without names."""
    path = run_dir / CLASSES
    if path.is_file():
        return json.loads(path.read_text())
    return {str(number): f"action {number}" for number in range(1, num_classes + 1)}


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


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load all of the detector's weights from one of our checkpoints, without running code from the file.

    Args:
        model: Detector built from the checkpoint's config.
        checkpoint: By a run, or by scripts/convert_checkpoint.py.

    Raises:
        ValueError: if the checkpoint is of another architecture; names the first differences.
    """
    state = read_weights(checkpoint).tensors
    if any(name.startswith("model.") for name in state):  # by Lightning; the rest belongs to the training program
        state = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    differences = compare(model, state)
    problems = {
        "missing": sorted(differences.missing),
        "unexpected": sorted(differences.unexpected),
        "other shape": sorted(differences.reshaped_lines()),
    }
    found = [f"{len(names)} {kind} ({', '.join(names[:3])}, ...)" for kind, names in problems.items() if names]
    if found:
        raise ValueError(
            f"{checkpoint} is of another architecture than the configuration: {'; '.join(found)}. Use the run's own "
            "config, or undo the overrides that change the model"
        )
    model.load_state_dict(state)
