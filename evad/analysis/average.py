"""Mean and standard deviation of the scores of runs or evaluations that belong together, such as splits."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from evad.analysis.tables import is_number
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.files import METRICS, REPORT, read_record
from evad.runs.folders import RunFolder, natural, read_folder, read_report, read_settings
from evad.runs.names import split_override

AP = "AP/"
UNRELATED = ("keep_rate", "gflops", "checkpoint", "decomposition/persons", "decomposition/person_threshold")
"""Entries of an evaluation's metrics.json that are not scores."""


@dataclass(frozen=True)
class Scores:
    """Scores of one run or evaluation.

    Attributes:
        source: Path it was read from.
        split: Split of the data set; None if the data set has no splits.
        epoch: Best epoch from 0; None for an evaluation.
        values: {name: score}, classes as `AP/<class name>`; undefined scores are left out.
    """

    source: str
    split: int | None
    epoch: int | None
    values: dict[str, float]


def find_scores(path: Path) -> list[Scores]:
    """Scores of a run or evaluation, or of those directly inside a folder; ValueError if nothing is found."""
    inside = sorted(path.iterdir(), key=lambda each: natural(Path(each.name))) if path.is_dir() else []
    alone = scores_at(path)
    found = [alone] if alone else [one for one in map(scores_at, filter(Path.is_dir, inside)) if one]
    if not found:
        raise ValueError(
            f"{path}: neither a run ({METRICS}) nor an evaluation ({REPORT}), nor a folder with such folders"
        )
    return found


def scores_at(path: Path) -> Scores | None:
    """Scores of this run or evaluation; None if the path is neither."""
    if path.is_file():
        return scores_of_evaluation(path)
    if (path / REPORT).is_file():
        return scores_of_evaluation(path / REPORT)
    return scores_of_run(path) if (path / METRICS).is_file() else None


def scores_of_run(folder: Path) -> Scores:
    """Validation scores of a run's best epoch; ValueError if the run was never validated."""
    run = read_folder(folder)
    if run.best_epoch is None:
        raise ValueError(f"{folder}: {METRICS} has no val/mAP; the run was not validated, evaluate it with evad.eval")
    names = {f"{AP}{number}": f"{AP}{name}" for number, name in run.classes.items()}
    values = {names.get(name, name): value for name, value in run.scores(run.best_epoch).items()}
    return Scores(str(folder), run.setting("data.split"), run.best_epoch, values)


def scores_of_evaluation(path: Path) -> Scores:
    """Scores in a metrics.json of `evad.eval`; ValueError if the file is not one."""
    report = read_report(path)
    values = {AP + name: value for name, value in report.pop("per_class", {}).items()}
    (flat,) = pd.json_normalize(report, sep="/").to_dict("records")
    values |= {str(name): value for name, value in flat.items() if name not in UNRELATED}
    split = split_of_evaluation(path.parent, Path(report.get("checkpoint", "")))
    return Scores(str(path), split, None, {name: float(value) for name, value in values.items() if is_number(value)})


def split_of_evaluation(folder: Path, checkpoint: Path) -> int | None:
    """Split of an evaluation: from its command line, otherwise from the checkpoint's run."""
    overrides = folder / ".hydra" / "overrides.yaml"
    given = dict(map(split_override, map(str, OmegaConf.load(overrides)))) if overrides.is_file() else {}
    if "data.split" in given:
        return int(given["data.split"])
    if not checkpoint.is_file():
        return None
    run = RunFolder(run_of_checkpoint(checkpoint))
    read_settings(run)
    return run.setting("data.split")


def average(runs: list[Scores]) -> dict[str, Any]:
    """Mean and standard deviation of every score that all runs have.

    Returns:
        `mean` and `std` ({name: number}; the sample standard deviation, null for a single run), `runs`, and
        `left_out`: names of scores that only some runs have.
    """
    counts = Counter(name for run in runs for name in run.values)
    common = [name for name in runs[0].values if counts[name] == len(runs)]
    columns = {name: [run.values[name] for run in runs] for name in common}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "std": {name: statistics.stdev(values) if len(runs) > 1 else None for name, values in columns.items()},
        "runs": [vars(run) for run in runs],
        "left_out": sorted(name for name, count in counts.items() if count < len(runs)),
    }


def table(result: dict[str, Any]) -> str:
    """All scores except those of single classes, as text: one column per run, then mean and standard deviation."""
    runs = result["runs"]
    names = [name for name in result["mean"] if not name.startswith(AP)]
    width = max(len(name) for name in [*names, "score"])
    titles = [f"split {run['split']}" if run["split"] is not None else f"run {i}" for i, run in enumerate(runs, 1)]
    lines = [f"{'score':<{width}}" + "".join(f"{title:>10}" for title in [*titles, "mean", "std"])]
    for name in names:
        deviation = "-" if result["std"][name] is None else f"{result['std'][name]:.4f}"
        cells = [*(f"{run['values'][name]:.4f}" for run in runs), f"{result['mean'][name]:.4f}", deviation]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def remarks(result: dict[str, Any]) -> list[str]:
    """Warnings about runs that may not belong together."""
    notes = []
    splits = [run["split"] for run in result["runs"] if run["split"] is not None]
    if repeated := [split for split in splits if splits.count(split) > 1]:
        notes.append(f"several runs are of split {repeated[0]}; leave all but one out to average over splits")
    for folder in (Path(run["source"]) for run in result["runs"] if run["epoch"] is not None):
        if (state := read_record(folder).get("status", "unknown")) != "finished":
            notes.append(f"{folder} is {state}: the best of its epochs so far is used")
    if len({run["epoch"] is None for run in result["runs"]}) > 1:
        notes.append("training runs (best epoch) and evaluations are mixed")
    if names := result["left_out"]:
        notes.append(f"{len(names)} scores that only some runs have are left out: {', '.join(names[:5])}")
    return notes
