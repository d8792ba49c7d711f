"""Runs the kernel that `noise_code` wrote, by Triton's interpreter on the CPU, and prints how far it is from eager mode.

noise_run.py IMAGES NUMBERS FILE      with TRITON_INTERPRET=1
"""

import importlib.util
import re
import sys
from pathlib import Path

import torch
from torch._inductor.runtime import triton_helpers, triton_heuristics

from hdit_cli import counter

BLOCK = 1024


def kernel_of(file):
    """The one kernel in a file of generated code, without what would tune it on a device."""
    ((name, text),) = re.findall(r"async_compile\.triton\('([^']+)', '''(.*?)'''", file.read_text(), re.DOTALL)
    alone = file.with_name("kernel.py")
    alone.write_text(text)
    triton_helpers.set_driver_to_gpu = lambda: None
    triton_heuristics.pointwise = lambda *args, **kwargs: lambda kernel: kernel
    spec = importlib.util.spec_from_file_location("kernel", alone)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def main(images, numbers, file):
    images, numbers = int(images), int(numbers)
    table = torch.randint(0, 2**32, (images, 4), generator=torch.Generator().manual_seed(0))
    found = torch.empty(images * numbers)
    kernel_of(Path(file))[(-(-found.numel() // BLOCK),)](table, found, found.numel(), BLOCK)
    print(float((found.view(images, numbers) - counter.normals(table, numbers)).abs().max()))


if __name__ == "__main__":
    main(*sys.argv[1:])
