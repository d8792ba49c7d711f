"""Runs our Triton kernels by Triton's interpreter, on a CPU; a process of its own, as Triton asks when it is imported.

One argument: a list of cases in JSON, each the keywords of `errors`. Prints the list of what that returns.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from hdit_cli.models.attention import fused, fused_kernels, reference

create_dot = interpreter.InterpreterBuilder.create_dot


def dot_of_bfloat16(self, a, b, *others):
    """The interpreter keeps bfloat16 as whole numbers and would multiply those."""

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    return create_dot(self, widened(a), widened(b), *others)


interpreter.InterpreterBuilder.create_dot = dot_of_bfloat16


@triton.jit
def without_edges(first, length, kernel):
    """A wrong `queries_seeing`: no window was moved inward."""
    return tl.maximum(first - kernel + 1 + kernel // 2, 0), tl.minimum(first + 8 + kernel // 2, length)


@triton.jit
def centred(query_y, query_x, key_y, key_x, sizes, KERNEL: tl.constexpr):
    """A wrong `is_open`: windows stay centred and lose what hangs over the edge."""
    y, x = query_y - KERNEL // 2, query_x - KERNEL // 2
    return (key_y >= y) & (key_y < y + KERNEL) & (key_x >= x) & (key_x < x + KERNEL)


WRONG = {"queries_seeing": without_edges, "is_open": centred}


def tensors(n, height, width, heads, d, *, dtype, layout):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    if layout == "fused":  # as the product's projection gives them
        qkv = normal(n, height, width, 3, heads, d)
        return *qkv.unbind(3), normal(n, height, width, heads, d)
    if layout == "strange":  # heads first, a gap behind every row, channels of the gradient apart
        q, k, v = (normal(n, heads, height, width + 3, d)[:, :, :, 1:-2].permute(0, 2, 3, 1, 4) for _ in range(3))
        return q, k, v, normal(n, d, height, width, heads).permute(0, 2, 3, 4, 1)
    return tuple(normal(n, height, width, heads, d) for _ in range(4))


def in_a_graph(q, k, v, *, kernel):
    """As inside a compiled network: products before and after, views of one tensor, one whole graph for each way."""

    def step(q, k, v):
        return fused.attend(q * 2, k * 0.5, v, kernel=kernel) + 0.0

    return torch.compile(step, backend="aot_eager", fullgraph=True)(q, k, v)


def check_operators(q, k, v, *, kernel):
    """torch's own checks of an operator: its schema, that nothing is aliased, its fake, its backward under autograd and tracing."""
    torch.library.opcheck(fused.forward, (q, k, v, kernel))
    with torch.no_grad():
        out, lse = fused.forward(q, k, v, kernel)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(fused.backward, (out, q, k, v, out, lse, kernel), test_utils=tests)
    return fused.attend(q, k, v, kernel=kernel)


def twice(q, k, v, *, kernel):
    """The same bits again."""
    first, second = (fused.attend(q, k, v, kernel=kernel) for _ in range(2))
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(out.square().sum(), (q, k, v))]) for out in (first, second)
    ]
    assert torch.equal(first, second) and torch.equal(*grads)
    return fused.attend(q, k, v, kernel=kernel)


RUNS = {"plain": fused.attend, "graph": in_a_graph, "operators": check_operators, "twice": twice}


def errors(shape, kernel, *, dtype="float32", layout="plain", rows=8, wrong=None, wide=False, run="plain"):
    """The largest difference of the result and of the gradients of q, k and v from the reference in float64.

    Args:
        shape: n, height, width, heads, d.
        rows: of a chunk, 0: as on a GPU. Few and large chunks are interpreted sooner.
        wrong: a function of the kernels to be replaced by a wrong one.
        wide: as if an image reached over 2^31 elements.
        run: one of RUNS.
    """
    kept = fused.LAUNCHES, fused._is_wide, {name: getattr(fused_kernels, name) for name in WRONG}
    if rows:
        fused.LAUNCHES = dict.fromkeys(fused.LAUNCHES, fused.Launches(*[fused.Launch(rows, 4)] * 3, 0))
    if wide:
        fused._is_wide = lambda x: True
    if wrong:
        setattr(fused_kernels, wrong, WRONG[wrong])
    *qkv, gradient = tensors(*shape, dtype=getattr(torch, dtype), layout=layout)
    for x in (
        qkv[0],
        gradient,
    ):  # scores and their gradients are then of size 1, at any width; in place: they may be views
        x.mul_(shape[-1] ** -0.5)
    found = []
    for attend, to in ((RUNS[run], qkv[0].dtype), (reference.attend, torch.float64)):
        leaves = [t.detach().to(to).requires_grad_() for t in qkv]
        out = attend(*leaves, kernel=kernel)
        found.append((out.detach(), *torch.autograd.grad(out, leaves, gradient.to(to))))
    fused.LAUNCHES, fused._is_wide, right = kept
    for name, function in right.items():
        setattr(fused_kernels, name, function)
    assert found[0][0].is_contiguous() and all(x.dtype == qkv[0].dtype for x in found[0])
    return [float((ours.double() - exact).abs().max()) for ours, exact in zip(*found, strict=True)]


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    print(json.dumps([errors(**case) for case in cases]))
