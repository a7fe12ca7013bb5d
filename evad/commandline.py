"""Run the commands of this package: Hydra composes the configuration from a file of conf/ and the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from evad.config import conf_dir
from evad.runs.build import require_allowed
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.config import pin, read_config
from evad.runs.names import split_override

GROUPS = ("paths", "data", "model", "recipe", "postprocess", "trainer", "callbacks", "logger")
"""Sections of a run's configuration; conf/*.yaml choose them as the option `of_run` of the groups of these names."""
OF_DETECTOR = ("name", "seed", "protocol", "compile")
FILE_KEYS = ("ckpt_path", "video", "resume", "init_from", "data.root", "paths.data")
"""Keys whose value may be a path with characters that are special in Hydra's grammar."""


def run_command(
    function: Callable[[DictConfig], Any], config: str, doc: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Run `function` with the configuration composed from conf/<config>.yaml and the command line.

    Args:
        function: Takes the configuration.
        config: File below conf/, without its ending.
        doc: What the command does, for `--help`.
        arguments: The command line; None for the one of this process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_text(doc, config))
        return
    parser = get_args_parser()
    options = parser.parse_args([as_text(argument) for argument in arguments])
    hydra.version.setbase("1.3")  # hydra.main, which does this too, would read sys.argv
    _run_hydra(options, parser, function, str(conf_dir()), config)


def run_command_on_checkpoint(
    function: Callable[[DictConfig], Any], config: str, doc: str | None, needs: Sequence[str] = ("ckpt_path",)
) -> None:
    """As `run_command`, for commands that start from the configuration of the checkpoint's run.

    Raises:
        SystemExit: if one of the keys `needs` or the checkpoint is missing, or the run's configuration is refused.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        given = {key: argument(key) for key in needs}
        if missing := [key for key, value in given.items() if value is None]:
            raise SystemExit(f"python -m evad.{config} needs {' and '.join(f'{key}=<file>' for key in missing)}")
        try:
            store_run(run_of_checkpoint(str(given["ckpt_path"])), pinned=True)
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(str(error)) from error
    run_command(function, config, doc)


def store_run(run_dir: Path, pinned: bool = False) -> None:
    """Make the sections of a run's configuration the option `of_run` of Hydra's groups; Hydra's own keys are dropped.

    Args:
        run_dir: The run.
        pinned: For commands that use a trained detector: the model keeps its number of classes and frames even if the
            data is replaced, and keys outside groups are dropped unless they are in `OF_DETECTOR`.

    Raises:
        FileNotFoundError: if the run has no configuration.
        ValueError: if its configuration cannot be read or is refused.
    """
    config = read_config(run_dir)
    if pinned:
        pin(config, "model")
    tree: Any = OmegaConf.to_container(config)
    try:
        require_allowed(tree, (argument("trust") or "").strip("[]").split(","))
    except ValueError as error:
        raise type(error)(f"{run_dir}: {error}") from None
    store = ConfigStore.instance()
    for group in GROUPS:
        section = tree.get(group) or {}
        if isinstance(section, dict) and "defaults" not in section:
            store.store(group=group, name="of_run", node=section)
    store.store(group="clip", name="of_run", node=clip_settings(config), package="data")
    keys = OF_DETECTOR if pinned else tuple(tree)
    others = {key: tree[key] for key in keys if key in tree and not isinstance(tree[key], (dict, list))}
    store.store(group="run", name="of_run", node={**others, "run_dir": str(run_dir)}, package="_global_")


def clip_settings(config: DictConfig) -> dict[str, Any]:
    """The clips a detector was trained for: number of frames, seconds between them, size, padding."""
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    sampler = data["sampler"]
    stride, rate = sampler["frame_stride"], sampler.get("annotated_fps")
    if rate:  # other data may count frames at another rate; the seconds between frames stay the same
        stride = f"${{in_frames:{stride / rate},{stride},${{data.sampler.annotated_fps}}}}"
    kept = {key: data[key] for key in ("val_transform", "pad_multiple")}
    return {**kept, "sampler": {"num_frames": sampler["num_frames"], "frame_stride": stride}}


def in_frames(seconds: float, frames: int, rate: float | None) -> float:
    """`seconds` as a number of frames at `rate` per second, int if possible; `frames` if the rate is unknown."""
    stride = frames if rate is None else round(seconds * rate, 6)
    return int(stride) if stride == int(stride) else stride


def by(size: Sequence[int] | None) -> str:
    """`360x640` of [360, 640], for `${by:...}` in YAML."""
    return "x".join(map(str, size or ()))


def stem(path: str) -> str:
    """Name of a file without its ending, for `${stem:...}` in YAML."""
    return Path(path).stem


OmegaConf.register_new_resolver("in_frames", in_frames, replace=True)
OmegaConf.register_new_resolver("by", by, replace=True)
OmegaConf.register_new_resolver("stem", stem, replace=True)


def argument(name: str) -> str | None:
    """Value of `name=value` on the command line, None if it is not given, empty or `null`."""
    values = [arg.partition("=")[2] for arg in sys.argv[1:] if arg.startswith(f"{name}=")]
    return values[-1].strip("'\"") if values and values[-1] not in ("", "null") else None


def as_text(argument: str) -> str:
    """Quote the value of an override if it is a path or pattern, which Hydra's grammar may not accept."""
    key, value = split_override(argument)
    is_path = key in FILE_KEYS and Path(value).exists()
    is_pattern = key == "data.frame_pattern" and "{" in value and value[0] not in "'\""
    return quoted(argument.partition("=")[0], value) if is_path or is_pattern else argument


def quoted(key: str, value: str) -> str:
    """An override whose value Hydra's grammar reads as plain text."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def help_text(doc: str | None, config: str) -> str:
    """What a command does, its keys with their defaults and meanings, and the groups to choose from."""
    path = conf_dir() / f"{config}.yaml"
    lines = [(doc or "").strip(), "", "Keys (key=value):"]
    width = max(len(f"{key}={value}") for key, value, _ in described_keys(path))
    lines += [f"  {f'{key}={value}':<{width}}  {meaning}" for key, value, meaning in described_keys(path)]
    lines += ["", "Groups (group=option); their keys can be overridden too, such as model.keep_rate=0.7:"]
    for group in groups_of(path):
        lines.append(f"  {group}: {', '.join(sorted(file.stem for file in (conf_dir() / group).glob('*.yaml')))}")
    lines += ["", "The whole configuration: --cfg job. Several values of a key, one job each: --multirun key=1,2,3."]
    return "\n".join(lines)


def described_keys(path: Path) -> list[tuple[str, str, str]]:
    """Key, default and comment of every value in a file of conf/, without the defaults list and Hydra's own keys."""
    found: list[tuple[str, str, str]] = []
    parents: list[str] = []
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"( *)(\w+): *([^#]*?) *(?:# (.*))?", line)
        if match is None:
            continue
        parents = [*parents[: len(match[1]) // 2], match[2]]
        if match[3] and parents[0] not in ("defaults", "hydra"):
            found.append((".".join(parents), match[3], match[4] or ""))
    return found


def groups_of(path: Path) -> list[str]:
    """Config groups in a defaults list, and the groups below them."""
    names = re.findall(r"^  - (\w+):", path.read_text(), flags=re.M)
    folders = [conf_dir() / name for name in names]
    inner = [inside for folder in folders if folder.is_dir() for inside in folder.iterdir() if inside.is_dir()]
    shown = (folder.relative_to(conf_dir()).as_posix() for folder in [*folders, *sorted(inner)] if folder.is_dir())
    return [name for name in shown if name not in ("paths", "hydra", "data/common")]
