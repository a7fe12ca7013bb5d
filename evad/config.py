"""Find and compose the YAML files of conf/."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import evad
import evad.runs.config
from evad.runs.names import job_name


def conf_dir() -> Path:
    """The folder of YAML files: `conf/` of a checkout, `evad/conf/` of an installed wheel."""
    package = Path(evad.__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration beside {package}: reinstall evad, its conf/ folder is missing")


def is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """Name of the sweep's folder, None outside sweeps, for `${sweep_name:}` in YAML."""
    return Path(HydraConfig.get().sweep.dir).name if is_sweep() else None


def run_name(name: str) -> str:
    """Name of the job's folder in a sweep, otherwise `name`, for `${run_name:...}` in YAML."""
    return Path(HydraConfig.get().runtime.output_dir).name if is_sweep() else name


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
