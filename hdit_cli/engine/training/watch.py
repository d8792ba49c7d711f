"""What a run is validated by: the loss of a task with noise, or the reconstructions of an autoencoder."""

from accelerate import Accelerator

from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.training.reconstruct import Reconstructions
from hdit_cli.engine.training.setup import centred
from hdit_cli.engine.training.validate import Validator, open_held_out
from hdit_cli.recipe import Recipe

Watcher = Validator | Reconstructions


def open_watcher(recipe: Recipe, training: ShardReader, *, batch_size: int, accelerator: Accelerator) -> Watcher | None:
    """The validation of a run; None where there is nothing to validate on. See `open_held_out`."""
    held_out = open_held_out(recipe, training)
    if held_out is None:
        return None
    kind = Reconstructions if recipe.model.told == "nothing" else Validator
    return kind(
        recipe, training=centred(recipe, training), held_out=held_out, batch_size=batch_size, accelerator=accelerator
    )
