"""Hostile checkpoints of many kinds, each given to the commands that take one. Runs by itself:

    python tests/badinput/hostile_checkpoints.py [COUNT]

prints a table by kind, and what went wrong. Wrong is: an exit code that the kind does not allow, more than one sentence, five
seconds, a byte written or a program started anywhere but in the folder that the command was told, a gigabyte of memory.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = int(os.environ.get("HDIT_CHAOS_SEED", "0"))
SECONDS = 5.0
GIGABYTE = 1 << 30
RECIPE = {
    "name": "tiny",
    "model": {
        "size": [16, 16],
        "patch": 2,
        "levels": [
            {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3},
            {"depth": 1, "width": 16, "head_dim": 8, "attention": "global"},
        ],
        "mapping_width": 16,
        "mapping_depth": 1,
        "classes": "data",
    },
    "sample": {"steps": 1},
}
FINE, REFUSED = (0,), (4,)
ANY = (0, 2, 3, 4)  # changed at random: it may still mean something


@dataclass
class Case:
    """One file and the exit codes that are right for it."""

    kind: str
    path: Path
    codes: tuple[int, ...] = REFUSED
    commands: tuple[str, ...] = ("info", "sample", "export", "eval-fid")


class Parts:
    """An inference file taken apart: its header as a dictionary, and the bytes of its tensors."""

    def __init__(self, raw: bytes) -> None:
        length = int.from_bytes(raw[:8], "little")
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        self.data = raw[8 + length :]

    def whole(self, **texts: Any) -> bytes:
        """The file with these texts of its metadata ("recipe" for "hdit.recipe"); a value that is no text is written as JSON."""
        told = {f"hdit.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
        return with_header({**self.header, "__metadata__": {**self.metadata, **told}}, self.data)

    @property
    def metadata(self) -> dict[str, str]:
        return self.header["__metadata__"]

    @property
    def recipe(self) -> dict[str, Any]:
        return json.loads(self.metadata["hdit.recipe"])

    def without(self, key: str) -> bytes:
        told = {name: value for name, value in self.metadata.items() if name != key}
        return with_header({**self.header, "__metadata__": told}, self.data)

    def with_tensor(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
        """The file with another entry for its first tensor."""
        name = next(name for name in self.header if name != "__metadata__")
        return with_header({**self.header, name: change(self.header[name])}, self.data)


def with_header(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def whole_checkpoint() -> bytes:
    """The bytes of a small inference file with two classes."""
    from hdit_cli.engine.model import Model, build_network, build_task
    from hdit_cli.engine.run.checkpoint import metadata_of, serialise
    from hdit_cli.recipe import Recipe

    recipe, torch_seed = Recipe.from_dict(RECIPE), 0
    torch.manual_seed(torch_seed)
    network = build_network(recipe, classes=2)
    data = {"path": "data/none", "fingerprint": "0" * 64, "class_counts": [3, 5]}
    model = Model(build_task(network, recipe), recipe.to_dict(), ["rose", "tulip"], weights="ema", step=3, data=data)
    return serialise(network.state_dict(), metadata_of(model))


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


# The kinds: each yields (bytes, exit codes) or bytes alone

Made = Iterator[bytes | tuple[bytes, tuple[int, ...]]]


def nested_deeply(parts: Parts) -> Made:
    for depth in (40, 900, 5_000, 200_000):
        for opened, closed in (("[", "]"), ('{"a":', "}")):
            deep = opened * depth + "0" + closed * depth
            yield from (parts.whole(**{key: deep}) for key in ("recipe", "classes", "data"))
            yield with_header(b'{"__metadata__":{"format":"pt"},"x":' + deep.encode() + b"}", b"")


def of_other_types(parts: Parts) -> Made:
    for value in (None, True, 3, 2.5, "name", [], {}, [1, 2], [None, "a"], [["a"], ["b"]], {"0": "a"}, ["a", "a"]):
        for key in ("recipe", "classes", "data"):
            fits = key == "data" and isinstance(value, dict)  # what a later version may add is kept
            yield parts.whole(**{key: json.dumps(value)}), FINE if fits else REFUSED
    for key in ("step", "images_seen"):
        for text in ("", "x", "-1", "1.5", "1e5", "９", "9" * 5000, "0x10", "nan", "[3]", " 3", "3\n", "null"):
            yield parts.whole(**{key: text})
    for text in ("", "best", "std", "std x", "std nan", "std 9", "std 0.1\nraw", "nan", "ema\0"):
        yield parts.whole(weights=text)
    for key in (
        "hdit.recipe",
        "hdit.classes",
        "hdit.step",
        "hdit.images_seen",
        "hdit.data",
        "hdit.weights",
        "hdit.format",
    ):
        yield parts.without(key)
    for value in (
        None,
        3,
        [],
        {"metric": 1},
        {"metric": "swd", "value": "low", "step": 3},
        {"metric": "swd", "value": 1e999, "step": 3},
    ):
        yield parts.whole(score=value)


def of_other_data(parts: Parts) -> Made:
    told = json.loads(parts.metadata["hdit.data"])
    for key, values in {
        "path": (None, 3, [], {}, "a\0b", "x" * 10_000),
        "fingerprint": (None, 3, ["0"], {}),
        "init": (None, 3, [], {}, {"path": "x"}, {"path": 1, "sha256": "0", "weights": "ema", "step": 1}),
    }.items():
        yield from (parts.whole(data={**told, key: value}) for value in values)
    for counts in (
        3,
        "many",
        {},
        [1],
        [1, 2, 3],
        [1, -2],
        [1, 2.5],
        [True, 2],
        [None, 1],
        [1, "2"],
        [[1], [2]],
        [1, 10**30],
        [1, float("nan")],
    ):
        yield parts.whole(data={**told, "class_counts": counts})
    yield parts.whole(data={**told, "class_counts": [0, 0]}), FINE
    yield parts.whole(data={**told, "path": "//server/share", "later": {"a": [1]}}), (0, 3)


def half_characters(parts: Parts) -> Made:
    for half in ("\ud800", "a\udfffb", "\udc80\ud800"):
        yield parts.whole(classes=json.dumps(["rose", half]))
        yield parts.whole(data={"path": half})
        yield parts.whole(recipe={**parts.recipe, "name": half})
        yield parts.whole(weights=half)
    yield with_header(b'{"__metadata__":{"a":"\xff\xfe"}}', b"")


def control_characters(parts: Parts) -> Made:
    for odd in ("a\nb", "\r", "\x1b[2J", "\0", "\u2028", "\u202e"):
        yield parts.whole(classes=json.dumps(["rose", odd])), FINE
        if odd < " ":
            yield parts.whole(recipe={**parts.recipe, "name": odd})
        yield parts.whole(version=odd), FINE


def odd_metadata(parts: Parts) -> Made:
    for value in (None, 3, "x", [], [1], True, {"a": 1}, {"a": None}, {"a": ["b"]}, {"hdit.format": {}}, {}):
        yield with_header({**parts.header, "__metadata__": value}, parts.data)
    for text in (
        b"null",
        b"[]",
        b'"x"',
        b"3",
        b"{}",
        b"{",
        b"",
        b" ",
        b"\xef\xbb\xbf{}",
        b"{}" + b"\0" * 6,
        '{"a":1}'.encode("utf-16"),
    ):
        yield with_header(text, b"")


def odd_numbers(parts: Parts) -> Made:
    def with_recipe(section: str, key: str, text: str) -> bytes:
        told = parts.recipe
        told[section][key] = "MARK"
        return parts.whole(recipe=json.dumps(told).replace('"MARK"', text))

    for text in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1",
        "1" + "0" * 400,
        "1" * 6000,
        "null",
        "true",
        '"1"',
        "[1]",
        "{}",
    ):
        for section, key in (
            ("diffusion", "sigma_data"),
            ("train", "steps"),
            ("sample", "steps"),
            ("model", "channels"),
            ("ema", "power"),
        ):
            yield with_recipe(section, key, text), FINE if (key, text) == ("sigma_data", "1") else REFUSED


def twice(parts: Parts) -> Made:
    text = json.dumps(parts.header).encode()
    name = next(name for name in parts.header if name != "__metadata__")
    entry = json.dumps({name: parts.header[name]}).encode()[1:-1]
    yield with_header(text[:-1] + b"," + entry + b"}", parts.data)
    yield with_header(text[:-1] + b',"__metadata__":{"hdit.weights":"raw"}}', parts.data)
    yield with_header(text.replace(b'"__metadata__": {', b'"__metadata__": {"hdit.step":"9",'), parts.data)
    for key in ("recipe", "data"):
        yield parts.whole(**{key: parts.metadata[f"hdit.{key}"][:-1] + ',"name":"a","name":"b","path":"c","path":"d"}'})


def other_dtypes(parts: Parts) -> Made:
    for dtype in ("I32", "U32", "F8_E4M3", "F8_E5M2", "F4", "I4", "F128", "", "f32", "float32", "X" * 10_000):
        yield parts.with_tensor(lambda entry, dtype=dtype: {**entry, "dtype": dtype})
    for dtype, factor in (("I64", 2), ("C64", 2), ("I16", 0.5), ("I8", 0.25), ("U8", 0.25), ("BOOL", 0.25)):
        yield parts.with_tensor(
            lambda entry, dtype=dtype, factor=factor: {
                **entry, "dtype": dtype, "shape": [int(entry["shape"][0] / factor), *entry["shape"][1:]],
            }
        )  # fmt: skip
    for name, entry in list(parts.header.items())[1:7]:
        yield with_header({**parts.header, name: {**entry, "dtype": "I32"}}, parts.data)


def odd_tensors(parts: Parts) -> Made:
    for changed in (
        {"shape": None}, {"shape": [-1]}, {"shape": ["4"]}, {"shape": [1.5]}, {"shape": [10**12]}, {"shape": [1] * 100_000},
        {"shape": [2**62, 2**62]}, {"shape": [0]}, {"shape": [True]}, {"shape": {}}, {"data_offsets": None}, {"data_offsets": [0]},
        {"data_offsets": [8, 0]}, {"data_offsets": [-8, 8]}, {"data_offsets": [0, 10**18]}, {"data_offsets": [0, 2**80]},
        {"data_offsets": ["0", "8"]}, {"dtype": None}, {"dtype": 3}, {"dtype": ["F32"]},
    ):  # fmt: skip
        yield parts.with_tensor(lambda entry, changed=changed: {**entry, **changed})
    yield from (parts.with_tensor(lambda entry, odd=odd: odd) for odd in (None, 3, [], "x", {}))
    names = [name for name in parts.header if name != "__metadata__"]
    yield with_header({name: entry for name, entry in parts.header.items() if name != names[0]}, parts.data)
    yield with_header({**parts.header, names[1]: parts.header[names[0]]}, parts.data)
    yield with_header(
        {**parts.header, "\x1b[31mextra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, parts.data
    )
    yield with_header(parts.header, parts.data + b"more")


def not_finite(parts: Parts) -> Made:
    for text in (b"\xff", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f"):
        spoiled = bytearray(parts.data)
        spoiled[:400] = (text * 400)[:400]
        yield with_header(parts.header, bytes(spoiled))


def cut_short(parts: Parts) -> Made:
    raw = with_header(parts.header, parts.data)
    for size in (0, 1, 7, 8, 9, 100, len(raw) // 2, len(raw) - 1):
        yield raw[:size]
    for length in (0, 1, 2**63, 2**64 - 1, len(raw), len(raw) - 8, 100_000_001, 3):
        yield struct.pack("<Q", length) + raw[8:]


def too_large(parts: Parts) -> Made:
    """Recipes that ask for what no memory holds; the file is small."""
    wide = {"depth": 256, "width": 16384, "d_ff": 131072, "head_dim": 128, "attention": "global"}
    for model in (
        {"levels": [wide]}, {"levels": [wide] * 10, "size": [512, 512], "patch": 1}, {"mapping_width": 16384, "mapping_depth": 64},
        {"classes": 1_000_000}, {"patch": 256, "size": [16384, 16384], "levels": [wide] * 7},
        {"levels": [{**wide, "width": 16, "d_ff": 16, "head_dim": 8}] * 10, "size": [512, 512], "patch": 1},
    ):  # fmt: skip
        told = parts.recipe
        told["model"].update(model)
        yield parts.whole(recipe=told)


def other_files(parts: Parts) -> Made:
    yield from (
        b"\0" * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"<!DOCTYPE html><html></html>",
    )
    yield from (
        b"\x93NUMPY\x01\0",
        b"PK\x03\x04" + b"\0" * 60,
        b"\x89PNG\r\n\x1a\n",
        b"{" * 1000,
        b"\xff" * 5000,
        b"GGUF" + b"\0" * 40,
    )
    zipped = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, zipped)
    yield zipped.getvalue()
    yield pickle.dumps({"a": 1})


def at_random(parts: Parts) -> Made:
    """Single bytes of the header changed, taken out, put in."""
    generator = np.random.default_rng(SEED)
    text = json.dumps(parts.header).encode()
    while True:
        changed = bytearray(text)
        for _ in range(int(generator.integers(1, 5))):
            at, byte = int(generator.integers(len(changed))), int(generator.integers(256))
            changed[at : at + int(generator.integers(0, 2))] = bytes([byte]) * int(generator.integers(0, 3))
        yield with_header(bytes(changed), parts.data), ANY


KINDS: dict[str, Callable[[Parts], Made]] = {
    "nested deeply": nested_deeply, "of other types": of_other_types, "of other data": of_other_data,
    "half characters": half_characters, "control characters": control_characters, "odd metadata": odd_metadata,
    "odd numbers": odd_numbers, "keys twice": twice, "other dtypes": other_dtypes, "odd tensors": odd_tensors,
    "not finite": not_finite, "cut short": cut_short, "too large": too_large, "other files": other_files, "at random": at_random,
}  # fmt: skip


def cases(place: Path, count: int) -> Iterator[Case]:
    """Files of every kind, `count` and some that are no plain files, each written when it is asked for."""
    parts = Parts(whole_checkpoint())
    kinds = {name: make(parts) for name, make in KINDS.items()}
    yield from special(place, parts)
    yield from foreign(place)
    made = 0
    while made < count:
        for kind in list(kinds):
            found = next(kinds[kind], None)
            if found is None:
                del kinds[kind]
                continue
            raw, codes = found if isinstance(found, tuple) else (found, REFUSED)
            path = place / f"{made:04d}.safetensors"
            path.write_bytes(raw)
            more = ("init", "convert") if made % 8 == 0 and codes == REFUSED else ()
            yield Case(kind, path, codes, commands=(*Case.commands, *more))
            path.unlink()
            made += 1


def special(place: Path, parts: Parts) -> Iterator[Case]:
    """Pipes, devices, links, holes; and files that name what would run."""
    fifo, hole = place / "fifo.safetensors", place / "hole.safetensors"
    os.mkfifo(fifo)
    yield Case("no plain file", fifo)
    yield Case("no plain file", fifo, commands=("convert", "init"))
    for name, target in {
        "zero": "/dev/zero",
        "null": "/dev/null",
        "gone": "nowhere",
        "self": "self.safetensors",
    }.items():
        link = place / f"{name}.safetensors"
        link.symlink_to(target)
        yield Case(
            "no plain file",
            link,
            commands=("info", "sample", "export", "convert"),
        )
    with open(hole, "wb") as handle:
        told = {
            "__metadata__": parts.metadata,
            "w": {"dtype": "F32", "shape": [25 * 10**9], "data_offsets": [0, 10**11]},
        }
        handle.write(with_header(told, b""))
        with contextlib.suppress(OSError):  # a file system without holes
            handle.truncate(handle.tell() + 10**11)
            handle.flush()
            yield Case("too large", hole)
    canary = place.parent / "canary"
    (place / "net.pt2").write_bytes(program_with(Payload(canary)))
    (place / "net.pt").write_bytes(pickle.dumps(Payload(canary)))
    for named in ("net.pt2", str(place / "net.pt2"), "inception:net.pt", "dinov2:.", "clip:.", "pytorch-fid:net.pt"):
        told = parts.recipe
        told["eval"]["features"] = named
        path = place / "names.safetensors"
        path.write_bytes(parts.whole(recipe=told, data={"path": "data"}))
        yield Case("names what would run", path, FINE, commands=("info", "sample", "export"))
        yield Case("names what would run", path, (3,), commands=("eval-fid",))


def program_with(payload: Any) -> bytes:
    """An archive of torch.export whose example inputs are a pickle."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pt2"
        net = torch.nn.Sequential(torch.nn.Flatten())
        torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 16, 16, dtype=torch.uint8),)), path)
        pickled = io.BytesIO()
        torch.save(payload, pickled)
        out = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                new.writestr(name, pickled.getvalue() if "sample_inputs" in name else old.read(name))
        return out.getvalue()


