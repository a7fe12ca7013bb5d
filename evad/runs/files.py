"""The files in a run folder, and its record. Imports nothing that is slow to load.

A run folder holds `config.yaml` (as composed, with interpolations), `config.resolved.yaml`, `metrics.csv`,
`classes.json` (action id -> name, one entry per model output), `checkpoints/last.ckpt`, `checkpoints/best.ckpt`, a log
and `run.json`, the record of how the run went:

    status       "running" (or killed), "finished" or "failed"
    overrides    what the command line changed: ["model.keep_rate=0.7", "seed=0"]
    config       digest of the configuration, without the keys that do not change the result
    attempts     1, and one more for every time the run was started again
    seconds      wall time of the last attempt
    value        what `train` returned: the best value of `optimized_metric`
    best         {"epoch": ..., "val/mAP": ..., ...} of the epoch with the highest val/mAP
    error        message of the error that ended a failed run
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
RESOLVED = "config.resolved.yaml"
CLASSES = "classes.json"
RECORD = "run.json"
METRICS = "metrics.csv"
REPORT = "metrics.json"  # of an evaluation
WANDB_ID = "wandb.id"


def metric_files(run_dir: Path) -> list[Path]:
    """Files with a run's logged values, oldest first: `metrics.0.csv`, ... (backed up by a resume), `metrics.csv`."""
    earlier = [path for path in run_dir.glob("metrics.*.csv") if path.suffixes[0][1:].isdecimal()]
    parts = [*sorted(earlier, key=lambda path: int(path.suffixes[0][1:])), run_dir / METRICS]
    return [part for part in parts if part.is_file()]


def replace(path: Path, text: str) -> None:
    """Replace a file in one step, so that other processes never see half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def read_record(run_dir: Path) -> dict[str, Any]:
    """Content of `run.json`; empty if the file is missing or broken."""
    try:
        return json.loads((run_dir / RECORD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
