"""A recipe: one experiment, complete and checked. From TOML to frozen sections, and back without loss."""

import functools
import json
import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

import tomli_w
from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hdit_cli import catalog
from hdit_cli.recipe import diffusion, messages
from hdit_cli.recipe.codec import Codec
from hdit_cli.recipe.codec import kept as kept_codecs
from hdit_cli.recipe.diffusion import Diffusion
from hdit_cli.recipe.lines import KeyPath
from hdit_cli.recipe.network import NetworkSection
from hdit_cli.recipe.network import sections as network_sections
from hdit_cli.recipe.overrides import overridden
from hdit_cli.recipe.section import Section, stop_at
from hdit_cli.recipe.sections import Data, Ema, Eval, Log, Optimizer, Sample, Train, Validation
from hdit_cli.recipe.source import Source, is_of_a_run, locate, read, stand_in
from hdit_cli.recipe.task import AnyTask, Autoencode, Ddpm, Denoise, Tokens

_BAD_IN_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


def plain_name(text: str) -> str:
    """What of a text can name a recipe, and so a run folder; "" where nothing can."""
    return _BAD_IN_NAME.sub("-", text)[:200].strip(". ")


def _file_name(value: str) -> str:
    if _BAD_IN_NAME.search(value) or value.strip(". ") != value:
        text = "names the run folder, so it must be a plain file name"
        raise PydanticCustomError("sentence", "{text}", {"text": text})
    return value


DEFAULT_NETWORK = "hdit"


def _network_type(value: Any) -> Any:
    return value.get("type", DEFAULT_NETWORK) if isinstance(value, dict) else getattr(value, "type", None)


if TYPE_CHECKING:
    AnyNetwork = NetworkSection
else:
    _tagged = (Annotated[section, Tag(name)] for name, section in network_sections().items())
    AnyNetwork = Annotated[functools.reduce(operator.or_, _tagged), Discriminator(_network_type)]


