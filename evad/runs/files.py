"""Names and tables in a run folder; imports nothing heavy, so that runs can be read without the detector."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

CONFIG = "config.yaml"
RESOLVED = "config.resolved.yaml"
CLASSES = "classes.json"
RECORD = "run.json"  # how the run went
WANDB_ID = "wandb.id"


def metric_files(run_dir: Path) -> list[Path]:
    """Where a run logged its values: parts set aside by a resume (`metrics.0.csv`, ...) first, then `metrics.csv`."""
    earlier = [path for path in run_dir.glob("metrics.*.csv") if path.suffixes[0][1:].isdecimal()]
    parts = [*sorted(earlier, key=lambda path: int(path.suffixes[0][1:])), run_dir / "metrics.csv"]
    return [part for part in parts if part.is_file()]


def read_metrics(run_dir: Path) -> pd.DataFrame:
    """All logged values of a run, parts written before a resume first."""
    return pd.concat([pd.read_csv(part) for part in metric_files(run_dir)], ignore_index=True)
