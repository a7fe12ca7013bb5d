"""Tables over runs: mean and deviation over seeds, change against a reference, markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from evad.analysis.read import MEASURES

TITLES = {
    "keep_rate": "keep rate",
    "w_kf": "keyframe weight",
    "roi_extension": "RoI extension",
    "decoder_depth": "decoder blocks",
    "context_order": "order",
    "image_size": "image size",
    "decoder_input": "decoder input",
    "mAP_best": "mAP (best epoch)",
    "mAP_last": "mAP (last epoch)",
    "person_AP_best": "person AP",
    "gflops": "GFLOPs",
    "train_clips_per_s": "training clips/s",
    "peak_memory_mb": "peak memory in MiB",
}
"""Column -> its title in tables, legends and captions."""


def summarize(runs: pd.DataFrame, by: Sequence[str], measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Mean, sample standard deviation and number of runs that share the settings `by`, usually seeds.

    Only finished runs are averaged, because the last epoch of an unfinished one is not comparable.

    Args:
        runs: Result of `read_runs`.
        by: Columns to group by; missing values form a group too. If empty, all runs are one group.
        measures: Columns to average.

    Returns:
        One row per group in ascending order: the columns `by` (or `settings`, "all"), `runs` (finished), `unfinished`
        (left out), and for every measure `<measure>_mean`, `<measure>_std` (divided by n - 1; NaN for one run) and
        `<measure>_n` (runs that have a value).

    Raises:
        ValueError: if a column is missing.
    """
    if missing := [column for column in (*by, *measures) if column not in runs]:
        raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(map(str, runs.columns))}")
    done = runs["status"] == "finished"
    keys = [runs[column] for column in by] or [pd.Series("all", index=runs.index, name="settings")]
    table = pd.DataFrame({"runs": done, "unfinished": ~done}).groupby(keys, dropna=False).sum().astype(int)
    finished = runs[list(measures)].astype(float).where(done, axis=0)
    statistics = finished.groupby(keys, dropna=False).agg(["mean", "std", "count"])
    statistics.columns = [f"{measure}_{kind}" for measure in measures for kind in ("mean", "std", "n")]
    return table.join(statistics).reset_index()


NO_SETTINGS = {
    *("run", "status", "seed", "epochs", "max_epochs", "best_epoch", "seconds", "attempts", "evaluations", "problems"),
    *MEASURES,
}
"""Columns of `read_runs` that the experimenter does not choose."""


def varying(runs: pd.DataFrame) -> list[str]:
    """Settings in which the runs differ; `name` only if it is the only one."""
    columns = [
        column for column in runs.columns if column not in NO_SETTINGS and runs[column].nunique(dropna=False) > 1
    ]
    return [column for column in columns if column != "name"] or columns


def label_of(settings: Mapping[str, Any]) -> str:
    """Settings as text: `keep rate 0.7, fill zeros`."""
    return ", ".join(f"{TITLES.get(name, name)} {cell(value)}" for name, value in settings.items()) or "all runs"


