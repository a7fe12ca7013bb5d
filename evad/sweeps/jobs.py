"""Jobs of a sweep: finished jobs are skipped, interrupted ones resume, and a failure does not stop the others.

A sweep is a folder of run folders named by their overrides (`evad.runs.names.job_name`). Hydra starts every job of the
command line; the `run.json` in the job's folder then decides whether to train, resume or skip it.
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

import torch.distributed as dist
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from evad.device import release_freed_memory
from evad.runs.config import read_config
from evad.runs.files import WANDB_ID, read_record
from evad.runs.names import WITHOUT_EFFECT, config_digest

log = logging.getLogger(__name__)

LOCK = ".lock"

JOB = "EVAD_SWEEP_JOB"
"""Environment variable with the current job, for the processes that Lightning starts for further devices (DDP)."""


def sweep_job(run: Callable[[DictConfig], float | None], cfg: DictConfig, run_dir: Path) -> float | None:
    """Train, resume or skip one job.

    Args:
        run: Trains, records the outcome in `run.json` and returns the objective.
        cfg: The job's configuration.
        run_dir: The job's folder.

    Returns:
        The objective, which is read from `run.json` if the job is finished. None if the job failed; Optuna then counts
        a failed trial.
    """
    try:
        with FileLock(run_dir / LOCK, timeout=0):
            return locked_job(run, cfg, run_dir)
    except Timeout:
        log.warning("skipped: %s is being trained by another process", run_dir)
        return None


def locked_job(run: Callable[[DictConfig], float | None], cfg: DictConfig, run_dir: Path) -> float | None:
    """`sweep_job`, while this process holds the lock of the folder."""
    record = read_record(run_dir)
    same = record.get("config") == config_digest(cfg)
    if record.get("status") == "finished":
        log.info("skipped: %s is finished", run_dir)
        if not same:
            log.warning("%s was trained with other settings; to train it with the current ones, delete it", run_dir)
        return record.get("value")
    if record and same and (run_dir / "checkpoints" / "last.ckpt").is_file():
        log.info("resuming %s, which %s", run_dir, "failed" if record["status"] == "failed" else "was killed")
        cfg = continued(cfg, run_dir)
    elif record:
        log.info("starting %s again", run_dir)
        clear(run_dir)
    with separate_job({"hydra.run.dir": str(run_dir), "resume": cfg.resume}):
        try:
            return run(cfg)
        except Exception:
            log.exception("failed: %s; the sweep continues", run_dir)
            return None


@contextmanager
def separate_job(command: dict[str, str | None]) -> Iterator[None]:
    """Context of a job that cleans up for the next job in this process: Lightning's DDP settings, freed memory.

    Args:
        command: Overrides of the job, for `job_of_further_rank`.
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
    """The saved configuration, which `init_from` may have changed, with the current values of keys without effect."""
    saved = read_config(run_dir)
    for key in (*WITHOUT_EFFECT, "data.root", "trust"):
        if (value := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(saved, key, value, merge=False)
    saved.resume = str(run_dir)
    return saved


def job_of_further_rank() -> dict[str, str] | None:
    """Overrides of the job that this process has to join if Lightning started it for a further device, otherwise None.

    Such a process has the command line of the first one, which would start the whole sweep again.
    """
    if JOB not in os.environ or "LOCAL_RANK" not in os.environ:
        return None
    job = json.loads(os.environ[JOB])
    name = f"train_rank_{os.environ['LOCAL_RANK']}"
    return {**{key: value for key, value in job.items() if value}, "hydra.job.name": name}


def clear(run_dir: Path) -> None:
    """Remove the results of an earlier attempt, so that they are not mixed with new ones."""
    for folder in ("checkpoints", "eval"):
        shutil.rmtree(run_dir / folder, ignore_errors=True)
    for path in [*run_dir.glob("metrics*.csv"), run_dir / "learning_curve.png", run_dir / WANDB_ID]:
        path.unlink(missing_ok=True)
