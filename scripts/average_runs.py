"""Mean and standard deviation over runs that belong together, such as the three splits of JHMDB.

    python scripts/average_runs.py RUN_OR_SWEEP ... > mean.json

Each argument is a run folder (its best epoch by val/mAP counts, the one of best.ckpt), a folder or metrics.json of an
evaluation, or a folder of either, such as a sweep. Prints a table to the standard error and one JSON object to the
standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.files import CLASSES, CONFIG, read_metrics
from evad.runs.record import read_record

AP = "AP/"
UNRELATED = ("keep_rate", "gflops", "checkpoint", "decomposition/persons", "decomposition/person_threshold")
"""Entries of an evaluation's metrics.json that are no scores."""


@dataclass(frozen=True)
class Scores:
    """What one run or evaluation reached.

    Attributes:
        source: Where it was read.
        split: Split of the data set, where its configuration names one.
        epoch: Best epoch from 0; None for an evaluation.
        values: {name: score}, classes as `AP/<class name>`; undefined scores are left out.
    """

    source: str
    split: int | None
    epoch: int | None
    values: dict[str, float]


def find_scores(path: Path) -> list[Scores]:
    """Scores of a run, of an evaluation, or of everything directly in a folder.

    Raises:
        ValueError: There is none.
    """
    found = scores_at(path)
    if found is not None:
        return [found]
    folders = sorted((inside for inside in path.iterdir() if inside.is_dir()), key=natural) if path.is_dir() else []
    scores = [one for one in map(scores_at, folders) if one is not None]
    if not scores:
        raise ValueError(f"{path}: neither a run (metrics.csv) nor an evaluation (metrics.json), and no folder of them")
    return scores


def natural(path: Path) -> tuple[int, str]:
    """Sorting key that puts 2 before 10."""
    return (int(path.name) if path.name.isdecimal() else sys.maxsize, path.name)


def scores_at(path: Path) -> Scores | None:
    """Scores of exactly this run or evaluation, None if it is neither."""
    if path.is_file():
        return scores_of_evaluation(path)
    if (path / "metrics.json").is_file():
        return scores_of_evaluation(path / "metrics.json")
    return scores_of_run(path) if (path / "metrics.csv").is_file() else None


def scores_of_run(folder: Path) -> Scores:
    """Validation scores of a run's best epoch.

    Raises:
        ValueError: The run was never validated.
    """
    table = read_metrics(folder)
    if "val/mAP" not in table or table["val/mAP"].isna().all():
        raise ValueError(f"{folder}: metrics.csv has no val/mAP; the run was not validated, evaluate it with evad.eval")
    best = table.loc[table["val/mAP"].idxmax()]
    classes = json.loads((folder / CLASSES).read_text()) if (folder / CLASSES).is_file() else {}
    values = {}
    for column, value in best.items():
        name = str(column).removeprefix("val/")
        if str(column).startswith("val/") and value == value:  # not NaN
            values[AP + classes.get(name[3:], name[3:]) if name.startswith(AP) else name] = float(value)
    return Scores(str(folder), split_of(folder), int(best["epoch"]), values)


def scores_of_evaluation(path: Path) -> Scores:
    """Scores in a metrics.json of `evad.eval`.

    Raises:
        ValueError: It is another kind of file.
    """
    try:
        report = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}") from None
    if not isinstance(report, dict) or "mAP" not in report:
        raise ValueError(f"{path} has no mAP; give a metrics.json of evad.eval")
    values = {AP + name: value for name, value in report.pop("per_class", {}).items()}
    values |= {name: value for name, value in flat(report).items() if name not in UNRELATED}
    split = split_of(run_of_checkpoint(report["checkpoint"])) if Path(report.get("checkpoint", "")).is_file() else None
    override = path.parent / ".hydra" / "overrides.yaml"
    if override.is_file():
        split = overridden_split(override, split)
    return Scores(str(path), split, None, {name: float(value) for name, value in values.items() if is_number(value)})


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries, named by their path."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def is_number(value: object) -> bool:
    """Whether a JSON value is a score."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def split_of(folder: Path) -> int | None:
    """Split that a run was trained for."""
    path = folder / CONFIG
    return OmegaConf.select(OmegaConf.load(path), "data.split") if path.is_file() else None


def overridden_split(path: Path, split: int | None) -> int | None:
    """Split that the command line of an evaluation asked for, else `split`."""
    given = [str(line).partition("=")[2] for line in OmegaConf.load(path) if str(line).startswith("data.split=")]
    return int(given[-1]) if given else split


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
    """The scores that are not of one class: a column per run, mean and standard deviation."""
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
    """What may make the mean another one than was meant."""
    notes = []
    splits = Counter(run["split"] for run in result["runs"] if run["split"] is not None)
    if repeated := [split for split, count in splits.items() if count > 1]:
        notes.append(f"several runs are of split {repeated[0]}; leave all but one out to average over splits")
    for folder in (Path(run["source"]) for run in result["runs"] if run["epoch"] is not None):
        if (state := read_record(folder).get("status", "finished")) != "finished":
            notes.append(f"{folder} is {state}: its best epoch so far counts")
    kinds = {run["epoch"] is None for run in result["runs"]}
    if len(kinds) > 1:
        notes.append("training runs (best epoch) and evaluations are mixed")
    if result["left_out"]:
        notes.append(
            f"{len(result['left_out'])} scores that only some runs have are left out: "
            f"{', '.join(result['left_out'][:5])}"
        )
    return notes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_SWEEP")
    options = parser.parse_args(arguments)
    try:
        runs = [scores for path in options.paths for scores in find_scores(path)]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    result = average(runs)
    for run in runs:
        print(run.source + ("" if run.epoch is None else f" (best epoch: {run.epoch})"), file=sys.stderr)
    print(table(result), file=sys.stderr)
    for remark in remarks(result):
        print(f"warning: {remark}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
