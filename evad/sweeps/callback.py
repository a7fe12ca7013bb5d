"""Hydra's callback for sweeps: it names the jobs, summarises them, and reports the unfinished ones as an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from evad.runs.names import is_without_effect, split_override
from evad.sweeps.jobs import log
from evad.sweeps.summary import cause, write_summary

SWEEP = "sweep.json"
"""File with the keys that the names in a sweep's folder leave out: {key: value} of the folder's first sweep."""


class SweepCallback(Callback):
    """Keeps a sweep in one folder with an up-to-date summary, and ends it with an error if jobs are not finished."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Give all jobs the same sweep folder and readable names; SystemExit if a key without effect is swept."""
        hydra = config.hydra
        params = OmegaConf.select(hydra, "sweeper.params") or {}  # as conf/ablation lists them; the command line wins
        texts = [*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task]
        overrides = OverridesParser.create().parse_overrides(texts)
        for override in overrides:
            if override.is_sweep_override() and is_without_effect(override.key_or_group):
                raise SystemExit(
                    f"{override.input_line}: {override.key_or_group} does not change what is trained, so these jobs "
                    "would be the same; give one value, or start one sweep=NAME for each"
                )
        constant, with_digest = constant_keys(Path(hydra.sweep.dir), overrides)
        name = f"${{job_name:${{hydra.overrides.task}},[{','.join(constant)}],{str(with_digest).lower()}}}"
        with read_write(config), open_dict(config):
            hydra.overrides.hydra.insert(0, f"hydra.sweep.subdir='{name}'")  # first: the user's own takes precedence
            hydra.overrides.hydra.append(f"hydra.sweep.dir='{hydra.sweep.dir}'")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Summarise the results so far, in case the sweep is killed later."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write_summary(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the sweep; SystemExit if jobs are not finished, after their causes were logged."""
        folder = Path(config.hydra.sweep.dir)
        jobs = write_summary(folder)
        if not len(jobs):  # nothing was trained
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


def constant_keys(folder: Path, overrides: Sequence[Override]) -> tuple[list[str], bool]:
    """Decide which keys the names of a sweep's jobs leave out.

    In a folder's first sweep these are the keys with one value for all jobs; none if no key has several values. In
    later sweeps they are the keys that the first one left out, if they still have the same value.

    Args:
        folder: The sweep's folder; the decision of its first sweep is stored there.
        overrides: Overrides of the whole sweep. If a key occurs twice, the later override counts.

    Returns:
        The keys, and whether the names need a digest because this sweep does not set a key that the first one left out.
    """
    parsed = {split_override(one.get_key_element())[0]: one for one in overrides}
    parsed = {key: one for key, one in sorted(parsed.items()) if not is_without_effect(key)}
    single = {key: one.get_value_element_as_str() for key, one in parsed.items() if not one.is_sweep_override()}
    path = folder / SWEEP
    if path.is_file():
        first = json.loads(path.read_text())
        return [key for key in single if single[key] == first.get(key)], not first.keys() <= parsed.keys()
    constant = single if len(single) < len(parsed) else {}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(constant, indent=2) + "\n")
    return list(constant), False
