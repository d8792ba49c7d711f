"""The state of an AdamW in a checkpoint, "<state>/<parameter>" by name, held against the weights that it is of."""

from collections.abc import Mapping

from torch import Tensor

from hdit_cli.errors import CheckpointError

_WHOLE = {"step", "exp_avg", "exp_avg_sq"}
_HINT = "use an older checkpoint"


def moments_of(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, where: str
) -> dict[Tensor, dict[str, Tensor]]:
    """What AdamW keeps of each parameter, on its device; a parameter that never had a gradient is not among them.

    Args:
        where: file of the tensors, for the messages.

    Raises:
        CheckpointError: it is of other parameters, of another shape, or not all that AdamW keeps.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind not in _WHOLE or name not in parameters:
            raise CheckpointError(f"{where} has an unknown tensor {key[:200]}", hint=_HINT)
        shape = () if kind == "step" else parameters[name].shape
        if value.shape != shape:
            raise CheckpointError(
                f"{where}: {key[:200]} has shape {list(value.shape)}, and needs {list(shape)}", hint=_HINT
            )
        found.setdefault(name, {})[kind] = value.to(parameters[name].device)
    for name, state in found.items():
        if lacking := sorted(_WHOLE - state.keys()):
            raise CheckpointError(f"{where} lacks {lacking[0]}/{name[:200]}", hint=_HINT)
    return {parameters[name]: state for name, state in found.items()}
