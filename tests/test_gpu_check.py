"""What scripts/gpu_check.py does on a GPU, on the CPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_a_machine_without_gpu_gets_a_sentence(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU: this check needs a CUDA device"):
        script.main()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_parity_of_a_device_with_itself(script, dtype):
    report = script.parity(script.CASES[0], dtype, CPU)
    assert report["passed"]
    assert report["kept_equal"]
    assert report["max_error"] == 0


def test_parity_notices_another_result(script, monkeypatch):
    model, batch = script.recorded(script.CASES[0], torch.float64)
    forward, calls = model.forward, []

    def drifting(clips, sizes):
        output = forward(clips, sizes)
        output.boxes[0].add_(1e-6 * len(calls))
        calls.append(clips)
        return output

    model.forward = drifting
    monkeypatch.setattr(script, "recorded", lambda folder, dtype: (model, batch))
    report = script.parity(script.CASES[0], torch.float64, CPU)
    assert not report["passed"]
    assert report["max_error"] == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_sums_are_compared_with_float64(script, dtype, monkeypatch):
    assert script.sums_check(dtype, CPU, 2, 2, 50, tf32=False)["passed"]
    sums = script.kernels.column_sums
    monkeypatch.setattr(script.kernels, "column_sums", lambda *args: sums(*args) * 1.0001)
    report = script.sums_check(dtype, CPU, 2, 2, 50, tf32=False)
    assert not report["passed"]
    assert report["max_relative_error"] == pytest.approx(1e-4, rel=1e-2)


def test_swapped_tokens_are_counted_whatever_their_order(script):
    ours = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    theirs = torch.tensor([[3.0, 4.0, 2.0, 1.0], [4.0, 2.0, 3.0, 1.0]])
    assert script.swapped_tokens(ours, theirs, kept=2) == 1