def cell(value: Any) -> str:
    """A setting as text, `-` for a missing one."""
    return "-" if pd.isna(value) else f"{value:g}" if is_number(value) else str(value)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def groups(runs: pd.DataFrame, by: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Split the runs by the settings `by`: {settings as text: runs}; one group if `by` is empty.

    Except for the first setting, the text leaves out the most frequent values.
    """
    if not by:
        return {"all runs": runs}
    usual = {name: runs[name].mode(dropna=False).iloc[0] for name in by[1:]}
    split = runs.groupby(list(by), dropna=False, sort=True)
    return {
        label_of({name: value for name, value in zip(by, values) if name not in usual or value != usual[name]}): rows
        for values, rows in split
    }


def other_settings(runs: pd.DataFrame, setting: str) -> list[str]:
    return [name for name in varying(runs) if name not in (setting, "name")]


def lines_over(runs: pd.DataFrame, setting: str) -> dict[str, pd.DataFrame]:
    """Split the runs into sets that differ in `setting` alone: {other settings as text: runs}, without sets of one."""
    split = groups(runs, other_settings(runs, setting))
    return {label: rows for label, rows in split.items() if rows[setting].nunique(dropna=False) > 1}


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The largest set of runs that differ in keep rate (and seed) alone; all runs if no two do."""
    return max(lines_over(runs, "keep_rate").values(), key=len, default=runs)


def setting_order(value: Any) -> tuple[str, Any]:
    """Sorting key of a setting's values: numbers first, then texts (such as a list of keep rates)."""
    return "" if is_number(value) else str(type(value)), value


def with_deviation(mean: float, deviation: float, scale: float = 1, digits: int | None = None) -> str:
    """`30.5 ± 0.2`, or `30.5` if the deviation is NaN; by default 3 digits for values below 10, otherwise 1."""
    if math.isnan(mean):
        return "-"
    if digits is None:
        digits = 3 if abs(scale * mean) < 10 else 1
    shown = f"{scale * mean:.{digits}f}"
    return shown if math.isnan(deviation) else f"{shown} ± {scale * deviation:.{digits}f}"


def change_table(
    runs: pd.DataFrame, setting: str = "keep_rate", reference: Any = 1.0, by: Sequence[str] = ()
) -> pd.DataFrame:
    """The paper's Tables 2 and 3 for these runs: quality and cost, with the change against a reference in per cent.

    Args:
        runs: Result of `read_runs`; only finished runs are used.
        setting: The column that is varied.
        reference: The value of `setting` that the others are compared with.
        by: Further columns; each combination has its own reference row (Table 3: `image_size`).

    Returns:
        Cells as text: `by`, `setting`, `n` (runs), action mAP and person AP in per cent with the standard deviation
        over runs, then GFLOPs, training clips per second and peak memory. Without a reference row no change is shown.
    """
    summary = summarize(runs, by=[*by, setting])
    summary = summary[summary["runs"] > 0].sort_values(
        [*by, setting], ascending=[*[True] * len(by), False], key=lambda column: column.map(setting_order)
    )
    rows = []
    for _, group in summary.groupby(list(by), dropna=False, sort=False) if by else [((), summary)]:
        base = next((row for row in group.to_dict("records") if row[setting] == reference), None)
        rows += [table_row(row, base, [*by, setting]) for row in group.to_dict("records")]
    return pd.DataFrame(rows)


def table_row(row: Mapping[Any, Any], base: Mapping[Any, Any] | None, settings: Sequence[str]) -> dict[str, str]:
    """One row of `change_table`."""
    cells = {TITLES.get(name, name): cell(row[name]) for name in settings}
    cells["n"] = str(row["runs"])
    for measure, title in (("mAP_last", "mAP in %"), ("person_AP_last", "person AP in %")):
        cells[title] = with_deviation(row[f"{measure}_mean"], row[f"{measure}_std"], scale=100, digits=1)
    for measure in ("gflops", "train_clips_per_s", "peak_memory_mb"):
        value = row[f"{measure}_mean"]
        change = value / base[f"{measure}_mean"] - 1 if base and row[settings[-1]] != base[settings[-1]] else math.nan
        text = "-" if math.isnan(value) else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
        cells[TITLES[measure]] = text if math.isnan(change) else f"{text} ({change:+.0%})"
    return cells


def markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def class_gains(
    classes: pd.DataFrame, first: Sequence[str], second: Sequence[str], measure: str = "AP_last"
) -> pd.DataFrame:
    """AP of every class in two sets of runs, such as seeds of two settings; greatest gain first (Figs 9, 10).

    Args:
        classes: Result of `per_class`.
        first: Runs to compare with.
        second: Runs whose gain is computed.
        measure: `AP_last` or `AP_best`.

    Returns:
        `class`, `first`, `second` (means over runs, fractions of 1), `first_std`, `second_std` (sample deviations),
        `gain` (second - first).

    Raises:
        ValueError: if one of the sets has no AP per class.
    """
    table: dict[str, pd.Series] = {}
    for name, runs in (("first", first), ("second", second)):
        rows = classes[classes["run"].isin(list(runs))]
        if rows.empty:
            raise ValueError(f"no AP per class of {', '.join(runs) or 'any run'}: was it validated?")
        values = rows.groupby("class", sort=False)[measure]
        table[name], table[f"{name}_std"] = values.mean(), values.std()
    frame = pd.DataFrame(table).rename_axis("class").reset_index()
    frame["gain"] = frame["second"] - frame["first"]
    return frame[["class", "first", "second", "first_std", "second_std", "gain"]].sort_values(
        "gain", ascending=False, ignore_index=True, kind="stable"
    )
