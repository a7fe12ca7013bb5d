"""Runs as data frames: settings, quality and cost of every run found below some folders.

    from evad.analysis import describe, read_runs, summarize
    runs = read_runs("multirun/keep_rate")
    print(describe(runs))
    summarize(runs, by=["keep_rate"])

AP values are fractions of 1, as logged.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from evad.runs.folders import RunFolder, evaluation_files, find_runs, read_folder, read_report
from evad.runs.names import is_without_effect

SETTINGS = {
    "keep_rate": "model.keep_rate",
    "w_kf": "model.w_kf",
    "roi_extension": "model.roi_extension",
    "decoder_depth": "model.decoder_depth",
    "context_order": "model.context_order",
    "fill": "model.fill",
    "image_size": "data.val_transform.short_side",
}
"""Column -> key of the configuration, for the numbers and choices that the paper varies."""

PARTS = {
    "pruning": "model.net.encoder.pruning",
    "classifier": "model.net.classification",
    "keyframe": "model.keyframe",
    "decoder_input": "model.decoder_input",
}
"""Column -> key of a part of the model. The column has the group choice, or `model.<column>`, or the part's class."""

CHOICE_OF_CLASS = {"ClassificationBranch": "decoder", "KeyframePruning": "mean_attention"}
"""Class -> group choice, if the two names differ."""

MEASURES = ["mAP_last", "mAP_best", "person_AP_last", "person_AP_best", "gflops", "train_clips_per_s", "peak_memory_mb"]
"""Columns of `read_runs` that measure something, AP as fractions of 1."""


def read_runs(*folders: str | Path) -> pd.DataFrame:
    """One row per run found at or below `folders`, finished or not.

    Args:
        *folders: Run folders, sweep folders, or folders of them at any depth.

    Returns:
        Columns `run` (path), `name`, `status` (see `RunFolder.status`), `seed`; all `SETTINGS`; the `PARTS` that any
        run has; every other overridden key whose value differs between the runs, under its dotted name; `epochs`
        (validated) and `max_epochs` (planned); `mAP_last`, `mAP_best`, `best_epoch` (from 1), `person_AP_last`,
        `person_AP_best` (at `best_epoch`), `gflops`, `train_clips_per_s` (median over epochs), `peak_memory_mb`
        (largest), `seconds` and `attempts` (of `run.json`), `evaluations` (number of results of `evad.eval` in the run)
        and `problems`.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there is no run below a folder.
    """
    return runs_table(read_folders(folders))


def read_folders(folders: tuple[str | Path, ...]) -> list[RunFolder]:
    """Every run found at or below some folders; errors as in `read_runs`."""
    return [read_folder(path) for path in find_runs(folders)]


def runs_table(runs: list[RunFolder]) -> pd.DataFrame:
    """The table of `read_runs` for some runs."""
    swept = swept_keys(runs)
    frame = pd.DataFrame([row(run, swept) for run in runs])
    return frame.drop(columns=[part for part in PARTS if frame[part].isna().all()])


def row(run: RunFolder, swept: Iterable[str]) -> dict[str, Any]:
    """The row of `read_runs` for one run; AP is NaN if the run was never validated."""
    mean, person, best = run.column("val/mAP"), run.column("val/person_AP"), run.best_epoch
    if not run.metrics.empty and best is None:
        run.lacks("never validated")
    return {
        "run": run.path.as_posix(),
        "name": run.setting("name"),
        "status": run.status,
        "seed": run.setting("seed"),
        **{column: plain(run.setting(key)) for column, key in SETTINGS.items()},
        **{part: part_name(run, part) for part in PARTS},
        **{key: swept_value(run, key) for key in swept},
        "epochs": len(mean),
        "max_epochs": run.setting("trainer.max_epochs"),
        "mAP_last": mean.iloc[-1:].mean(),
        "mAP_best": mean.max(),
        "best_epoch": None if best is None else best + 1,
        "person_AP_last": person.iloc[-1:].mean(),
        "person_AP_best": float(person.get(best, float("nan"))),
        "gflops": run.column("cost/gflops").iloc[-1:].mean(),
        "train_clips_per_s": run.column("cost/train_clips_per_s").median(),
        "peak_memory_mb": run.column("cost/peak_memory_mb").max(),
        **{name: run.record.get(name, float("nan")) for name in ("seconds", "attempts")},
        "evaluations": len(evaluation_files(run.path)),
        "problems": "; ".join(run.problems),
    }


def plain(value: Any) -> Any:
    """A setting as one table cell: lists become `0.4, 0.2`."""
    return ", ".join(str(item) for item in value) if isinstance(value, list) else value


def part_name(run: RunFolder, part: str) -> str | None:
    """Variant of a part of the model that a run used: the chosen option, otherwise the name of the class."""
    if chosen := run.choices.get(f"model/{part}"):
        return str(chosen)
    for node in (run.setting(f"model.{part}"), run.setting(PARTS[part])):
        if isinstance(node, dict) and "_target_" in node:
            name = str(node["_target_"]).rpartition(".")[2]
            return CHOICE_OF_CLASS.get(name, name)
        if isinstance(node, (str, int, float)):
            return str(node)
    return None


