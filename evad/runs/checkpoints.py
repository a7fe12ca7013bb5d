"""From a checkpoint to its run: folder, class names, weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from evad.models.weights.loading import compare
from evad.models.weights.reading import read_weights
from evad.runs.files import CLASSES, CONFIG


def run_of_checkpoint(checkpoint: str | Path) -> Path:
    """The run folder of a checkpoint; FileNotFoundError if the checkpoint or the run's `config.yaml` is missing."""
    path = Path(checkpoint).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path: no checkpoint at {path}")
    for folder in path.parents[:2]:
        if (folder / CONFIG).is_file():
            return folder
    raise FileNotFoundError(f"ckpt_path: no {CONFIG} beside or above {path}; a checkpoint must stay in its run folder")


def class_names(run_dir: Path, num_classes: int) -> dict[str, str]:
    """Action id -> name of every model output; `action <id>` if the run folder has no names."""
    path = run_dir / CLASSES
    if path.is_file():
        return json.loads(path.read_text())
    return {str(number): f"action {number}" for number in range(1, num_classes + 1)}


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load all of the detector's weights from one of our checkpoints, without running code from the file.

    Args:
        model: Detector built from the checkpoint's config.
        checkpoint: File written by evad.train or scripts/convert_checkpoint.py.

    Raises:
        ValueError: if the weights do not fit the model; names the first differences.
    """
    state = read_weights(checkpoint).tensors
    if any(name.startswith("model.") for name in state):  # a checkpoint of Lightning
        state = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    differences = compare(model, state)
    problems = {
        "missing": sorted(differences.missing),
        "unexpected": sorted(differences.unexpected),
        "other shape": sorted(differences.reshaped_lines()),
    }
    found = [f"{len(names)} {kind} ({', '.join(names[:3])}, ...)" for kind, names in problems.items() if names]
    if found:
        raise ValueError(
            f"{checkpoint} does not fit the configured model: {'; '.join(found)}. Use the configuration of its run, or "
            "remove the overrides that change the model"
        )
    model.load_state_dict(state)