class Recipe(Section):
    """One experiment. Every default is filled in; `to_dict` and `to_toml` write all of it."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_file_name)] = "recipe"
    data: Data = Data()
    model: AnyNetwork
    codec: Codec = Codec()
    task: AnyTask = Denoise()
    diffusion: Diffusion = Diffusion()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    sample: Sample = Sample()
    eval: Eval = Eval()
    validation: Validation = Validation()
    log: Log = Log()
    _left_out: str = PrivateAttr("")

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        if self.optimizer.warmup > self.train.steps:
            text = f"must be at most train.steps {self.train.steps}, is {self.optimizer.warmup}"
            stop_at([(("optimizer", "warmup"), text)])
        if self.data.augment and not self.model.takes_augment:
            stop_at(
                [(("data", "augment"), f"is for a network that is told of it, and {self.model.type} is not; 0 is off")]
            )
        if self.train.shard and self.model.told == "nothing":
            stop_at(
                [
                    (
                        ("train", "shard"),
                        "divides the layers of a network among processes, and an autoencoder is not divided",
                    )
                ]
            )
        if self.model.told == "nothing":
            why = "is for a network of latents or tokens; an autoencoder learns pictures, so leave it out"
            stop_at([(("codec", key), why) for key, value in Codec() if getattr(self.codec, key) != value])
        complete = self.diffusion.resolved(image_size=max(self.model.size))
        sample = self.sample.of_tokens() if self.task.type == "tokens" else self.sample
        stop_at([*self.task.problems(model=self.model, diffusion=complete, sample=sample), *sample.problems()])
        object.__setattr__(self, "sample", sample)
        object.__setattr__(self, "diffusion", complete)  # the last act of construction; frozen from here on
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe from plain values, as `to_dict` gives them (the metadata of a checkpoint).

        Raises:
            UsageError: unknown keys, wrong types, impossible values; all of them, by key.
        """
        return _validated(Source(label="", values=values))

    def to_dict(self) -> dict[str, Any]:
        """All values, resolved, as plain Python: what JSON and TOML hold."""
        return self.model_dump(mode="json")

    @property
    def left_out(self) -> str:
        """The feature net that `without_files` took out; "" where there was none."""
        return self._left_out

    def without_files(self) -> "Recipe":
        """The same recipe with nothing in it that would be opened and might run: what to make of one that was received.

        A feature net stays by its name in the catalog; the file or folder of it goes, and is remembered in `left_out`. The paths
        of a codec and of a perceptual loss go too: a checkpoint tells its codec by a SHA-256, and a run asks for the loss.
        """
        return self.with_codec("")._without_net()._without_perceptual()

    def with_codec(self, path: str) -> "Recipe":
        """The same recipe on the codec at `path`; "" for pixels."""
        return self.model_copy(update={"codec": self.codec.model_copy(update={"path": path})})

    def _without_perceptual(self) -> "Recipe":
        if not getattr(self.task, "perceptual", ""):
            return self
        found = self.model_copy(update={"task": self.task.model_copy(update={"perceptual": ""})})
        found._left_out = self._left_out
        return found

    def _without_net(self) -> "Recipe":
        named = self.eval.features
        kind, _, place = named.partition(":")
        by_name = kind in catalog.names("features") and kind != "exported"
        if by_name and not place:
            return self
        known = kind if by_name else Eval().features
        found = self.model_copy(update={"eval": self.eval.model_copy(update={"features": known})})
        found._left_out = named
        return found

    def to_toml(self) -> str:
        """All values, resolved, as TOML; `load_recipe` of it gives an equal recipe."""
        return tomli_w.dumps(self.to_dict())


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe: defaults < the recipe it extends < its own values < `overrides`.

    A `recipe.toml` that a run wrote may have been received with the run: nothing that it names is opened
    (`Recipe.without_files`). A file of the user's own, and `overrides`, may name anything.

    Args:
        name_or_path: a shipped recipe's name (`shipped()`), or a path; see also `stand_in`.
        overrides: `key=value` each, the value in TOML; bare words are text.

    Raises:
        UsageError: everything that is wrong with it, at once, with file, line and key.
        StorageError: the file may not be read.
    """
    path = locate(stand_in(name_or_path) or name_or_path)
    source = read(path)
    source.values.setdefault("name", plain_name(path.stem) or "recipe")
    source = overridden(source, overrides)
    recipe = _validated(source)
    if is_of_a_run(source.place(("codec", "path"))):  # a run of latents keeps a copy of its codec beside its recipe
        kept = kept_codecs(path.parent)
        recipe = recipe.with_codec(str(kept[0]) if len(kept) == 1 and recipe.codec.path else "")
    if is_of_a_run(source.place(("task", "perceptual"))):
        recipe = recipe._without_perceptual()
    return recipe._without_net() if is_of_a_run(source.place(("eval", "features"))) else recipe


def _validated(source: Source) -> Recipe:
    try:
        return Recipe.model_validate(source.values)
    except ValidationError as error:
        raise messages.refusal(error, source, _key_tree()) from error


def _key_tree() -> messages.KeyTree:
    sections: dict[KeyPath, tuple[str, ...]] = {(): tuple(Recipe.model_fields)}
    for key, info in Recipe.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            sections[(key,)] = tuple(info.annotation.model_fields)
    for tagged, kinds in {
        ("model",): network_sections().values(),
        ("task",): (Denoise, Ddpm, Autoencode, Tokens),
        ("diffusion", "density"): diffusion.Density.__subclasses__(),
    }.items():
        for kind in kinds:
            path = (*tagged, kind.model_fields["type"].default)
            sections[path] = tuple(kind.model_fields)
            for key, info in kind.model_fields.items():  # lists of tables
                for entry in get_args(info.annotation)[:1]:
                    if isinstance(entry, type) and issubclass(entry, Section):
                        sections[*path, key] = tuple(entry.model_fields)
    return messages.KeyTree(sections)


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed between two recipes given as `to_dict`: lines like `train.batch_size: 32 -> 64`."""
    before, after = flat(old), flat(new)
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {before.get(key, 'none')} -> {after.get(key, 'none')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def flat(value: Any, path: str = "") -> dict[str, str]:
    """A recipe given as `to_dict` as dotted keys with their values in JSON; levels by number."""
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, (list, tuple)) and any(isinstance(entry, dict) for entry in value):
        entries = list(enumerate(value))
    else:
        return {path: json.dumps(value, default=str)}  # a foreign TOML may hold a date
    return {key: text for name, entry in entries for key, text in flat(entry, f"{path}.{name}".lstrip(".")).items()}
