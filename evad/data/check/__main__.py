"""Checks a data set before training: whether annotations and videos are readable and fit together.

    python -m evad.data.check data=custom data.root=my_videos
    python -m evad.data.check data=ava paths.data=/data

Reads every annotation and frame that training would read, with `data.num_workers` processes, and prints a report. It
writes `report.json` and `examples.png`, a picture of keyframes with their boxes, into the output folder. The exit code
is 1 if training would be wrong. `evad.data.check.quick` is the part that reads no frames.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from evad.commandline import run_command
from evad.data.check.full import full_check
from evad.data.check.quick import unreadable
from evad.data.check.report import Example, Report, draw_sheet, print_report, write_json
from evad.runs.build import build_part

log = logging.getLogger(__name__)


def check(cfg: DictConfig) -> bool:
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        datamodule = build_part(cfg, "data")
    except (ValueError, OSError) as error:
        report = Report(str(cfg.data.root), {}, [], [unreadable(error)])
        examples: list[Example] = []
    else:
        report, examples = full_check(datamodule)
    print_report(report, Console())
    write_json(report, output / "report.json")
    if examples:
        draw_sheet(examples, output / "examples.png")
    log.info("report.json%s in %s", " and examples.png" if examples else "", output)
    return report.sound


def main() -> None:
    verdicts: list[bool] = []

    def run(cfg: DictConfig) -> None:
        verdicts.append(check(cfg))  # Hydra discards the return value of a job

    run_command(run, "check", __doc__)
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
