"""A CUDA card that is not there: what torch, inductor and Triton ask of a device is answered for a named card.

Tensors of the device are fake ones (shapes, dtypes and strides, no values), so graphs are traced, code is generated and Triton's
kernels are compiled as on that card, and nothing runs: this shows what would be launched, no time and no number. It changes
torch for the whole process, so tests start a process of its own for it, and so does one who types

    python tests/gpu/offline/pretended.py sm_89 flex_memory.py --dtype float32 --width 128

Made for torch 2.13.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

PLACE = Path(__file__).parent
TORCH = "2.13"  # whose inner names this file and `step_code` use


@dataclass(frozen=True)
class Card:
    """What NVIDIA's documents say of a card; bytes."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    shared_memory: int  # that a block of threads can have at most
    threads: int  # of a multiprocessor at a time


CARDS = {
    "sm_89": Card("NVIDIA GeForce RTX 4090", (8, 9), 128, 24 << 30, 101_376, 1536),
    "sm_90": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 80 << 30, 232_448, 2048),
    "sm_100": Card("NVIDIA B200", (10, 0), 148, 180 << 30, 232_448, 2048),
    "sm_120": Card("NVIDIA GeForce RTX 5090", (12, 0), 170, 32 << 30, 101_376, 1536),
}


def missing() -> str:
    """Why no card can be pretended here, one sentence, or ""."""
    if importlib.util.find_spec("triton") is None:
        return "the package `triton` is not installed (pip install --no-deps triton==3.7.1)"
    if shutil.which("g++") is None:
        return "no g++, which builds the pretended device"
    from hdit_cli import runtime

    if not (runtime.version("torch") or "").startswith(TORCH):
        return f"the pretended device is made for torch {TORCH}"
    import torch

    return "this torch is built for CUDA and would look for a real device" if torch.version.cuda else ""


def run(script: str, *words: str, card: str, folder: Path, timeout: float = 600) -> str:
    """What a script of this folder prints in a process of its own, on a pretended card.

    Args:
        folder: where the device's library is built, and code is kept.
    """
    place = {
        "LD_PRELOAD": str(build(folder)),
        "HDIT_PRETENDED_CARD": card,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "PYTHONPATH": os.pathsep.join([str(PLACE), str(PLACE.parents[2]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, str(PLACE / script), *words],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(words)} on {card}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def build(folder: Path) -> Path:
    """The library that answers for the device; torch must find it loaded before itself."""
    library = folder / "guard.so"
    if library.is_file():
        return library
    import torch

    home = Path(torch.__file__).parent
    headers = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", *headers, str(PLACE / "guard.cpp"), "-o", str(library)]
    subprocess.run([*command, *libraries], check=True)
    return library


def pretend() -> Card:
    """Answers for the card that `run` named, from now on in this process; before any import of the package."""
    card = CARDS[os.environ["HDIT_PRETENDED_CARD"]]
    ctypes.CDLL(os.environ["LD_PRELOAD"])
    import torch

    torch.version.cuda = "13.0"
    _answer(torch.cuda, card)
    for name, answer in _ASKED_OF_C.items():
        if not hasattr(torch._C, name):
            setattr(torch._C, name, answer)
    _compile_for(card)
    _usual_attention()
    return card


_ASKED_OF_C = {
    "_cuda_getCurrentRawStream": lambda device: 0,
    "_cuda_getDevice": lambda: 0,
    "_cuda_setDevice": lambda device: None,
    "_cuda_getDeviceCount": lambda: 1,
    "_cuda_exchangeDevice": lambda device: 0,
    "_cuda_maybeExchangeDevice": lambda device: 0,
}


def _answer(cuda, card):
    import torch

    facts = types.SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        multi_processor_count=card.multiprocessors,
        total_memory=card.memory,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=card.threads,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=card.shared_memory,
        shared_memory_per_multiprocessor=card.shared_memory + 1024,
        gcnArchName="",
        L2_cache_size=50 << 20,
        clock_rate=2_000_000,
        memory_clock_rate=10_000_000,
        memory_bus_width=384,
        is_integrated=0,
        uuid="none",
    )
    state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: facts,
        "get_device_capability": lambda device=None: card.capability,
        "get_device_name": lambda device=None: card.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (card.memory, card.memory),
        "max_memory_allocated": lambda device=None: 0,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "empty_cache": lambda: None,
        "get_rng_state": lambda device="cuda": state.clone(),
        "set_rng_state": lambda new, device="cuda": None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    cuda.random.get_rng_state, cuda.random.set_rng_state = answers["get_rng_state"], answers["set_rng_state"]


def _compile_for(card):
    """Tells Triton's driver, which would ask the device."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    known = {
        "max_shared_mem": card.shared_memory,
        "multiprocessor_count": card.multiprocessors,
        "sm_clock_rate": 2_000_000,
        "mem_clock_rate": 10_000_000,
        "mem_bus_width": 384,
        "warpSize": 32,
        "max_num_regs": 65536,
    }
    major, minor = card.capability
    driver = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 10 * major + minor, 32),
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=None: 0,
        get_device_interface=lambda: torch.cuda,
        utils=types.SimpleNamespace(get_device_properties=lambda device: known),
    )
    triton.runtime.driver.set_active(driver)


def _usual_attention():
    """A build of torch for CPUs would spell attention out; a card takes a fused kernel, chosen by whether there is a mask."""
    import torch
    from torch.nn import functional

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if attn_mask is None and q.dtype != torch.float32:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
        if attn_mask is not None:
            keys = attn_mask.shape[-1]
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, float("-inf"))
            attn_mask = functional.pad(attn_mask, (0, -keys % 16))[
                ..., :keys
            ]  # rows that begin at multiples of 16 bytes
            attn_mask = attn_mask.expand(*q.shape[:-1], keys)
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]

    functional.scaled_dot_product_attention = attention


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(run(sys.argv[2], *sys.argv[3:], card=sys.argv[1], folder=Path(scratch), timeout=7200), end="")
