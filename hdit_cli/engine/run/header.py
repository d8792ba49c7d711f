"""The header of a safetensors file, read with types: a received file may hold anything there.

First the table of tensors and the texts of `__metadata__`, from the bytes alone; then what the texts of an inference file
say. Nothing here is as large as what the header asks for, and nothing that it names is opened.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from hdit_cli import catalog
from hdit_cli.diffusion.bins import BINS
from hdit_cli.engine.run import weights as names
from hdit_cli.engine.run.file_kind import prefix_of
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.recipe import Recipe

FORMAT = "hdit-checkpoint/1"
CODEC_FORMAT = "hdit-codec/1"
LPIPS_FORMAT = "hdit-lpips/1"
LARGEST = 1 << 25  # bytes of a header: half a million names of classes
_MOST_TABLES = 1 << 20  # objects and lists of a JSON text
_DEEPEST = 32  # of them inside each other; a recipe has 5
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can hold it, no file or terminal can
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_LARGEST_COUNT = 10**18

# bytes of a number of each kind; the first four are what weights are made of
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
_BYTES = {**FLOATS, "I64": 8, "U64": 8, "C64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}

ARITHMETIC = 2  # the newest that a run may compute by: `engine/training/arithmetic.py`

_NEWER = "was it written by a newer hdit? Else it is damaged, or no checkpoint: get it again"


class Garbled(ValueError):
    """What is wrong with a header, in words."""


def expect(condition: object, what: str) -> None:
    """Raises Garbled, saying what is wrong, unless the condition holds."""
    if not condition:
        raise Garbled(what)


def is_sha256(value: Any) -> bool:
    """Whether a JSON value is the SHA-256 of a file, in lower-case hexadecimal."""
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number that counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_COUNT


# JSON


def parse_json(text: str | bytes, *, what: str) -> Any:
    """The value of a JSON text of moderate depth without NaN, repeated keys or half characters.

    Args:
        what: its name, for the message.

    Raises:
        Garbled: anything else.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        expect(text.count("{") + text.count("[") <= _MOST_TABLES, f"{what} holds more than a header can")
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_repeats)
    except Garbled as error:
        raise Garbled(f"{what}: {error}" if not str(error).startswith(what) else str(error)) from None
    except RecursionError:
        raise Garbled(f"{what} is nested too deeply") from None
    except (ValueError, OverflowError):
        raise Garbled(f"{what} is not JSON") from None
    expect(not _deeper(value, _DEEPEST), f"{what} is nested too deeply")
    if r"\u" in text or _HALF.search(text):
        expect(
            not _HALF.search(json.dumps(value, ensure_ascii=False)), f"{what} holds half a character (a lone surrogate)"
        )
    return value


