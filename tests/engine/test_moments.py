"""What AdamW keeps comes back whole or not at all: its step would else end in a traceback, or go on without a word."""

import pytest
import torch
from torch import nn

from hdit_cli.engine.training.moments import moments_of
from hdit_cli.errors import CheckpointError

PARAMETERS = dict(nn.Linear(3, 2).named_parameters())


def kept():
    return {
        "step/weight": torch.tensor(4.0),
        "exp_avg/weight": torch.ones(2, 3),
        "exp_avg_sq/weight": torch.full((2, 3), 2.0),
    }


def test_moments_are_those_of_their_weights():
    found = moments_of(kept(), PARAMETERS, where="optimizer.safetensors")
    assert [*found] == [PARAMETERS["weight"]]  # the other one has had no gradient yet
    assert {name: float(value.max()) for name, value in found[PARAMETERS["weight"]].items()} == {
        "step": 4, "exp_avg": 1, "exp_avg_sq": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *(({f"{kind}/weight": None}, f"lacks {kind}/weight") for kind in ("step", "exp_avg", "exp_avg_sq")),
        ({"other/weight": torch.ones(2, 3)}, "unknown tensor other/weight"),
        ({"exp_avg/absent": torch.ones(2, 3)}, "unknown tensor exp_avg/absent"),
        ({"exp_avg/weight": torch.ones(())}, "has shape"),
        ({"exp_avg_sq/weight": torch.ones(3, 2)}, "has shape"),
        ({"step/weight": torch.ones(2, 3)}, "has shape"),
    ],
)
def test_moments_that_are_not_whole_are_refused(change, told):
    tensors = {name: value for name, value in {**kept(), **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=told):
        moments_of(tensors, PARAMETERS, where="beside-critic.safetensors")
