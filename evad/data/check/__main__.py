"""Whether a data set is what the settings say it is, before hours of training tell.

    python -m evad.data.check data=custom data.root=my_videos
    python -m evad.data.check data=ava paths.data=/data

Reads every annotation and every frame that training would, with `data.num_workers` processes, and prints a report. The
output folder gets `report.json` and `examples.png`: keyframes with their boxes, to look at. Ends with exit code 1 if
training would be wrong. `evad.data.check.quick` is the part that needs no frames.
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
    """Check the data set of a configuration; True if it is sound."""
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
    """Command line; the exit code is 1 if training would be wrong."""
    verdicts: list[bool] = []

    def run(cfg: DictConfig) -> None:
        verdicts.append(check(cfg))  # Hydra drops what a job returns

    run_command(run, "check", __doc__)
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
