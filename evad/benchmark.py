"""Cost of a detector by image size and keep rate: MACs, parameters, speed, memory.

    python -m evad.benchmark experiment=ava_vitb benchmark.sizes=[224,288] benchmark.keep_rates=[1.0,0.7]
    python -m evad.benchmark experiment=ava_vitb benchmark.time=false benchmark.json=macs.json  # counts only
    python -m evad.benchmark experiment=ava_vitb benchmark.modes=[inference,training] trainer.precision=bf16-mixed

Prints a table and writes benchmark.json, benchmark.csv, tables.md (the paper's Tables 2, 3 and 6) and, if training
steps were timed, fig6.png (memory and step time by keep rate). Each row is measured in a separate process, so that its
peak memory does not include earlier rows.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from evad.analysis.figures import plot_training_cost
from evad.commandline import run_command
from evad.device import chosen_device, peak_memory_mb, reset_peak_memory
from evad.metrics.cost import EXTERNAL_ACTORS, executed_macs, paper_macs, token_counts
from evad.models.compilation import compile_layers
from evad.models.evad import EVAD
from evad.precision import autocast, precision_name, prepare
from evad.runs.build import build_criterion, build_model, effective_keep_rate
from evad.structures import Proposals, Target

log = logging.getLogger(__name__)
COLUMNS = [
    "size", "keep_rate", "mode", "gmacs", "gmacs_executed", "latency_ms", "clips_per_s",
    "peak_memory_mb", "activation_memory_mb",
]  # fmt: skip


def benchmark(cfg: DictConfig) -> pd.DataFrame:
    """Measure every mode, size and keep rate: one row each."""
    output = Path(HydraConfig.get().runtime.output_dir)
    options = cfg.benchmark
    options.precision = precision_name(options.precision)
    if unknown := sorted(set(options.modes) - set(STEPS)):
        raise ValueError(f"benchmark.modes {', '.join(unknown)} is none of {', '.join(STEPS)}")
    if cfg.data.num_classes is None:  # own data, which is not read here: as many outputs as for AVA
        cfg.data.num_classes = 80
    sizes = options.sizes or [OmegaConf.select(cfg, "data.val_transform.short_side")]
    jobs = [(mode, size, rate) for mode in options.modes for size in sizes for rate in options.keep_rates]
    rows = []
    for mode, size, rate in track(jobs, description="Measuring", disable=not options.time):
        job = cfg.copy()
        job.model.keep_rate = rate
        row = count(job, size, mode)
        if options.time:
            row.update(in_own_process(OmegaConf.to_yaml(job, resolve=False), size, mode))
        rows.append(row)
        (output / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n")  # stays if a later job fails
    table = pd.DataFrame(rows)
    write_results(table, output, options.json)
    log.info("results in %s", output)
    return table


def count(cfg: DictConfig, size: int, mode: str) -> dict[str, Any]:
    """Count MACs and parameters on the meta device, without computing anything."""
    with torch.device("meta"):
        model = build_model(cfg)
    frames, multiple = cfg.model.num_frames, cfg.data.pad_multiple
    side = -(-size // multiple) * multiple
    counted = paper_macs(model, frames, side, side)
    executed = executed_macs(model, frames, side, side, training=mode in ("gradients", "training"))
    if mode == "encoder":
        counted, executed = ({part: macs[part] for part in ("patch_embed", "encoder")} for macs in (counted, executed))
    return {
        "model": cfg.name,
        "mode": mode,
        "size": size,
        "keep_rate": effective_keep_rate(cfg),
        "gmacs": sum(counted.values()) / 1e9,
        "gmacs_executed": sum(executed.values()) / 1e9,
        **{f"gmacs_{part}": value / 1e9 for part, value in counted.items()},
        "tokens": token_counts(model, frames, side, side),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "precision": cfg.benchmark.precision,
        "batch_size": cfg.benchmark.batch_size,
        "compile": cfg.compile,
        "activation_checkpointing": cfg.model.activation_checkpointing,
    }


def in_own_process(config: str, size: int, mode: str) -> dict[str, float]:
    """`measure` in a new process; RuntimeError if that is killed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, config, size, mode).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"the process that measured {mode} at {size} pixels was killed, most likely because memory ran out: "
                "leave out this size or mode, or set model.activation_checkpointing=true"
            ) from error


