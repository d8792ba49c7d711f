"""What a file is that was given as a checkpoint and is none: told from its first bytes, with what to do instead.

The name of a file says little: a web page is often saved as `model.safetensors`, and a git-lfs pointer always is. Nothing in
a file is run or unpacked to look at it.
"""

import re
import stat
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdit_cli.errors import CheckpointError

WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every name
AVERAGES = ("ema.", "ema_model.", "model_ema.")
CONTAINERS = (*AVERAGES, "model.", "state_dict.", "net.", "network.", "denoiser.")
_HEAD = 4096  # bytes that are looked at
_LARGEST_HEADER = 100_000_000  # of a safetensors file, by its format


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: with its article: "a PyTorch file".
        hint: what to do; `{path}` stands for the file.
        pickled: whether `torch.load` may read it.
    """

    name: str
    hint: str
    pickled: bool = False


_CONVERT = "`hdit convert {path}` turns the checkpoints of other programs into ours"
_DOWNLOAD = "download it again, and take the file, not the page about it: on Hugging Face the address with /resolve/, not /blob/"
_UNPACK = "unpack it, and give the .safetensors file inside"
_OTHER = "another program's format, which hdit does not read: look for the model as .safetensors"
_PICTURES = "hdit takes pictures as a folder: `hdit prepare FOLDER` makes a data set, `hdit eval-fid FOLDER` scores it"

PYTORCH = Kind("a PyTorch file (pickle)", _CONVERT, pickled=True)
TORCHSCRIPT = Kind("a TorchScript program", "it runs without hdit: torch.jit.load; hdit reads weights, as .safetensors")
EXPORTED = Kind(
    "a torch.export program", "it runs without hdit: torch.export.load; give the checkpoint it was made from"
)
SAMPLES = Kind("a NumPy archive", "`hdit eval-fid {path} --reference DATA` scores the pictures of one")
ARRAY = Kind("a NumPy array", "pictures for `hdit eval-fid` lie in a folder, or in an .npz as arr_0")
LFS = Kind(
    "a git-lfs pointer: a note of where the file is kept", "`git lfs pull` in its repository fetches the file itself"
)
PAGE = Kind("a web page", _DOWNLOAD)
EMPTY = Kind("empty", "download or copy it again")
TEXT = Kind("a text", _DOWNLOAD)
JSON = Kind("a JSON file", "give the .safetensors file that lies beside it")
RECIPE = Kind("a recipe", "`hdit train {path}` trains it; what that writes is a checkpoint")

# what a file begins with, in the order in which they are tried
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"version https://git-lfs", LFS),
    (b"GGUF", Kind("a GGUF file", _OTHER)),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as Keras writes them", _OTHER)),
    (b"\x93NUMPY", ARRAY),
    (b"\x1f\x8b", Kind("compressed by gzip", "`gunzip` it first")),
    (b"BZh", Kind("compressed by bzip2", "`bunzip2` it first")),
    (b"\xfd7zXZ\0", Kind("compressed by xz", "`unxz` it first")),
    (b"\x28\xb5\x2f\xfd", Kind("compressed by zstd", "`unzstd` it first")),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK)),
    (b"Rar!", Kind("a RAR archive", _UNPACK)),
    (b"\x89PNG\r\n", Kind("a picture (PNG)", _PICTURES)),
    (b"\xff\xd8\xff", Kind("a picture (JPEG)", _PICTURES)),
    (b"GIF8", Kind("a picture (GIF)", _PICTURES)),
    (b"BM", Kind("a picture (BMP)", _PICTURES)),
    (b"II*\0", Kind("a picture (TIFF)", _PICTURES)),
    (b"MM\0*", Kind("a picture (TIFF)", _PICTURES)),
    (b"%PDF", Kind("a PDF", _DOWNLOAD)),
    (b"PAR1", Kind("a Parquet file", _OTHER)),
    (b"SQLite format 3", Kind("an SQLite database", _OTHER)),
    (b"\x7fELF", Kind("a program", "give a .safetensors file")),
)
_RIFF = {b"WEBP": "a picture (WebP)", b"WAVE": "a sound", b"AVI ": "a film"}
_ONNX = re.compile(
    rb"\x08[\x01-\x20](?:\x12[\x01-\x7f][ -~]|\x1a|\x3a)", re.DOTALL
)  # ir_version, then producer or graph
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95\x8a(\}\]cX\x8c]|\x80[\x02-\x05]q")


def looked_at(path: Path) -> Kind | None:
    """What a file is by its first bytes; None for a safetensors file, for what is not known, and for what is no plain file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with open(path, "rb") as handle:
            head = handle.read(_HEAD)
    except OSError:
        return None
    if begins_as_safetensors(head):
        return None
    if not head:
        return EMPTY
    return _archive(path, head) or _binary(head) or _text(path, head)


def begins_as_safetensors(head: bytes) -> bool:
    """Whether a header of JSON follows its length."""
    return len(head) > 8 and 2 <= int.from_bytes(head[:8], "little") <= _LARGEST_HEADER and head[8:9] == b"{"


