"""Tiny detectors and batches (T' != H' != W', B = 2, sizes that differ in a batch), short trainings, run folders."""

import json
import logging
import os
import runpy
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from evad.config import load_config
from evad.models.evad import EVAD
from evad.runs.build import build_model
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

# A run of `python -m evad.train` that takes seconds.
TINY_TRAINING = [
    "experiment=mini",
    "logger=csv",
    "callbacks.progress=null",
    "data.train_clips=8",
    "data.val_clips=4",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
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
    """`tiny_config(*overrides, command="train")`: the composed configuration of the tiny detector."""
    return lambda *overrides, command="train": load_config([*TINY, *overrides], command)


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


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` away from the checkout; it must succeed."""
    environment = {"EVAD_DATA": str(cwd / "data"), "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the processes of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    (shared / "work").mkdir(exist_ok=True)
    return shared / "work"


@pytest.fixture(scope="session")
def run_dir(workspace: Path) -> Path:
    """Run folder of a trained tiny detector; only read it, since other tests do the same at the same time."""
    with FileLock(workspace / "run.lock"):
        if not (workspace / "run").is_dir():
            command("evad.train", *TINY_TRAINING, "hydra.run.dir=draft", cwd=workspace)
            (workspace / "draft").rename(workspace / "run")
    return workspace / "run"


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal("evad.eval", "ckpt_path=nowhere")`: standard error of a command that fails before it computes anything.

    It runs in this process: starting another one takes longer than such a command.
    """

    def run(module: str, *arguments: str) -> str:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            root.handlers[:], root.level = handlers, level
        code = stopped.value.code
        assert code not in (None, 0)
        return capsys.readouterr().err + (code if isinstance(code, str) else "")

    return run


@pytest.fixture(scope="session")
def short_training() -> list[str]:
    """Overrides for a training of seconds; the last one is the number of epochs."""
    return list(TINY_TRAINING)


@pytest.fixture
def write_metrics() -> Callable[..., None]:
    """`write_metrics(path, epochs, first=0)`: a metrics.csv whose epochs reached (mAP, person AP)."""
    scores = "val/mAP,val/person_AP,val/AP/2,val/AP/10"

    def write(path: Path, epochs: Iterable[tuple[float, float]], first: int = 0) -> None:
        lines = [f"epoch,step,train/loss,{scores},cost/gflops,cost/train_clips_per_s,cost/peak_memory_mb"]
        for epoch, (mean, person) in enumerate(epochs, start=first):
            lines += [f"{epoch},{8 * epoch},{3 - epoch},,,,,,,", f"{epoch},{8 * epoch},{2 - epoch},,,,,,,"]
            lines += [f"{epoch},,,{mean},{person},{mean - 0.1:.1f},{mean + 0.1:.1f},,,"]
            lines += [f"{epoch},,,,,,,0.25,{10 + epoch},{100 + epoch}"]
        path.write_text("\n".join(lines) + "\n")

    return write


@pytest.fixture
def write_run(write_metrics: Callable[..., None]) -> Callable[..., Path]:
    """`write_run(folder, ...)`: a run folder by hand, with `epochs` of (mAP, person AP); classes have mAP -/+ 0.1."""

    def write(
        folder: Path,
        epochs: Iterable[tuple[float, float]] = ((0.2, 0.5), (0.4, 0.75)),
        status: str = "finished",
        seed: int = 0,
        keep_rate: float = 0.7,
        extra: str = "",
        metrics: bool = True,
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"status": status}))
        (folder / "config.resolved.yaml").write_text(
            f"name: mini\nseed: {seed}\ntrainer:\n  max_epochs: 3\nmodel:\n  keep_rate: {keep_rate}\n  w_kf: 1.0\n"
            "  roi_extension: [0.4, 0.2]\n  decoder_depth: 2\n  context_order: position\n  fill: mask_token\n"
            f"data:\n  val_transform:\n    short_side: 64\n{extra}"
        )
        (folder / "classes.json").write_text('{"2": "wave", "10": "jump"}')
        if metrics:
            write_metrics(folder / "metrics.csv", epochs)
        return folder

    return write
