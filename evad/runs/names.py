"""When two runs are the same: the name and the digest of what they train."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

WITHOUT_EFFECT = (
    "sweep",
    "ablation",  # only lists values, which are overrides of the jobs
    "resume",
    "check",
    "logger",
    "callbacks",
    "paths",
    "examples",  # of evad.eval, as the next ones of their commands
    "decompose",
    "predict",
    "export",
    "benchmark",
    "data.num_workers",
    "data.pin_memory",
    "trainer.log_every_n_steps",
)
"""Groups and keys that don't change what is trained: runs that differ in nothing else are the same."""

LONGEST_NAME = 150
"""Characters; file systems allow 255."""


def is_without_effect(key: str) -> bool:
    """Whether an override of this group or key leaves a run the same."""
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in WITHOUT_EFFECT)


def split_override(override: str) -> tuple[str, str]:
    """Key and value of `model.keep_rate=0.7`, also with the signs Hydra allows before the key."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def job_name(overrides: Sequence[str]) -> str:
    """A folder name that says what a job of a sweep changes, such as `keep_rate-0.7+seed-0`.

    The same overrides give the same name in any order: `model` and its parts first, then by key. A key goes by its last
    part unless two keys share it. Keys without effect are left out. No character has a meaning for a shell or in
    `ckpt_path=...`. A digest of the overrides at the end makes up for what is lost by that, or beyond the longest name.

    Args:
        overrides: As on the command line.
    """
    pairs = sorted(pair for pair in map(split_override, overrides) if not is_without_effect(pair[0]))
    pairs.sort(key=lambda pair: not pair[0].startswith("model"))
    if not pairs:
        return "defaults"
    shared = Counter(last_part(key) for key, _ in pairs)
    texts = [f"{last_part(key) if shared[last_part(key)] == 1 else key}-{plain_value(value)}" for key, value in pairs]
    plain = [re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII) for text in texts]
    name = "+".join(plain)
    if plain == texts and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}+{digest}"


def last_part(key: str) -> str:
    """`keep_rate` of `model.keep_rate`, `pruning` of `model/pruning`, `encoder.drop_path` of keys further down."""
    parts = re.split(r"[./@]", key)
    return ".".join(parts[-2:] if len(parts) > 2 else parts[-1:])


def plain_value(value: str) -> str:
    """A value without quotes, and a list without brackets: `0.4_0.2` of `[0.4,0.2]`."""
    value = value.strip("'\"")
    if re.fullmatch(r"\[[\w., -]*\]", value):
        return re.sub(r"\s*,\s*", "_", value[1:-1].strip())
    return value


def config_digest(cfg: DictConfig) -> str:
    """A short text that is equal for configurations, as composed, that train the same; wherever the data lies."""
    tree: Any = OmegaConf.to_container(cfg)
    for key in (*WITHOUT_EFFECT, "data.root"):
        *parents, name = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.get(parent, {})
        branch.pop(name, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
