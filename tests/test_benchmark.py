"""The efficiency command's options: what is refused, what Hydra turns into numbers, what a killed measurement says."""

import os
import signal
from types import SimpleNamespace

import pytest

from evad import benchmark
from evad.config import load_config


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
    [("modes=[infrence]", "modes infrence is none of inference"), ("precision=64", "precision 64 is neither 32 nor")],
)
def test_unknown_options_are_refused_before_anything_is_measured(option, message, monkeypatch, tmp_path):
    into(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        benchmark.benchmark(load_config([f"benchmark.{option}"]))


@pytest.mark.slow
def test_rows_are_measured_whether_the_precision_is_a_number_or_a_word(monkeypatch, tmp_path, tiny_config):
    into(tmp_path, monkeypatch)
    cfg = tiny_config().copy()
    cfg.benchmark = {**cfg.benchmark, "precision": 32, "sizes": [32], "keep_rates": [1.0], "repeats": 1, "warmup": 0}
    (row,) = benchmark.benchmark(cfg).to_dict("records")
    assert row["latency_ms"] == row["fastest_ms"] > 0
