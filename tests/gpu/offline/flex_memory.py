"""Shared memory that FlexAttention's kernels need for this project's masks, by dtype and width of a head, compiled for a card.

    python tests/gpu/offline/pretended.py sm_89 flex_memory.py [--dtype bfloat16] [--width 64]

Prints a line of JSON for each: bytes of the forward kernel and of the backward kernel. Nothing runs, so no card is needed.
"""

import argparse
import importlib.util
import json
import re
import tempfile
from pathlib import Path

import pretended

CARD = pretended.pretend()

import torch  # noqa: E402
import torch._inductor.runtime.triton_heuristics as heuristics  # noqa: E402
import triton  # noqa: E402
from generated import Code, plans_made  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from hdit_cli.models.attention import flex  # noqa: E402


def kernels(code):
    """(name, source) of the Triton kernels that generated code holds."""
    return re.findall(r"async_compile\.triton\('([^']+)', '''(.*?)''', device_str='cuda'\)", code, re.DOTALL)


def shared_memory(source):
    """Bytes that a kernel of FlexAttention's template asks for."""
    found = []

    def template(**kwargs):
        return lambda function: found.append((function, kwargs))

    usual, heuristics.template = heuristics.template, template
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.py"
            file.write_text(source)
            spec = importlib.util.spec_from_file_location("kernel", file)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
            ((function, kwargs),) = found
            built = _compile(function, kwargs)
    finally:
        heuristics.template = usual
    return built.metadata.shared


def _compile(function, kwargs):
    meta = kwargs["triton_meta"]
    constants = dict(meta.get("constants", {}))
    signature = {name: "constexpr" if name in constants else kind for name, kind in meta["signature"].items()}
    attributes = {}
    for each in meta.get("configs", []):
        known = each if isinstance(each, dict) else vars(each)
        attributes |= {place: value for place, value in known.items() if isinstance(place, tuple)}
    options = {"num_warps": kwargs["num_warps"], "num_stages": kwargs["num_stages"]}
    major, minor = CARD.capability
    target = GPUTarget("cuda", 10 * major + minor, 32)
    return triton.compile(ASTSource(function, signature, constants, attributes), target=target, options=options)


def needs(dtype, width, *, side=32):
    """Bytes of the forward and of the backward kernel."""
    code = Code()
    torch._dynamo.reset()
    with FakeTensorMode():
        q, k, v = (
            torch.empty(2, side, side, 2, width, dtype=dtype, device="cuda", requires_grad=True) for _ in range(3)
        )
        plans_made({(side, side, 7)})
        out = torch.compile(flex.attend, backend=code.backend, fullgraph=True, dynamic=False)(q, k, v, kernel=7)
        out.sum().backward()
    found = {}
    for name, text in code.code.items():
        sources = [source for kernel, source in kernels(text) if kernel.startswith("triton_tem_")]
        assert len(sources) == 1, (name, [kernel for kernel, _ in kernels(text)])
        found[name] = shared_memory(sources[0])
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", action="append", default=[])
    parser.add_argument("--width", action="append", type=int, default=[])
    arguments = parser.parse_args()
    for dtype in arguments.dtype or ("bfloat16", "float16", "float32"):
        for width in arguments.width or (16, 32, 64, 128, 256):
            try:
                found = needs(getattr(torch, dtype), width)
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            print(json.dumps({"dtype": dtype, "width": width, **found}), flush=True)


if __name__ == "__main__":
    main()
