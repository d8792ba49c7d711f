"""Every backend of neighborhood attention equals the definition, forward and backward."""

import functools
import importlib.util
import itertools
import math
import shutil
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch.fx.experimental.proxy_tensor import make_fx

from hdit_cli.errors import UsageError
from hdit_cli.models.attention import card, dispatch, flex
from hdit_cli.models.attention import natten as natten_backend
from hdit_cli.models.attention.dense import global_attention, window_attention
from hdit_cli.models.attention.dispatch import choose, explain, neighborhood_attention
from hdit_cli.models.attention.request import Request
from hdit_cli.models.attention.strips import attend

SHAPES = [  # height, width, kernel: odd and even kernels, maps no tile divides, smaller than a tile, kernel = map
    (16, 16, 7),
    (9, 13, 5),
    (7, 7, 7),
    (12, 20, 3),
    (12, 20, 6),
    (5, 30, 4),
    (17, 8, 8),
    (3, 3, 1),
    (6, 40, 5),
    (24, 25, 9),
    (2, 2, 2),
]


def tensors(height, width, *, heads=3, d=8, n=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, height, width, heads, d, dtype=dtype, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("backend", "times"), [("strips", 1.0), ("strips", 5.0), ("tiled", 1.0)])
def test_equals_the_definition(shape, backend, times):
    height, width, kernel = shape
    q, *kv, gradient = tensors(height, width)
    qkv = [q * times, *kv]
    results = []
    for name in ("reference", backend):
        leaves = [t.clone().requires_grad_() for t in qkv]
        out = neighborhood_attention(*leaves, kernel=kernel, backend=name)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, gradient)))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("largest", [0.01, 39.0, 41.0, 1e3, 1e5])
def test_strips_of_scores_of_any_size(largest):
    """A softmax of small scores takes no maximum off; float32 must neither overflow nor lose all of a window."""
    q, k, v, _ = tensors(20, 24, dtype=torch.float32)
    q, k = (torch.nn.functional.normalize(t, dim=-1) * largest**0.5 for t in (q, k))
    k[0, 5:12, 5:12] = -q[0, 8, 8]  # a window of nothing but the smallest scores
    k[1, 5:12, 5:12] = q[1, 8, 8]
    exact = neighborhood_attention(*(t.double() for t in (q, k, v)), kernel=7, backend="reference")
    out = neighborhood_attention(q, k, v, kernel=7, backend="strips")
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=max(4e-6, 1e-6 * largest))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_strips_tell_of_what_is_not_finite(bad):
    q, k, v, _ = tensors(20, 24, dtype=torch.float32)
    k = k * 0.1
    k[0, 0, 0, 0, 0] = bad
    out = neighborhood_attention(q * 0.1, k, v, kernel=7, backend="strips")
    expected = neighborhood_attention(q * 0.1, k, v, kernel=7, backend="reference")
    assert expected.isnan().any() and out[expected.isnan()].isnan().all()
    torch.testing.assert_close(out[1], expected[1], rtol=0, atol=4e-6)


def by_mask(q, k, v, *, block_mask, scale):
    """What FlexAttention computes, from its mask of single tokens; it has no backward on a CPU."""
    tokens = torch.arange(q.shape[2])
    mask = block_mask.mask_mod(torch.tensor(0), torch.tensor(0), tokens[:, None], tokens)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shape", [*SHAPES, (33, 40, 7)], ids=str)
def test_flex_equals_the_definition(shape):
    """Its masks and its order of tokens, with the scores by torch's unfused form."""
    from torch.nn.attention.flex_attention import flex_attention

    height, width, kernel = shape
    *qkv, gradient = tensors(height, width)
    results = []
    for option in ({"backend": "reference"}, {"run": by_mask}):
        leaves = [t.clone().requires_grad_() for t in qkv]
        out = (flex.attend if "run" in option else neighborhood_attention)(*leaves, kernel=kernel, **option)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, gradient)))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        out = flex.attend(*qkv, kernel=kernel, run=flex_attention)
    torch.testing.assert_close(out, results[0][0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16, 7), (33, 40, 7), (9, 70, 4)], ids=str)
