"""Figures that commands write next to their results, drawn by `evad.analysis.figures`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from evad.analysis.figures import cost_bars, learning_curves
from evad.analysis.read import curve
from evad.analysis.tables import groups
from evad.runs.folders import RunFolder


def plot_learning_curve(metrics: pd.DataFrame, path: Path) -> Figure | None:
    """Draw the learning curve of one run into the file `path`; None if neither a loss nor a score was logged.

    Args:
        metrics: Result of `evad.runs.folders.read_metrics`.
        path: The picture, in the run folder.
    """
    run = RunFolder(path.parent, metrics=metrics)
    if (table := curve(run)).empty:
        return None
    figure = learning_curves(table, pd.DataFrame({"run": [run.path.as_posix()]}))
    figure.savefig(path, dpi=120)
    return figure


def plot_training_cost(table: pd.DataFrame, path: Path) -> Figure:
    """Draw memory (MiB) and time of training steps by keep rate and image size into the file `path` (Fig. 6)."""
    steps = table.rename(columns={"size": "image_size", "clips_per_s": "train_clips_per_s"}).assign(status="finished")
    figure = cost_bars(groups(steps, ["image_size"]))
    figure.savefig(path, dpi=120)
    return figure
