"""Train a detector.

python -m evad.train                                  # the demo on generated data
python -m evad.train experiment=ava_vitb              # the paper's ViT-B on AVA
python -m evad.train --multirun model.keep_rate=0.6,0.7,0.8 seed=0,1,2     # again: goes on where it stopped
python -m evad.train resume=outputs/mini/2026-01-31_12-00-00
"""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from evad.analysis.plots import plot_learning_curve
from evad.commandline import argument, hydra_command, hydra_command_from_run
from evad.config import is_sweep, pruning_name, unread_overrides
from evad.data.annotations.findings import require_sound
from evad.data.check.quick import quick_check
from evad.models.weights.importers import OUR_RUN
from evad.models.weights.loading import load_pretrained
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.files import CONFIG, metric_files, read_metrics
from evad.runs.names import config_digest, is_without_effect, split_override
from evad.runs.record import read_record, recorded, save_config
from evad.sweeps.jobs import job_of_further_rank, sweep_job
from evad.training.build import absolute_paths, build_datamodule, build_module, build_trainer
from evad.training.callbacks import ClassNames
from evad.training.module import EVADModule

log = logging.getLogger(__name__)


def job(cfg: DictConfig) -> float | None:
    """What a command line asks for: a run, or a job of a sweep."""
    return sweep_job(run, cfg, Path(HydraConfig.get().runtime.output_dir)) if is_sweep() else run(cfg)


def run(cfg: DictConfig) -> float | None:
    """One run, with a record of how it went."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    for override in unread_overrides(cfg, hydra.overrides.task):
        log.warning("%s has no effect: the chosen parts of the model do not read it", override)
    overrides, digest = list(hydra.overrides.task), config_digest(cfg)
    if cfg.resume:
        overrides, digest = as_before(earlier := read_record(run_dir), overrides, digest)
        if overrides != earlier.get("overrides"):
            keep_earlier_config(cfg, run_dir)
    with recorded(run_dir, overrides, digest) as record:
        try:
            record["value"] = train(cfg, run_dir)
        finally:
            finish_wandb()
    return record["value"]


def as_before(record: dict[str, Any], overrides: list[str], digest: str) -> tuple[list[str], str]:
    """What the record of a run that goes on says: what its first command line changed, and what was changed since.

    Without such changes the digest stays that of the first attempt, by which a sweep knows its jobs.

    Args:
        record: Of the earlier attempts.
        overrides: Of this command line.
        digest: Of this configuration.
    """
    earlier = record.get("overrides", [])
    added = [text for text in overrides if text not in earlier and not text.lstrip("+").startswith("resume=")]
    again = {split_override(text)[0] for text in added}
    changed = [text for text in added if not is_without_effect(split_override(text)[0])]
    kept = [text for text in earlier if split_override(text)[0] not in again]
    return [*kept, *added], digest if changed else record.get("config", digest)


@rank_zero_only
def keep_earlier_config(cfg: DictConfig, run_dir: Path) -> None:
    """Set the configuration up to here aside as config.0.yaml, config.1.yaml, ... and save the one that goes on."""
    if (run_dir / CONFIG).is_file():
        number = len(list(run_dir.glob("config.*[0-9].yaml")))
        (run_dir / CONFIG).replace(run_dir / f"config.{number}.yaml")
    changed = cfg.copy()
    changed.resume = None
    absolute_paths(changed)
    save_config(changed, run_dir)


def train(cfg: DictConfig, run_dir: Path) -> float | None:
    """Train; everything it leaves is in the run folder.

    Returns:
        The best value of `optimized_metric`, for sweepers.
    """
    resume = find_checkpoint(Path(cfg.resume)) if cfg.resume else None
    absolute_paths(cfg)
    if resume is None:
        save_config(cfg, run_dir)
    else:
        keep_earlier_metrics(run_dir, resume)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

    datamodule = build_datamodule(cfg)
    if cfg.check and resume is None:
        check_annotations(datamodule)
    module = build_module(cfg)
    if cfg.init_from and resume is None:
        initialise_from(cfg, module, run_dir)
    elif not cfg.init_from and cfg.init_part != "model":
        log.warning("init_part=%s has no effect without init_from: every weight starts at random", cfg.init_part)
    trainer = build_trainer(cfg)
    trainer.callbacks.append(ClassNames(run_dir))  # type: ignore[attr-defined]
    for logger in trainer.loggers:
        logger.log_hyperparams(flat_parameters(cfg))
    log.info("run folder: %s", run_dir)
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    draw_learning_curve(run_dir)
    checkpoint = trainer.checkpoint_callback
    best = getattr(checkpoint, "best_model_score", None)
    if best is not None:
        log.info("best %s: %.4f", checkpoint.monitor, best)  # type: ignore[union-attr]
    if checkpoint is None or checkpoint.monitor != cfg.optimized_metric:  # type: ignore[attr-defined]
        best = trainer.callback_metrics.get(cfg.optimized_metric)
    return None if best is None else float(best)


@rank_zero_only
def check_annotations(datamodule: Any) -> None:
    """Stop before training on data that would make it wrong; `python -m evad.data.check` says more.

    Raises:
        ValueError: with every error found.
    """
    findings = quick_check(datamodule)
    require_sound(findings)
    datamodule.report(findings)


def initialise_from(cfg: DictConfig, module: EVADModule, run_dir: Path) -> None:
    """Load the weights of `init_from` and note in the run's config what comes with them."""
    report = load_pretrained(module.model, cfg.init_from, cfg.init_part)
    log.info("init_from %s", report.summary())
    if report.context_order and report.context_order != cfg.model.context_order:
        cfg.model.context_order = report.context_order
        save_config(cfg, run_dir)
    elif report.layout == OUR_RUN and cfg.init_part == "model":
        warn_of_other_order(cfg)


