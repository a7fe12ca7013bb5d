"""Names of a sweep's jobs, and digests that are equal for runs that would give the same result."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

WITHOUT_EFFECT = (
    "sweep",
    "ablation",  # lists values, which become overrides of the jobs
    "resume",
    "check",
    "logger",
    "callbacks",
    "paths",
    "data.num_workers",
    "data.pin_memory",
    "trainer.log_every_n_steps",
)
"""Groups and keys that do not change what is trained: runs that differ only in these are the same."""

LONGEST_NAME = 150
"""Characters; file systems allow 255."""


def is_without_effect(key: str) -> bool:
    """Whether this group or key has no effect on the result of training."""
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in WITHOUT_EFFECT)


def split_override(override: str) -> tuple[str, str]:
    """Key and value of an override such as `model.keep_rate=0.7`, without Hydra's signs `+` and `~`."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def job_name(overrides: Sequence[str], constant: Collection[str] = (), with_digest: bool = False) -> str:
    """Name the folder of a sweep's job after what the sweep changes, such as `keep_rate-0.7+seed-0`.

    The order of the overrides does not matter: keys of `model` come first, then the others in alphabetical order. A key
    is shortened to its last part unless two keys share it. Keys without effect are left out. The name needs no quotes
    in a shell or in `ckpt_path=...`. A digest of all overrides is added if two jobs could get the same name otherwise,
    or if the name is too long.

    Args:
        overrides: Overrides of the job.
        constant: Keys that the name leaves out, because all jobs of the sweep share their value.
        with_digest: Always add the digest, because the folder has other jobs with other values of the constant keys.
    """
    pairs = sorted(pair for pair in map(split_override, overrides) if not is_without_effect(pair[0]))
    named = [pair for pair in pairs if pair[0] not in constant]
    named.sort(key=lambda pair: not pair[0].startswith("model"))
    shared = Counter(last_part(key) for key, _ in named)
    texts = [f"{last_part(key) if shared[last_part(key)] == 1 else key}-{plain_value(value)}" for key, value in named]
    plain = [re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII) for text in texts]
    name = "+".join(plain) or "defaults"
    if plain == texts and len(name) <= LONGEST_NAME and not with_digest:
        return name
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}+{digest}"


def last_part(key: str) -> str:
    """`keep_rate` for `model.keep_rate`, `pruning` for `model/pruning`, but two parts for longer keys."""
    parts = re.split(r"[./@]", key)
    return ".".join(parts[-2:] if len(parts) > 2 else parts[-1:])


def plain_value(value: str) -> str:
    """A value without quotes, and a list without brackets: `0.4_0.2` for `[0.4,0.2]`."""
    value = value.strip("'\"")
    if re.fullmatch(r"\[[\w., -]*\]", value):
        return re.sub(r"\s*,\s*", "_", value[1:-1].strip())
    return value


def config_digest(cfg: DictConfig) -> str:
    """A digest that ignores the keys without effect and the place of the data; `cfg` is not resolved."""
    tree: Any = OmegaConf.to_container(cfg)
    for key in (*WITHOUT_EFFECT, "data.root"):
        *parents, name = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.get(parent, {})
        branch.pop(name, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
