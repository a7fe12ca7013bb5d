"""How one checkpoint does at other keep rates, without training again (Fig. 7).

    python scripts/keep_rate_at_test.py RUN/checkpoints/best.ckpt [RATE ...]

Evaluates the checkpoint at every rate (default 1.0 0.9 0.8 0.7 0.6) and writes keep_rate.csv and keep_rate.png into the
run's eval/keep_rate folder. Rates evaluated before are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from evad.analysis.plots import plot_keep_rates
from evad.runs.checkpoints import run_of_checkpoint


def evaluate(checkpoint: Path, rate: float, folder: Path) -> dict:
    result = folder / "metrics.json"
    if not result.is_file() or result.stat().st_mtime < checkpoint.stat().st_mtime:
        overrides = [f"ckpt_path={checkpoint}", f"model.keep_rate={rate}", f"hydra.run.dir={folder}", "examples=0"]
        subprocess.run([sys.executable, "-m", "evad.eval", *overrides], check=True)
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("rates", nargs="*", type=float, metavar="RATE", default=[1.0, 0.9, 0.8, 0.7, 0.6])
    options = parser.parse_args()
    checkpoint, rates = options.checkpoint.absolute(), options.rates
    folder = run_of_checkpoint(checkpoint) / "eval" / "keep_rate"
    rows = []
    for rate in rates:
        report = evaluate(checkpoint, rate, folder / f"{checkpoint.stem}_{rate:g}")
        rows.append({"keep_rate": rate, **{key: report[key] for key in ("mAP", "person_AP", "gflops")}})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "keep_rate.csv", index=False)
    plot_keep_rates(table, folder / "keep_rate.png")
    print(table.to_string(index=False))
    print(f"figure: {folder / 'keep_rate.png'}")


if __name__ == "__main__":
    main()
