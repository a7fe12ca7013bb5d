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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from evad.runs.files import CONFIG, RECORD, RESOLVED, metric_files, read_metrics


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
        digest: By `evad.runs.names.config_digest`.

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