def _no_constant(word: str) -> Any:
    raise Garbled(f"{word} is no number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    expect(len(found) == len(pairs), "a key stands there twice")
    return found


def _deeper(value: Any, most: int) -> bool:
    layer: list[Any] = [value]
    for _ in range(most + 1):
        layer = [
            entry
            for held in layer
            for entry in (held.values() if isinstance(held, dict) else held if isinstance(held, list) else ())
            if isinstance(entry, (dict, list))
        ]
    return bool(layer)


# The table of tensors


@dataclass(frozen=True)
class Entry:
    """A tensor as the header announces it: kind of number and shape."""

    dtype: str
    shape: tuple[int, ...]


Table = Mapping[str, Entry]


def read_table(handle: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata that the header of an open safetensors file announces; nothing but the header is read.

    Raises:
        Garbled: it is no such header, or the file does not hold what it announces.
    """
    size = os.fstat(handle.fileno()).st_size
    handle.seek(0)
    first = handle.read(8)
    length = int.from_bytes(first, "little")
    expect(len(first) == 8 and 2 <= length <= size - 8, "it has no header")
    expect(length <= LARGEST, f"its header has {length:,} bytes")
    raw = handle.read(length)
    expect(raw[:1] == b"{", "its header is no table")
    told = parse_json(raw, what="its header")
    metadata = told.pop("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    expect(texts, "its __metadata__ is no table of texts")
    ends = sorted(_end(name, value) for name, value in told.items())
    at = 0
    for start, end in ends:
        expect(start == at, "its tensors do not lie one behind the other")
        at = end
    expect(at <= size - 8 - length, "it ends before its last tensor does")
    expect(at == size - 8 - length, "there is more in it than its tensors")
    return {name: Entry(value["dtype"], tuple(value["shape"])) for name, value in told.items()}, metadata


def _end(name: str, value: Any) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end."""
    expect(isinstance(value, dict), f"what it says of {name} is no table")
    dtype, shape, place = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    expect(isinstance(dtype, str), f"the dtype of {name} is no text")
    expect(isinstance(shape, list) and len(shape) <= 8 and all(map(is_count, shape)), f"the shape of {name} is none")
    expect(isinstance(place, list) and len(place) == 2 and all(map(is_count, place)), f"the place of {name} is none")
    start, end = place
    known = _BYTES.get(dtype)
    expect(
        end >= start and (known is None or end - start == math.prod(shape) * known),
        f"{name} is not as long as its shape",
    )
    return start, end


# What an inference file says of itself


@dataclass(frozen=True)
class Facts:
    """The metadata of an inference file.

    Attributes:
        recipe: without the file of a feature net: what a received file names is not opened (`Recipe.without_files`).
        data: path, fingerprint, class_counts and init, each where it is known.
        weights: "ema", "raw", or "std 0.050".
        score: of `best.safetensors`; None elsewhere.
        codec: what is known of the codec that it needs, see `checkpoint.needs_of`; None for a network of pixels.
    """

    recipe: Recipe
    classes: list[str]
    step: int
    images_seen: int
    data: dict[str, Any]
    weights: str
    version: str
    score: dict[str, Any] | None
    codec: dict[str, Any] | None = None


def read_facts(metadata: Mapping[str, str], *, where: str) -> Facts:
    """What the metadata of an inference file says.

    Raises:
        CheckpointError: a part is missing, or of another type.
    """
    try:
        recipe = _recipe(_json(metadata, "hdit.recipe"))
        classes = _classes(_json(metadata, "hdit.classes"), recipe=recipe)
        return Facts(
            recipe=recipe,
            classes=classes,
            step=_count(metadata, "hdit.step"),
            images_seen=_count(metadata, "hdit.images_seen"),
            data=_data(_json(metadata, "hdit.data"), classes=classes),
            weights=_weights(_text(metadata, "hdit.weights")),
            version=metadata.get("hdit.version", "unknown"),
            score=_score(_json(metadata, "hdit.score")) if "hdit.score" in metadata else None,
            codec=_codec(_json(metadata, "hdit.needs_codec"), recipe=recipe)
            if "hdit.needs_codec" in metadata
            else None,
        )
    except Garbled as error:
        raise CheckpointError(f"the header of {where} cannot be read: {error}", hint=_NEWER) from error


def _text(metadata: Mapping[str, str], key: str) -> str:
    expect(key in metadata, f"it has no {key}")
    return metadata[key]


def _json(metadata: Mapping[str, str], key: str) -> Any:
    return parse_json(_text(metadata, key), what=key)


def _count(metadata: Mapping[str, str], key: str) -> int:
    text = _text(metadata, key)
    expect(_COUNT.fullmatch(text), f"{key} is no count")
    return int(text)


def _recipe(value: Any) -> Recipe:
    expect(isinstance(value, dict), "hdit.recipe is no table")
    try:
        return Recipe.from_dict(value).without_files()
    except UsageError as error:
        lines = [line.strip() for line in error.message.splitlines()]
        first = lines[0] if len(lines) == 1 else f"{lines[1]} (and {len(lines) - 2} more)"
        raise Garbled(f"its recipe is none: {first}"[:300]) from error


def _classes(value: Any, *, recipe: Recipe) -> list[str]:
    expect(isinstance(value, list) and all(isinstance(name, str) for name in value), "hdit.classes is no list of names")
    expect(len(set(value)) == len(value), "hdit.classes names a class twice")
    wanted = recipe.model.classes
    fits = bool(value) if wanted == "data" else len(value) in (0, wanted)
    expect(fits, f"hdit.classes has {len(value)} names, and model.classes is {wanted}")
    return value


def _data(value: Any, *, classes: list[str]) -> dict[str, Any]:
    expect(isinstance(value, dict), "hdit.data is no table")
    for key in ("path", "fingerprint"):
        text = value.get(key, "")
        expect(isinstance(text, str) and len(text) <= 4096 and "\0" not in text, f"{key} of hdit.data is no text")
    counts = value.get("class_counts")
    if counts is not None:
        expect(isinstance(counts, list) and all(map(is_count, counts)), "class_counts of hdit.data are no counts")
        expect(len(counts) == len(classes), f"hdit.data counts {len(counts)} classes, and {len(classes)} are named")
    if "init" in value:
        check_source(value["init"], what="init of hdit.data")
    return value


def check_source(value: Any, *, what: str) -> None:
    """Raises Garbled unless a value is what a run remembers of its beginning: path, SHA-256, weights and step."""
    expect(isinstance(value, dict), f"{what} is no table")
    expect(all(isinstance(value.get(key), str) for key in ("path", "sha256", "weights")), f"{what} names no checkpoint")
    expect(is_count(value.get("step")), f"{what} has no step")


def check_state(value: Any) -> None:
    """Raises Garbled unless a value is the `state.json` of a checkpoint folder, as far as a run goes on from it."""
    expect(isinstance(value, dict) and isinstance(value.get("window"), dict), "it has no window")
    window, data = value["window"], value.get("data")
    expect(is_count(value.get("step")) and is_count(window.get("steps")), "it has no step")
    expect(isinstance(data, str), "it names no data")
    losses, tables = window.get("loss"), window.get("by_sigma", [])
    expect(isinstance(losses, list) and losses and all(map(_is_number, losses)), "it has no loss")
    expect(_is_number(window.get("grad_norm")) and is_count(window.get("skipped", 0)), "it has no gradient norm")
    expect(isinstance(tables, list) and all(map(_is_table, tables)), "its losses by noise level are none")
    for key in ("nonfinite_in_row", "metrics_bytes", "ema_updates"):
        expect(is_count(value.get(key, 0)), f"{key} is no count")
    extra, perceptual = window.get("extra", []), value.get("perceptual", "")
    expect(isinstance(extra, list) and all(map(_is_extra, extra)), "what its task tells is no table")
    expect(not extra or len({tuple(part) for part in extra}) == 1, "what its tasks tell differs")
    expect(isinstance(perceptual, str), "its perceptual loss has no SHA-256")
    arithmetic = value.get("arithmetic", 1)
    known = is_count(arithmetic) and 1 <= arithmetic <= ARITHMETIC
    expect(known, f"it computes by arithmetic {str(arithmetic)[:20]}, which this version does not know")
    scale = value.get("noise_scale") or {"shares": 1, "small": [], "big": 0}
    expect(
        isinstance(scale, dict) and is_count(scale.get("shares")) and _is_number(scale.get("big")),
        "noise_scale is none",
    )
    expect(isinstance(scale.get("small"), list) and all(map(_is_number, scale["small"])), "noise_scale is none")
    sizes, evaluation = value.get("log_bytes", {}), value.get("evaluation")
    expect(isinstance(sizes, dict) and all(map(is_count, sizes.values())), "it has no sizes of logs")
    if evaluation is not None:
        expect(isinstance(evaluation, dict) and is_count(evaluation.get("step")), "its evaluation has no step")
        if evaluation.get("best") is not None:
            _score(evaluation["best"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_extra(value: Any) -> bool:
    """Of each name a sum and a number of steps."""
    pairs = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs)


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(row, list) and len(row) == BINS and all(map(_is_number, row)) for row in value)
    )


def _weights(text: str) -> str:
    try:
        return names.parse(text)
    except UsageError:
        raise Garbled(f"hdit.weights is {text[:60]!r}") from None


def _score(value: Any) -> dict[str, Any]:
    expect(isinstance(value, dict) and isinstance(value.get("metric"), str), "hdit.score names no metric")
    expect(
        _is_number(value.get("value")) and abs(value["value"]) < math.inf and is_count(value.get("step")),
        "hdit.score has no value, or no step",
    )
    return value


def _codec(value: Any, *, recipe: Recipe) -> dict[str, Any]:
    known = {"type", "sha256", "factor", "channels"}
    expect(isinstance(value, dict) and value.keys() - {"vocabulary"} == known, "its codec is no table")
    sha256, vocabulary = value["sha256"], value.get("vocabulary", 0)
    expect(value["type"] in catalog.names("codec"), "its codec is of a kind that this version does not know")
    expect(is_sha256(sha256), "its codec has no SHA-256")
    expect(is_count(value["factor"]) and 1 <= value["factor"] <= 1024, "its codec has no factor")
    expect(
        is_count(value["channels"]) and value["channels"] == recipe.model.channels,
        "its codec has other channels than its network",
    )
    expect(
        ("vocabulary" in value) == (value["type"] == "vq-vae"),
        "its codec has no vocabulary, or one that is not its own",
    )
    seen = getattr(recipe.model, "vocabulary", 0)
    expect(is_count(vocabulary) and vocabulary == seen, "its codec has another vocabulary than its network")
    return value


# What a network needs of it


def check_layers(recipe: Recipe, tensors: Table, *, where: str) -> None:
    """Raises CheckpointError where a recipe asks for more layers than a file can hold: told before they are built."""
    needed = recipe.model.least_tensors()
    if needed > len(tensors):
        raise CheckpointError(
            f"{where} holds {len(tensors):,} tensors, and its recipe asks for a network of {needed:,} or more",
            hint="it does not fit the recipe in its header",
        )


def check_table(wanted: Mapping[str, Iterable[int]], tensors: Table, *, where: str) -> None:
    """Raises CheckpointError, naming the first difference, unless names and shapes are these and all are floating-point.

    Args:
        wanted: shapes by name.
    """
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    misfit, prefix = "it does not fit the recipe in its header", prefix_of(tensors.keys())
    if prefix and missing:
        misfit = f"the names of its tensors all begin with {prefix!r}: `hdit convert {where}` takes that off"
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has an unknown tensor {extra[0][:200]}"
        raise CheckpointError(f"{where} {what}", hint=misfit)
    for name, entry in tensors.items():
        shape = list(wanted[name])
        if list(entry.shape) != shape:
            raise CheckpointError(
                f"{where}: {name} has shape {list(entry.shape)}, the recipe wants {shape}", hint=misfit
            )
    check_floats(tensors, where=where)


def check_floats(tensors: Table, *, where: str) -> None:
    """Raises CheckpointError, naming the tensor, unless all are of a floating-point type of two bytes or more."""
    for name, entry in tensors.items():
        if entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{where}: {name[:200]} is of type {entry.dtype[:20]}, and weights are {', '.join(FLOATS)}",
                hint="it was not written by hdit; get the checkpoint again from where it was trained",
            )
