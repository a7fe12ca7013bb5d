"""Stores generated data sets, one folder for each choice of parameters.

A data set is written into a hidden draft folder, which is renamed when complete. Complete data sets are never deleted
or changed, so any number of jobs can share the parent folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from rich.progress import track

STAMP = "mini.json"
CLIPS_PER_WORKER = 100  # one more process per 100 clips

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def ensure_generated(folder: Path, parameters: dict[str, Any], generate: Callable[[Path], None]) -> bool:
    """Generate a data set unless it exists.

    If several processes call this at the same time, one generates the data set and the others wait.

    Args:
        folder: Folder of the data set, named after its parameters; created if missing.
        parameters: Everything that the contents depend on, as JSON types; saved in the folder's `mini.json`.
        generate: Writes the data set into an empty folder.

    Returns:
        True if the data set was generated, False if it existed.

    Raises:
        FileExistsError: `folder` holds other files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            if read_stamp(folder) != parameters:
                raise FileExistsError(f"{folder} does not hold the data set that its name describes; move it away")
            return False
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # left by an interrupted run
        draft.mkdir()
        generate(draft)
        (draft / STAMP).write_text(json.dumps(parameters, indent=2) + "\n")
        draft.rename(folder)
    return True


def read_stamp(folder: Path) -> Any:
    """Parameters of a generated data set; None if `mini.json` is missing or not readable."""
    try:
        return json.loads((folder / STAMP).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def run_jobs(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], description: str, workers: int | None
) -> list[_Result]:
    """Results of `function` for all jobs, in their order, with a progress bar.

    Args:
        function: Must be importable, as it may run in other processes.
        jobs: Must be picklable.
        workers: Number of processes; None: one per usable processor, but fewer for few jobs; 1: run in this process.
    """
    if workers is None:
        workers = min(_usable_processors(), 1 + len(jobs) // CLIPS_PER_WORKER)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more, or None for one per processor")
    if workers == 1:
        return [function(job) for job in track(jobs, description)]
    # Spawn instead of fork, because the caller may already run threads (torch, data loaders).
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(track(pool.map(function, jobs, chunksize=8), description, total=len(jobs)))


def _usable_processors() -> int:
    """Number of processors this process may use, or of all processors if the system cannot tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
