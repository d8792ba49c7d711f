"""From the tensors and the header of an inference file to a model. What does not fit is told before memory is asked for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hdit_cli.engine.model import Model, build_network, build_task, class_count
from hdit_cli.engine.run import header
from hdit_cli.engine.run.file_kind import not_ours
from hdit_cli.errors import CheckpointError
from hdit_cli.models.codecs.latents import Absent


def check_is_ours(tensors: header.Table, metadata: Mapping[str, str], *, where: str) -> None:
    """Raises CheckpointError where a safetensors file is not an inference file of this project."""
    if metadata.get("hdit.format") == header.CODEC_FORMAT:
        raise CheckpointError(
            f"{where} is a codec, not a model", hint="--codec FILE gives it to a model, `[codec] path` to a recipe"
        )
    if metadata.get("hdit.format") == header.LPIPS_FORMAT:
        raise CheckpointError(
            f"{where} holds weights of LPIPS, not a model",
            hint="task.perceptual of a recipe that trains a codec names it",
        )
    if metadata.get("hdit.format") != header.FORMAT:
        raise not_ours(where, names=tensors, has_config="config" in metadata)


def blank(facts: header.Facts) -> Any:
    """The network that an inference file describes, without memory for its weights."""
    with torch.device("meta"):
        return build_network(facts.recipe, classes=class_count(facts.recipe, classes=facts.classes))


def check_announced(tensors: header.Table, metadata: dict[str, str], *, where: str) -> header.Facts:
    """What a header says, held against itself: the tensors that it announces are those of the network that it describes.

    Raises:
        CheckpointError: they are not, or it cannot be read.
    """
    facts = header.read_facts(metadata, where=where)
    header.check_layers(facts.recipe, tensors, where=where)
    header.check_table({name: tensor.shape for name, tensor in blank(facts).state_dict().items()}, tensors, where=where)
    return facts


def assemble(tensors: dict[str, Tensor], metadata: dict[str, str], *, where: str) -> Model:
    """Builds the model that an inference file describes; all or nothing.

    Raises:
        CheckpointError: facts or tensors do not fit together; the first tensor at fault is named.
    """
    facts = header.read_facts(metadata, where=where)
    recipe, network = facts.recipe, blank(facts)
    check_tensors(network.state_dict(), tensors, where=where)
    network.load_state_dict(tensors, assign=True)
    task = build_task(network, recipe).eval().requires_grad_(False)
    known = {"weights": facts.weights, "step": facts.step, "images_seen": facts.images_seen, "data": facts.data}
    latents = Absent(**facts.codec) if facts.codec else None
    return Model(task, recipe.to_dict(), facts.classes, **known, left_out=recipe.left_out, latents=latents)


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, where: str) -> None:
    """Raises CheckpointError, naming the first difference, unless names and shapes are equal and every value finite."""
    entries = {name: header.Entry(header.NAMES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for name, t in found.items()}
    header.check_table({name: tensor.shape for name, tensor in wanted.items()}, entries, where=where)
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: {name} holds NaN or infinity", hint="use an older checkpoint")
