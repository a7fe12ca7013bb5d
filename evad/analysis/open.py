"""Open the trained detector and the validation clips of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from evad.models.evad import EVAD
from evad.runs.build import build_model
from evad.runs.checkpoints import load_weights
from evad.runs.config import read_config
from evad.runs.files import CONFIG
from evad.structures import Batch
from evad.training.build import build_datamodule


@dataclass
class OpenRun:
    """A run as figures of tokens need it.

    Attributes:
        path: The run folder.
        checkpoint: File with the weights.
        config: The run's configuration.
        model: The detector, in evaluation mode.
        datamodule: The run's data, set up for validation.
    """

    path: Path
    checkpoint: Path
    config: Any
    model: EVAD
    datamodule: Any

    def clip(self, index: int) -> Batch:
        """Validation clip `index` as a batch of one."""
        return self.datamodule.collate([self.datamodule.val_dataset[index]])

    def with_keep_rate(self, rate: float) -> EVAD:
        """A detector with the same weights that keeps the share `rate` of the tokens."""
        config = self.config.copy()
        config.model.keep_rate = rate
        model = build_model(config).eval()
        model.load_state_dict(self.model.state_dict())
        return model


def first_pruning_run(runs: pd.DataFrame) -> str:
    """Folder of the first finished run in a table of `read_runs` that drops tokens; ValueError if no run does."""
    rates = pd.to_numeric(runs["keep_rate"], errors="coerce")  # a list of rates per block becomes NaN
    found = runs.loc[(runs["status"] == "finished") & (rates != 1) & (runs.get("pruning") != "none"), "run"]
    if found.empty:
        raise ValueError("no finished run drops tokens (keep rate below 1)")
    return found.iloc[0]


def open_run(run: str | Path) -> OpenRun:
    """Open the run's best checkpoint (the last one if there is no best) and its validation set.

    Raises:
        FileNotFoundError: if the configuration, the checkpoints or the data are missing.
        ValueError: if the configuration is refused, see `evad.runs.build`.
    """
    path = Path(run)
    config = read_config(path)
    candidates = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    checkpoint = next(filter(Path.is_file, candidates), None)
    if checkpoint is None:
        raise FileNotFoundError(f"{path} has no checkpoints/best.ckpt or last.ckpt: its tokens cannot be computed")
    root = Path(config.data.root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"the run's data root {root} does not exist: put the data back, or edit data.root in {CONFIG}"
        )
    config.data.num_workers = 0
    datamodule = build_datamodule(config)
    datamodule.prepare_data()
    datamodule.setup("validate")
    model = build_model(config).eval()
    load_weights(model, checkpoint)
    return OpenRun(path, checkpoint, config, model, datamodule)
