"""Results of sweeps: one row per job, and mean ± standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from evad.analysis import read_runs, summarize
from evad.analysis.tables import NO_SETTINGS, TITLES, cell, varying, with_deviation
from evad.analysis.tables import markdown as markdown_table
from evad.runs.files import RECORD, replace
from evad.runs.names import last_part

MEASURES = ("mAP_best", "mAP_last", "person_AP_best", "gflops", "train_clips_per_s", "peak_memory_mb")
"""Columns of a summary. As in the paper, a GFLOP is 10^9 multiply-accumulates; they are counted for one clip."""


def read_jobs(folders: Iterable[Path]) -> pd.DataFrame:
    """Read one row per job, finished or not, of sweep folders; an empty table if nothing was trained.

    Returns:
        Columns of `read_runs`: `run`, `status`, the settings that vary (named by the last part of their key, unless two
        share it), `seed`, `MEASURES`, `best_epoch`, `seconds`, `attempts` and `problems`.
    """
    runs = sorted(path.parent for folder in folders for path in folder.glob(f"*/{RECORD}"))
    if not runs:
        return pd.DataFrame()
    table = read_runs(*runs)
    settings = varying(table)
    names = [last_part(key) for key in settings]
    short = {key: name for key, name in zip(settings, names) if names.count(name) == 1 and name not in NO_SETTINGS}
    columns = ["run", "status", *settings, "seed", *MEASURES, "best_epoch", "seconds", "attempts", "problems"]
    return table[columns].rename(columns=short)


def markdown(title: str, jobs: pd.DataFrame) -> str:
    """The summary as Markdown: a table over settings, and a list of jobs that are not finished."""
    settings = varying(jobs)
    rows = []
    for row in summarize(jobs, settings, MEASURES).to_dict("records"):
        spread = {TITLES[name]: with_deviation(row[f"{name}_mean"], row[f"{name}_std"]) for name in MEASURES}
        rows.append({name: cell(row[name]) for name in [*(settings or ["settings"]), "runs"]} | spread)
    page = f"# {title}\n\n{markdown_table(pd.DataFrame(rows))}\n"
    page += "Mean ± sample standard deviation over the finished runs of a row.\n"
    broken = jobs[jobs["status"] != "finished"].to_dict("records")
    causes = [f"- `{Path(one['run']).name}`: {cause(one)}\n" for one in broken]
    return page + ("\nNot finished:\n\n" + "".join(causes) if causes else "")


def cause(job: dict[Any, Any]) -> str:
    """Why a job (a row of `read_jobs`) is not finished, in one line."""
    return "killed, or still running" if job["status"] == "running" else job["problems"]


def write_summary(folder: Path) -> pd.DataFrame:
    """Write `summary.csv` and `summary.md` into a sweep's folder if it has a job; returns the result of `read_jobs`."""
    jobs = read_jobs([folder])
    if len(jobs):
        replace(folder / "summary.csv", jobs.assign(run=[Path(run).name for run in jobs["run"]]).to_csv(index=False))
        replace(folder / "summary.md", markdown(folder.name, jobs))
    return jobs
