"""Our Triton kernels of neighborhood attention, compiled for cards that are not there, just as `fused` would launch them.

What a card would have to offer is read from the compiled code: shared memory, registers, what is spilled into memory.
"""

import re
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hdit_cli.models.attention import fused

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

SHARED = {
    80: 166_912,
    86: 101_376,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    120: 101_376,
}  # bytes a block may have (CUDA guide)
KERNELS = ("forward", "backward_queries", "backward_keys")


class Driver:
    """Of a card of that architecture. Triton keeps what it built by the number of the device."""

    def __init__(self, architecture):
        from triton.backends.compiler import GPUTarget

        self.architecture, self.target = architecture, GPUTarget("cuda", architecture, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Calls the operators for a card; returns what was built, {kernel: (shared memory, registers, bytes of stack, PTX)}."""
    from triton.runtime.driver import driver

    from hdit_cli.models.attention import fused_kernels

    if not hasattr(fused_kernels.forward, "warmup"):
        pytest.skip("Triton interprets here (TRITON_INTERPRET)")
    before = driver._active
    built = {}

    class Builder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return partial(self.compiled, grid=grid)

        def compiled(self, *args, **options):
            kernel = getattr(fused_kernels, self.name).warmup(*args, **options)
            (tmp_path / self.name).write_bytes(kernel.asm["cubin"])
            built[self.name] = (kernel.metadata.shared, *resources(tmp_path / self.name), kernel.asm["ptx"])

    def run(architecture, qkv, *, kernel=7):
        driver.set_active(Driver(architecture))
        q, k, v = qkv.unbind(3)
        out, lse = fused.forward(q, k, v, kernel)
        fused.backward(torch.empty_like(out), q, k, v, out, lse, kernel)
        return dict(built)

    shown = SimpleNamespace(
        Map=fused_kernels.Map, Sizes=fused_kernels.Sizes, **{name: Builder(name) for name in KERNELS}
    )
    monkeypatch.setattr(fused, "kernels", lambda: shown)
    yield run
    driver._active = before


def resources(cubin):
    """Registers of a thread, and bytes that it spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    told = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK"))


def projected(n, height, width, heads, d, dtype):
    """q, k and v as the product's projection gives them."""
    return torch.empty(n, height, width, 3, heads, d, dtype=dtype)


def holds(built, architecture, dtype, head_dim):
    assert set(built) == set(KERNELS)
    for shared, registers, stack, _ in built.values():
        told = fused.launches(dtype, head_dim).shared
        assert told <= SHARED[89] and shared <= (
            told if SHARED[architecture] < 2 * SHARED[89] else SHARED[architecture]
        )
        assert stack <= 16, f"{stack} bytes of registers are spilled at {registers} registers"  # four: not in the loop


def test_flowers_on_a_4090(build):
    """Heads of 64 in bfloat16: matrix instructions, 16 bytes a load, and several blocks beside each other on a processor."""
    built = build(89, projected(1, 64, 64, 2, 64, torch.bfloat16))
    holds(built, 89, torch.bfloat16, 64)
    for shared, registers, _, code in built.values():
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in code
        copied = re.findall(r"cp\.async\.(c[ag])\.shared\.global \[[^]]*\], \[[^]]*\], 0x(\w+)", code)
        assert set(copied) - {("ca", "4")} == {("cg", "10")}  # a number for each token beside
        assert not re.search(r"\b(atom|red)\.", code)  # each result has one owner
        assert 2 * (shared + 1024) <= 102_400 and 2 * 128 * registers <= 65_536


HALF = [
    *((architecture, torch.bfloat16, d) for architecture in (80, 89, 90) for d in (32, 64, 128)),
    (89, torch.float16, 64),
    (89, torch.bfloat16, 24),
    (100, torch.bfloat16, 64),
    (120, torch.bfloat16, 128),
]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dtype", "head_dim"), HALF, ids=str)
def test_half_precision_fits(build, architecture, dtype, head_dim):
    built = build(architecture, projected(1, 64, 64, 2, head_dim, dtype))
    holds(built, architecture, dtype, head_dim)
    instruction = {90: "wgmma.mma_async", 100: "tcgen05.mma"}.get(architecture, "mma.sync")
    assert all(instruction in code for *_, code in built.values())


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("architecture", "precision"), [(89, "tf32"), (89, "ieee"), (90, "tf32"), (80, "tf32")])
def test_float32_fits(build, monkeypatch, architecture, precision, head_dim):
    monkeypatch.setattr(fused, "precision", lambda: precision)
    built = build(architecture, projected(1, 64, 64, 2, head_dim, torch.float32))
    holds(built, architecture, torch.float32, head_dim)
    for *_, code in built.values():
        assert (".tf32." in code) == (precision == "tf32")


@pytest.mark.slow
def test_odd_maps_and_long_ones(build):
    """One token, one head; strides and images beyond 2^31 elements."""
    assert len(build(89, projected(1, 1, 1, 1, 64, torch.bfloat16), kernel=1)) == 3
    with torch.device("meta"):
        long = projected(1, 1, 1, 1, 64, torch.bfloat16).expand(3, 2**14, 2**14, 3, 1, 64)
    assert fused._is_wide(long[:, :, :, 0].as_strided((3, 2**14, 2**14, 1, 64), (2**42, 2**18, 192, 64, 1)))
    assert not fused._is_wide(long[:, :, :, 0].as_strided((3, 9, 9, 1, 64), (2**42, 2**18, 192, 64, 1)))