def swept_keys(runs: list[RunFolder]) -> list[str]:
    """Overridden keys that have no column in `SETTINGS` or `PARTS` and whose values differ between the runs."""
    parts = [f"model{sign}{part}" for part in PARTS for sign in "/."]  # as a group and as a key
    covered = {"seed", "name", *SETTINGS.values(), *parts}
    given = dict.fromkeys(key for run in runs for key in run.overrides)
    keys = [key for key in given if key not in covered and not is_without_effect(key)]
    return [key for key in keys if len({str(swept_value(run, key)) for run in runs}) > 1]


def swept_value(run: RunFolder, key: str) -> Any:
    """Value of an overridden key; for a config group, the chosen option."""
    if key == "experiment":  # after a resume the choice is lost, but the experiment has set the run's name
        return run.choices.get(key, run.setting("name"))
    value = run.choices[key] if key in run.choices else run.setting(key)
    return None if isinstance(value, dict) else plain(value)


def describe(runs: pd.DataFrame) -> str:
    """Count the runs by status, and list those that are not finished or have problems."""
    counts = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    lines = [f"{len(runs)} runs: {counts}"]
    for one in runs[(runs["status"] != "finished") | (runs["problems"] != "")].to_dict("records"):
        lines.append(f"  {one['run']}: {one['status']}" + (f" ({one['problems']})" if one["problems"] else ""))
    return "\n".join(lines)


def per_class(*folders: str | Path) -> pd.DataFrame:
    """AP of every class of every validated run, one row per run and class.

    Returns:
        `run` and `name` as in `read_runs`, `class`, `AP_last`, `AP_best` (in the epoch of the best mAP), in the order
        of class ids.
    """
    return class_table(read_folders(folders))


def class_table(runs: list[RunFolder]) -> pd.DataFrame:
    """The table of `per_class` for some runs."""
    rows: list[tuple[Any, ...]] = []
    for run in runs:
        best = run.scores(run.best_epoch) if run.best_epoch is not None else {}
        ids = [str(name).removeprefix("val/AP/") for name in run.metrics.columns if str(name).startswith("val/AP/")]
        for number in sorted(ids, key=lambda name: (not name.isdecimal(), name.zfill(9))):
            last = run.column(f"val/AP/{number}").iloc[-1:].mean()
            label = run.classes.get(number, number)
            rows.append((run.path.as_posix(), run.setting("name"), label, last, best.get(f"AP/{number}", float("nan"))))
    return pd.DataFrame(rows, columns=["run", "name", "class", "AP_last", "AP_best"])


def curves(*folders: str | Path) -> pd.DataFrame:
    """Learning curves, one row per run and epoch that logged anything.

    Returns:
        `run`, `epoch` (finished epochs, from 1), `train_loss` (mean of the values logged in the epoch), `mAP`,
        `person_AP`.
    """
    return curve_table(read_folders(folders))


def curve_table(runs: list[RunFolder]) -> pd.DataFrame:
    """The table of `curves` for some runs."""
    tables = [pd.DataFrame(columns=["run", "epoch", "train_loss", "mAP", "person_AP"])]
    for run in runs:
        if len(table := curve(run)):
            tables.append(table)
    return pd.concat(tables[1:] or tables, ignore_index=True)


def curve(run: RunFolder) -> pd.DataFrame:
    """The rows of `curves` for one run."""
    series = {"mAP": run.column("val/mAP"), "person_AP": run.column("val/person_AP")}
    if {"train/loss", "epoch"} <= set(run.metrics.columns):
        series["train_loss"] = run.metrics.groupby("epoch")["train/loss"].mean()
    table = pd.DataFrame(series).reindex(columns=["train_loss", "mAP", "person_AP"]).dropna(how="all")
    table.insert(0, "epoch", table.index.astype(int) + 1)
    table.insert(0, "run", run.path.as_posix())
    return table


def evaluations(*folders: str | Path) -> pd.DataFrame:
    """Results of `evad.eval` inside the runs, one row per evaluation (Fig. 7: other keep rates, same weights).

    Returns:
        `run`, `evaluation` (its folder below the run), `keep_rate` (of the evaluation), `trained_keep_rate`, `gflops`
        and every score that is a single number; `problems` if the file could not be read.
    """
    return evaluation_table(read_folders(folders))


def evaluation_table(runs: list[RunFolder]) -> pd.DataFrame:
    """The table of `evaluations` for some runs."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        common = {"run": run.path.as_posix(), "trained_keep_rate": plain(run.setting("model.keep_rate"))}
        for path in evaluation_files(run.path):
            one = {**common, "evaluation": path.parent.relative_to(run.path).as_posix(), "problems": ""}
            try:
                report = read_report(path)
                scores = {key: value for key, value in report.items() if isinstance(value, (int, float))}
                rows.append({**one, "keep_rate": plain(report.get("keep_rate")), **scores})
            except (OSError, ValueError) as error:
                rows.append({**one, "problems": f"metrics.json cannot be read: {error}"})
    columns = ["run", "evaluation", "trained_keep_rate", "keep_rate", "mAP", "person_AP", "gflops", "problems"]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*columns, *(column for column in frame.columns if column not in columns)])
