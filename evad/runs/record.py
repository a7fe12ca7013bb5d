"""Write the configuration and the record `run.json` into a run folder (see `evad.runs.files`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evad.runs.files import CONFIG, RECORD, RESOLVED, read_record, replace
from evad.runs.folders import best_epoch


def is_first_process() -> bool:
    """Whether this process writes to the run folder; with several devices only the process of the first one does."""
    local = ("LOCAL_RANK", "NODE_RANK") if "LOCAL_RANK" in os.environ else ("SLURM_PROCID",)
    names = ("RANK",) if "RANK" in os.environ else local
    return all(os.environ.get(name, "0") == "0" for name in names)


def save_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write the run's configuration twice: with interpolations, and resolved."""
    if is_first_process():
        OmegaConf.save(cfg, run_dir / CONFIG)
        OmegaConf.save(cfg, run_dir / RESOLVED, resolve=True)


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    if is_first_process():
        replace(run_dir / RECORD, json.dumps(record, indent=2) + "\n")


@contextmanager
def recorded(run_dir: Path, overrides: list[str], digest: str) -> Iterator[dict[str, Any]]:
    """Keep `run.json` up to date: "running", then "finished", or "failed" with the error.

    Args:
        run_dir: The run folder.
        overrides: Overrides of the command line.
        digest: Digest of the configuration (`evad.runs.names.config_digest`).

    Yields:
        The record, to which the run adds its `value`.
    """
    attempts = read_record(run_dir).get("attempts", 0) + 1
    record: dict[str, Any] = {"status": "running", "overrides": overrides, "config": digest, "attempts": attempts}
    write_record(run_dir, record)
    started = time.perf_counter()
    try:
        yield record
        record |= {"status": "finished", "best": best_epoch(run_dir)}
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        record["seconds"] = round(time.perf_counter() - started, 1)
        write_record(run_dir, record)