def warn_of_other_order(cfg: DictConfig) -> None:
    """Say so where a run's decoder goes on with tokens in another order than it was trained with."""
    try:
        theirs = OmegaConf.load(run_of_checkpoint(cfg.init_from) / CONFIG).model.get("context_order")
    except FileNotFoundError:  # weights without their run
        return
    if theirs not in (None, cfg.model.context_order):
        log.warning(
            "init_from was trained with model.context_order=%s, this run has %s; its decoder has to learn that anew",
            theirs,
            cfg.model.context_order,
        )


def finish_wandb() -> None:
    """Close the W&B run, so that the next job of a sweep gets its own, also after a failure."""
    if wandb.run is not None:
        wandb.finish(exit_code=int(sys.exc_info()[0] is not None))


@rank_zero_only
def draw_learning_curve(run_dir: Path) -> None:
    """Write learning_curve.png from the run's metrics, where it logged any validation."""
    if metric_files(run_dir):
        metrics = read_metrics(run_dir)
        if "val/mAP" in metrics:
            plot_learning_curve(metrics, run_dir / "learning_curve.png")


def flat_parameters(cfg: DictConfig) -> dict[str, object]:
    """The choices that distinguish runs, for the loggers' hyperparameter tables."""
    model, data = cfg.model, cfg.data
    keys = ("keep_rate", "w_kf", "roi_extension", "decoder_depth", "context_order", "keyframe", "decoder_input", "fill")
    given = {key: model[key] for key in keys if key in model}  # runs of earlier versions have fewer
    chosen = {f"model/{key}": value if not hasattr(value, "__len__") else str(value) for key, value in given.items()}
    return {
        **chosen,
        "model/pruning": pruning_name(cfg),
        "model/classifier": model.net.classification._target_.rpartition(".")[2],
        "model/localization": model.net.localization._target_.rpartition(".")[2],
        "name": cfg.name,
        "seed": cfg.seed,
        "data/batch_size": data.batch_size,
        "data/image_size": OmegaConf.select(cfg, "data.val_transform.short_side"),
        "max_epochs": cfg.trainer.max_epochs,
    }


def find_checkpoint(run_dir: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        FileNotFoundError: if the run never wrote one.
    """
    path = run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise FileNotFoundError(f"resume: {path} does not exist; start the run anew")
    return path


@rank_zero_only
def keep_earlier_metrics(run_dir: Path, checkpoint: Path) -> None:
    """Set the metrics of the interrupted run aside up to the checkpoint, since the CSV logger starts a new file."""
    current = run_dir / "metrics.csv"
    if not current.is_file() or not current.read_text().strip():  # killed before anything was logged, or while it was
        return
    steps = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    number = len(list(run_dir.glob("metrics.*.csv")))
    with current.open(newline="") as source, (run_dir / f"metrics.{number}.csv").open("w", newline="") as target:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(target, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(row for row in reader if row["step"] and int(row["step"]) < steps)  # the others are repeated
    current.unlink()


def main() -> None:
    """Command line: `resume=` takes the configuration from that run."""
    if (joined := job_of_further_rank()) is not None:
        sys.argv[1:] = joined
        hydra_command_from_run(run, Path(argument("hydra.run.dir") or "."), output=".")
        return
    resume = argument("resume")
    if resume is None:
        hydra_command(job)
        return
    run_dir = Path(resume).absolute()
    if not (run_dir / CONFIG).is_file():
        raise SystemExit(f"resume: {run_dir} is no run folder, it has no {CONFIG}")
    hydra_command_from_run(job, run_dir, output=".")


if __name__ == "__main__":
    main()
