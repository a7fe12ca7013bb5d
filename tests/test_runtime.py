"""Freed memory is kept for the next tensors on glibc, and nothing breaks elsewhere."""

import subprocess
import sys

import pytest

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
