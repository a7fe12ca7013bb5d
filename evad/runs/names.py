"""What runs are called, and when two of them are the same: names and digests of what they train."""

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
    "ablation",  # only lists values, which are overrides of the jobs
    "resume",
    "check",
    "logger",
    "callbacks",
    "paths",
    "examples",  # of evad.eval; the next ones are options of the commands they are named after
    "decompose",
    "predict",
    "export",
    "benchmark",
    "data.num_workers",
    "data.pin_memory",
    "trainer.log_every_n_steps",
)
"""Groups and keys that do not change what is trained: runs that differ only in these are the same."""

LONGEST_NAME = 150
"""Characters; file systems allow 255."""


def is_without_effect(key: str) -> bool:
    """Whether an override of this group or key leaves a run the same."""
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in WITHOUT_EFFECT)


def split_override(override: str) -> tuple[str, str]:
    """Key and value of `model.keep_rate=0.7`, also with the signs Hydra allows before the key."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def job_name(overrides: Sequence[str], constant: Collection[str] = (), with_digest: bool = False) -> str:
    """Name the folder of a sweep's job after what the sweep changes, such as `keep_rate-0.7+seed-0`.

    The order of the overrides does not matter: `model` and its parts come first, then the others by key. A key is
    shortened to its last part unless two keys share it. Keys without effect are left out. The name needs no quotes in a
    shell or in `ckpt_path=...`. A digest of all overrides is added where these rules could give two jobs the same name,
    and where the name would be too long.

    Args:
        overrides: Those of the job, as on the command line.
        constant: Keys that the name leaves out, because all jobs of the sweep share their value.
        with_digest: Add the digest in any case: the folder also has jobs for which those keys have other values.
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
    """`keep_rate` for `model.keep_rate`, `pruning` for `model/pruning`, `encoder.drop_path` for keys further down."""
    parts = re.split(r"[./@]", key)
    return ".".join(parts[-2:] if len(parts) > 2 else parts[-1:])


def plain_value(value: str) -> str:
    """A value without quotes, and a list without brackets: `0.4_0.2` for `[0.4,0.2]`."""
    value = value.strip("'\"")
    if re.fullmatch(r"\[[\w., -]*\]", value):
        return re.sub(r"\s*,\s*", "_", value[1:-1].strip())
    return value


def config_digest(cfg: DictConfig) -> str:
    """A short text that is equal for configurations, as composed, that train the same, wherever the data is stored."""
    tree: Any = OmegaConf.to_container(cfg)
    for key in (*WITHOUT_EFFECT, "data.root"):
        *parents, name = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.get(parent, {})
        branch.pop(name, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