def test_the_blocks_that_flex_visits_are_those_that_it_must(shape):
    """No block is left out that holds a key of a window, and none is visited in vain."""
    height, width, kernel = shape
    mask = flex.plan(height, width, kernel, torch.device("cpu"))
    tokens = torch.arange(math.prod(flex.tiles(height, width)) * flex.ROWS * flex.COLUMNS)
    pairs = mask.mask_mod(torch.tensor(0), torch.tensor(0), tokens[:, None], tokens)
    needed = rearrange(pairs, "(i q) (j k) -> i j q k", q=128, k=128).flatten(2).any(2)
    visited = mask.to_dense()[0, 0].bool()
    assert torch.equal(visited, needed)


@pytest.mark.slow
def test_flex_is_fused_for_any_number_of_shapes(monkeypatch):
    """Dynamo compiles a function for few shapes, and FlexAttention without a compiler holds the scores of all tokens."""
    import torch.nn.attention.flex_attention as torchs

    unfused = []
    monkeypatch.setattr(torchs, "setup_compilation_env", lambda: unfused.append(1))  # what that way begins with
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    flex.compiled.cache_clear()
    for side, images in itertools.product((8, 9), range(1, 8)):
        q, k, v, _ = tensors(side, side, n=images, heads=1, d=16, dtype=torch.float32)
        with torch.no_grad():
            out = neighborhood_attention(q, k, v, kernel=7, backend="flex")
            expected = neighborhood_attention(q, k, v, kernel=7, backend="reference")
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert not unfused
    flex.compiled.cache_clear()
    torch._dynamo.reset()


def test_flex_never_runs_unfused_and_says_nothing():
    """Where a compiler is off, as by TORCH_COMPILE_DISABLE."""
    q, k, v, _ = tensors(8, 8, n=1, heads=1, d=16, dtype=torch.float32)
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match="without its kernel"):
        neighborhood_attention(q, k, v, kernel=3, backend="flex")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_flex_compiled_on_a_cpu_equals_the_definition():
    q, k, v, _ = tensors(20, 24, d=16, dtype=torch.float32)
    with torch.no_grad():
        out = neighborhood_attention(q, k, v, kernel=7, backend="flex")
        expected = neighborhood_attention(q, k, v, kernel=7, backend="reference")
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("backend", ["strips", "tiled"])
def test_in_lower_precision(backend, dtype, tolerance):
    qkv = [t.to(dtype) for t in tensors(19, 22)[:3]]
    expected = neighborhood_attention(*(t.double() for t in qkv), kernel=7, backend="reference")
    out = neighborhood_attention(*qkv, kernel=7, backend=backend)
    assert out.dtype == dtype
    assert float((out.double() - expected).abs().max()) < tolerance


@pytest.mark.parametrize("backend", ["strips", "tiled"])
def test_gradcheck(backend):
    q, k, v, _ = tensors(5, 9, heads=1, d=2, n=1)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *t: neighborhood_attention(*t, kernel=3, backend=backend), leaves)


def test_backward_is_deterministic():
    *qkv, gradient = tensors(32, 32, dtype=torch.float32)
    found = []
    for _ in range(3):
        leaves = [t.clone().requires_grad_() for t in qkv]
        out = neighborhood_attention(*leaves, kernel=7)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(out, leaves, gradient)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.skipif(importlib.util.find_spec("natten") is None, reason="natten is not installed")
