"""Batch norms that do not count their batches: nothing hangs on the count, and all that they keep are floats."""

from typing import Any

from torch import nn


def forget_counts(network: nn.Module) -> None:
    """Takes the count off every batch norm; a state dict that has it, as every other program writes it, loads as it is."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
            module.register_load_state_dict_pre_hook(_forget)


def _forget(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.pop(f"{prefix}num_batches_tracked", None)
