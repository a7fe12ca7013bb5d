"""The efficiency command's options: what is refused, what Hydra turns into numbers, what a killed measurement says."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from evad import benchmark
from evad.config import load_config
from evad.runs.build import build_model


def into(folder, monkeypatch):
    """Results go to `folder`, as if Hydra had started the command there."""
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(folder)))
    monkeypatch.setattr(benchmark.HydraConfig, "get", lambda: hydra)


def be_killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_measurement_is_an_error_that_says_which(monkeypatch):
    monkeypatch.setattr(benchmark, "measure", be_killed)
    with pytest.raises(RuntimeError, match="measured training at 448 pixels was killed, most likely"):
        benchmark.in_own_process("", 448, "training")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("benchmark.modes=[infrence]", "modes infrence is none of inference"),
        ("benchmark.precision=64", "precision 64 is only for training: choose one of 32-true, bf16-mixed"),
        ("trainer.precision=bf16-true", "precision bf16-true is only for training"),
    ],
)
def test_unknown_options_are_refused_before_anything_is_measured(option, message, monkeypatch, tmp_path):
    into(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        benchmark.benchmark(load_config([option], "benchmark"))


@pytest.mark.slow
def test_every_mode_is_measured_whether_the_precision_is_a_number_or_a_word(monkeypatch, tmp_path, tiny_config):
    into(tmp_path, monkeypatch)
    cfg = tiny_config(
        "benchmark.keep_rates=[1.0]", "benchmark.repeats=1", "benchmark.warmup=0", command="benchmark"
    ).copy()
    cfg.benchmark = {**cfg.benchmark, "precision": 32, "sizes": [32], "modes": ["inference", "training"]}
    inference, training = benchmark.benchmark(cfg).to_dict("records")
    for row in (inference, training):
        assert row["latency_ms"] == row["fastest_ms"] > 0
        assert row["precision"] == "32-true"
    assert training["gmacs_executed"] > inference["gmacs_executed"]  # every decoder block has its action head
    assert (tmp_path / "fig6.png").is_file()


def test_training_mode_does_an_optimizer_step(tiny_config):
    cfg = tiny_config(command="benchmark")
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benchmark.STEPS["training"](model, cfg)(torch.randn(1, 3, 8, 32, 48), torch.tensor([[32, 48]]))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder", "pyramid", "localization", "classification"}


@pytest.mark.parametrize(
    ("overrides", "size"),
    [(["experiment=custom_mini"], 64), (["experiment=ava_vitb"], 288), (["data.train_transform.short_side=48"], 48)],
)
def test_sizes_are_those_of_the_model_and_own_data_need_not_be_there(overrides, size, monkeypatch, tmp_path):
    into(tmp_path, monkeypatch)
    cfg = load_config([*overrides, "benchmark.time=false", "benchmark.keep_rates=[1.0]"], "benchmark")
    (row,) = benchmark.benchmark(cfg).to_dict("records")
    assert row["size"] == size
