"""Sweeps that stop and go on: nothing is repeated, nothing is lost, and a failure is not the end."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from filelock import FileLock
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from evad.analysis import summarize
from evad.config import load_config
from evad.runs.files import CONFIG, RECORD, read_record
from evad.runs.folders import read_metrics
from evad.runs.names import config_digest
from evad.runs.record import save_config, write_record
from evad.sweeps.callback import SweepCallback
from evad.sweeps.jobs import LOCK, job_of_further_rank, sweep_job
from evad.sweeps.summary import markdown, read_jobs, write_summary
from evad.train import as_before, keep_earlier_config, keep_earlier_metrics
from evad.training.build import absolute_paths


@pytest.fixture(scope="module")
def cfg():
    return load_config(["logger=csv"])


class Recorder:
    """Stands for training: notes what it is called with."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __call__(self, cfg):
        self.calls.append(cfg)
        if self.error:
            raise self.error
        return 0.5


def broken_run(folder, cfg, status="running", checkpoint=True):
    """A run folder as a kill leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    cfg = cfg.copy()
    absolute_paths(cfg)
    OmegaConf.save(cfg, folder / CONFIG)
    (folder / "metrics.csv").write_text("step,epoch\n0,0\n")
    if checkpoint:
        (folder / "checkpoints/last.ckpt").touch()
    write_record(folder, {"status": status, "config": config_digest(cfg), "overrides": []})
    return folder


def test_new_job_runs(cfg, tmp_path):
    run = Recorder()
    assert sweep_job(run, cfg, tmp_path) == 0.5
    assert run.calls == [cfg]


@pytest.mark.parametrize("now", [[], ["model.fill=zeros"]])
def test_finished_job_is_skipped_and_returns_its_value(cfg, tmp_path, caplog, now):
    write_record(tmp_path, {"status": "finished", "config": config_digest(cfg), "value": 0.25})
    run = Recorder()
    assert sweep_job(run, load_config(now), tmp_path) == 0.25
    assert run.calls == []
    assert ("trained with other settings" in caplog.text) == bool(now)


@pytest.mark.parametrize("status", ["running", "failed"])
def test_broken_job_of_the_same_configuration_goes_on(cfg, tmp_path, status):
    """With what `init_from` changed in its configuration, and with today's loggers and data folder."""
    saved = load_config(["logger=csv", "model.context_order=score", "data.root=/gone"])
    broken_run(tmp_path, saved, status)
    write_record(tmp_path, {"status": status, "config": config_digest(cfg)})
    run = Recorder()
    sweep_job(run, load_config(["data.root=/here", "data.num_workers=3"]), tmp_path)
    (called,) = run.calls
    assert (called.resume, called.model.context_order) == (str(tmp_path), "score")
    assert (called.data.root, called.data.num_workers) == ("/here", 3)
    assert "wandb" in called.logger
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize(("now", "checkpoint"), [(["model.fill=zeros"], True), ([], False)])
def test_broken_job_of_another_configuration_or_without_checkpoint_starts_anew(cfg, tmp_path, now, checkpoint):
    broken_run(tmp_path, cfg, checkpoint=checkpoint)
    run = Recorder()
    sweep_job(run, load_config(["logger=csv", *now]), tmp_path)
    assert run.calls[0].resume is None
    assert not (tmp_path / "metrics.csv").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_failing_job_is_a_failed_trial_and_no_exception(cfg, tmp_path, caplog):
    assert sweep_job(Recorder(ValueError("too small")), cfg, tmp_path) is None
    assert "ValueError: too small" in caplog.text


