"""What a JSON object or the row of a table says of a picture: its class and its caption. Anything else is passed over."""

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from hdit_cli.data.prepare.facts.words import label_text, tidied

LABEL_KEYS = ("cls", "class", "class_name", "label")
CAPTION_KEYS = ("caption", "text", "prompt")

BAD_LABEL = "bad-label"
BAD_CAPTION = "bad-caption"
BAD_JSON = "bad-json"

JSON_BYTES = 1 << 20  # more in one object is no description of a picture
CAPTION_BYTES = 1 << 16

_LABEL_BYTES = 255


class Facts(NamedTuple):
    """None = nothing is said. `notes`: what was said but could not be used."""

    label: str | None = None
    caption: str | None = None
    notes: tuple[str, ...] = ()


def facts_of(told: Mapping[str, Any]) -> Facts:
    """The class under one of LABEL_KEYS and the caption under one of CAPTION_KEYS; the first that is there counts."""
    notes = []
    label = caption = None
    try:
        label = label_name(_first(told, LABEL_KEYS))
    except ValueError:
        notes.append(BAD_LABEL)
    said = _first(told, CAPTION_KEYS)
    if isinstance(said, str):
        caption, whole = caption_text(said)
        notes += [] if whole else [BAD_CAPTION]
    elif said is not None:
        notes.append(BAD_CAPTION)
    return Facts(label, caption, tuple(notes))


def facts_in(raw: bytes) -> Facts:
    """The facts in the bytes of a JSON file; those of others say nothing."""
    if len(raw) > JSON_BYTES:
        return Facts(notes=(BAD_JSON,))
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return Facts(notes=(BAD_JSON,))
    return facts_of(told) if isinstance(told, dict) else Facts()


def label_name(value: Any) -> str | None:
    """The name of a class; None for null and for empty text.

    Raises:
        ValueError: neither a whole number nor a short line of text.
    """
    if value is None:
        return None
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("not a class")
    name = label_text(value)
    if name.isascii() and name.isprintable() and len(name) <= _LABEL_BYTES:
        return name or None
    strange = any(character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cs") for character in name)
    if strange or len(name.encode()) > _LABEL_BYTES:
        raise ValueError("not a class")
    return name or None


def caption_text(said: str) -> tuple[str | None, bool]:
    """A caption that can be written down, None where it is empty, and whether nothing of it was lost."""
    raw = said.encode("utf-8", "replace")
    text = tidied(raw[:CAPTION_BYTES].decode("utf-8", "replace"))
    whole = len(raw) <= CAPTION_BYTES and "\ufffd" not in text and raw.decode() == said
    return text or None, whole


def _first(told: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((told[key] for key in keys if told.get(key) not in (None, "")), None)
