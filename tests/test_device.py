"""Memory: glibc keeps what is freed, the peak is measured, and nothing breaks on other systems."""

import math
import subprocess
import sys

import pytest
import torch

from evad import device

PROGRAM = """
import resource, sys
import torch
from evad.device import keep_freed_memory, release_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(2**24)  # 64 MiB, freed at once
held = resident()
release_freed_memory()
print(held - resident())
"""


@pytest.mark.skipif(device.c_library() is None, reason="the C library is not glibc")
def test_memory_is_kept_until_it_is_given_back():
    def freed(mode):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], check=True, capture_output=True, text=True)
        return float(done.stdout)  # MiB

    assert freed("default") < 32 < 60 < freed("keep")


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(device.sys, "platform", "darwin")
    assert not device.keep_freed_memory()
    device.release_freed_memory()


def test_peak_memory_is_measured_on_other_systems_and_nan_on_windows(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    on_linux = device.peak_memory_mb(cpu)
    monkeypatch.setattr(device, "PROCESS_STATUS", tmp_path / "missing")
    assert device.peak_memory_mb(cpu) == pytest.approx(on_linux, rel=0.5)  # in MiB as well
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it now fails, as on Windows
    assert math.isnan(device.peak_memory_mb(cpu))


def test_package_imports_neither_wandb_nor_modules_that_windows_lacks():
    """Such modules are imported where they are used; what the packages it depends on import is theirs to decide."""
    code = """
import builtins, importlib, pkgutil, sys
import evad

original = builtins.__import__

def guarded(name, globals=None, *rest, **named):
    importer = str((globals or {}).get("__name__"))
    if importer.startswith("evad") and name.partition(".")[0] in ("wandb", "resource", "fcntl", "pwd", "termios"):
        raise RuntimeError(f"{importer} imports {name}")
    return original(name, globals, *rest, **named)

builtins.__import__ = guarded
for module in pkgutil.walk_packages(evad.__path__, "evad."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "evad.training.callbacks" in sys.modules and "evad.models.encoder" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
