"""The configuration in a run folder, read as plain data: a run may come from a stranger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from evad.runs.files import CONFIG

LARGEST_FILE = 2**20  # bytes; the configuration of ViT-L has about 7 000
RESOLVERS = frozenset({"div", "hydra", "oc.select", "run_name", "sweep_name"})
"""Functions that a run's configuration may call in `${name:...}`. None of them reads the environment or a file."""


class RefusedConfigError(ValueError):
    """A run's configuration asks for something that could run code or read files."""


def divide(numerator: int, denominator: int) -> int:
    """Whole quotient, for `${div:a,b}` in YAML; ValueError if the division leaves a remainder."""
    if numerator % denominator:
        raise ValueError(f"{numerator} is not a multiple of {denominator}")
    return numerator // denominator


OmegaConf.register_new_resolver("div", divide, replace=True)


def read_config(run_dir: str | Path) -> DictConfig:
    """The configuration of a run, with interpolations unresolved.

    Keys that only the command line and this package's own files may set are dropped: `hydra`, `trust`, `defaults`.

    Raises:
        FileNotFoundError: if the folder has no configuration.
        RefusedConfigError: if a value calls a function outside `RESOLVERS`.
        ValueError: if the file is not a YAML dictionary.
    """
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} has no {CONFIG}: give a run folder of evad.train")
    if path.stat().st_size > LARGEST_FILE:
        raise RefusedConfigError(f"{path} has {path.stat().st_size} bytes; a configuration has at most {LARGEST_FILE}")
    try:
        config = OmegaConf.load(path)
        tree: Any = OmegaConf.to_container(config)
    except Exception as error:  # the YAML reader raises errors of several libraries
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} holds a list, not the keys of a configuration")
    for key in ("hydra", "trust", "defaults"):
        config.pop(key, None)
        tree.pop(key, None)
    for key, value in texts(tree):
        check_interpolations(path, key, value)
    return config


def texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested dictionaries and lists, with its dotted key."""
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from texts(value, f"{key}[{number}]")


def check_interpolations(path: Path, key: str, value: str) -> None:
    """Raise RefusedConfigError if a value calls a function outside `RESOLVERS`."""
    if "${" not in value:
        return
    try:
        tree = parse(value)
    except OmegaConfBaseException as error:
        raise RefusedConfigError(f"{path}, {key}: {value!r} cannot be read: {str(error).splitlines()[0]}") from None
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
            name = node.resolverName().getText()
            if name not in RESOLVERS:
                raise RefusedConfigError(
                    f"{path}, {key}: ${{{name}:...}} is refused; a run's configuration may only use "
                    f"{', '.join(sorted(RESOLVERS))}. Write the value itself"
                )
        waiting += getattr(node, "children", None) or []


def pin(config: DictConfig, section: str) -> None:
    """Make a section independent of the other sections: interpolations that refer to them become their present values.

    For example `model` refers to the data for its number of classes; pinned, it keeps that number for other data.

    Args:
        config: A whole configuration, changed in place.
        section: Name of the section, such as `model`.
    """
    container = OmegaConf.to_container(config[section])
    for key, value in texts(container):
        if "${" in value and f"${{{section}." not in value:
            OmegaConf.update(config, f"{section}.{key}", OmegaConf.select(config, f"{section}.{key}"))
