"""Sweeps: a job that was finished is skipped, one that broke is run again, one that fails doesn't stop the others.

A sweep is a folder of run folders named by their overrides (`evad.identity.job_name`). Hydra starts every job of the
command line; what is to be done with it is decided here, by the `run.json` in its folder.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from evad.identity import WITHOUT_EFFECT, config_digest
from evad.runs import CONFIG, WANDB_ID, read_record
from evad.runtime import release_freed_memory
from evad.sweep_summary import cause, write_summary

log = logging.getLogger(__name__)

LOCK = ".lock"


def sweep_job(run: Callable[[DictConfig], float | None], cfg: DictConfig, run_dir: Path) -> float | None:
    """Do what is left to do of one job.

    Args:
        run: Trains, records the outcome in `run.json` and returns the objective.
        cfg: The job's configuration.
        run_dir: The job's folder.

    Returns:
        The objective, of the earlier run if that was finished; None if the job failed: a failed trial for Optuna.
    """
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            return locked_job(run, cfg, run_dir)
    except Timeout:
        log.warning("skipped: %s is being trained by another process", run_dir)
        return None


def locked_job(run: Callable[[DictConfig], float | None], cfg: DictConfig, run_dir: Path) -> float | None:
    """`sweep_job` in the only process that may write to the folder."""
    record = read_record(run_dir)
    same = record.get("config") == config_digest(cfg)
    if record.get("status") == "finished":
        log.info("skipped: %s is finished", run_dir)
        if not same:
            log.warning("%s was trained with other defaults than today's; delete it to train it anew", run_dir)
        return record.get("value")
    if record and same and (run_dir / "checkpoints" / "last.ckpt").is_file():
        log.info("going on with %s, which %s", run_dir, "failed" if record["status"] == "failed" else "was killed")
        cfg = continued(cfg, run_dir)
    elif record:
        log.info("starting %s anew", run_dir)
        clear(run_dir)
    try:
        return run(cfg)
    except Exception:
        log.exception("failed: %s; the sweep goes on", run_dir)
        return None
    finally:
        gc.collect()  # the next job's memory is measured in the same process
        release_freed_memory()


def continued(cfg: DictConfig, run_dir: Path) -> DictConfig:
    """The run's own configuration, where `init_from` may have changed something, with today's keys without effect."""
    saved = OmegaConf.load(run_dir / CONFIG)
    assert isinstance(saved, DictConfig)
    for key in (*WITHOUT_EFFECT, "data.root"):
        if (value := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(saved, key, value, merge=False)
    saved.resume = str(run_dir)
    return saved


def clear(run_dir: Path) -> None:
    """Remove what an attempt left that a later one would be mistaken for."""
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    for path in [*run_dir.glob("metrics*.csv"), run_dir / "learning_curve.png", run_dir / WANDB_ID]:
        path.unlink(missing_ok=True)


class SweepCallback(Callback):
    """Keeps a sweep in one folder with an up-to-date summary, and ends it with an error if jobs are not finished."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Give every job the sweep's folder: its own configuration may have another `name`."""
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
