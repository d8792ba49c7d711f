"""What a `samples.json` asks for, checked: it may come from anywhere."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hdit_cli.engine.sampling.classes import Wanted
from hdit_cli.engine.sampling.collect import Order
from hdit_cli.engine.sampling.sample_folder import read_record
from hdit_cli.errors import UsageError
from hdit_cli.precision import WORDS
from hdit_cli.tasks.sampling import Sampling

_LARGEST = {"seed": 2**63 - 1, "n": 100_000_000, "steps": 100_000}  # as on the command line
_LARGEST_SIDE = 65536
_ANY_LARGEST = 1_000_000_000  # of the other numbers


@dataclass(frozen=True)
class Recorded:
    """An order as `samples.json` tells it, with the SHA-256 of the files it depends on."""

    order: Order
    sha256: str
    init_sha256: str = ""
    mask_sha256: str = ""
    device: str = ""  # the kind that they were made on: noise is the same on devices of one kind


def read_order(path: Path) -> Recorded:
    """What a `samples.json` records.

    Raises:
        UsageError: the file is not such a record.
    """
    try:
        record = read_record(path)
        names = ("init_image", "mask", "interpolate", "codec")
        start, mask, ends, codec = (_table(record, name) for name in names)
        order = Order(
            _typed(record, "checkpoint", str),
            _recorded_sampling(_typed(record, "sampling", dict)),
            _typed(record, "n", int),
            _label(record["label"]),
            _typed(record, "weights", str),
            init_image=_typed(start, "path", str) if start else None,
            mask=_typed(mask, "path", str) if mask else None,
            outpaint=_margins(record.get("outpaint", [0, 0, 0, 0])),
            seeds=tuple(_each(ends.get("seeds", []), int)),
            classes=tuple(_each(ends.get("classes", []), str)),
            codec=_typed(codec, "path", str) if codec.get("path") is not None else None,
            codec_sha256=_typed(codec, "sha256", str, default=""),
        )
        device = _typed(_table(record, "environment"), "device", str, default="")
        if order.n is not None and order.n < 1:
            raise ValueError(f"n is {order.n}")
        of_picture, of_mask = (_typed(table, "sha256", str, default="") for table in (start, mask))
        return Recorded(order, _typed(record, "checkpoint_sha256", str), of_picture, of_mask, device)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="give the samples.json of an earlier sampling"
        ) from error
    except KeyError as error:
        raise UsageError(
            f"{path} is not a record of samples: no {error}", hint="give a samples.json that hdit wrote"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not a record of samples: {error}", hint="give a samples.json that hdit wrote"
        ) from error


def _table(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of a record; empty where there is none."""
    value = record.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.100}")
    return value or {}


def _typed(table: Any, name: str, kind: type, *, default: Any = None) -> Any:
    """A value of a record, of the kind that it must have.

    Raises:
        KeyError: there is none, and no default.
        ValueError: it is of another kind.
    """
    value = table[name] if default is None else table.get(name, default)
    numbers = (int, float) if kind is float else kind
    if not isinstance(value, numbers) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r:.100}")
    if kind in (int, float) and not abs(value) <= _LARGEST.get(name, _ANY_LARGEST):  # NaN is in no range
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _each(values: Any, kind: type) -> list[Any]:
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"ends {values!r:.100}")
    return values


def _margins(value: Any) -> tuple[int, int, int, int]:
    sides = _each(value, int)
    if len(sides) != 4 or not all(0 <= side <= _LARGEST_SIDE for side in sides):
        raise ValueError(f"outpaint is {value!r:.100}")
    return sides[0], sides[1], sides[2], sides[3]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _ANY_LARGEST


def _pair(values: dict[str, Any], name: str) -> tuple[Any, Any]:
    pair = values[name]
    if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))):
        raise ValueError(f"{name} is {pair!r:.100}")
    return pair[0], pair[1]


def _recorded_sampling(values: dict[str, Any]) -> Sampling:
    """The sampling of a record; fields that are younger than the record have their defaults."""
    plain = Sampling(precision="fp32")  # as all were made before they said it
    unknown = sorted(set(values) - set(asdict(plain)))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r:.100}")
    known: dict[str, Any] = {}
    for name, default in asdict(plain).items():
        if name in ("cfg_interval", "size"):
            known[name] = _pair(values, name) if values.get(name) is not None else None
        elif name in values and (name == "temperature" or (name == "cfg" and isinstance(values[name], list))):
            known[name] = _pair(values, name)
        elif name in values:
            known[name] = _typed(values, name, type(default))
    found = replace(plain, **known)
    if not (found.steps >= 1 and found.batch_size >= 1 and found.eta >= 0 and found.rho > 0):
        raise ValueError("a setting is out of range")
    if not (min(found.temperature) > 0 and 0 <= found.typical < 1 and found.renoise in ("start", "prev", "rand")):
        raise ValueError("a setting of tokens is out of range")
    if min(found.cfg_ramp) < 0 or found.renoise_steps < -1:
        raise ValueError("a setting is out of range")
    if found.precision not in WORDS:
        raise ValueError(f"precision is {found.precision!r:.40}")
    return found


def _label(told: Any) -> Wanted:
    """What a record says of classes; several as a tuple."""
    if told is None or isinstance(told, str):
        return told
    if not told or not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise ValueError(f"label is {told!r:.100}")
    return tuple(told)
