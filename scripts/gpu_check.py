"""Check on a machine with a GPU what tests without one cannot: results, waiting for the host, and times.

    python scripts/gpu_check.py [OUT.json]

Runs from a checkout in about a minute. Prints one JSON object and exits with 1 if a check failed:

- `parity`: the recorded cases of `tests/fixtures/model` on the GPU against the CPU, in float64 and float32.
- `column_sums`: every input type against float64 of the same inputs, and the time of each way to get them.
- `sync`: whether a forward pass makes the host wait for the GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import check_parity  # noqa: E402

from evad.config import load_config  # noqa: E402
from evad.data.clips.collate import PaddingCollate  # noqa: E402
from evad.models.evad import EVAD  # noqa: E402
from evad.models.kernels import column_sums as kernels  # noqa: E402
from evad.models.weights.importers import rename_released_evad  # noqa: E402
from evad.runs.build import build_model  # noqa: E402
from evad.structures import Batch  # noqa: E402

CASES = sorted(path.parent for path in (ROOT / "tests" / "fixtures" / "model").glob("*/case.json"))


def recorded(folder: Path, dtype: torch.dtype) -> tuple[EVAD, Batch]:
    """Model and clips of a recorded case, on the CPU."""
    case = json.loads((folder / "case.json").read_text())
    model = build_model(load_config(check_parity.overrides_of(case))).to(dtype)
    released = {
        name: check_parity.generated_parameter(name, shape, case["seed"]) for name, shape in case["parameters"].items()
    }
    model.load_state_dict(rename_released_evad(released))
    clips = [check_parity.generated_clip(case, i) for i in range(len(case["sizes"]))]
    return model.eval(), PaddingCollate(multiple=32)(clips)


@torch.inference_mode()
def parity(folder: Path, dtype: torch.dtype, device: torch.device) -> dict:
    """Largest difference of any output between the CPU and `device`, and whether the same tokens were kept."""
    model, batch = recorded(folder, dtype)
    outputs = []
    for place in (torch.device("cpu"), device):
        output = model.to(place)(batch.clips.to(place, dtype), batch.sizes.to(place))
        tensors = [*output.person_logits, *output.boxes, *output.action_logits, output.tokens]
        outputs.append(([x.cpu() for x in tensors], [x.cpu() for x in output.kept]))
    (ours, kept), (theirs, others) = outputs
    error = torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs)]).max().item()  # NaN if any is
    same = all(map(torch.equal, kept, others))
    # In float32 a near-tie may keep another token, and everything behind it differs.
    passed = same and error <= 1e-9 if dtype == torch.float64 else not same or error <= 1e-3
    return {"case": folder.name, "dtype": str(dtype), "max_error": error, "kept_equal": same, "passed": passed}


def expected_sums(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """Column sums in float64, one head at a time."""
    total = torch.zeros(query.shape[0], key.shape[2], dtype=torch.float64, device=query.device)
    for head in range(query.shape[1]):
        logits = query[:, head].double() @ key[:, head].double().transpose(1, 2) * query.shape[3] ** -0.5
        total += (logits.softmax(2) * weight.double()[:, :, None]).sum(1)
    return total


def swapped_tokens(ours: Tensor, expected: Tensor, kept: int) -> int:
    """How many of the tokens with the `kept` largest sums differ, over all clips: near-ties."""
    pairs = zip(ours.topk(kept, 1).indices.tolist(), expected.topk(kept, 1).indices.tolist())
    return sum(len(set(a) - set(b)) for a, b in pairs)


@torch.inference_mode()
def sums_check(dtype: torch.dtype, device: torch.device, batch: int, heads: int, tokens: int, tf32: bool) -> dict:
    """Relative error of the column sums and milliseconds of the ways to compute them, d = 64."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, heads, 64, device=device).to(dtype)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    weight = torch.ones(batch, tokens, device=device)
    weight[:, : tokens // 8] = 4
    lse = kernels.attention_with_lse(query, key, value)[1]
    ours = kernels.column_sums(query, key, lse, weight)
    expected = expected_sums(query, key, weight)
    error = ((ours - expected) / expected).abs().max().item()
    ways: dict[str, Callable[[], object]] = {
        "attention": lambda: F.scaled_dot_product_attention(query, key, value),
        "attention_with_lse": lambda: kernels.attention_with_lse(query, key, value),
        "column_sums": lambda: kernels.column_sums(query, key, lse, weight),
        "column_sums_by_rows": lambda: kernels.column_sums_by_rows(query, key, weight),
    }
    return {
        "dtype": str(dtype),
        "tf32": tf32,
        "triton": lse is not None and kernels.triton_works(query.device, query.dtype),
        "max_relative_error": error,
        "swapped_tokens": swapped_tokens(ours, expected, tokens * 7 // 10),
        "ms": {name: milliseconds(function, device) for name, function in ways.items()},
        "passed": error <= (1e-3 if tf32 and dtype == torch.float32 else 1e-5),
    }


def milliseconds(function: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median time of a call, the first two left out."""
    times = []
    for _ in range(repeats + 2):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times[2:])[repeats // 2]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def sync_check(folder: Path, device: torch.device) -> dict:
    """Whether a forward pass runs without the host waiting for the GPU; else the operation that makes it wait."""
    model, batch = recorded(folder, torch.float32)
    model.to(device)
    clips, sizes = batch.clips.to(device, torch.float32), batch.sizes.to(device)
    model(clips, sizes)  # kernels are compiled and tables filled
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(clips, sizes)
    except RuntimeError as error:
        return {"case": folder.name, "error": str(error), "passed": False}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"case": folder.name, "passed": True}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no GPU: this check needs a CUDA device that torch can use")
    device = torch.device("cuda", 0)
    report: dict = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    report["parity"] = [parity(folder, dtype, device) for folder in CASES for dtype in (torch.float64, torch.float32)]
    kinds = [(torch.bfloat16, False), (torch.float16, False), (torch.float32, False), (torch.float32, True)]
    report["column_sums"] = [sums_check(dtype, device, 8, 12, 2592, tf32) for dtype, tf32 in kinds]
    report["sync"] = [sync_check(folder, device) for folder in CASES]
    text = json.dumps(report, indent=2)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
    sys.exit(not all(check["passed"] for part in ("parity", "column_sums", "sync") for check in report[part]))


if __name__ == "__main__":
    main()
