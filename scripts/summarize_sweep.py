"""Summarise one or several sweeps: mean and standard deviation over seeds, as a Markdown table.

    python scripts/summarize_sweep.py multirun/mini_keep_rate
    python scripts/summarize_sweep.py multirun/first multirun/second --csv both.csv

For a single sweep it also writes `summary.csv` and `summary.md` into the folder, as `--multirun` does after every job.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evad.runs.files import RECORD
from evad.sweeps.summary import markdown, read_jobs, write_summary


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a sweep")
    parser.add_argument("--csv", type=Path, help="also write one row per job to this file")
    options = parser.parse_args(arguments)
    if empty := [str(folder) for folder in options.folders if not [*folder.glob(f"*/{RECORD}")]]:
        sys.exit(f"error: {empty[0]}: none of its folders has a run.json; give the folder of a sweep")
    jobs = write_summary(options.folders[0]) if len(options.folders) == 1 else read_jobs(options.folders)
    print(markdown(", ".join(folder.name for folder in options.folders), jobs))
    if options.csv:
        jobs.to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
