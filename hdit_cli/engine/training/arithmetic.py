"""By which formulas a run computes: fixed when it begins and kept in its checkpoints, so that it goes on bit by bit anywhere.

1: the clip factor is multiplied into the gradients, an average moves in three passes, noise is drawn image by image.
2: AdamW divides by the clip factor as it reads the gradients, an average moves in one pass, the noise of a batch is one launch
   (`counter.py`). The same mathematics in fewer passes over memory, rounded elsewhere, with other noise.

A checkpoint that says nothing is of 1, as every one from before there was a choice.
"""

import torch

from hdit_cli.engine.run.header import ARITHMETIC

FIRST = 1
FEWER_PASSES = ARITHMETIC


def of_new_run(device: torch.device, *, weights: torch.dtype) -> int:
    """Fewer passes where launches and memory are what a step waits for. Elsewhere a recipe keeps the numbers it always had."""
    return FEWER_PASSES if device.type == "cuda" and weights == torch.float32 else FIRST
