"""Are two folders, two files, two JSON facts the same? Differences count; what is only told does not."""

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CLOCK = re.compile(r"(seconds|hours|time|date|images_per_second|per_second|peak|timed|rate)")
TOLD = {"environment", "memory", "trial", "processor"}  # facts of the machine or of the moment
HASHES = {"sha256", "checkpoint_sha256", "bytes"}  # follow from bytes that are compared themselves
UNREAD = {".lock", "timing.jsonl", "manifest.json"}  # times; hashes of the files beside it
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1", "BOOL": "?"}


@dataclass
class Found:
    """Attributes:
    differences: sentences, the first one found first.
    told: kinds of what is told alone => an example.
    counts: how much was compared, by kind.
    largest: the largest difference of a tensor, and whose it is.
    tensors: the first file that has other tensors, with its first one.
    """

    differences: list[str] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    largest: tuple[float, str] = (0.0, "")
    tensors: str = ""

    def differs(self, text: str) -> None:
        self.differences.append(text[:400])

    def tell(self, kind: str, example: str) -> None:
        self.told.setdefault(kind, example[:300])

    def count(self, kind: str, n: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + n


def folders(before: Path, after: Path, found: Found, *, where: str, but: str = "") -> None:
    """Every file of two folders: logs first, then tensors, pictures and the rest; folders called `but` are left out."""
    names = [
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != but
        }
        for folder in (before, after)
    ]
    if not names[0]:
        found.differs(f"{where}: the tree before has written nothing")
    for name in sorted(names[0] ^ names[1]):
        found.differs(f"{where}/{name}: only {'before' if name in names[0] else 'after'}")
    for name in sorted(names[0] & names[1], key=lambda name: (not name.endswith(".jsonl"), name)):
        if Path(name).name not in UNREAD or where.startswith("data"):
            one_file(before / name, after / name, found, where=f"{where}/{name}")


def one_file(before: Path, after: Path, found: Found, *, where: str) -> None:
    suffix = before.suffix
    if suffix == ".safetensors":
        return tensors(before, after, found, where=where)
    if suffix == ".jsonl":
        return lines(before, after, found, where=where)
    if suffix == ".toml":
        return facts(*(tomllib.loads(path.read_text()) for path in (before, after)), found, where=where, recipe=True)
    found.count("pictures" if suffix in (".png", ".webp", ".jpeg") else "files")
    if before.read_bytes() == after.read_bytes():
        return None
    if suffix == ".json":
        return facts(*(json.loads(path.read_text()) for path in (before, after)), found, where=where)
    if before.name == "README.md":
        return found.tell("a model card has other words", where)
    return found.differs(f"{where}: bytes differ")


def lines(before: Path, after: Path, found: Found, *, where: str) -> None:
    """Logs: every line, to the last digit of each number."""
    old, new = (path.read_text().splitlines() for path in (before, after))
    found.count("lines", len(old))
    if len(old) != len(new):
        found.differs(f"{where}: {len(old)} lines before, {len(new)} after")
    for number, (a, b) in enumerate(zip(old, new, strict=False), 1):
        if a != b:
            facts(json.loads(a), json.loads(b), found, where=f"{where}:{number}", strict=True)


