"""Load pretrained weights into a detector, and report what was done with each parameter."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from evad.models.encoder import ContextOrder
from evad.models.evad import EVAD
from evad.models.positions import GridPositions, resize_table, sine_cosine_table
from evad.models.weights.importers import TABLE, PretrainedWeights, read_pretrained

# With a smaller share of matching encoder parameters, the file is considered another architecture.
REQUIRED_SHARE = 0.95
InitPart = Literal["model", "encoder"]
# A fixed table may have been stored in half precision.
_TABLE_TOLERANCE = 1e-3


@dataclass
class Report:
    """Report on the weights loaded from a file.

    Attributes:
        path: File or folder.
        layout: Program that the weights come from, such as `VideoMAE`.
        loaded: Parameters of the model loaded from the file.
        missing: Parameters of the model that the file does not have; they keep their initial values.
        unexpected: Names in the file that the model does not have.
        reshaped: `name (theirs) instead of (ours)`: parameters with a different shape in the file, such as action heads
            for a different number of classes; they keep their initial values.
        dropped: Names in the file that were left out on purpose.
        notes: Remarks for the log.
        encoder_loaded: Number of the encoder's parameters among `loaded`.
        encoder_total: Number of the encoder's parameters.
        context_order: Order the weights were trained with, which the model now uses; None if it was not changed.
    """

    path: Path
    layout: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoder_loaded: int = 0
    encoder_total: int = 0
    context_order: ContextOrder | None = None

    def summary(self) -> str:
        """A few lines for the log; many names with the same prefix are replaced by their number."""
        total = len(self.loaded) + len(self.missing) + len(self.reshaped)
        lines = [
            f"{self.path} ({self.layout}): {self.encoder_loaded} of {self.encoder_total} encoder parameters, "
            f"{len(self.loaded)} of {total} in all"
        ]
        lists = {
            "missing, keep their initial values": self.missing,
            "of another shape, keep their initial values": self.reshaped,
            "unexpected, not used": self.unexpected,
            "dropped": self.dropped,
        }
        lines += [f"  {len(names)} {what}: {grouped(names)}" for what, names in lists.items() if names]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


@dataclass
class Differences:
    """Differences in names and shapes between a state dict and a model.

    Attributes:
        missing: In the model only.
        unexpected: In the state dict only.
        reshaped: In both with different shapes: name -> (theirs, ours).
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def reshaped_lines(self) -> list[str]:
        return [f"{name} {theirs} instead of {ours}" for name, (theirs, ours) in self.reshaped.items()]


def compare(model: nn.Module, state: dict[str, Tensor]) -> Differences:
    """Compare a state dict with `model`; a stored position table never counts as unexpected."""
    ours = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, GridPositions) and f"{name}.table" in state:
            ours[f"{name}.table"] = module.table
    return Differences(
        missing=[name for name in ours if name not in state],
        unexpected=[name for name in state if name not in ours],
        reshaped={
            name: (tuple(state[name].shape), tuple(value.shape))
            for name, value in ours.items()
            if name in state and state[name].shape != value.shape
        },
    )


def load_pretrained(model: EVAD, path: str | Path, part: InitPart = "model") -> Report:
    """Load pretrained weights of an encoder or of a whole detector into `model`.

    Args:
        model: Detector to load into; parameters that the file does not have keep their values.
        path: Weights of VideoMAE, VideoMAE V2, Hugging Face VideoMAE, a released EVAD detector or one of ours, see
            `evad.models.weights.reading.read_weights`.
        part: `encoder` loads only the encoder, even from a detector's weights.

    Raises:
        FileNotFoundError: if `path` has no weights.
        ValueError: if the file would run code, is damaged, has another architecture, or `part` is unknown.
    """
    if part not in get_args(InitPart):
        raise ValueError(f"init_part={part}: choose one of {', '.join(get_args(InitPart))}")
    weights = read_pretrained(path)
    return initialise(model, weights.encoder_only() if part == "encoder" else weights)


def initialise(model: EVAD, weights: PretrainedWeights) -> Report:
    """Load weights that were already read into `model`, like `load_pretrained`."""
    state = dict(weights.state)
    table = state.pop(TABLE, None)
    report = Report(weights.path, weights.layout, dropped=list(weights.dropped), notes=list(weights.notes))
    differences = compare(model, state)
    _check_architecture(model, weights, differences)

    report.loaded = [name for name in state if name not in differences.unexpected and name not in differences.reshaped]
    report.missing = [name for name in differences.missing if name != TABLE]
    report.unexpected = weights.unexpected + differences.unexpected
    report.reshaped = differences.reshaped_lines()
    report.encoder_total = len(_encoder_names(model))
    report.encoder_loaded = sum(name.startswith("encoder.") for name in report.loaded)
    if table is not None:
        report.notes.append(_use_table(model.encoder.positions, table, weights.path))
    model.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    if weights.context_order is not None:
        model.encoder.set_context_order(weights.context_order)
        report.context_order = weights.context_order
        report.notes.append(
            f"the model now uses context_order={weights.context_order}, with which these weights were trained"
        )
    return report


