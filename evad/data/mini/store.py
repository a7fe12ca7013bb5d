"""Where generated data sets live: a folder that is complete, or marked as not, whatever interrupts its generation.

`mini.json` in the folder is the stamp: the parameters of what the folder holds and whether all of it is there. It is
written twice, first with `complete: false`, so that an unfinished folder is known as ours, and last with `true`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from rich.progress import track

STAMP, DRAFT, LOCK = "mini.json", ".mini.json.draft", ".mini.lock"
CONTENTS = ("videos", "annotations", "rgb-images", "Frames", "UCF101v2-GT.pkl", "JHMDB-GT.pkl")  # of all layouts
CLIPS_PER_WORKER = 100  # a process is worth starting for this many clips

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


def ensure_generated(root: Path, parameters: dict[str, Any], generate: Callable[[], None]) -> bool:
    """Make `root` hold exactly the data set that `parameters` describe; do nothing if it does already.

    Of several processes that ask at once, one generates and the others wait for it.

    Args:
        root: Folder of the data set; created where missing.
        parameters: All that the contents depend on, as JSON types.
        generate: Writes the data set into `root`, where no older one is left.

    Returns:
        True if the data set was generated, False if it was there.

    Raises:
        FileExistsError: `root` holds files but no stamp, so they are somebody else's.
    """
    root.mkdir(parents=True, exist_ok=True)
    complete = {"complete": True, **parameters}
    with FileLock(root / LOCK):
        found = read_stamp(root)
        if found == complete:
            return False
        if found is None and (
            foreign := sorted(path.name for path in root.iterdir() if path.name not in (DRAFT, LOCK))
        ):
            raise FileExistsError(
                f"{root} holds {len(foreign)} other entries (the first is {foreign[0]}) and no {STAMP}: it was not "
                "written by this generator and is left as it is; choose a new or empty folder"
            )
        if found is not None:
            stale = [
                f"{key} is {found.get(key)}, wanted {value}"
                for key, value in complete.items()
                if found.get(key) != value
            ]
            _logger.warning("%s is generated anew: %s", root, "; ".join(stale) or f"{STAMP} has unknown keys")
        _write_stamp(root, {**complete, "complete": False})
        _remove_contents(root)
        generate()
        _write_stamp(root, complete)
    return True


def _remove_contents(root: Path) -> None:
    """Delete what a generated data set may have left in its folder, and nothing else."""
    for path in (root / name for name in CONTENTS):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_stamp(root: Path) -> dict[str, Any] | None:
    """What the stamp in a folder says; None without one, {} for one that cannot be read."""
    try:
        stamp = json.loads((root / STAMP).read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(root: Path, stamp: dict[str, Any]) -> None:
    """Put a stamp in place in one step, so that nobody reads half of it."""
    draft = root / DRAFT
    draft.write_text(json.dumps(stamp, indent=2) + "\n")
    draft.replace(root / STAMP)


def run_jobs(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], description: str, workers: int | None
) -> list[_Result]:
    """Results of `function` for all jobs, in their order, with a progress bar.

    Args:
        function: Importable, as it may run in other processes.
        jobs: Picklable.
        description: Shown beside the bar.
        workers: Processes; None: one per usable processor, fewer for few jobs; 1: this process does it all.
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
