"""The four tables of some runs: read from run folders, or from csv files that were written earlier."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from evad.analysis import read as tables


@dataclass
class Summaries:
    """What figures of runs are drawn from; a summary folder has a csv file of the same name for each table.

    Attributes:
        runs: See `read_runs`.
        per_class: See `per_class`.
        curves: See `curves`.
        evaluations: See `evaluations`.
    """

    runs: pd.DataFrame
    per_class: pd.DataFrame
    curves: pd.DataFrame
    evaluations: pd.DataFrame

    @classmethod
    def of(cls, *folders: str | Path) -> Summaries:
        """Read the runs below `folders`; raises the errors of `read_runs`."""
        readers = (tables.read_runs, tables.per_class, tables.curves, tables.evaluations)
        return cls(*(read(*folders) for read in readers))

    @classmethod
    def read(cls, folder: str | Path) -> Summaries:
        """Read what `write` wrote to a folder.

        Raises:
            FileNotFoundError: if one is missing.
        """
        paths = [Path(folder) / f"{field.name}.csv" for field in fields(cls)]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: write them with scripts/make_figures.py")
        # Only an empty cell is a missing value: `none` and `None` are settings.
        found = cls(*(pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in paths))
        for frame in (found.runs, found.evaluations):
            frame["problems"] = frame["problems"].astype(object).fillna("")
        return found

    def write(self, folder: str | Path) -> list[Path]:
        """Write the four csv files and return their paths."""
        paths = [Path(folder) / f"{field.name}.csv" for field in fields(self)]
        for path in paths:
            getattr(self, path.stem).to_csv(path, index=False, float_format="%.6g")
        return paths
