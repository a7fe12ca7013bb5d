"""Mean and standard deviation over runs that belong together, such as the three splits of JHMDB.

    python scripts/average_runs.py RUN_OR_SWEEP ... > mean.json

Each argument is a run folder, a folder or metrics.json of an evaluation, or a folder of such folders, such as a sweep.
Of a run, the epoch with the highest val/mAP is used. Prints a table to the standard error and one JSON object to the
standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from evad.analysis.average import average, find_scores, remarks, table


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
