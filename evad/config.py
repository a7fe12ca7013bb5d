"""Where the YAML files live, how they are composed, and how a config becomes objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

import evad
from evad.runs.names import job_name


def conf_dir() -> Path:
    """The folder of YAML files: `conf/` of a checkout, `evad/conf/` of an installed wheel."""
    package = Path(evad.__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration beside {package}: reinstall evad, its conf/ folder is missing")


def divide(numerator: int, denominator: int) -> int:
    """Whole quotient, for `${div:a,b}` in YAML.

    Raises:
        ValueError: if the division leaves a remainder.
    """
    if numerator % denominator:
        raise ValueError(f"{numerator} is not a multiple of {denominator}")
    return numerator // denominator


def is_sweep() -> bool:
    """Whether this is a job of `--multirun`."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """Name of the sweep's folder, None outside sweeps; `${sweep_name:}` in YAML."""
    return Path(HydraConfig.get().sweep.dir).name if is_sweep() else None


def run_name(name: str) -> str:
    """Name of the job's folder in a sweep, else the given one; `${run_name:...}` in YAML."""
    return Path(HydraConfig.get().runtime.output_dir).name if is_sweep() else name


OmegaConf.register_new_resolver("div", divide, replace=True)
OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("job_name", job_name, replace=True)


def load_config(overrides: list[str] | None = None, config_name: str = "train") -> DictConfig:
    """Compose a config outside a Hydra command (notebooks, scripts, tests).

    Args:
        overrides: As on the command line, e.g. `["experiment=ava_vitb", "model.keep_rate=0.8"]`.
        config_name: File below `conf/`, without its ending.

    Raises:
        hydra.errors.ConfigCompositionException: if an override names a key or group that does not exist.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(config_name, overrides=overrides or [])


def unread_overrides(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Those of the command line's `model.key=value` that no part of the chosen model reads.

    Such are sizes of a part that another option of its group replaced: `model.decoder_depth=2 model/classifier=linear`.

    Args:
        cfg: Composed config.
        overrides: As typed.
    """
    text = OmegaConf.to_yaml(cfg, resolve=False)
    typed = (override for override in overrides if override.lstrip("+").startswith("model."))
    keys = {override: override.lstrip("+").partition("=")[0] for override in typed}
    return [o for o, key in keys.items() if key.count(".") == 1 and f"${{{key}}}" not in text]


def build_criterion(cfg: DictConfig) -> Any:
    """The losses a composed config describes; runs saved before there was a choice have the set criterion."""
    from evad.models.criterion import SetCriterion

    return instantiate(cfg.model.criterion) if "criterion" in cfg.model else SetCriterion()


def build_model(cfg: DictConfig) -> Any:
    """The detector a composed config describes (`evad.models.evad.EVAD` unless the YAML says otherwise)."""
    upgrade(cfg)
    return instantiate(cfg.model.net)


def upgrade(cfg: DictConfig) -> None:
    """Bring the config of a run from before `model/pruning` existed up to date: `w_kf` moves to the pruning."""
    encoder = cfg.model.net.get("encoder")
    if encoder is not None and "w_kf" in encoder:
        with open_dict(encoder):
            del encoder.w_kf
            encoder.pruning = {
                "_target_": "evad.models.pruning.KeyframePruning",
                "_partial_": True,
                "w_kf": "${model.w_kf}",
            }


def effective_keep_rate(cfg: DictConfig) -> Any:
    """Rho that the encoder works with: `model.keep_rate`, but 1 with `model/pruning=none`."""
    encoder = cfg.model.net.encoder
    entry = encoder.get("entry") or {}
    return entry.get("keep_rate", encoder.keep_rate)


def pruning_name(cfg: DictConfig) -> str:
    """Class that reduces the tokens, for tables of runs; `none` where nothing does."""
    encoder = cfg.model.net.encoder
    parts = [encoder.get("pruning"), encoder.get("entry")]
    return next((str(part["_target_"]).rpartition(".")[2] for part in parts if part), "none")