@pytest.mark.parametrize("shape", [(16, 16, 7), (9, 13, 5), (7, 7, 7), (12, 20, 3), (12, 20, 6)], ids=str)
def test_equals_natten_on_a_cpu(shape):
    import natten

    height, width, kernel = shape
    q, k, v, _ = tensors(height, width, dtype=torch.float32)
    expected = natten.na2d(q, k, v, kernel_size=kernel, scale=1.0)
    for backend in ("reference", "strips", "tiled"):
        out = neighborhood_attention(q, k, v, kernel=kernel, backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_cuda(shape):
    height, width, kernel = shape
    *qkv, gradient = (t.cuda() for t in tensors(height, width, d=32, dtype=torch.float32))
    backends = [name for name, reason in explain(Request("cuda", torch.float32, 32, kernel)).items() if not reason]
    results = {}
    for backend in ("reference", *backends):
        leaves = [t.clone().requires_grad_() for t in qkv]
        out = neighborhood_attention(*leaves, kernel=kernel, backend=backend)
        results[backend] = (out.detach(), *torch.autograd.grad(out, leaves, gradient))
    for backend in backends:
        for ours, expected in zip(results[backend], results["reference"], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2)  # TF32 on either side


def test_global_attention_is_a_neighborhood_of_the_whole_map():
    q, k, v, _ = tensors(6, 6)
    expected = neighborhood_attention(q, k, v, kernel=6, backend="reference")
    torch.testing.assert_close(global_attention(q, k, v), expected)


def test_window_attention_by_its_definition():
    """Token pairs attend if they share a window after the roll and did not come together over the image's edge."""
    height, width, window, shift = 8, 12, 4, 2
    q, k, v, _ = tensors(height, width, heads=2, d=4)
    out = window_attention(q, k, v, window=window, shift=shift)
    expected = torch.empty_like(v)
    places = [(y, x) for y in range(height) for x in range(width)]

    def cell(y, x):
        moved = (y + shift) % height, (x + shift) % width
        return moved[0] // window, moved[1] // window, y + shift >= height, x + shift >= width

    for y, x in places:
        keys = [p for p in places if cell(*p) == cell(y, x)]
        ky, kx = torch.tensor(keys).T
        scores = torch.einsum("nad,nkad->nak", q[:, y, x], k[:, ky, kx]).softmax(-1)
        expected[:, y, x] = torch.einsum("nak,nkad->nad", scores, v[:, ky, kx])
    torch.testing.assert_close(out, expected)


def test_the_dispatcher_says_why(monkeypatch):
    request = Request("cpu", torch.float32, 64, 7)
    reasons = explain(request)
    assert choose(request) == "strips"
    assert reasons["strips"] == reasons["tiled"] == ""
    assert "CPU" in explain(Request("cuda", torch.float32, 64, 7))["strips"]
    assert "CUDA" in reasons["natten"]
    assert "reference" in reasons["reference"]
    assert "CUDA" in reasons["flex"]
    for bad, word in (
        (Request("cuda", torch.float64, 64, 7), "float64"),
        (Request("cuda", torch.float32, 24, 7), "24"),
    ):
        assert word in flex.refuse(bad) or "triton" in flex.refuse(bad)
    for reason in natten_backend.refuse(Request("cuda", torch.float64, 64, 7)), natten_backend.unavailable():
        assert reason == "" or reason[0].islower() or reason.startswith(("NATTEN", "`"))


def test_natten_where_the_same_bits_are_asked_for(monkeypatch):
    """Its backward pass raises on Hopper and Blackwell; others have a deterministic one."""
    exact = Request("cuda", torch.bfloat16, 64, 7, deterministic=True)
    monkeypatch.setattr(natten_backend, "unavailable", lambda: "")
    for capability, refused in {(8, 9): False, (9, 0): True, (10, 0): True, (10, 3): True, (12, 0): False}.items():
        monkeypatch.setattr(card, "capability", lambda capability=capability: capability)
        assert ("deterministic" in natten_backend.refuse(exact)) == refused
        assert natten_backend.refuse(replace(exact, gradient=False)) == ""
        assert natten_backend.refuse(replace(exact, deterministic=False)) == ""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    ("dtype", "width", "where"),
    [
        (torch.bfloat16, 32, "4090 5090 A100 H100"),
        (torch.bfloat16, 64, "4090 5090 A100 H100"),
        (torch.bfloat16, 128, "4090 5090 A100 H100"),
        (torch.float16, 256, "A100 H100"),
        (torch.float32, 64, "4090 5090 A100 H100"),
        (torch.float32, 128, "A100 H100"),
        (torch.float32, 256, "A100 H100"),
    ],
    ids=str,
)
def test_flex_is_refused_where_its_kernels_do_not_fit(dtype, width, where, monkeypatch):
    """Shared memory of a block: 99 KB on a 4090 and a 5090, 163 on an A100, 227 on an H100."""
    cards = {
        "4090": ((8, 9), 101_376),
        "A100": ((8, 0), 166_912),
        "H100": ((9, 0), 232_448),
        "5090": ((12, 0), 101_376),
    }
    for name, (capability, size) in cards.items():
        monkeypatch.setattr(card, "capability", lambda capability=capability: capability)
        monkeypatch.setattr(card, "shared_memory", lambda size=size: size)
        for compiling in (False, True):
            reason = flex.refuse(Request("cuda", dtype, width, 7, compiling=compiling))
            assert (name in where.split()) == (reason == ""), (name, reason)
            assert not reason or ("shared memory" in reason and f"{size:,}" in reason)


