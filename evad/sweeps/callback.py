"""What Hydra calls between the jobs of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from evad.runs.names import is_without_effect
from evad.sweeps.jobs import log
from evad.sweeps.summary import cause, write_summary


class SweepCallback(Callback):
    """Keeps a sweep in one folder with an up-to-date summary, and ends it with an error if jobs are not finished."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Give every job the sweep's folder: its own configuration may have another `name`.

        Raises:
            SystemExit: if values are listed for a key that is no part of the jobs' names.
        """
        for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
            if override.is_sweep_override() and is_without_effect(override.key_or_group):
                raise SystemExit(
                    f"{override.input_line}: {override.key_or_group} doesn't change what is trained, so that these "
                    "jobs would be one; give one value, or a sweep=NAME of its own to each"
                )
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{config.hydra.sweep.dir}'")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Summarise what there is so far, also for a sweep that is killed later."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write_summary(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise, and name the jobs that are not finished.

        Raises:
            SystemExit: if there are any.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = write_summary(folder)
        if not len(jobs):  # another command than training
            return
        log.info("summary of %d jobs: %s", len(jobs), folder / "summary.md")
        broken = jobs[jobs["status"] != "finished"]
        for one in broken.to_dict("records"):
            log.error("%s: %s", one["run"], cause(one))
        if len(broken):
            raise SystemExit(
                f"{len(broken)} of {len(jobs)} jobs in {folder} are not finished: start the same command again to "
                "rerun them, or delete their folders"
            )