def foreign(place: Path) -> Iterator[Case]:
    """Training checkpoints of others, for `hdit convert`."""
    levels = {"depths": [1, 1], "widths": [16, 16], "d_ffs": [48, 48]}
    model = {
        "type": "image_transformer_v2",
        "input_size": [16, 16],
        "patch_size": [2, 2],
        "sigma_min": 0.01,
        "sigma_max": 80.0,
        **levels,
    }
    config = {"model": {**model, "self_attns": [{"type": "global", "d_head": 8}] * 2, "mapping_width": 16}}
    from hdit_cli.engine.model import build_network
    from hdit_cli.models.hdit_names import kdiffusion_recipe
    from hdit_cli.recipe import Recipe

    weights = build_network(Recipe.from_dict(kdiffusion_recipe(config)), classes=0).state_dict()
    name, first = "patch_in.proj.weight", weights["patch_in.proj.weight"]
    good = {"model_ema": weights, "config": config, "step": 3}

    def case(stored: Any, codes: tuple[int, ...] = REFUSED) -> Case:
        path = place / "foreign.pth"
        torch.save(stored, path)
        return Case("foreign", path, codes, commands=("convert",))

    yield case(good, FINE)
    for step in ("x", None, float("nan"), -1, True, 10**30, 2.5, [3], {}, torch.zeros(3)):
        yield case({**good, "step": step})
    nothing, plain = torch.zeros(1), torch.full_like(first, float("nan"))
    odd: list[Any] = [first.to("meta"), first.to_sparse(), torch.quantize_per_tensor(first, 0.1, 0, torch.qint8)]
    odd += [first[:1, :1].expand(first.shape), nothing.expand(10**6, 10**6), first[:-1], plain, 3, "x", None, [first]]
    odd += [first.to(dtype) for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)]
    for tensor in odd:
        yield case({**good, "model_ema": {**weights, name: tensor}})
    wide = {**config, "model": {**config["model"], "widths": [16384] * 2, "d_ffs": [131072] * 2, "depths": [200, 200]}}
    huge = {key: torch.zeros(1).expand(16384, 16384) for key in weights}
    yield case({"model_ema": huge, "config": wide, "step": 3})
    for other in (
        3,
        "x",
        [],
        {},
        {"model": 3},
        {"model": {**model, "widths": "x"}},
        {"model": {**model, "input_size": 10**400}},
        wide,
    ):
        yield case({**good, "config": other})
    yield case({**good, "config": {"model": {**model, "type": "x" * 100_000}}}, (2,))
    for stored in (
        [],
        3,
        None,
        {},
        {"model_ema": 3},
        {"model_ema": {1: first}},
        {"model_ema": weights, "config": config, "x": Payload(place.parent / "canary")},
    ):
        yield case(stored, (2, 4) if stored == {"model_ema": {1: first}} else REFUSED)
    bomb = place / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    yield Case("foreign", bomb, commands=("convert",))


