"""Evaluate one checkpoint at several keep rates, without training again (Fig. 7).

    python scripts/keep_rate_at_test.py RUN/checkpoints/best.ckpt [RATE ...]

Writes keep_rate.csv and keep_rate.png into the folder eval/keep_rate of the run. The default rates are 1.0, 0.9, 0.8,
0.7 and 0.6; those that were evaluated before are not evaluated again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from evad.analysis import evaluations, read_runs
from evad.analysis.figures import keep_rate_at_test
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.files import REPORT


def evaluate(checkpoint: Path, rate: float, folder: Path) -> None:
    """Evaluate at one keep rate, unless the folder already has a result of this checkpoint."""
    result = folder / REPORT
    if not result.is_file() or result.stat().st_mtime < checkpoint.stat().st_mtime:
        overrides = [f"ckpt_path={checkpoint}", f"model.keep_rate={rate}", f"hydra.run.dir={folder}", "examples=0"]
        subprocess.run([sys.executable, "-m", "evad.eval", *overrides], check=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("rates", nargs="*", type=float, metavar="RATE", default=[1.0, 0.9, 0.8, 0.7, 0.6])
    options = parser.parse_args(arguments)
    checkpoint = options.checkpoint.absolute()
    run = run_of_checkpoint(checkpoint)
    folder = run / "eval" / "keep_rate"
    folders = {folder / f"{checkpoint.stem}_{rate:g}": rate for rate in options.rates}
    for one, rate in folders.items():
        evaluate(checkpoint, rate, one)
    found = evaluations(run).set_index("evaluation")
    found = found.loc[[one.relative_to(run).as_posix() for one in folders]].reset_index()
    table = found.assign(keep_rate=list(folders.values()))
    shown = table[["keep_rate", "mAP", "person_AP", "gflops"]]
    shown.to_csv(folder / "keep_rate.csv", index=False)
    print(shown.to_string(index=False))
    if len(table) > 1:
        keep_rate_at_test(table, read_runs(run)).savefig(folder / "keep_rate.png", dpi=120)
        print(f"figure: {folder / 'keep_rate.png'}")


if __name__ == "__main__":
    main()
