"""Tables over runs: mean and deviation over seeds, change against a reference, markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from evad.analysis.runs import MEASURES


def summarize(runs: pd.DataFrame, by: Sequence[str], measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Mean, sample standard deviation and number of runs that share the settings `by`, usually seeds.

    Only finished runs count: the last epoch of an interrupted one is another point of its learning curve.

    Args:
        runs: As `read_runs` gives them.
        by: Columns whose values make a group; a missing value is a group of its own.
        measures: Columns to average.

    Returns:
        One row per group in ascending order: the columns `by`, `runs` (finished), `unfinished` (left out), and for
        every measure `<measure>_mean`, `<measure>_std` (divided by n - 1; NaN for one run) and `<measure>_n` (runs that
        have a value).

    Raises:
        ValueError: if a column is missing; names those there are.
    """
    if missing := [column for column in (*by, *measures) if column not in runs]:
        raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(map(str, runs.columns))}")
    done = runs["status"] == "finished"
    groups = runs.assign(runs=done, unfinished=~done).groupby(list(by), dropna=False)
    table = groups[["runs", "unfinished"]].sum().astype(int)
    finished = runs[list(measures)].astype(float).where(done, axis=0)
    statistics = finished.groupby([runs[column] for column in by], dropna=False).agg(["mean", "std", "count"])
    statistics.columns = [f"{measure}_{kind}" for measure in measures for kind in ("mean", "std", "n")]
    return table.join(statistics).reset_index()