# Running


@dataclass
class Result:
    """What happened to all cases."""

    kinds: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def peak(self) -> int:
        """Bytes that this process had in memory at most."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watch:
    """Notes what this process writes, moves, removes or starts, anywhere but below `allowed`."""

    STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")
    CHANGES = (
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.truncate",
        "shutil.rmtree",
    )

    def __init__(self, *allowed: Path) -> None:
        self.allowed = tuple(os.fspath(path) for path in allowed)
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, words: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = (
            event == "open"
            and isinstance(words[2], int)
            and words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if event in self.STARTS:
            self.seen.append(f"{event} {words[:1]}")
        elif (writes or event in self.CHANGES) and isinstance(words[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(words[0]))
            if not path.startswith(self.allowed) and path != os.devnull:
                self.seen.append(f"{event} {path}")


class TooLong(BaseException):
    """A command took five seconds."""


def run(words: list[str], *, limit: float = SECONDS) -> tuple[int | str, str, float]:
    """Exit code, stderr and seconds of one command in this process."""
    from hdit_cli import cli

    def late(*_: Any) -> None:
        raise TooLong

    said, started = io.StringIO(), time.monotonic()
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    code: int | str = "none"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            cli.main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else str(stop.code)
    except TooLong:
        code = "hangs"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return code, said.getvalue(), time.monotonic() - started


def words_of(command: str, path: Path, out: Path) -> list[str]:
    """A command line that takes a checkpoint."""
    given, where = str(path), str(out / "made")
    return {
        "info": ["info", given],
        "sample": ["sample", given, "-n", "1", "--steps", "1", "--out", where, "--force"],
        "export": ["export", given, "--out", f"{where}.safetensors", "--no-grid", "--force"],
        "eval-fid": [
            "eval-fid",
            given,
            "-n",
            "2",
            "--steps",
            "1",
            "--metrics",
            "fd",
            "--allow-small",
            "--reference",
            str(out / "pictures"),
        ],
        "convert": ["convert", given, "--out", f"{where}.safetensors", "--force"],
        "init": [
            "train",
            "smoke/tiny",
            "--set",
            "model.classes=0",
            "--data",
            str(out / "data"),
            "--run",
            where,
            "--init",
            given,
        ],
    }[command]


def problem_of(code: int | str, text: str, case: Case, command: str) -> str:
    """What is wrong with the end of a command, or ""."""
    allowed = case.codes
    if command == "convert" and case.kind != "foreign":
        allowed = (*allowed, 2)  # one of ours is told so, and what carries no configuration
    if command == "info" and case.kind == "not finite":
        allowed = FINE  # it reads no weights
    if command == "eval-fid" and 0 in allowed:
        allowed = (*allowed, 3)  # there are no Inception weights
    errors = text.count("error: ")
    if code not in allowed:
        return f"exit {code}"
    if "Traceback" in text or "bug" in text or (code != 0 and errors != 1):
        return "not one sentence"
    if code == 4 and ("hint: " not in text or len(text) > 1500 or text.count("\n") > 2):
        return f"not one sentence with a hint ({len(text)} characters)"
    return ""


def prepare_place(root: Path) -> tuple[Path, Path]:
    """A folder for the files and one that commands may write to, with two pictures and no weights of a feature net."""
    from PIL import Image

    from hdit_cli.data.prepare import PrepareOptions, prepare

    place, out = root / "received", root / "out"
    for folder in (place, out, out / "pictures", root / "cache"):
        folder.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((16, 16, 3), 100 * i, dtype=np.uint8)).save(out / "pictures" / f"{i}.png")
    prepare(out / "pictures", out=out / "data", options=PrepareOptions(size=(32, 32)), workers=1)
    os.environ["HDIT_CACHE"] = str(root / "cache")
    os.environ["http_proxy"] = os.environ["https_proxy"] = "http://127.0.0.1:9"
    os.chdir(place)
    return place, out


def run_all(root: Path, count: int) -> Result:
    """Gives every hostile file to every command that takes one."""
    import urllib.request

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network here")

    urllib.request.urlopen = offline
    import hdit_cli.metrics.inception as inception

    inception.urlopen = offline
    place, out = prepare_place(root)
    warm = place / "whole.safetensors"
    warm.write_bytes(whole_checkpoint())
    for command in ("info", "sample", "export"):  # imports are done, the processor is asked for its name
        code, text, _ = run(words_of(command, warm, out), limit=120.0)
        assert code == 0, text
    warm.unlink()
    result, watch = Result(), Watch(out, root / "cache")
    before = {path for path in root.rglob("*") if out not in path.parents}
    for case in cases(place, count):
        result.kinds[case.kind] += 1
        for command in case.commands:
            watch.on = True
            code, text, seconds = run(words_of(command, case.path, out))
            watch.on = False
            result.runs += 1
            result.slowest = max(result.slowest, seconds)
            found = problem_of(code, text, case, command) or ("too slow" if seconds > SECONDS else "")
            if found or watch.seen:
                told = "; ".join([found, *watch.seen[:3]])
                result.wrong.append(f"{case.kind} {case.path.name} {command}: {told}: {text[:300]!r}")
                watch.seen.clear()
    left = {path for path in root.rglob("*") if out not in path.parents and place not in path.parents} - before
    result.wrong += [f"appeared: {path}" for path in left if root / "cache" not in path.parents]
    if result.peak > GIGABYTE:
        result.wrong.append(f"memory: {result.peak / 1e9:.2f} GB")
    return result


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = run_all(Path(folder).resolve(), count)
        os.chdir("/")
    for kind, number in sorted(result.kinds.items()):
        print(f"{number:>5} {kind}")
    print(f"{sum(result.kinds.values())} files of {len(result.kinds)} kinds, {result.runs} commands, {len(result.wrong)} wrong; "
          f"the slowest {result.slowest:.1f} s, memory at most {result.peak / 1e6:.0f} MB")  # fmt: skip
    print("\n".join(result.wrong))
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
