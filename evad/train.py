"""Train a detector.

python -m evad.train                                  # the demo on generated data
python -m evad.train experiment=ava_vitb              # the paper's ViT-B on AVA
python -m evad.train --multirun model.keep_rate=0.6,0.7,0.8 seed=0,1,2     # run it again to resume
python -m evad.train resume=outputs/mini/2026-01-31_12-00-00
"""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

from evad.analysis.figures import plot_learning_curve
from evad.commandline import argument, quoted, run_command, store_run
from evad.config import is_sweep
from evad.data.annotations.findings import require_sound
from evad.data.check.quick import quick_check
from evad.models.weights.importers import OUR_RUN
from evad.models.weights.loading import load_pretrained
from evad.runs.build import pruning_name
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.config import read_config
from evad.runs.files import CONFIG, read_record
from evad.runs.folders import read_metrics
from evad.runs.names import config_digest, is_without_effect, split_override
from evad.runs.record import recorded, save_config
from evad.sweeps.jobs import job_of_further_rank, sweep_job
from evad.training.build import absolute_paths, build_datamodule, build_module, build_trainer
from evad.training.callbacks import ClassNames, finish_wandb
from evad.training.module import EVADModule

log = logging.getLogger(__name__)


def job(cfg: DictConfig) -> float | None:
    """Train one run, or, with `--multirun`, one job of a sweep."""
    return sweep_job(run, cfg, Path(HydraConfig.get().runtime.output_dir)) if is_sweep() else run(cfg)


def run(cfg: DictConfig) -> float | None:
    """Train one run and keep its `run.json` up to date."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
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
    """Overrides and digest to record for a resumed run: the earlier overrides, updated by this command line.

    If nothing changed, the digest of the first attempt is kept, because a sweep recognises its jobs by it.

    Args:
        record: The `run.json` of the earlier attempts.
        overrides: Overrides of this command line.
        digest: Digest of this configuration.
    """
    earlier = record.get("overrides", [])
    added = [text for text in overrides if text not in earlier and not text.lstrip("+").startswith("resume=")]
    again = {split_override(text)[0] for text in added}
    changed = [text for text in added if not is_without_effect(split_override(text)[0])]
    kept = [text for text in earlier if split_override(text)[0] not in again]
    return [*kept, *added], digest if changed else record.get("config", digest)


@rank_zero_only
def keep_earlier_config(cfg: DictConfig, run_dir: Path) -> None:
    """Save the configuration of a resumed run; the earlier one is backed up as config.0.yaml, config.1.yaml, ..."""
    if (run_dir / CONFIG).is_file():
        number = len(list(run_dir.glob("config.*[0-9].yaml")))
        (run_dir / CONFIG).replace(run_dir / f"config.{number}.yaml")
    changed = cfg.copy()
    with open_dict(changed):
        changed.pop("run_dir", None)
        changed.resume = None
    absolute_paths(changed)
    save_config(changed, run_dir)


def train(cfg: DictConfig, run_dir: Path) -> float | None:
    """Train, write all results to the run folder, and return the best value of `optimized_metric` for sweepers."""
    resume = find_checkpoint(Path(cfg.resume)) if cfg.resume else None
    absolute_paths(cfg)
    datamodule = build_datamodule(cfg)
    if resume is None:
        save_config(cfg, run_dir)
    else:
        keep_earlier_metrics(run_dir, resume)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
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
    """Check the annotations before training; ValueError with a list of all errors. `evad.data.check` does more."""
    findings = quick_check(datamodule)
    require_sound(findings)
    datamodule.report(findings)


def initialise_from(cfg: DictConfig, module: EVADModule, run_dir: Path) -> None:
    """Load the weights of `init_from`; if they need another order of tokens, the run's configuration takes it."""
    report = load_pretrained(module.model, cfg.init_from, cfg.init_part)
    log.info("init_from %s", report.summary())
    if report.context_order and report.context_order != cfg.model.context_order:
        cfg.model.context_order = report.context_order
        save_config(cfg, run_dir)
    elif report.layout == OUR_RUN and cfg.init_part == "model":
        warn_of_other_order(cfg)


def warn_of_other_order(cfg: DictConfig) -> None:
    """Warn if the weights were trained with their tokens in another order."""
    try:
        theirs = read_config(run_of_checkpoint(cfg.init_from)).model.get("context_order")
    except FileNotFoundError:  # the weights are not in a run folder
        return
    if theirs not in (None, cfg.model.context_order):
        log.warning(
            "init_from was trained with model.context_order=%s, this run has %s; its decoder has to learn that order",
            theirs,
            cfg.model.context_order,
        )


@rank_zero_only
def draw_learning_curve(run_dir: Path) -> None:
    plot_learning_curve(read_metrics(run_dir), run_dir / "learning_curve.png")


def flat_parameters(cfg: DictConfig) -> dict[str, object]:
    """The choices that distinguish runs, for the loggers' hyperparameter tables."""
    model, data = cfg.model, cfg.data
    keys = ("keep_rate", "w_kf", "roi_extension", "decoder_depth", "context_order", "keyframe", "decoder_input", "fill")
    given = {key: model[key] for key in keys if key in model}  # some exist with one classifier only
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
    """The last checkpoint of a run; FileNotFoundError if the run never wrote one."""
    path = run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise FileNotFoundError(f"resume: {path} does not exist; start the run again")
    return path


@rank_zero_only
def keep_earlier_metrics(run_dir: Path, checkpoint: Path) -> None:
    """Back up the metrics until the checkpoint, because the CSV logger overwrites metrics.csv."""
    current = run_dir / "metrics.csv"
    if not current.is_file() or not current.read_text().strip():  # the run was killed before it logged anything
        return
    steps = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    number = len(list(run_dir.glob("metrics.*.csv")))
    with current.open(newline="") as source, (run_dir / f"metrics.{number}.csv").open("w", newline="") as target:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(target, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(row for row in reader if row["step"] and int(row["step"]) < steps)  # later steps are repeated
    current.unlink()


def main() -> None:
    """Run the command line; with `resume=` it starts from the run's own configuration."""
    if (joined := job_of_further_rank()) is not None:
        store_run(Path(joined["hydra.run.dir"]))
        further = [quoted(key, value) for key, value in joined.items()]
        run_command(run, "resume", __doc__, [*further, "hydra.output_subdir=null"])
        return
    resume = argument("resume")
    if resume is not None:
        try:
            store_run(Path(resume).absolute())
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(f"resume: {error}") from error
    run_command(job, "train" if resume is None else "resume", __doc__)


if __name__ == "__main__":
    main()