def facts(before, after, found: Found, *, where: str, recipe: bool = False, strict: bool = False) -> None:
    """Plain values. Keys that are new are told, but in a recipe only whole sections may be new, and in logs nothing."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [name for name in before if name not in after]:
            found.differs(f"{where}: {name} is gone, was {json.dumps(before[name], default=str)}")
        for name in [name for name in after if name not in before]:
            new = json.dumps(after[name], default=str)
            section = recipe and isinstance(after[name], dict)
            if strict or (recipe and not section):
                found.differs(f"{where}: {name} = {new} is new")
            elif not section and CLOCK.search(name):
                pass
            else:
                found.tell(f"new {'section' if section else 'fact'} {name}", f"{new} in {where}")
        for name in [name for name in before if name in after]:
            _fact(name, before[name], after[name], found, where=where, strict=strict or recipe)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (a, b) in enumerate(zip(before, after, strict=True)):
            facts(a, b, found, where=f"{where}[{number}]", strict=strict)
    elif type(before) is not type(after) or (before != after and before == before):
        found.differs(f"{where}: {json.dumps(before, default=str)} before, {json.dumps(after, default=str)} after")


def _fact(name: str, before, after, found: Found, *, where: str, strict: bool) -> None:
    if strict and name != "time":
        return facts(before, after, found, where=f"{where} {name}", strict=True)
    if CLOCK.search(name):
        return None
    if name == "recipe" and isinstance(before, dict):
        return facts(before, after, found, where=f"{where} recipe", recipe=True)
    if name in TOLD:
        totals = [part.get("total") if isinstance(part, dict) else None for part in (before, after)]
        if name == "memory" and totals[0] and totals[1] and totals[0] != totals[1]:
            found.tell(f"a dry run tells {totals[1] / totals[0]:.2f} times the memory", where)
        return None
    if name in HASHES and before != after:
        return found.tell(f"{name} of a file whose header or words differ", where)
    return facts(before, after, found, where=f"{where} {name}")


def printed(before: Path, after: Path, found: Found, *, where: str) -> None:
    """What a command has said with --json: one object, or a line each."""
    old, new = (path.read_text() for path in (before, after))
    found.count("answers")
    if old != new:
        facts(_objects(old), _objects(new), found, where=where)


def _objects(text: str) -> list:
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def tensors(before: Path, after: Path, found: Found, *, where: str) -> None:
    """Two safetensors files: tensors name by name, byte by byte, and the header's entries."""
    (old, old_words, old_bytes), (new, new_words, new_bytes) = (_opened(path) for path in (before, after))
    found.count("tensors", len(old))
    for name in sorted(old.keys() ^ new.keys()):
        found.differs(f"{where}: tensor {name} only {'before' if name in old else 'after'}")
    different = [name for name in old if name in new and not _same(old[name], old_bytes, new[name], new_bytes)]
    if different:
        sizes = {name: _distance(old[name], old_bytes, new[name], new_bytes) for name in different}
        worst = max(sizes, key=lambda name: sizes[name])
        found.largest = max(found.largest, (sizes[worst], f"{worst} in {where}"))
        text = f"{where}: {len(different)} of {len(old)} tensors, the first {different[0]}, the most {sizes[worst]:.3g} in {worst}"
        found.differs(text)
        found.tensors = found.tensors or text
    for name in sorted(old_words.keys() | new_words.keys()):
        a, b = old_words.get(name), new_words.get(name)
        if a == b:
            continue
        if a is None or b is None:
            found.differs(f"{where}: header's {name} is {a!r} before, {b!r} after")
        elif name == "hdit.sha256" and old_words.get("hdit.recipe") != new_words.get("hdit.recipe"):
            found.tell("hdit.sha256 of a header that differs as told", where)
        elif name == "hdit.recipe":
            facts(json.loads(a), json.loads(b), found, where=f"{where} {name}", recipe=True)
        elif name in ("hdit.classes", "hdit.data"):
            facts(json.loads(a), json.loads(b), found, where=f"{where} {name}", strict=True)
        else:
            found.differs(f"{where}: header's {name} is {a!r} before, {b!r} after")


def _opened(path: Path) -> tuple[dict, dict[str, str], np.ndarray]:
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        table = json.loads(handle.read(length))
    words = table.pop("__metadata__", {})
    if path.stat().st_size == 8 + length:
        return table, words, np.empty(0, np.uint8)
    return table, words, np.memmap(path, np.uint8, "r", offset=8 + length)


def _same(old: dict, old_bytes: np.ndarray, new: dict, new_bytes: np.ndarray) -> bool:
    if (old["dtype"], old["shape"]) != (new["dtype"], new["shape"]):
        return False
    return np.array_equal(old_bytes[slice(*old["data_offsets"])], new_bytes[slice(*new["data_offsets"])])


def _distance(old: dict, old_bytes: np.ndarray, new: dict, new_bytes: np.ndarray) -> float:
    if (old["dtype"], old["shape"]) != (new["dtype"], new["shape"]):
        return float("inf")
    a, b = _numbers(old, old_bytes), _numbers(new, new_bytes)
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def _numbers(entry: dict, raw: np.ndarray) -> np.ndarray:
    data = np.array(raw[slice(*entry["data_offsets"])])
    if entry["dtype"] == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(DTYPES[entry["dtype"]]).astype(np.float64)
