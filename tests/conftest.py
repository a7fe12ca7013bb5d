"""Tiny detectors and batches: T' != H' != W', B = 2, sizes that differ within the batch."""

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evad.config import build_model, load_config
from evad.models.evad import EVAD
from evad.structures import Batch, Target

torch.set_num_threads(1)  # on tensors this small, threads wait for each other longer than they compute

# T' x H' x W' = 4 x 4 x 6 tokens for the clips of `tiny_batch`; the position table's grid is another one.
TINY = [
    "experiment=ava_vitb",
    "model.num_frames=8",
    "model.num_classes=5",
    "model.patch=8",
    "model.base_grid=[3,5]",
    "model.keep_rate=0.8",
    "model.net.encoder.dim=24",
    "model.net.encoder.depth=6",
    "model.net.encoder.num_heads=3",
    "model.net.encoder.map_blocks=[1,3,4,6]",
    "model.net.encoder.prune_blocks=[2,4,5]",
    "model.net.encoder.drop_path=0",
    "model.net.pyramid.channels=16",
    "model.num_queries=7",
    "model.net.localization.num_stages=2",
    "model.net.localization.strides=[2,4,8,16]",
    "model.net.localization.roi_size=3",
    "model.net.localization.canonical_size=12",
    "model.net.localization.num_heads=2",
    "model.net.localization.dim_dynamic=4",
    "model.net.localization.dim_feedforward=24",
    "model.net.classification.roi.size=4",
    # Of the heads, whichever is chosen.
    "model.sizes.decoder={depth:3,dim:16,heads:2,hidden_dim:20,drop_path:0}",
    "model.sizes.woo={depth:2,dim:12,heads:2,dim_dynamic:4,hidden_dim:20}",
]


@cache
def compose_tiny(*overrides: str) -> Any:
    return load_config([*TINY, *overrides])


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Weights without the zeros and ones of an initialisation, so that no term is hidden; the same for equal names."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("proposal_boxes"):
            centre = 0.3 + 0.4 * torch.rand(len(noise), 2, generator=generator, dtype=torch.float64)
            side = torch.linspace(0.08, 0.9, len(noise), dtype=torch.float64)  # one or more for each pyramid level
            value = torch.cat([centre, side[:, None], side[:, None]], dim=1)
        elif parameter.ndim == 1:
            value = 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise
        else:
            gain = 0.2 if "box_deltas" in name else 2 if "qkv" in name else 1
            value = gain * noise / noise[0].numel() ** 0.5
        parameter.copy_(value)


@pytest.fixture
def tiny_model() -> Callable[..., EVAD]:
    """`tiny_model(*overrides, dtype=torch.float64)`: the tiny detector with random weights, in training mode."""

    def build(*overrides: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> EVAD:
        model = build_model(compose_tiny(*overrides))
        randomise(model, seed)
        return model.to(dtype)

    return build


@pytest.fixture
def tiny_config() -> Callable[..., Any]:
    """`tiny_config(*overrides)`: the composed configuration of the tiny detector."""
    return lambda *overrides: load_config([*TINY, *overrides])


@pytest.fixture
def tiny_batch() -> Callable[..., Batch]:
    """`tiny_batch(boxes=(2, 1))`: random clips, one per entry, with so many actors each."""

    def build(boxes: tuple[int, ...] = (2, 1), dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        clips = torch.randn(len(boxes), 3, 8, 32, 48, generator=generator, dtype=torch.float64)
        sizes = torch.tensor([[32, 48], [27, 41]] * len(boxes))[: len(boxes)]
        for clip, (height, width) in zip(clips, sizes):
            clip[..., height:, :] = 0
            clip[..., width:] = 0
        targets = [random_target(n, size, generator, dtype) for n, size in zip(boxes, sizes)]
        return Batch(clips.to(dtype), sizes, targets, torch.arange(len(boxes)), 3 * sizes)

    return build


def random_target(n: int, size: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Target:
    corner, extent = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([0.5 * corner, 0.5 * corner + 0.2 + 0.3 * extent], dim=1) * size.flip(0).repeat(2)
    labels = (torch.rand(n, 5, generator=generator, dtype=torch.float64) < 0.4).to(dtype)
    return Target(boxes.to(dtype), labels)