def test_interrupt_ends_the_sweep(cfg, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep_job(Recorder(KeyboardInterrupt()), cfg, tmp_path)


def test_job_of_another_process_is_left_alone(cfg, tmp_path):
    run = Recorder()
    with FileLock(tmp_path / LOCK):
        assert sweep_job(run, cfg, tmp_path) is None
    assert run.calls == []


def test_processes_of_further_devices_join_the_job_under_way(cfg, tmp_path, monkeypatch):
    """Their command line is that of the whole sweep."""
    broken_run(tmp_path, cfg)
    monkeypatch.setenv("LOCAL_RANK", "1")
    joined = []
    for _ in range(2):
        sweep_job(lambda _: joined.append(job_of_further_rank()), cfg, tmp_path)
        (tmp_path / "checkpoints/last.ckpt").unlink(missing_ok=True)
    where = {"hydra.run.dir": str(tmp_path), "hydra.job.name": "train_rank_1"}
    assert joined == [where | {"resume": str(tmp_path)}, where]
    assert job_of_further_rank() is None


def test_run_that_goes_on_is_recorded_as_it_began():
    """Twice interrupted it must go on too, though its saved configuration has absolute paths."""
    record = {"overrides": ["init_from=a.pth", "recipe.base_lr=0.01"], "config": "first"}
    assert as_before(record, record["overrides"], "now") == (record["overrides"], "first")
    assert as_before(record, ["resume=run", "logger=csv"], "now") == ([*record["overrides"], "logger=csv"], "first")
    changed = as_before(record, ["resume=run", "trainer.max_epochs=9"], "now")
    assert changed == ([*record["overrides"], "trainer.max_epochs=9"], "now")
    assert as_before({}, ["seed=1"], "now") == (["seed=1"], "now")
    longer = as_before({"overrides": ["trainer.max_epochs=1", "seed=2"]}, ["trainer.max_epochs=2"], "now")
    assert longer == (["seed=2", "trainer.max_epochs=2"], "now")


def test_a_resume_that_changes_the_configuration_saves_it_beside_the_earlier_one(tmp_path):
    data = {"num_classes": 3, "root": str(tmp_path)}
    parts = {"resume": None, "init_from": None, "paths": {"data": str(tmp_path)}, "data": data}
    first = OmegaConf.create({**parts, "trainer": {"max_epochs": 1}})
    save_config(first, tmp_path)
    for epochs in (2, 3):
        changed = first.copy()
        changed.resume, changed.trainer.max_epochs = str(tmp_path), epochs
        keep_earlier_config(changed, tmp_path)
    names = ("config.0.yaml", "config.1.yaml", "config.yaml", "config.resolved.yaml")
    assert [OmegaConf.load(tmp_path / name).trainer.max_epochs for name in names] == [1, 2, 3, 3]
    assert OmegaConf.load(tmp_path / "config.yaml").resume is None


@pytest.mark.parametrize("text", ["", "\n"])
def test_metrics_of_a_run_killed_before_its_first_line_are_none(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    keep_earlier_metrics(tmp_path, tmp_path / "unread.ckpt")
    assert not list(tmp_path.glob("metrics.*.csv"))


@pytest.fixture
def sweep(tmp_path):
    """Two depths with three seeds; one job failed, one was killed before it wrote anything."""
    scores = {(2, 0): 0.2, (2, 1): 0.4, (2, 2): 0.6, (10, 0): 0.5, (10, 1): None, (10, 2): None}
    for (depth, seed), score in scores.items():
        run_dir = tmp_path / f"sweep/decoder_depth-{depth}+seed-{seed}"
        run_dir.mkdir(parents=True)
        overrides = ["ablation=decoder_depth", "experiment=mini", f"model.decoder_depth={depth}", f"seed={seed}"]
        record = {"status": "finished", "overrides": overrides, "seconds": 9.0, "attempts": 1}
        if score is None:
            record |= {"status": "failed", "error": "ValueError: two\nlines"} if seed == 1 else {"status": "running"}
        else:
            rows = {"epoch": [0, 1, 2], "val/mAP": [0.0, score, 0.1], "val/person_AP": [0.1, 0.7, 0.9]}
            cost = {"cost/gflops": 1.5, "cost/train_clips_per_s": [1.0, 9.0, 3.0], "cost/peak_memory_mb": [7, 9, 8]}
            pd.DataFrame(rows | cost).to_csv(run_dir / "metrics.csv", index=False)
        write_record(run_dir, record)
    return tmp_path / "sweep"


def test_summary_has_a_row_per_job(sweep):
    jobs = read_jobs([sweep])
    assert jobs["decoder_depth"].tolist() == [10, 10, 10, 2, 2, 2]
    assert jobs["seed"].tolist() == [0, 1, 2, 0, 1, 2]
    assert jobs["status"].tolist() == ["finished", "failed", "running", "finished", "finished", "finished"]
    one = jobs.iloc[3]
    assert (one["mAP_best"], one["mAP_last"], one["best_epoch"], one["person_AP_best"]) == (0.2, 0.1, 2, 0.7)
    assert (one["gflops"], one["train_clips_per_s"], one["peak_memory_mb"]) == (1.5, 3, 9)
    assert (one["seconds"], one["attempts"]) == (9, 1)
    assert "experiment" not in jobs


def test_groups_and_keys_are_settings_by_their_last_part_where_it_is_enough(tmp_path):
    """Whether a job has a configuration or was stopped before it; keys without effect are none."""
    settings = [("random", "[0.9,0.98]", "mini", 1), ("none", "[0.8,0.98]", "mini_kf", 2)]
    for number, (pruning, betas, experiment, other) in enumerate(settings):
        overrides = [f"model/pruning={pruning}", f"recipe.optimizer.betas={betas}", f"+experiment={experiment}"]
        overrides += [f"a.x={other}", f"b.x={other}", f"trainer.max_epochs={other}", f"data.num_workers={other}"]
        (tmp_path / str(number)).mkdir()
        write_record(tmp_path / str(number), {"status": "running", "overrides": overrides})
    OmegaConf.save(OmegaConf.from_dotlist([*overrides[3:], overrides[1]]), tmp_path / "1" / CONFIG)
    jobs = read_jobs([tmp_path])
    names = ["pruning", "optimizer.betas", "experiment", "a.x", "b.x", "trainer.max_epochs"]
    assert jobs.columns.tolist()[:9] == ["run", "status", *names, "seed"]
    assert jobs[names].to_numpy().tolist() == [
        ["random", "0.9, 0.98", "mini", 1, 1, 1],
        ["none", "0.8, 0.98", "mini_kf", 2, 2, 2],
    ]


def test_mean_and_deviation_are_over_finished_seeds(sweep):
    table = summarize(read_jobs([sweep]), ["decoder_depth"], ["mAP_best"]).set_index("decoder_depth")
    assert table["runs"].to_dict() == {10: 1, 2: 3}
    assert table["unfinished"].to_dict() == {10: 2, 2: 0}
    assert table["mAP_best_mean"].to_dict() == pytest.approx({10: 0.5, 2: 0.4})
    assert table.loc[2, "mAP_best_std"] == pytest.approx(0.2)
    assert pd.isna(table.loc[10, "mAP_best_std"])


def test_files_of_the_summary(sweep):
    write_summary(sweep)
    page = (sweep / "summary.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page if line.startswith("|")]
    assert rows[0][:3] == ["decoder_depth", "runs", "mAP (best epoch)"]
    assert [row[:3] for row in rows[2:]] == [["2", "3", "0.400 ± 0.200"], ["10", "1", "0.500"]]  # 2 before 10
    assert "- `decoder_depth-10+seed-1`: ValueError: two lines" in page
    assert "- `decoder_depth-10+seed-2`: killed, or still running" in page
    assert pd.read_csv(sweep / "summary.csv")["run"].tolist() == sorted(path.name for path in sweep.glob("*+*"))


def test_sweep_of_seeds_only_is_one_row(sweep):
    jobs = read_jobs([sweep])
    page = markdown("seeds", jobs[jobs["decoder_depth"] == 2])
    assert "| all | 3 | 0.400 ± 0.200 |" in page


def test_sweep_with_unfinished_jobs_ends_with_an_error_that_counts_them(sweep, caplog):
    config = OmegaConf.create({"hydra": {"mode": "MULTIRUN", "sweep": {"dir": str(sweep)}}})
    with pytest.raises(SystemExit, match="2 of 6 jobs"):
        SweepCallback().on_multirun_end(config)
    assert "seed-1: ValueError: two lines" in caplog.text
    for path in sweep.glob(f"*/{RECORD}"):
        write_record(path.parent, read_record(path.parent) | {"status": "finished"})
    SweepCallback().on_multirun_end(config)


def test_other_commands_and_single_runs_get_no_summary(tmp_path):
    config = OmegaConf.create({"hydra": {"mode": "MULTIRUN", "sweep": {"dir": str(tmp_path)}}})
    SweepCallback().on_multirun_end(config)
    config.hydra.mode = "RUN"
    SweepCallback().on_job_end(config, JobReturn())
    assert list(tmp_path.iterdir()) == []


TINY = [
    "callbacks.progress=null",
    "data.train_clips=8",
    "data.val_clips=2",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
]


def start(cwd, *arguments):
    """Start a sweep without waiting for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "evad.train", "--multirun", *TINY, "sweep=trial", *arguments],
        cwd=cwd,
        env=os.environ | {"EVAD_DATA": str(cwd / "data"), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process, condition, seconds=600):
    """Kill a process that gets as far as `condition`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_sweep_goes_on_with_more_values_in_another_order_and_a_failing_one(tmp_path):
    folder = tmp_path / "multirun/trial"

    def job(betas):
        return next(iter(folder.glob(f"*betas-{betas}*")), folder / "none")

    betas = "recipe.optimizer.betas="
    first = start(tmp_path, "logger=csv", f"{betas}[0.9,0.98],[0.8,0.98]")

    def an_epoch_is_kept():
        folder = job("0.8_0.98")
        metrics = folder / "metrics.csv"
        return (folder / "checkpoints/last.ckpt").is_file() and metrics.is_file() and "val/mAP" in metrics.read_text()

    kill_when(first, an_epoch_is_kept)
    assert [read_record(job(name))["status"] for name in ("0.9_0.98", "0.8_0.98")] == ["finished", "running"]
    assert len(read_jobs([folder])) == 2
    before = {path: path.stat().st_mtime_ns for path in job("0.9_0.98").rglob("*.c*") if ".hydra" not in path.parts}
    assert {"metrics.csv", "last.ckpt", "best.ckpt"} <= {path.name for path in before}

    second = start(tmp_path, f"{betas}[2.0,0.9],[0.8,0.98],[0.9,0.98]")
    output = second.communicate(timeout=600)[0]
    assert second.returncode == 1, output
    assert "1 of 3 jobs in multirun/trial are not finished" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    jobs = pd.read_csv(folder / "summary.csv").set_index("optimizer.betas")
    assert jobs["status"].to_dict() == {"2.0, 0.9": "failed", "0.8, 0.98": "finished", "0.9, 0.98": "finished"}
    assert jobs["attempts"].to_dict() == {"2.0, 0.9": 1, "0.8, 0.98": 2, "0.9, 0.98": 1}
    assert jobs.loc[["0.8, 0.98", "0.9, 0.98"], "mAP_best"].notna().all()
    assert "Invalid beta parameter" in jobs.loc["2.0, 0.9", "problems"]

    metrics = read_metrics(job("0.8_0.98"))  # every epoch and step once, though the kill was between two
    assert metrics.dropna(subset=["val/mAP"])["epoch"].tolist() == [0, 1]
    assert metrics.dropna(subset=["train/loss"])["step"].tolist() == [0, 1, 2, 3]
    for name in ("2.0_0.9", "0.8_0.98"):  # a W&B run of its own
        assert len(list(job(name).glob("wandb/offline-run-*/*.wandb"))) == 1
        assert json.loads((job(name) / RECORD).read_text())["seconds"] > 0
    assert (job("2.0_0.9") / "wandb.id").read_text() != (job("0.8_0.98") / "wandb.id").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1"]),
        ("submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "seed=0,1"]),
        (
            "optuna_sweeper",
            [
                "hydra/sweeper=optuna",
                "hydra.sweeper.direction=maximize",
                "hydra.sweeper.n_trials=2",
                "hydra.sweeper.n_jobs=1",
                "recipe.base_lr=tag(log, interval(1e-4, 1e-2))",
            ],
        ),
    ],
)
def test_plugins_of_hydra_run_the_jobs(tmp_path, plugin, options):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}", reason="pip install -e .[sweeps]")
    process = start(tmp_path, "logger=csv", "trainer.max_epochs=1", "trainer.limit_train_batches=1", *options)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    jobs = pd.read_csv(tmp_path / "multirun/trial/summary.csv")
    assert jobs["status"].tolist() == ["finished", "finished"]
    assert jobs["run"].nunique() == 2
