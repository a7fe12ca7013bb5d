"""What a sweep found: one row per job, and mean ± standard deviation over seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from evad.identity import is_without_effect, last_part, plain_value, split_override
from evad.runs import CONFIG, RECORD, read_metrics, read_record

MEASURES = {
    "mAP_best": "mAP (best epoch)",
    "mAP_last": "mAP (last epoch)",
    "person_AP_best": "person AP",
    "gflops": "GFLOPs",
    "train_clips_per_s": "training clips/s",
    "peak_memory_mb": "peak memory (MiB)",
}
"""Column -> its title. GFLOPs are the paper's: 10^9 multiply-accumulates of one clip."""

OTHER_COLUMNS = ("run", "status", "seed", "best_epoch", "seconds", "attempts", "error", *MEASURES)


def read_jobs(folders: Iterable[Path]) -> pd.DataFrame:
    """One row per job of one or several sweeps, finished or not.

    Args:
        folders: Sweep folders.

    Returns:
        `run` (its folder), `status`, one column per swept key (see `swept_keys`), `seed`, the columns of `MEASURES`
        (NaN where nothing was measured), `best_epoch` (from 0), and `seconds`, `attempts` and `error` of `run.json`.
    """
    runs = sorted(path.parent for folder in folders for path in folder.glob(f"*/{RECORD}"))
    records = {run: read_record(run) for run in runs}
    overrides = {run: dict(map(split_override, record.get("overrides", []))) for run, record in records.items()}
    keys = swept_keys(overrides)
    return pd.DataFrame(
        [
            {
                "run": run.as_posix(),
                "status": record.get("status", "unreadable"),
                **{column: setting(run, overrides[run], key) for key, column in keys.items()},
                "seed": setting(run, overrides[run], "seed"),
                **measures(run),
                **{name: record.get(name) for name in ("seconds", "attempts", "error")},
            }
            for run, record in records.items()
        ]
    )


def swept_keys(overrides: dict[Path, dict[str, str]]) -> dict[str, str]:
    """Keys other than `seed` in which runs differ, with the name of their column: the last part where it is enough.

    Args:
        overrides: Run -> {key: value} of its command line.
    """
    given = dict.fromkeys(key for one in overrides.values() for key in one)
    keys = [key for key in given if key != "seed" and not is_without_effect(key)]
    keys = [key for key in keys if len({str(setting(run, one, key)) for run, one in overrides.items()}) > 1]
    names = [last_part(key) for key in keys]
    return {key: key if names.count(name) > 1 or name in OTHER_COLUMNS else name for key, name in zip(keys, names)}


def setting(run: Path, overrides: dict[str, str], key: str) -> str | None:
    """Value of a key or group in a run as text: of its command line, else of its configuration."""
    if key in overrides:
        return plain_value(overrides[key])
    if (run / CONFIG).is_file() and "/" not in key:
        value: Any = OmegaConf.select(OmegaConf.load(run / "config.resolved.yaml"), key)
        return None if OmegaConf.is_dict(value) else plain_value(str(value))
    return None


def measures(run: Path) -> dict[str, float]:
    """Scores of the best and of the last epoch, and cost: speed is the median over epochs, memory the largest."""
    nothing = float("nan")
    found = dict.fromkeys(MEASURES, nothing)
    metrics = read_metrics(run) if (run / "metrics.csv").is_file() else pd.DataFrame()
    if "val/mAP" in metrics:
        scores = metrics.dropna(subset=["val/mAP"])
        best = scores.loc[[scores["val/mAP"].idxmax()]].iloc[0]
        found |= {"mAP_best": best["val/mAP"], "mAP_last": scores["val/mAP"].iloc[-1], "best_epoch": best["epoch"]}
        found["person_AP_best"] = best.get("val/person_AP", nothing)
    for name, reduce in (("gflops", "max"), ("train_clips_per_s", "median"), ("peak_memory_mb", "max")):
        if f"cost/{name}" in metrics:
            found[name] = metrics[f"cost/{name}"].agg(reduce)
    return found


def summarize(jobs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, sample standard deviation and number of the finished runs that share the settings `by`.

    Returns:
        One row per group: the columns `by`, `runs` (finished), `unfinished` (left out), and `<measure>_mean` and
        `<measure>_std` (divided by n - 1; NaN for one run) of every measure.
    """
    done = jobs["status"] == "finished"
    table = jobs[[*by]].assign(runs=done.astype(int), unfinished=(~done).astype(int))
    groups = [table[name] for name in by] if by else [pd.Series("all", index=jobs.index, name="settings")]
    counts = table[["runs", "unfinished"]].groupby(groups, dropna=False, sort=False).sum()
    values = jobs[list(MEASURES)].astype(float).where(done, axis=0)
    statistics = values.groupby(groups, dropna=False, sort=False).agg(["mean", "std"])
    statistics.columns = [f"{measure}_{kind}" for measure in MEASURES for kind in ("mean", "std")]
    return counts.join(statistics).reset_index()


def swept_columns(jobs: pd.DataFrame) -> list[str]:
    """Columns of `read_jobs` that hold a swept key."""
    return [str(column) for column in jobs if column not in OTHER_COLUMNS]


def markdown(title: str, jobs: pd.DataFrame) -> str:
    """The summary as a page: a table over settings, and a list of jobs that are not finished."""
    table = in_order(summarize(jobs, swept_columns(jobs)))
    settings = [str(name) for name in table.columns[: table.columns.get_loc("runs")]]
    rows = [[*settings, "runs", *MEASURES.values()]]
    rows += [["---"] * len(rows[0])]
    for one in table.to_dict("records"):
        cells = [spread(one[f"{measure}_mean"], one[f"{measure}_std"]) for measure in MEASURES]
        rows.append([*(str(one[name]) for name in settings), str(one["runs"]), *cells])
    lines = [f"# {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += ["Mean ± sample standard deviation over the finished runs of a row."]
    if any(jobs["status"] != "finished"):
        lines += ["", "Not finished:", ""]
        for one in jobs[jobs["status"] != "finished"].to_dict("records"):
            lines.append(f"- `{Path(one['run']).name}`: {cause(one)}")
    return "\n".join(lines) + "\n"


def cause(job: dict[Any, Any]) -> str:
    """Why a job (a row of `read_jobs`) is not finished, in one line."""
    return " ".join(str(job["error"]).split()) if job["status"] == "failed" else "killed, or still running"


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by their settings, numbers as numbers."""
    settings = [str(name) for name in table.columns[: table.columns.get_loc("runs")]]

    def key(column: pd.Series) -> pd.Series:
        numbers = pd.to_numeric(column, errors="coerce")
        return column.astype(str) if numbers.isna().any() else numbers

    return table.sort_values(settings, key=key, ignore_index=True)


def spread(mean: float, deviation: float) -> str:
    """`0.812 ± 0.013`, without the deviation of a single run, empty without a value."""
    if mean != mean:
        return ""
    digits = 3 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f}" + ("" if deviation != deviation else f" ± {deviation:.{digits}f}")


def write_summary(folder: Path) -> pd.DataFrame:
    """Write `summary.csv` (a row per job) and `summary.md` into a sweep's folder, if it has any job.

    Returns:
        What `read_jobs` found.
    """
    jobs = read_jobs([folder])
    if len(jobs):
        replace(folder / "summary.csv", jobs.assign(run=[Path(run).name for run in jobs["run"]]).to_csv(index=False))
        replace(folder / "summary.md", markdown(folder.name, jobs))
    return jobs


def replace(path: Path, text: str) -> None:
    """Write a file at once: jobs that run side by side all write the summary."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
