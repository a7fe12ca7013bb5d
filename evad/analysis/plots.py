"""Figures that commands leave in run folders."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from evad.drawing.colours import COLOURS


def plot_learning_curve(metrics: pd.DataFrame, path: Path) -> None:
    """Training loss and validation AP over epochs, from a run's metrics.csv."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "train/loss" in metrics:  # runs shorter than trainer.log_every_n_steps log none
        train = metrics.dropna(subset=["train/loss"])
        left.plot(train["step"], train["train/loss"], color=COLOURS[4])
    left.set(xlabel="optimizer step", ylabel="training loss", title="Loss")
    valid = metrics.dropna(subset=["val/mAP"])
    right.plot(valid["epoch"] + 1, 100 * valid["val/mAP"], marker="o", label="action mAP@0.5", color=COLOURS[5])
    right.plot(valid["epoch"] + 1, 100 * valid["val/person_AP"], marker="s", label="person AP@0.5", color=COLOURS[2])
    right.set(xlabel="epoch", ylabel="AP in %", title="Validation", ylim=(0, 100))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_training_cost(table: pd.DataFrame, path: Path) -> None:
    """Memory and time of a training step by keep rate, one line per image size (Fig. 6)."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    columns = [("peak_memory_mb", "peak memory in MiB"), ("latency_ms", "training step in ms")]
    for axis, (column, label) in zip(axes, columns):
        for colour, (size, rows) in zip(COLOURS[1:], table.groupby("size")):
            axis.plot(rows["keep_rate"], rows[column], marker="o", label=f"{size} pixels", color=colour)
        axis.set(xlabel="keep rate", ylabel=label, ylim=(0, None))
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def plot_keep_rates(table: pd.DataFrame, path: Path) -> None:
    """AP against keep rate at test time, with the cost of each point written beside it (Fig. 7)."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(table["keep_rate"], 100 * table["mAP"], marker="o", color=COLOURS[5], label="action mAP@0.5")
    axis.plot(table["keep_rate"], 100 * table["person_AP"], marker="s", color=COLOURS[2], label="person AP@0.5")
    for row in table.to_dict("records"):
        point = (row["keep_rate"], 100 * row["mAP"])
        axis.annotate(f"{row['gflops']:.3g} GFLOPs", point, xytext=(0, -14), textcoords="offset points", ha="center")
    axis.set(xlabel="keep rate at test", ylabel="AP in %", ylim=(0, 102))
    axis.invert_xaxis()
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
    figure.savefig(path, dpi=120)
