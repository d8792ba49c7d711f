"""Checkpoints of other programs to ours; and pytorch-fid's weights. What each format means is told beside its network."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hdit_cli import catalog, files
from hdit_cli.engine.model import Model, build_network, build_task, class_count
from hdit_cli.engine.run import header
from hdit_cli.engine.run.assemble import assemble
from hdit_cli.engine.run.checkpoint import metadata_of, save_inference
from hdit_cli.engine.sharing.convert_codec import TITLES as CODECS
from hdit_cli.engine.sharing.foreign import (
    Foreign,
    is_pickled,
    name_of,
    open_foreign,
    read_pickled,
    table_of,
    without_wrappers,
)
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.metrics import fid_inception
from hdit_cli.models.foreign import Described, Format, Misfit, Unknown, Unsupported, format_of
from hdit_cli.models.lpips_names import TITLE as LPIPS
from hdit_cli.recipe import Recipe, plain_name

_LARGEST_NET = 1 << 28  # pytorch-fid's file has 95 MB; a larger one is not read twice


def convert_feature_net(source: Path, *, out: Path) -> bool:
    """Writes pytorch-fid's Inception weights as safetensors; False, and nothing written, where the file is another one.

    Raises:
        CheckpointError: a torch file that cannot be read, or that holds something else under the names of these weights.
    """
    if not source.is_file() or not is_pickled(source) or source.stat().st_size > _LARGEST_NET:
        return False
    stored = read_pickled(source)
    shapes = fid_inception.shapes()
    if not isinstance(stored, dict) or not fid_inception.parameter_names() <= stored.keys():
        return False
    tensors = {name: value for name, value in stored.items() if name in shapes and isinstance(value, Tensor)}
    table = table_of(tensors, where=source)
    weights = {name: table[name] for name in fid_inception.parameter_names() if name in table}
    header.check_table({name: shapes[name] for name in fid_inception.parameter_names()}, weights, where=str(source))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files.make_folder(out.parent)
    files.write_bytes(out, safetensors.torch.save(kept, {fid_inception.SOURCE: files.sha256(source)}))
    return True


def convert(
    source: Path, *, out: Path, config: dict[str, Any] | None, tell: Callable[[str], None] = lambda text: None
) -> Model:
    """Converts a checkpoint of another program and writes it as an inference file in float32.

    What wrappers put before every name ("module.", "_orig_mod.") is taken off, also of a file of ours.

    Args:
        source: a file, or a folder of the diffusers library.
        config: the configuration, instead of the one the file carries.
        tell: called with what was done besides.

    Raises:
        CheckpointError: the file cannot be read, or its tensors do not fit its configuration.
        UsageError: no configuration, or one that asks for what we do not have.
    """
    foreign = without_wrappers(open_foreign(source), tell)
    if foreign.ours is not None:
        model = assemble(foreign.read(), foreign.ours, where=str(source))
    else:
        model = _Conversion(source, foreign, config).model(tell)
    files.make_folder(out.parent)
    save_inference(out, model)
    return model


class _Conversion:
    """One checkpoint of another program on its way.

    Args:
        config: what the user gave; None for what the checkpoint carries.

    Raises:
        CheckpointError: no format knows it.
    """

    def __init__(self, source: Path, foreign: Foreign, config: dict[str, Any] | None) -> None:
        self.source, self.foreign, self.given = source, foreign, config is not None
        self.config = foreign.config if config is None else config
        header.check_floats(foreign.table, where=str(source))
        known = self.config if isinstance(self.config, dict) else None
        found = format_of(foreign.table, known)
        if found is None:
            known_foreign = (catalog.get("foreign", name).TITLE for name in catalog.names("foreign"))
            titles = ", ".join([*known_foreign, CODECS, LPIPS])
            raise CheckpointError(
                f"{source}: its tensors have names that nothing here knows", hint=f"it takes {titles}"
            )
        self.format: Format = found
        if self.config is not None and known is None:
            raise CheckpointError(
                f"the configuration of {source} describes no network: it is no table", hint="--config FILE.json"
            )

    def model(self, tell: Callable[[str], None]) -> Model:
        """The model; what does not fit is told before its weights are read."""
        blank = self._blank()
        described = self._described(blank)
        recipe = self._recipe(described)
        table = {name: _entry(tensor) for name, tensor in self._ours(blank).items()}
        classes = [str(i) for i in range(int(recipe.model.classes))]
        header.check_layers(recipe, table, where=str(self.source))
        with torch.device("meta"):
            network = build_network(recipe, classes=class_count(recipe, classes=classes))
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        header.check_table(shapes, table, where=str(self.source))
        empty = Model(build_task(network, recipe), recipe.to_dict(), classes, weights="ema", step=self.foreign.step)
        floats = {name: tensor.float() for name, tensor in self._ours(self.foreign.read()).items()}
        for note in (*described.notes, *self._remarks(floats)):
            tell(note)
        return assemble(floats, metadata_of(empty), where=str(self.source))

    def _blank(self) -> dict[str, Tensor]:
        """The tensors as they are announced, without memory for their numbers."""
        table = self.foreign.table
        try:
            return {n: torch.empty(e.shape, dtype=header.DTYPES[e.dtype], device="meta") for n, e in table.items()}
        except (RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.source}: a tensor has a shape that cannot be", hint="it is damaged"
            ) from error

    def _ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._asking():
            return self.format.tensors(tensors, self.config)

    def _described(self, tensors: Mapping[str, Tensor]) -> Described:
        with self._asking():
            return self.format.recipe(tensors, self.config)

    def _remarks(self, ours: Mapping[str, Tensor]) -> tuple[str, ...]:
        with self._asking():
            return self.format.remarks(ours, self.config)

    def _recipe(self, described: Described) -> Recipe:
        values = {**described.values, "name": plain_name(name_of(self.source)) or "converted"}
        try:
            return Recipe.from_dict(values)
        except UsageError as error:
            raise self._wrong(f"describes no network: {error.message}", "--config FILE.json") from error

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """What the format raises inside the block becomes the user's error or the file's."""
        try:
            yield
        except Unknown as error:
            raise UsageError(
                f"{self.source} {error}", hint="--config FILE.json, the one it was trained with"
            ) from error
        except Misfit as error:
            raise CheckpointError(
                f"{self.source}: {error}", hint="is the file whole, and is it the right --config?"
            ) from error
        except Unsupported as error:
            raise UsageError(
                f"the configuration of {self.source} has {error}", hint="only networks that hdit has convert"
            ) from error
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise self._wrong(
                f"is not complete: {type(error).__name__} {str(error)[:200]}", "give it with --config"
            ) from error

    def _wrong(self, what: str, hint: str) -> CheckpointError | UsageError:
        kind = UsageError if self.given else CheckpointError
        return kind(f"the configuration of {self.source} {what}", hint=hint)


def _entry(tensor: Tensor) -> header.Entry:
    return header.Entry(header.NAMES[tensor.dtype], tuple(tensor.shape))
