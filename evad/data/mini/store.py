"""Where generated data sets live: one folder per choice of parameters, complete from the moment it has its name.

A data set is written into a hidden draft folder and renamed when complete. Nothing complete is ever deleted or changed,
so any number of jobs with other parameters can share the folder above.
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
CLIPS_PER_WORKER = 100  # one more process for every so many clips

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def ensure_generated(folder: Path, parameters: dict[str, Any], generate: Callable[[Path], None]) -> bool:
    """Make `folder` hold the data set that `parameters` describe; do nothing if it does already.

    Of several processes that ask at once, one generates and the others wait for it.

    Args:
        folder: Folder of the data set alone, named after its parameters; created where missing.
        parameters: All that the contents depend on, as JSON types; the folder's `mini.json` has them.
        generate: Writes the data set into the folder it is given, which is empty.

    Returns:
        True if the data set was generated, False if it was there.

    Raises:
        FileExistsError: `folder` holds something else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            if read_stamp(folder) != parameters:
                raise FileExistsError(f"{folder} holds other files than its name says; move it away")
            return False
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # of a generation that was interrupted
        draft.mkdir()
        generate(draft)
        (draft / STAMP).write_text(json.dumps(parameters, indent=2) + "\n")
        draft.rename(folder)
    return True


def read_stamp(folder: Path) -> Any:
    """Parameters of a generated data set; None if the folder has no readable `mini.json`."""
    try:
        return json.loads((folder / STAMP).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def run_jobs(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], description: str, workers: int | None
) -> list[_Result]:
    """Results of `function` for all jobs, in their order, with a progress bar.

    Args:
        function: Importable, as it may run in other processes.
        jobs: Picklable.
        description: Shown beside the bar.
        workers: Processes; None: one per usable processor, fewer for few jobs; 1: run everything in this process.
    """
    if workers is None:
        workers = min(_usable_processors(), 1 + len(jobs) // CLIPS_PER_WORKER)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be 1 or more, or None for one per processor")
    if workers == 1:
        return [function(job) for job in track(jobs, description)]
    # Spawned, not forked: the caller may already run threads (torch, data loaders).
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(track(pool.map(function, jobs, chunksize=8), description, total=len(jobs)))


def _usable_processors() -> int:
    """Processors this process may run on; on systems that cannot tell, all of them."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
