"""Our Triton kernels of neighborhood attention: interpreted on a CPU against the definition, compiled offline for cards."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hdit_cli.models.attention import card, fused
from hdit_cli.models.attention.dispatch import choose
from hdit_cli.models.attention.request import Request

with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

BOUND = {"float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}  # of values of size 1


def interpreted(cases):
    """The errors of each case, [result, dq, dk, dv]."""
    script = Path(__file__).parent / "interpreted.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, script, json.dumps(cases)], capture_output=True, text=True, env=environment, check=False
    )
    if "only 0-dimensional arrays can be converted" in ran.stderr:
        pytest.skip("the interpreter of this Triton does not work with this numpy")  # 3.6 with 2.4
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def case(*shape, kernel, **options):
    return {"shape": shape, "kernel": kernel, **options}


QUICK = [  # n, height, width, heads, d
    case(1, 7, 7, 2, 16, kernel=7),
    case(2, 9, 8, 1, 16, kernel=5, layout="fused"),
    case(1, 10, 9, 1, 24, kernel=6, layout="strange"),
    case(1, 8, 22, 1, 16, kernel=7, rows=0),
    case(1, 5, 9, 1, 16, kernel=3, wide=True),
    case(1, 9, 17, 1, 16, kernel=9),  # more than 16 columns of queries see a tile of keys
    case(1, 9, 8, 1, 32, kernel=7, dtype="bfloat16"),
    case(1, 9, 8, 1, 32, kernel=3, dtype="float16"),
    case(1, 8, 22, 1, 16, kernel=7, wrong="queries_seeing"),
    case(1, 8, 8, 1, 16, kernel=7, wrong="is_open"),
]


@pytest.fixture(scope="module")
def quick():
    return interpreted(QUICK)


@with_triton
@pytest.mark.parametrize(
    "number", [i for i, case in enumerate(QUICK) if "wrong" not in case], ids=lambda i: str(QUICK[i])
)
def test_interpreted_kernels_equal_the_definition(quick, number):
    assert max(quick[number]) < BOUND[QUICK[number].get("dtype", "float32")]


@with_triton
def test_a_wrong_edge_would_be_seen(quick):
    out, dq, dk, dv = quick[-2]
    assert max(out, dq) < BOUND["float32"] and min(dk, dv) > 0.02
    assert min(quick[-1][:2]) > 0.02


SLOW = {  # by what they vary
    "maps": [
        case(1, height, kernel + more, 1, 16, kernel=kernel)
        for kernel in range(1, 10)
        for height, more in ((kernel, 0), (kernel + 1, 8), (kernel + 9, 3))
    ],
    "spans": [case(1, side, 13, 1, 16, kernel=13) for side in range(13, 38, 3)],
    "widths": [case(1, 8, 9, 1, d, kernel=7, rows=rows) for d in (16, 40, 64, 72, 128) for rows in (0, 4)],
    "dtypes": [
        case(2, 9, 8, 2, 64, kernel=7, dtype=dtype, layout=layout)
        for dtype in BOUND
        for layout in ("plain", "fused", "strange")
    ],
    "runs": [case(1, 9, 8, 2, 16, kernel=5, run=run) for run in ("graph", "operators", "twice")],
}


@with_triton
@pytest.mark.slow
@pytest.mark.parametrize("what", SLOW)
def test_more_interpreted_kernels(what):
    for case, found in zip(SLOW[what], interpreted(SLOW[what]), strict=True):
        assert max(found) < BOUND[case.get("dtype", "float32")], case


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
def test_the_operators_trace_without_values(dtype):
    """Shapes, dtypes and strides are known without Triton and without a card; views of one tensor come in as they are."""
    with FakeTensorMode():
        qkv = torch.empty(2, 9, 11, 3, 4, 32, dtype=dtype, requires_grad=True)
        q, k, v = qkv.unbind(3)
        out = fused.attend(q, k, v, kernel=5)
        grads = torch.autograd.grad(out.sum(), (q, k, v))  # an expanded gradient
        on_card = fused.attend(*torch.empty(2, 9, 11, 3, 4, 32, dtype=dtype, device="cuda").unbind(3), kernel=5)
    for x in (out, *grads, on_card):
        assert x.shape == q.shape and x.is_contiguous() and x.dtype == dtype
    assert on_card.device.type == "cuda"


def test_autocast_decides_the_dtype():
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        q, k = (torch.empty(1, 8, 8, 1, 64, requires_grad=True) for _ in range(2))
        out = fused.attend(q, k, k.to(torch.bfloat16), kernel=7)
        assert out.dtype == torch.bfloat16
        assert torch.autograd.grad(out.float().sum(), q)[0].dtype == torch.float32


@pytest.fixture
def a_card(monkeypatch):
    """Pretends a card of so much shared memory and such a capability, with Triton."""

    def pretend(shared=101_376, capability=(8, 9)):
        monkeypatch.setattr(card, "shared_memory", lambda: shared)
        monkeypatch.setattr(card, "capability", lambda: capability)
        monkeypatch.setattr(fused, "find_spec", lambda name: name)

    return pretend


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 72, 128])
def test_every_width_fits_the_smallest_card(a_card, dtype, head_dim):
    a_card()
    assert fused.refuse(Request("cuda", dtype, head_dim, 7)) == ""


def test_it_is_preferred_to_flex(a_card, monkeypatch):
    a_card()
    monkeypatch.setattr("hdit_cli.models.attention.natten.refuse", lambda request: "not here")
    assert choose.__wrapped__(Request("cuda", torch.bfloat16, 64, 7)) == "fused"


def test_refusals_are_sentences(a_card, monkeypatch):
    a_card()
    for request, word in (
        (Request("cpu", torch.float32, 64, 7), "CUDA"),
        (Request("cuda", torch.float64, 64, 7), "float64"),
        (Request("cuda", torch.float32, 20, 7), "20"),
        (Request("cuda", torch.float32, 8, 7), "8"),
        (Request("cuda", torch.float32, 256, 7), "256"),
        (Request("cuda", torch.float32, 64, 7, tracing=True), "exported"),
    ):
        assert word in fused.refuse(request)
    a_card(capability=(7, 5))
    assert "7.5" in fused.refuse(Request("cuda", torch.float16, 64, 7))
    a_card(shared=49_152)
    assert "49,152" in fused.refuse(Request("cuda", torch.bfloat16, 128, 7))
    assert fused.refuse(Request("cuda", torch.bfloat16, 64, 7)) == ""
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert "triton" in fused.refuse(Request("cuda", torch.float32, 64, 7))
