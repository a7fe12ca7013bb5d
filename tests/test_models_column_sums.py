import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion
from torch.utils.flop_counter import FlopCounterMode

from evad.models.attention import received_attention
from evad.models.kernels import column_sums as kernels
from evad.models.kernels.column_sums import (
    attention_with_lse,
    column_sums,
    column_sums_by_rows,
    column_sums_by_triton,
    fused_attention,
)

OPERATOR = torch.ops.evad.column_sums.default
# Clips, heads, M queries, N keys, d channels per head: no multiples of a block, d no power of two or below 16, M above
# and below N.
SIZES = [(2, 3, 33, 131, 64), (1, 2, 131, 33, 24), (1, 1, 1, 1, 16)]
WEIGHTS = {
    "none": lambda batch, rows: None,
    "keyframe": lambda batch, rows: torch.where(torch.arange(rows) < (rows + 2) // 3, 4.0, 1.0).expand(batch, rows),
    "per_clip": lambda batch, rows: torch.randint(0, 5, (batch, rows)).float(),  # with zeros
}


@pytest.fixture(scope="module")
def interpreter():
    """Another process in which Triton kernels are interpreted on the CPU: chosen as Triton is imported, for good."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # the process starts, and keeps this environment
        yield pool


@pytest.fixture(params=["rows", "operator", "operator_without_lse", "triton"])
def version(request):
    """Every version of the sums, as a function of query, key, lse and row_weight."""
    if request.param == "triton":
        pool = request.getfixturevalue("interpreter")
        # Widened exactly: the interpreter multiplies the bits of bfloat16 numbers as integers.
        return lambda q, k, lse, w: pool.submit(column_sums_by_triton, q.float(), k.float(), lse, w).result()
    if request.param == "rows":
        return lambda q, k, lse, w: column_sums_by_rows(q, k, w)
    if request.param == "operator_without_lse":
        return lambda q, k, lse, w: column_sums(q, k, None, w)
    return column_sums


def packed(batch, heads, rows, keys, dim, dtype=torch.float32):
    """Queries, keys and values as a packed projection leaves them, strided; logits of a wide range."""
    qkv = 1.5 * torch.randn(batch, max(rows, keys), 3, heads, dim)
    query, key, value = qkv.to(dtype).permute(2, 0, 3, 1, 4)
    return query[:, :, :rows], key[:, :, :keys], value[:, :, :keys]


def logits_of(query, key):
    return query.double() @ key.double().transpose(2, 3) * query.shape[3] ** -0.5


def expected(query, key, row_weight):
    probability = logits_of(query, key).softmax(3)
    weight = torch.ones(query.shape[0], query.shape[2]) if row_weight is None else row_weight
    return torch.einsum("bhmn,bm->bn", probability, weight.double())


def lse_of(query, key):
    """What a fused attention returns: float32."""
    return logits_of(query, key).logsumexp(3).float()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_version_equals_float64(version, size, dtype, weights):
    torch.manual_seed(0)
    query, key, _ = packed(*size, dtype)
    assert not query.is_contiguous() or size == (1, 1, 1, 1, 16)
    weight = WEIGHTS[weights](size[0], size[2])
    sums = version(query, key, lse_of(query, key), weight)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), expected(query, key, weight), rtol=1e-5, atol=0)


def test_large_logits_neither_overflow_nor_vanish(version):
    torch.manual_seed(0)
    query, key, _ = packed(1, 2, 40, 50, 16)
    query = 40 * query  # logits of several hundred, whose exponential float32 does not hold
    sums = version(query, key, lse_of(query, key), None)
    assert logits_of(query, key).max() > 200
    torch.testing.assert_close(sums.double(), expected(query, key, None), rtol=1e-3, atol=1e-6)


def test_any_strides_are_read(version):
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 16, 40).transpose(2, 3), torch.randn(3, 50, 2, 16).permute(2, 0, 1, 3)
    lse = lse_of(query, key).transpose(1, 2).contiguous().transpose(1, 2)  # as one backend returns it
    weight = torch.rand(40, 2).t()
    sums = version(query, key, lse, weight)
    torch.testing.assert_close(sums.double(), expected(query, key, weight), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("size", "shape"), [((2, 3, 0, 5, 16), (2, 5)), ((2, 3, 5, 0, 16), (2, 0)), ((0, 3, 5, 7, 16), (0, 7))], ids=str
)
def test_nothing_attends_or_is_attended_to(version, size, shape):
    batch, heads, rows, keys, dim = size
    query, key = torch.zeros(batch, heads, rows, dim), torch.zeros(batch, heads, keys, dim)
    sums = version(query, key, torch.zeros(batch, heads, rows), torch.ones(batch, rows))
    assert torch.equal(sums, torch.zeros(shape))


def test_clips_do_not_influence_each_other(version):
    torch.manual_seed(0)
    query, key, _ = packed(3, 2, 40, 50, 16)
    lse, weight = lse_of(query, key), torch.rand(3, 40)
    together = version(query, key, lse, weight)
    alone = [version(query[i : i + 1], key[i : i + 1], lse[i : i + 1], weight[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("lse", [True, False])
def test_float64_stays_float64(lse):
    torch.manual_seed(0)
    query, key, _ = packed(2, 3, 70, 41, 24, torch.float64)
    weight = torch.rand(2, 70, dtype=torch.float64)
    sums = column_sums(query, key, logits_of(query, key).logsumexp(3) if lse else None, weight)
    torch.testing.assert_close(sums, expected(query, key, weight), rtol=1e-13, atol=0)


def test_more_rows_than_a_chunk_holds():
    torch.manual_seed(0)
    query, key, _ = packed(2, 2, 70, 41, 16)
    weight = torch.rand(2, 70)
    sums, _ = received_attention(query, key, row_weight=weight, chunk=32)
    torch.testing.assert_close(sums.double(), expected(query, key, weight), rtol=1e-5, atol=0)


@pytest.mark.parametrize("lse", [True, False])
def test_autocast_rounds_nothing(lse):
    torch.manual_seed(0)
    query, key, _ = packed(2, 2, 70, 41, 16)
    with torch.autocast("cpu", torch.bfloat16):
        sums = column_sums(query, key, lse_of(query, key) if lse else None)
    torch.testing.assert_close(sums.double(), expected(query, key, None), rtol=1e-5, atol=0)


def score(query, key, value, weight):
    attended, lse = attention_with_lse(query, key, value)
    return attended, column_sums(query, key, lse, weight)


def test_no_gradient_flows_through_the_sums():
    torch.manual_seed(0)
    leaves = [x.detach().requires_grad_() for x in packed(2, 2, 70, 41, 16)]
    attended, sums = score(*leaves, torch.rand(2, 70))
    assert not sums.requires_grad
    gradients = torch.autograd.grad(attended.square().sum(), leaves)
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*leaves).square().sum(), leaves)
    assert all(map(torch.equal, gradients, wanted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lse", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_operator_is_well_formed(dtype, lse, weighted):
    query, key, _ = packed(2, 2, 20, 21, 16, dtype)
    torch.library.opcheck(
        OPERATOR, (query, key, lse_of(query, key) if lse else None, torch.rand(2, 20) if weighted else None)
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_program(backend, training):
    torch.manual_seed(0)
    torch.compiler.reset()
    inputs = [x.detach().requires_grad_(training) for x in packed(2, 2, 70, 41, 16)]
    weight = torch.rand(2, 70)
    with torch.set_grad_enabled(training):
        compiled = torch.compile(score, backend=backend, fullgraph=True)(*inputs, weight)
        eager = score(*inputs, weight)
    assert all(map(torch.equal, compiled, eager))
    if training:
        pairs = [torch.autograd.grad(x[0].square().sum(), inputs) for x in (compiled, eager)]
        for ours, theirs in zip(*pairs):
            torch.testing.assert_close(ours, theirs)


def test_exported_program_holds_plain_operations_only():
    torch.manual_seed(0)
    query, key, value = packed(2, 2, 70, 41, 16)

    class Score(torch.nn.Module):
        def forward(self, query, key, value, weight):
            return score(query, key, value, weight)

    weight = torch.rand(2, 70)
    program = torch.export.export(Score(), (query, key, value, weight))
    assert not any("evad" in str(node.target) for node in program.graph.nodes)
    assert all(map(torch.equal, program.module()(query, key, value, weight), score(query, key, value, weight)))


def test_products_are_counted():
    query, key, _ = packed(2, 3, 20, 21, 16)
    with FlopCounterMode(display=False) as counter:
        column_sums(query, key)
    assert counter.get_total_flops() == 2 * (2 * 3 * 20 * 21 * 16)


@pytest.mark.skipif(
    not torch.cuda.is_available() and TorchVersion(torch.__version__) < "2.14",
    reason="fake CUDA tensors of older torch versions need a driver (2.9 does, 2.14 does not)",
)
@pytest.mark.parametrize(
    ("dtype", "dim", "capability", "name"),
    [
        (torch.bfloat16, 64, (9, 0), "flash"),
        (torch.float16, 64, (8, 0), "flash"),
        (torch.float16, 64, (7, 5), "efficient"),
        (torch.bfloat16, 64, (7, 5), None),
        (torch.bfloat16, 12, (9, 0), None),
        (torch.float32, 64, (9, 0), "efficient"),
        (torch.float32, 6, (9, 0), None),
        (torch.float64, 64, (9, 0), None),
    ],
)
def test_gpu_and_type_decide_the_fused_attention(monkeypatch, dtype, dim, capability, name):
    monkeypatch.setattr(kernels, "compute_capability", lambda device: capability)
    with FakeTensorMode():  # shapes and types of a GPU's tensors, without one
        query, key = (torch.empty(2, 3, rows, dim, dtype=dtype, device="cuda") for rows in (45, 40))
        assert fused_attention(query, key) == name
        assert fused_attention(query, torch.empty(2, 3, 0, dim, dtype=dtype, device="cuda")) is None
        attended, lse = attention_with_lse(query.requires_grad_(), key, key)
        assert (attended.shape, attended.dtype, attended.requires_grad) == (query.shape, dtype, True)
        if name is None:
            assert lse is None
        else:
            assert (lse.shape, lse.dtype, lse.requires_grad) == ((2, 3, 45), torch.float32, False)
        assert column_sums(query, key, lse).shape == (2, 40)


def test_cpu_keeps_its_attention():
    query, key, value = packed(2, 2, 20, 21, 16)
    attended, lse = attention_with_lse(query, key, value)
    assert lse is None
    assert torch.equal(attended, F.scaled_dot_product_attention(query, key, value))


def test_rows_where_triton_fails(monkeypatch):
    def fail(*args):
        raise RuntimeError("Failed to find C compiler")

    works = kernels.triton_works.__wrapped__
    inputs = (torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(kernels, "attention_with_lse", lambda q, k, v: (v, torch.zeros(1)))
    monkeypatch.setattr(kernels, "compute_capability", lambda device: (7, 5))
    assert not works(*inputs)  # too old: no warning
    monkeypatch.setattr(kernels, "compute_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert not works(*inputs)  # not installed: no warning
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(kernels, "column_sums_by_triton", fail)
    with pytest.warns(UserWarning, match=r"Failed to find C compiler.*python3-dev"):
        assert not works(*inputs)
    monkeypatch.setattr(kernels, "column_sums_by_triton", lambda q, k, lse: 1.5 * column_sums_by_rows(q, k))
    with pytest.warns(UserWarning, match=r"its sums are off by 5.0e-01"):
        assert not works(*inputs)
    monkeypatch.setattr(kernels, "column_sums_by_triton", lambda q, k, lse: column_sums_by_rows(q, k))
    assert works(*inputs)


def test_importing_the_model_does_not_import_the_kernel():
    code = (
        "import sys, evad.models.kernels.column_sums; sys.exit('evad.models.kernels.column_sums_triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "name", "dim", "precision"),
    [
        (torch.bfloat16, "bf16", 64, "ieee"),
        (torch.bfloat16, "bf16", 128, "ieee"),
        (torch.float16, "fp16", 24, "ieee"),
        (torch.float32, "fp32", 64, "ieee"),
        (torch.float32, "fp32", 64, "tf32"),
    ],
)
def test_kernel_compiles_without_a_gpu(tmp_path, monkeypatch, architecture, dtype, name, dim, precision):
    """The interpreter accepts programs that the compiler refuses."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from evad.models.kernels.column_sums_triton import block_sizes, column_sums_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    blocks = block_sizes(dtype)
    options = {key: blocks.pop(key) for key in ("num_warps", "num_stages")}
    constants = {"DIM": dim, "BLOCK_D": max(triton.next_power_of_2(dim), 16), "PRECISION": precision, **blocks}
    types = {"query": f"*{name}", "key": f"*{name}", "bias": "*fp32", "sums": "*fp32", "scale": "fp32"}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in column_sums_kernel.arg_names
    }
    source = ASTSource(column_sums_kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert compiled.metadata.shared <= 99 * 1024  # what the smallest supported GPUs offer a block
