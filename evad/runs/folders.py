"""Find and read run folders: settings, logged values, record.

A broken run is not an error here: every file that cannot be read becomes a sentence in `RunFolder.problems`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from evad.runs.files import CLASSES, CONFIG, METRICS, RECORD, REPORT, RESOLVED, metric_files
from evad.runs.names import plain_value, split_override

BELOW_A_RUN = ("checkpoints", "eval", "predict", "wandb")
"""Folders inside a run that are not searched for further runs."""

READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": lambda path: OmegaConf.to_container(OmegaConf.load(path)),
    ".csv": pd.read_csv,
}


@dataclass
class RunFolder:
    """The content of a run folder.

    Attributes:
        path: The run folder.
        config: `config.resolved.yaml`, or `config.yaml` with its interpolations if the former is missing.
        metrics: All logged values, oldest first, one row per logging call; may be empty.
        record: Content of `run.json`; may be empty.
        overrides: Key -> value of every override on the command line.
        choices: Config group -> chosen option.
        classes: Action id -> name.
        problems: One sentence for each missing or broken file.
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
        """Value of a dotted key; from the command line if the run has no configuration, None if it is not set."""
        if not self.config:
            return parsed(self.overrides.get(key, "null"))
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def column(self, name: str) -> pd.Series:
        """Logged values of one name by epoch (from 0). If a resumed run repeated an epoch, the later value counts."""
        if not {name, "epoch"} <= set(self.metrics.columns):
            return pd.Series(dtype=float)
        values = pd.to_numeric(self.metrics[name], errors="coerce")
        rows = values.notna() & self.metrics["epoch"].notna()
        values.index = pd.Index(self.metrics["epoch"])
        values = values[rows.to_numpy()]
        return values[~values.index.duplicated(keep="last")].sort_index()

    @property
    def status(self) -> str:
        """finished, failed, running (also if the run was killed), or unknown if there is no record."""
        return str(self.record.get("status", "unknown"))

    @property
    def best_epoch(self) -> int | None:
        """Epoch (from 0) with the highest val/mAP, the first of equal ones; None if the run was never validated."""
        scores = self.column("val/mAP")
        return int(scores.index[int(scores.argmax())]) if len(scores) else None

    def scores(self, epoch: int) -> dict[str, float]:
        """Validation scores of an epoch, by name without `val/`; classes are `AP/<id>`."""
        names = [name for name in map(str, self.metrics.columns) if name.startswith("val/")]
        found = {name.removeprefix("val/"): self.column(name).get(epoch) for name in names}
        return {name: float(value) for name, value in found.items() if value is not None}

    def lacks(self, what: str) -> None:
        """Add a problem, unless the run failed: then its error explains what is missing."""
        if not self.record.get("error"):
            self.problems.append(what)


def parsed(text: str) -> Any:
    """A value of the command line as YAML reads it: `0.7` is a number."""
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(f"[{text}]"))
        return values[0]
    except Exception:  # not every value that Hydra accepts is valid YAML
        return text


def find_runs(folders: tuple[str | Path, ...]) -> list[Path]:
    """Find every run folder at or below `folders`, in natural order (2 before 10), each once.

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
                f"{folder} holds no run: none of {CONFIG}, {RESOLVED}, {RECORD}, {METRICS} is in it or below; "
                "give the output folder of evad.train"
            )
        found.update(dict.fromkeys(inside))
    return list({path.resolve(): path for path in reversed(found)}.values())[::-1]


def walk(folder: Path) -> Iterator[Path]:
    """Run folders at or below `folder`; links are not followed."""
    for name, inside, files in os.walk(folder):
        path = Path(name)
        run = bool({CONFIG, RESOLVED, RECORD} & set(files) or metric_files(path))
        skipped = BELOW_A_RUN if run else ()
        inside[:] = [each for each in inside if not each.startswith(".") and each not in skipped]
        if run:
            yield path


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorting key that puts 2 before 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]


def read_folder(path: Path) -> RunFolder:
    """Read everything in a run folder that can be read."""
    run = RunFolder(path)
    read_settings(run)
    run.metrics = read_parts(run)
    if (path / CLASSES).is_file():
        run.classes = load(run, path / CLASSES, dict)
    return run


def read_settings(run: RunFolder) -> None:
    """Record, configuration, command line and group choices of a run."""
    if (run.path / RECORD).is_file():
        run.record = load(run, run.path / RECORD, dict)
        if run.record.get("error"):
            run.problems.append(" ".join(str(run.record["error"]).split()))
    if config := next(filter(Path.is_file, (run.path / RESOLVED, run.path / CONFIG)), None):
        run.config = load(run, config, dict)
    else:
        run.lacks("no configuration")
    run.overrides = dict(split_override(str(override)) for override in run.record.get("overrides", []))
    hydra = run.path / ".hydra" / "hydra.yaml"
    tree = load(run, hydra, dict).get("hydra", {}) if hydra.is_file() else {}
    if not any(text.startswith("resume=") for text in tree.get("overrides", {}).get("task", [])):
        run.choices = tree.get("runtime", {}).get("choices", {})  # on a resume Hydra knows only the defaults
    run.choices |= {
        key: plain_value(value)
        for key, value in run.overrides.items()
        if "/" in key or key == "experiment" or isinstance(run.setting(key), dict)
    }


def load(run: RunFolder, path: Path, kind: type) -> Any:
    """Content of a YAML, JSON or csv file; if it is broken, note the problem and return an empty `kind`."""
    try:
        content = READERS[path.suffix](path)
    except Exception as error:  # readers raise many kinds; a broken file must not hide the run
        run.problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return kind()
    if not isinstance(content, kind):
        run.problems.append(f"{path.name} holds a {type(content).__name__} instead of a {kind.__name__}")
        return kind()
    return content


def read_parts(run: RunFolder) -> pd.DataFrame:
    """All logged values; a file that cannot be read becomes a problem and is left out."""
    tables = [load(run, part, pd.DataFrame) for part in metric_files(run.path)]
    if not (run.path / METRICS).is_file():
        run.lacks(f"{METRICS} is missing")
    return pd.concat([table for table in tables if len(table)] or [pd.DataFrame()], ignore_index=True)


def read_metrics(run_dir: Path) -> pd.DataFrame:
    """All logged values of a run, oldest first; files that cannot be read are left out."""
    return read_parts(RunFolder(run_dir))


def best_epoch(run_dir: Path) -> dict[str, float]:
    """Epoch with the highest val/mAP and its scores, without AP per class; {} if the run was never validated."""
    run = RunFolder(run_dir, metrics=read_metrics(run_dir))
    if (epoch := run.best_epoch) is None:
        return {}
    return {"epoch": epoch, **{f"val/{name}": value for name, value in run.scores(epoch).items() if name[:3] != "AP/"}}


def evaluation_files(run_dir: Path) -> list[Path]:
    """The metrics.json of every evaluation in a run, sorted by path."""
    return sorted((run_dir / "eval").rglob(REPORT))


def read_report(path: Path) -> dict[str, Any]:
    """Content of the metrics.json of an evaluation; ValueError if the file is not one."""
    try:
        report = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not JSON: {error}") from None
    if not isinstance(report, dict) or "mAP" not in report:
        raise ValueError(f"{path} has no mAP; give a metrics.json of evad.eval")
    return report
