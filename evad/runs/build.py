"""Build objects from a configuration. A run may come from a stranger, so only classes on an allow-list are built.

As in Hydra, a dictionary with `_target_` becomes an object of that class with the other keys as arguments, and
`_partial_: true` makes a function that takes the missing arguments. Hydra itself would call anything that a file names.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

_DATA = "evad.data"
_REDUCERS = "evad.models.reducers"
ALLOWED = frozenset(
    {
        "evad.models.evad.EVAD",
        "evad.models.encoder.VideoTransformer",
        "evad.models.encoder.PatchEmbed",
        "evad.models.positions.GridPositions",
        "evad.models.pruning.KeyframePruning",
        f"{_REDUCERS}.cls_token.ClassToken",
        f"{_REDUCERS}.cls_token.ClassTokenPruning",
        f"{_REDUCERS}.dropped.DropRules",
        f"{_REDUCERS}.fusion.FusingPruning",
        f"{_REDUCERS}.merging.MergingPruning",
        f"{_REDUCERS}.pixel_difference.PixelDifferenceSampling",
        f"{_REDUCERS}.random.RandomSampling",
        "evad.models.actors.ActorRoI",
        "evad.models.fpn.KeyframePyramid",
        "evad.models.localization.LocalizationBranch",
        "evad.models.classification.ClassificationBranch",
        "evad.models.classification.ContextRefinementDecoder",
        "evad.models.heads.external.ExternalBoxes",
        "evad.models.heads.linear.LinearClassification",
        "evad.models.heads.woo.InteractionClassification",
        "evad.models.criterion.SetCriterion",
        "evad.models.criterion.ActionCriterion",
        "evad.models.postprocess.PostProcess",
        "torch.nn.Identity",
        f"{_DATA}.annotations.proposals.ProposalFiles",
        f"{_DATA}.clips.sampling.ClipSampler",
        f"{_DATA}.clips.transforms.VideoTransform",
        f"{_DATA}.clips.ava.AVADataModule",
        f"{_DATA}.clips.custom.CustomDataModule",
        f"{_DATA}.clips.tubes.TubeDataModule",
        f"{_DATA}.mini.datamodules.MiniDataModule",
        f"{_DATA}.mini.datamodules.MiniTubeDataModule",
        "evad.training.module.Recipe",
        "evad.training.module.LossWeights",
        "evad.training.optim.StepSchedule",
        "evad.training.optim.CosineSchedule",
        "evad.training.callbacks.EfficiencyMonitor",
        "evad.training.callbacks.wandb_logger",
        "lightning.Trainer",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.loggers.CSVLogger",
    }
)
"""All classes in this package's configuration files; the optimizers of `torch.optim` are allowed too."""


class RefusedTargetError(ValueError):
    """A configuration names a class or function that is not built."""


def build(config: Any, trust: str | Sequence[str] | None = None, key: str = "") -> Any:
    """The object that a node of a configuration describes. All targets are checked before any is imported.

    Args:
        config: Dictionary with `_target_`, or lists and dictionaries that contain such; interpolations are resolved.
        trust: Modules of the user whose classes and functions may be built too, such as `my_package.models`. They must
            come from the command line, never from a file.
        key: Dotted key of the node, for messages.

    Raises:
        RefusedTargetError: if a target is neither in `ALLOWED` nor trusted; nothing was run.
        ValueError: if a class does not exist, does not take an argument, or lacks one.
    """
    tree = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    require_allowed(tree, trust, key)
    return _made(tree, key)


def require_allowed(tree: Any, trust: str | Sequence[str] | None = None, key: str = "") -> None:
    """Check every target in nested dictionaries and lists; arguments and errors as in `build`."""
    trusted = [trust] if isinstance(trust, str) else list(trust or ())
    for place, target in targets(tree, key):
        if not is_allowed(target, trusted):
            raise RefusedTargetError(
                f"{place or 'the configuration'} names {target!r}, which is refused: only classes of this package are "
                "built, and nothing was run. If the class is your own, add "
                f"trust={str(target).rpartition('.')[0]} to the command"
            )


def targets(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every `_target_` in nested dictionaries and lists, with the dotted key of its dictionary."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield key, tree["_target_"]
        for name, value in tree.items():
            yield from targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from targets(value, f"{key}[{number}]")


def is_allowed(target: Any, trusted: Sequence[str] = ()) -> bool:
    if not isinstance(target, str):
        return False
    if target in ALLOWED or any(target.startswith(f"{module}.") for module in trusted):
        return True
    module, _, name = target.rpartition(".")
    optimizer = getattr(torch.optim, name, None) if module == "torch.optim" else None
    return isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)


def _made(tree: Any, key: str) -> Any:
    """`tree` with the object in place of every dictionary that has a target."""
    if isinstance(tree, (list, tuple)):
        return [_made(value, f"{key}[{number}]") for number, value in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    values = {name: _made(value, f"{key}.{name}" if key else str(name)) for name, value in tree.items()}
    if "_target_" not in values:
        return values
    arguments = {name: value for name, value in values.items() if not name.startswith("_")}
    function = _found(values["_target_"])
    signature = inspect.signature(function)
    try:
        (signature.bind_partial if values.get("_partial_") else signature.bind)(**arguments)
    except TypeError as error:
        raise ValueError(f"{key or 'configuration'}: {values['_target_']}: {error}") from None
    return partial(function, **arguments) if values.get("_partial_") else function(**arguments)


def _found(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no {target}: {error}") from error


def build_part(cfg: DictConfig, key: str) -> Any:
    """The object at a dotted key of a whole configuration; modules in the configuration's `trust` are allowed too."""
    return build(OmegaConf.select(cfg, key), cfg.get("trust"), key)


def build_model(cfg: DictConfig) -> Any:
    """The detector of a configuration (`evad.models.evad.EVAD` unless the YAML says otherwise)."""
    return build_part(cfg, "model.net")


def build_criterion(cfg: DictConfig) -> Any:
    """The losses that belong to the detector's localization."""
    return build_part(cfg, "model.criterion")


def effective_keep_rate(cfg: DictConfig) -> Any:
    """The keep rate that the encoder uses: `model.keep_rate`, but 1 with `model/pruning=none`."""
    encoder = cfg.model.net.encoder
    entry = encoder.get("entry") or {}
    return entry.get("keep_rate", encoder.keep_rate)


def pruning_name(cfg: DictConfig) -> str:
    """Name of the class that reduces the tokens, for tables of runs; `none` if all tokens are kept."""
    encoder = cfg.model.net.encoder
    parts = [encoder.get("pruning"), encoder.get("entry")]
    return next((str(part["_target_"]).rpartition(".")[2] for part in parts if part), "none")
