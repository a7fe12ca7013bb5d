"""Sweeps: a job that was finished is skipped, one that broke is run again, one that fails doesn't stop the others.

A sweep is a folder of run folders named by their overrides (`evad.identity.job_name`). Hydra starts every job of the
command line; what is to be done with it is decided here, by the `run.json` in its folder.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from evad.identity import WITHOUT_EFFECT, config_digest, is_without_effect
from evad.run_files import CONFIG, WANDB_ID
from evad.runs import read_record
from evad.runtime import release_freed_memory
from evad.sweep_summary import cause, write_summary

log = logging.getLogger(__name__)

LOCK = ".lock"
JOB = "EVAD_SWEEP_JOB"
"""Environment variable: the job under way, for the processes that Lightning starts for further devices (DDP)."""


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
    with separate_job({"hydra.run.dir": str(run_dir), "resume": cfg.resume}):
        try:
            return run(cfg)
        except Exception:
            log.exception("failed: %s; the sweep goes on", run_dir)
            return None


@contextmanager
def separate_job(command: dict[str, str | None]) -> Iterator[None]:
    """Leave nothing to the next job of the process: no garbage, whose memory would count, nothing of Lightning's DDP.

    Args:
        command: What `job_of_further_rank` needs.
    """
    names = (JOB, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ[JOB] = json.dumps(command)
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
        gc.collect()
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


def job_of_further_rank() -> list[str] | None:
    """Command line of the one job that a further device's process is to join, None for all other processes.

    Lightning gives these processes the command line of the first one, which would start the whole sweep.
    """
    if JOB not in os.environ or "LOCAL_RANK" not in os.environ:
        return None
    job = json.loads(os.environ[JOB])
    given = [f"{key}='{value}'" for key, value in job.items() if value]
    return [*given, f"hydra.job.name=train_rank_{os.environ['LOCAL_RANK']}", "hydra.output_subdir=null"]


def clear(run_dir: Path) -> None:
    """Remove what an attempt left that a later one would be mistaken for."""
    for folder in ("checkpoints", "eval"):
        shutil.rmtree(run_dir / folder, ignore_errors=True)
    for path in [*run_dir.glob("metrics*.csv"), run_dir / "learning_curve.png", run_dir / WANDB_ID]:
        path.unlink(missing_ok=True)


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