def test_natten_in_a_graph(monkeypatch):
    """Only where its kernels are operators of torch: else a compiler would look into them."""
    monkeypatch.setattr(natten_backend, "unavailable", lambda: "")
    inside = Request("cuda", torch.bfloat16, 64, 7, compiling=True)
    monkeypatch.setattr(natten_backend, "traceable", lambda: True)
    assert natten_backend.refuse(inside) == ""
    monkeypatch.setattr(natten_backend, "traceable", lambda: False)
    assert "graph" in natten_backend.refuse(inside)
    assert natten_backend.refuse(replace(inside, compiling=False)) == ""


def test_the_backend_of_a_graph(monkeypatch):
    """On a CPU the one in plain torch; an exported graph has nothing else anywhere, a compiled one what the machine has."""
    assert choose(Request("cpu", torch.float32, 64, 7, compiling=True)) == "tiled"
    for device in ("cpu", "cuda"):
        assert choose(Request(device, torch.bfloat16, 64, 7, tracing=True)) == "tiled"
    if importlib.util.find_spec("triton"):
        assert choose(Request("cuda", torch.bfloat16, 64, 7, compiling=True)) == "fused"


def test_a_graph_names_the_backend_that_was_chosen(monkeypatch):
    """What the dispatcher says is what is in it: here an operator of ours, of which the compiler sees the shape alone."""
    chosen = []
    monkeypatch.setattr(dispatch, "choose", lambda request: chosen.append(request) or "fused")
    nodes = []

    def backend(graph, _):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return lambda *inputs: (torch.empty(0),)

    q, k, v, _ = tensors(8, 9, d=16, dtype=torch.float32)
    torch._dynamo.reset()
    torch.compile(functools.partial(neighborhood_attention, kernel=3), backend=backend, fullgraph=True)(q, k, v)
    assert any("hdit.neighborhood_attention" in node for node in nodes)
    assert [(r.compiling, r.tracing, r.gradient, r.dtype) for r in chosen] == [(True, False, False, torch.float32)]
    torch._dynamo.reset()


def test_the_plain_backend_leaves_no_work_to_the_cpu():
    """In a graph for another device nothing is read back, copied there or added up by scattering."""
    q, k, v, gradient = (t.to("meta") for t in tensors(20, 24, d=16, dtype=torch.float32))
    leaves = [t.requires_grad_() for t in (q, k, v)]

    def whole(q, k, v, gradient):
        out = neighborhood_attention(q, k, v, kernel=7, backend="tiled")
        return torch.autograd.grad(out, (q, k, v), gradient)

    graph = make_fx(whole)(*leaves, gradient)
    for node in graph.graph.nodes:
        assert node.op != "get_attr" and "index_put" not in str(node.target) and "item" not in str(node.target)
        value = node.meta.get("val")
        assert not isinstance(value, torch.Tensor) or value.device.type == "meta"


def test_no_backend_is_a_usage_error(monkeypatch):
    from hdit_cli import catalog

    class Never:
        @staticmethod
        def refuse(request):
            return "never"

    monkeypatch.setattr(catalog, "get", lambda kind, name: Never)
    choose.cache_clear()
    with pytest.raises(UsageError, match="no attention backend"):
        choose(Request("cpu", torch.float32, 64, 7))
    choose.cache_clear()


@pytest.mark.parametrize("kernel", [0, 8])
def test_a_kernel_that_does_not_fit(kernel):
    q, k, v, _ = tensors(7, 9)
    with pytest.raises(ValueError, match="does not fit"):
        neighborhood_attention(q, k, v, kernel=kernel)


@pytest.mark.parametrize(("dtype", "height"), [(torch.float32, 21), (torch.bfloat16, 22)])
def test_sampling_first_does_not_spoil_training(dtype, height):
    """The plan is shared by both, and sampling runs in inference mode. Nobody else asks for maps of this height."""
    q, k, v = (torch.randn(1, height, 8, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    with torch.inference_mode():
        attend(q, k, v, kernel=3)
    attend(q, k, v, kernel=3).sum().backward()
    assert q.grad is not None
