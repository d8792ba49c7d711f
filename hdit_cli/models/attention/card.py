"""What the graphics card allows, as far as backends decide on it."""

import torch


def shared_memory() -> int | None:
    """Bytes of shared memory that a block of threads may ask for on the current CUDA device, or None where there is none."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin


def capability() -> tuple[int, int] | None:
    """Compute capability of the current CUDA device, such as (8, 9), or None where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None
