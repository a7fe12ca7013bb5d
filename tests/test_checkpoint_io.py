"""Weight files are read without running code from them; whatever else is wrong is an error."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evad.models.weights.reading import RefusedWeightsError, read_weights


def tensors() -> dict[str, Tensor]:
    return {"blocks.0.attn.qkv.weight": torch.ones(72, 24), "blocks.0.attn.q_bias": torch.zeros(24)}


def test_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        read_weights(tmp_path)


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, eval])
@pytest.mark.parametrize("bare_pickle", [True, False])
def test_file_that_would_run_code_is_refused_unrun(tmp_path, call, bare_pickle):
    victim = tmp_path / "ran"
    trap = Malicious(call, str(victim) if call is os.mkdir else f"__import__('os').mkdir({str(victim)!r})")
    path = tmp_path / "weights.pth"
    if bare_pickle:
        path.write_bytes(pickle.dumps({"model": trap}, protocol=2))
    else:
        torch.save({"model": tensors(), "args": trap}, path)
    with pytest.raises(
        RefusedWeightsError, match=r"refused: reading it would call \S*(mkdir|eval), but.*nothing was run"
    ):
        read_weights(path)
    assert not victim.exists()
    torch.load(path, weights_only=False) if not bare_pickle else pickle.loads(path.read_bytes())
    assert victim.exists()  # the trap was real


def test_arguments_and_numpy_numbers_beside_the_weights_are_read(tmp_path):
    args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.999), resume=None)
    content = {"model": tensors(), "args": args, "best": np.float64(81.5), "step": np.int64(3), "epoch": 7}
    torch.save(content, tmp_path / "weights.pth")
    file = read_weights(tmp_path / "weights.pth")
    assert file.tensors.keys() == tensors().keys()
    assert file.ignored == ["args", "best", "step", "epoch"]


def test_allowing_plain_classes_ends_with_the_reading(tmp_path):
    torch.save({"model": tensors()}, tmp_path / "weights.pth")
    before = set(torch.serialization.get_safe_globals())
    read_weights(tmp_path / "weights.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_truncated_file_is_an_error(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(tensors(), path)
    else:
        save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="is damaged or no"):
        read_weights(path)


def test_file_without_tensors_is_an_error(tmp_path):
    torch.save({"epoch": 3, "model": {}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_weights(tmp_path / "weights.pth")