def _archive(path: Path, head: bytes) -> Kind | None:
    if head[257:262] == b"ustar":
        return Kind("a tar archive", _UNPACK)
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, zlib.error):
        # the list of what is inside stands at the end: the file is cut short, and its first entry tells what it was
        whole = PYTORCH if b"data.pkl" in head[:256] else Kind("a zip archive", _UNPACK)
        return Kind(f"the beginning of {whole.name}: it is cut short", "download or copy it again")
    return _zip_of(names)


def _zip_of(names: list[str]) -> Kind:
    tops = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in tops and "constants.pkl" in tops:
        return TORCHSCRIPT
    if tops & {"archive_format", "serialized_exported_program.json"} or any(
        n.endswith("/models/model.json") for n in names
    ):
        return EXPORTED
    if "data.pkl" in tops:
        return PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return SAMPLES
    if "model.weights.h5" in tops:
        return Kind("a Keras model", _OTHER)
    return Kind("a zip archive", _UNPACK)


def _binary(head: bytes) -> Kind | None:
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return Kind(_RIFF[head[8:12]], _PICTURES)
    if head[4:8] == b"ftyp":
        picture = head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
        return Kind("a picture (AVIF or HEIC)" if picture else "a film", _PICTURES)
    if head[4:8] == b"TFL3":
        return Kind("a TensorFlow Lite model", _OTHER)
    if _PICKLE.match(head):
        return PYTORCH
    if _ONNX.match(head) and b"\0" in head[:512]:
        return Kind("an ONNX model", _OTHER)
    return None


def _text(path: Path, head: bytes) -> Kind | None:
    for encoding in ("utf-16",) if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
        try:
            text = head[: len(head) // 2 * 2 if encoding == "utf-16" else None].decode(encoding)
        except UnicodeDecodeError as error:
            if encoding == "utf-16" or error.start < len(head) - 4 or len(head) < _HEAD:  # else a letter cut in two
                return None
            text = head[: error.start].decode(encoding)
    text = text.lstrip("\ufeff \t\r\n")
    if sum(not (each.isprintable() or each in "\t\r\n") for each in text) > len(text) // 50:
        return None
    if re.match(r"<(!doctype|html|head|body|\?xml|!--|svg|error)", text, re.IGNORECASE):
        return PAGE
    if path.suffix == ".toml" or re.search(r"^\[(model|train|data|diffusion)\]\s*$", text, re.MULTILINE):
        return RECIPE
    if text.startswith(("{", "[")):
        return JSON
    if not text:
        return EMPTY
    begin = " ".join(text.split())[:40]
    return Kind(f"a text that begins {begin!r}", _DOWNLOAD)


def check_pickled(path: Path) -> None:
    """Raises CheckpointError where a file is known to be of a kind that torch.save does not write."""
    kind = looked_at(path)
    if kind is not None and not kind.pickled:
        raise _of_kind(path, kind)


def _of_kind(path: Path, kind: Kind) -> CheckpointError:
    return CheckpointError(f"{path} is {kind.name}, not a checkpoint", hint=kind.hint.replace("{path}", str(path)))


def not_safetensors(path: Path, *, error: object) -> CheckpointError:
    """The error for a file that does not read as safetensors: what it is instead, or that it is damaged."""
    kind = looked_at(path)
    if kind is not None:
        return _of_kind(path, kind)
    return CheckpointError(
        f"{path} is not a whole safetensors file: {error}", hint="it may be cut short or damaged; copy it again"
    )


def prefix_of(names: Collection[str]) -> str:
    """What stands before every one of these names that wrappers and containers put there: "module._orig_mod."; "" for nothing."""
    found = ""
    while names:
        first = next(iter(names))[len(found) :]
        word = next((word for word in (*WRAPPERS, *CONTAINERS) if first.startswith(word)), "")
        if not word or not all(name.startswith(found + word) for name in names):
            return found
        found += word
    return found


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """The names of a network's weights without what stands before them => the names in the file.

    Where a file holds several sets ("ema.", "model."), the averaged one alone.
    """
    for average in (*AVERAGES, ""):
        chosen = [name for name in names if name.startswith(average)]
        if chosen and (not average or all(name.startswith((*WRAPPERS, *CONTAINERS)) for name in names)):
            prefix = prefix_of(chosen)
            return {name[len(prefix) :]: name for name in chosen}
    return {}


def not_ours(path: str, *, names: Mapping[str, Any], has_config: bool) -> CheckpointError:
    """The error for a safetensors file that hdit did not write.

    Args:
        names: of its tensors.
        has_config: whether a configuration lies in it.
    """
    from hdit_cli.models.foreign import format_of  # which loads torch

    told, prefix = f"{path} is not an hdit checkpoint", prefix_of(names)
    known = format_of(unwrapped(names), None)
    option = "" if has_config or (known is not None and not known.NEEDS_CONFIG) else " --config CONFIG.json"
    if prefix:
        told += f": the names of its tensors all begin with {prefix!r}"
        return CheckpointError(told, hint=f"`hdit convert {path}{option}` takes that off")
    if known is not None or has_config:
        what = known.TITLE if known is not None else "another program's checkpoint"
        return CheckpointError(told, hint=f"`hdit convert {path}{option}` turns {what} into ours")
    return CheckpointError(
        told, hint=f"give a file that hdit wrote; `hdit convert {path}{option}` takes those of other programs"
    )
