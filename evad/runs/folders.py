"""Run folders on disk: where they are, how far each got, what it was told to do.

Nothing here raises over a broken run: whatever cannot be read becomes a sentence in `RunFolder.problems`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from evad.runs.files import CLASSES, CONFIG, RECORD, RESOLVED, metric_files
from evad.runs.names import plain_value, split_override

BELOW_A_RUN = ("checkpoints", "eval", "predict", "wandb")
"""Folders inside a run that hold no runs of their own."""


@dataclass
class RunFolder:
    """One run as found on disk.

    Attributes:
        path: Its folder.
        config: `config.resolved.yaml`; without it `config.yaml`, whose interpolations are left as they stand.
        metrics: Everything logged, one row per logging call, parts from before a resume first; may be empty.
        record: `run.json`, empty without one.
        overrides: Key -> value on the command line, from `run.json` or Hydra.
        choices: Chosen option of each config group.
        classes: Action id -> name.
        problems: What is missing or broken, in sentences.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    record: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def setting(self, key: str) -> Any:
        """Value at a dotted key of the configuration, of the command line in a run without one; None if it has none."""
        if not self.config:
            return parsed(self.overrides.get(key, "null"))
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def column(self, name: str) -> pd.Series:
        """Logged values of one name by epoch (from 0), the later one where a resumed run logged an epoch again."""
        if not {name, "epoch"} <= set(self.metrics.columns):
            return pd.Series(dtype=float)
        values = pd.to_numeric(self.metrics[name], errors="coerce")
        rows = values.notna() & self.metrics["epoch"].notna()
        values.index = pd.Index(self.metrics["epoch"])
        values = values[rows.to_numpy()]
        return values[~values.index.duplicated(keep="last")].sort_index()

    @property
    def status(self) -> str:
        """What the sweep noted; otherwise judged by the epochs that were validated.

        `finished`: as many as planned. `interrupted`: fewer. `empty`: nothing was logged. `unknown`: something was
        logged, but the configuration does not say how many epochs were planned.
        """
        if noted := self.record.get("status"):
            return str(noted)
        if self.metrics.empty:
            return "empty"
        planned = self.setting("trainer.max_epochs")
        if not isinstance(planned, int):
            return "unknown"
        validated = self.column("val/mAP")
        return "finished" if len(validated) and validated.index.max() + 1 >= planned else "interrupted"

    def lacks(self, what: str) -> None:
        """Note what is missing, unless the run ended with an error, which is the reason."""
        if not self.record.get("error"):
            self.problems.append(what)


def parsed(text: str) -> Any:
    """A value of the command line as a configuration would have it."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(f"[{text}]"))
        return values[0]
    except Exception:  # what Hydra reads but YAML does not
        return text


def find_runs(folders: tuple[str | Path, ...]) -> list[Path]:
    """Every run folder at or below `folders`, in natural order (2 before 10), each once.

    Raises:
        FileNotFoundError: if one of `folders` does not exist.
        ValueError: if there is no run at or below one of them.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}: give run folders, sweep folders or folders of them")
        inside = sorted(walk(folder), key=lambda path: natural(path.relative_to(folder)))
        if not inside:
            raise ValueError(
                f"{folder} holds no run: none of {CONFIG}, {RESOLVED}, {RECORD}, metrics.csv is in it or below; "
                "give the output folder of evad.train"
            )
        found.update(dict.fromkeys(inside))
    return list({path.resolve(): path for path in reversed(found)}.values())[::-1]


def walk(folder: Path) -> Iterator[Path]:
    """Run folders at or below `folder`; links are not followed."""
    for name, inside, files in os.walk(folder):
        path = Path(name)
        run = is_run(path, set(files), set(inside))
        skipped = BELOW_A_RUN if run else ()
        inside[:] = [each for each in inside if not each.startswith(".") and each not in skipped]
        if run:
            yield path


def is_run(path: Path, files: set[str], inside: set[str]) -> bool:
    """Whether a folder is a run's, also if the run died before it wrote its configuration."""
    if files & {CONFIG, RESOLVED, RECORD, "metrics.csv"} or metric_files(path):
        return True
    return ".hydra" in inside and "train.log" in files and "metrics.json" not in files


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorting key that puts 2 before 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]


def read_folder(path: Path) -> RunFolder:
    """Everything a run left that can be read."""
    run = RunFolder(path)
    read_settings(run)
    run.metrics = read_parts(run)
    if (path / CLASSES).is_file():
        run.classes = load(run, path / CLASSES, dict)
    return run


def read_settings(run: RunFolder) -> None:
    """Configuration, sweep record, command line and group choices of a run."""
    if (run.path / RECORD).is_file():
        run.record = load(run, run.path / RECORD, dict)
        if run.record.get("error"):
            run.problems.append(" ".join(str(run.record["error"]).split()))
    hydra = run.path / ".hydra"
    configs = [run.path / RESOLVED, run.path / CONFIG, hydra / "config.yaml"]
    for config in filter(Path.is_file, configs):
        if content := load(run, config, dict):
            run.config = content
            break
    else:
        run.lacks("no configuration")
    overrides = run.record.get("overrides")
    if overrides is None and (hydra / "overrides.yaml").is_file():
        overrides = load(run, hydra / "overrides.yaml", list)
    run.overrides = dict(split_override(str(override)) for override in overrides or [])
    if (hydra / "hydra.yaml").is_file():
        tree = load(run, hydra / "hydra.yaml", dict).get("hydra") or {}
        run.choices = (tree.get("runtime") or {}).get("choices") or {}
    run.choices |= {  # the sweep's record outlives a resume, after which Hydra knows no groups
        key: plain_value(value)
        for key, value in run.overrides.items()
        if "/" in key or key == "experiment" or isinstance(run.setting(key), dict)
    }


def load(run: RunFolder, path: Path, kind: type) -> Any:
    """Content of a YAML or JSON file; an empty `kind`, and a problem noted, where it is broken."""
    try:
        content = (
            json.loads(path.read_text()) if path.suffix == ".json" else OmegaConf.to_container(OmegaConf.load(path))
        )
    except Exception as error:  # whatever the YAML reader raises over a torn file: the run still gets its row
        run.problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return kind()
    if not isinstance(content, kind):
        run.problems.append(f"{path.name} holds a {type(content).__name__} instead of a {kind.__name__}")
        return kind()
    return content


def read_parts(run: RunFolder) -> pd.DataFrame:
    """All logged values; a part that cannot be read becomes a problem, the others still count."""
    tables = []
    for part in metric_files(run.path):
        try:
            tables.append(pd.read_csv(part))
        except (OSError, ValueError) as error:  # empty and torn files are ValueErrors of pandas
            run.problems.append(f"{part.name} cannot be read: {str(error).splitlines()[0]}")
    if not (run.path / "metrics.csv").is_file():
        run.lacks("metrics.csv is missing")
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