def measure(config: str, size: int, mode: str) -> dict[str, float]:
    """Median latency of one batch, throughput and peak memory.

    Args:
        config: Composed config as YAML.
        size: Height and width in pixels.
        mode: `inference`, `encoder` (inference of the encoder alone), `gradients` (forward, loss, backward) or
            `training` (`gradients` and an optimizer step).

    Returns:
        `latency_ms` (median), `fastest_ms`, `clips_per_s`, `peak_memory_mb`, and `activation_memory_mb`, the part of
        the peak beyond the model and its input.
    """
    cfg: Any = OmegaConf.create(config)
    device = chosen_device(cfg.trainer.accelerator)
    prepare(device, cfg.benchmark.precision, cfg.matmul_precision)
    torch.manual_seed(cfg.seed)
    model = build_model(cfg).to(device)
    if cfg.compile:
        compile_layers(model)
    side = -(-size // cfg.data.pad_multiple) * cfg.data.pad_multiple
    batch = cfg.benchmark.batch_size
    clips = torch.randn(batch, 3, cfg.model.num_frames, side, side, device=device)
    sizes = torch.full((batch, 2), size, device=device)
    run = STEPS[mode](model, cfg)
    reset_peak_memory(device)
    before = peak_memory_mb(device)
    times = []
    for repeat in range(cfg.benchmark.warmup + cfg.benchmark.repeats):
        started = time.perf_counter()
        run(clips, sizes)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= cfg.benchmark.warmup:
            times.append(time.perf_counter() - started)
    latency, fastest = statistics.median(times), min(times)
    peak = peak_memory_mb(device)
    return {
        "latency_ms": 1e3 * latency,
        "fastest_ms": 1e3 * fastest,
        "clips_per_s": batch / latency,
        "peak_memory_mb": peak,
        "activation_memory_mb": peak - before,
    }


def external_boxes(sizes: Tensor) -> list[Proposals]:
    """Boxes for `model/localization=external`: `EXTERNAL_ACTORS` per clip, equal to the first target's in training."""
    box = torch.tensor([0.1, 0.2, 0.4, 0.9], device=sizes.device) * sizes[0, 0]
    boxes = box.repeat(EXTERNAL_ACTORS, 1)
    return [Proposals(boxes, torch.ones_like(boxes[:, 0])) for _ in sizes]


def inference_step(model: EVAD, cfg: DictConfig, encoder_alone: bool = False) -> Any:
    """A function that runs the detector, or its encoder alone, once without gradients."""
    model.eval()

    @torch.inference_mode()
    def step(clips: Tensor, sizes: Tensor) -> None:
        with autocast(cfg.benchmark.precision, clips.device.type):
            model.encoder(clips) if encoder_alone else model(clips, sizes, external_boxes(sizes))

    return step


def gradients_step(model: nn.Module, cfg: DictConfig) -> Any:
    """A function that computes the gradients of a batch with two actors per clip."""
    model.train()
    criterion = build_criterion(cfg)

    def step(clips: Tensor, sizes: Tensor) -> None:
        model.zero_grad()
        boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.5, 0.1, 0.8, 0.8]], device=clips.device) * sizes[0, 0]
        labels = torch.zeros(2, cfg.model.num_classes, device=clips.device)
        labels[:, 0] = 1
        with autocast(cfg.benchmark.precision, clips.device.type):
            output = model(clips, sizes, external_boxes(sizes))
            losses = criterion(output, [Target(boxes, labels)] * len(clips), sizes)
        torch.cat([losses.person, losses.l1, losses.giou, losses.action]).mean().backward()

    return step


def training_step(model: nn.Module, cfg: DictConfig) -> Any:
    gradients = gradients_step(model, cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # as conf/recipe/paper.yaml

    def step(clips: Tensor, sizes: Tensor) -> None:
        gradients(clips, sizes)
        optimizer.step()

    return step


STEPS: dict[str, Callable[[Any, DictConfig], Any]] = {
    "inference": inference_step,
    "encoder": partial(inference_step, encoder_alone=True),
    "gradients": gradients_step,
    "training": training_step,
}


def write_results(table: pd.DataFrame, output: Path, json_path: str | None) -> None:
    records = json.loads(table.to_json(orient="records"))
    for path in [output / "benchmark.json", *([Path(json_path)] if json_path else [])]:
        path.write_text(json.dumps(records, indent=2) + "\n")
    table.to_csv(output / "benchmark.csv", index=False)
    shown = Table(*[column for column in COLUMNS if column in table])
    for row in table.to_dict("records"):
        shown.add_row(*[f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS if c in row])
    Console().print(shown)
    (output / "tables.md").write_text(markdown_tables(table))
    if "latency_ms" in table and (table["mode"] == "training").any():
        plot_training_cost(table[table["mode"] == "training"], output / "fig6.png")


def markdown_tables(table: pd.DataFrame) -> str:
    """A table per mode and size: cost by keep rate, with the change from the highest keep rate (Tables 2, 3, 6)."""
    parts = []
    for (mode, size), rows in table.groupby(["mode", "size"], sort=False):
        records = rows.to_dict("records")
        base = max(records, key=lambda row: row["keep_rate"])
        measured = ["clips/s", "memory in MiB"] if "clips_per_s" in rows else []
        columns = ["keep rate", "GFLOPs", "tokens by stage", *measured]
        parts.append(f"### {base['model']}, {mode}, {size} pixels\n")
        parts.append("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
        for row in records:
            stages = " → ".join(str(n) for n in row["tokens"])
            cells = [f"{row['keep_rate']:g}", with_change(row, base, "gmacs", ".1f"), stages]
            if measured:
                cells += [with_change(row, base, "clips_per_s", ".3g"), with_change(row, base, "peak_memory_mb", ".0f")]
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def with_change(row: dict[Any, Any], base: dict[Any, Any], column: str, form: str) -> str:
    """A value with its change in per cent, such as `243.0 (-43%)`."""
    change = row[column] / base[column] - 1
    return f"{row[column]:{form}}" + (f" ({change:+.0%})" if row["keep_rate"] != base["keep_rate"] else "")


def main() -> None:
    run_command(benchmark, "benchmark", __doc__)


if __name__ == "__main__":
    main()
