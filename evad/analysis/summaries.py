"""Read the four tables of `evad.analysis.read` together, from run folders or from csv files written earlier."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from evad.analysis import read as tables


@dataclass
class Summaries:
    """Results of `read_runs`, `per_class`, `curves` and `evaluations`; each is a csv file of that name on disk."""

    runs: pd.DataFrame
    per_class: pd.DataFrame
    curves: pd.DataFrame
    evaluations: pd.DataFrame

    @classmethod
    def of(cls, *folders: str | Path) -> Summaries:
        """Read the runs below `folders`; raises the errors of `read_runs`."""
        runs = tables.read_folders(folders)
        parts = (tables.runs_table, tables.class_table, tables.curve_table, tables.evaluation_table)
        return cls(*(table(runs) for table in parts))

    @classmethod
    def read(cls, folder: str | Path) -> Summaries:
        """Read the csv files that `write` wrote to a folder; FileNotFoundError if one is missing."""
        paths = [Path(folder) / f"{field.name}.csv" for field in fields(cls)]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: write them with scripts/make_figures.py")
        # Only empty cells are missing values: pandas would also read the setting `none` as missing.
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