def _encoder_names(model: EVAD) -> list[str]:
    return [name for name in model.state_dict() if name.startswith("encoder.") and name != TABLE]


def _check_architecture(model: EVAD, weights: PretrainedWeights, differences: Differences) -> None:
    """Check that the model's encoder computes the function its weights were trained for.

    Raises:
        ValueError: if it does not; the message gives the first difference and its remedy.
    """
    _check_patch_embedding(model, weights)
    names = _encoder_names(model)
    missing = [name for name in names if name in differences.missing]
    matched = [name for name in names if name not in differences.missing and name not in differences.reshaped]
    if len(matched) < REQUIRED_SHARE * len(names):
        reshaped = [line for line in differences.reshaped_lines() if line.startswith("encoder.")]
        raise ValueError(
            f"{weights.path} ({weights.layout}): only {len(matched)} of {len(names)} encoder parameters match, at "
            f"least {REQUIRED_SHARE:.0%} must; {len(missing)} are missing ({_first(missing)}), {len(reshaped)} have "
            f"another shape ({_first(reshaped)}). Set model= to the architecture of these weights"
        )
    foreign = [name for name in differences.unexpected if name.startswith("encoder.blocks.")]
    if foreign:
        what = "layer scale, which " if any(".gamma_" in name for name in foreign) else "parameters that "
        raise ValueError(
            f"{weights.path} ({weights.layout}): its blocks have {what}this encoder does not have "
            f"({len(foreign)}: {_first(foreign)}), and without them would give other results. Use weights of a "
            "plain ViT of the depth of model="
        )
    block: Any = model.encoder.blocks[0]
    if weights.num_heads not in (None, block.attn.num_heads):
        raise ValueError(
            f"{weights.path}: trained with {weights.num_heads} attention heads, the model has {block.attn.num_heads}: "
            "set model.net.encoder.num_heads"
        )


def _check_patch_embedding(model: EVAD, weights: PretrainedWeights) -> None:
    name = "encoder.patch_embed.proj.weight"
    if name not in weights.state:
        return
    theirs, ours = weights.state[name].shape[2:], model.encoder.patch_embed.proj.weight.shape[2:]
    if theirs != ours:
        raise ValueError(
            f"{weights.path}: patch embedding of {' x '.join(map(str, theirs))} (tubelet x patch) instead of "
            f"{' x '.join(map(str, ours))}: use weights with these cubes, or set model.net.encoder.patch_embed.tubelet "
            "and model.patch"
        )


def _use_table(positions: GridPositions, table: Tensor, path: Path) -> str:
    """Use the position codes that the encoder was trained with.

    The fixed sine-cosine table of our grid is dropped, because the model computes it. Any other table is used: learned
    codes, or the codes of another grid. Each slice is resized to the base grid; slices are assumed to be square unless
    the table has our number of cells.

    Returns:
        A sentence for the report.

    Raises:
        ValueError: if the table has another width, or cannot be divided into T' square slices.
    """
    slices, height, width = positions.base_grid
    dim = positions.table.shape[1]
    cells = table.shape[0]
    if table.shape[1] != dim:
        raise ValueError(f"{path}: position table of width {table.shape[1]}, but the encoder has {dim}")
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    if table.shape == positions.table.shape:
        fixed = sine_cosine_table(cells, dim).to(table)
        if torch.allclose(table, fixed, rtol=0, atol=_TABLE_TOLERANCE):
            return "its position table was dropped: the model computes the same fixed sine-cosine table"
        positions.replace(table)
        return "its position table is used and saved with the model: it differs from the sine-cosine table"
    side = math.isqrt(cells // slices)
    if slices * side * side != cells:
        raise ValueError(
            f"{path}: position table of {cells} cells is not {slices} square slices; clips of another number of frames "
            "or class tokens are not supported: set model.num_frames to the frames these weights were trained with"
        )
    positions.replace(resize_table(table, (slices, side, side), (height, width)))
    return (
        f"its position table of {slices} x {side} x {side} cells was resized to {slices} x {height} x {width}; "
        "it is used and saved with the model"
    )


def grouped(names: list[str], limit: int = 8) -> str:
    """Names in one line; more than `limit` with the same first part become `part.* (count)`."""
    counts = Counter(name.split(".")[0] for name in names)
    shown = dict.fromkeys(
        f"{part}.* ({counts[part]})" if counts[part := name.split(".")[0]] > limit else name for name in names
    )
    return ", ".join(shown)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "") if names else "none"
