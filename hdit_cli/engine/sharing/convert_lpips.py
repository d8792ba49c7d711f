"""VGG16 and the heads of LPIPS, as torchvision and the lpips package keep them, to one file for a perceptual loss."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hdit_cli import files
from hdit_cli.engine.run import header, lpips_file
from hdit_cli.engine.run.checkpoint import read_announced
from hdit_cli.engine.sharing.foreign import Foreign, is_pickled, open_foreign, without_wrappers
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models import lpips_names as names

_SHOWN = 2  # names of tensors that are left out


def convert_lpips(
    source: Path, *, heads: Path | None, out: Path, tell: Callable[[str], None] = lambda text: None
) -> bool | None:
    """Writes the weights of LPIPS; None, and nothing written, where the source is another network.

    Args:
        source: VGG16, or the lpips package's module whole, which holds the heads too.
        heads: the file of the heads; None for those in the source, or for none at all.
        tell: called with what its user should know.

    Returns:
        whether there are heads.

    Raises:
        CheckpointError: a file cannot be read, or holds other shapes than VGG16 and its heads, or NaN.
        UsageError: heads alone, heads for another network, or a file that is converted already.
    """
    if not source.exists():  # told by who looks for a network
        return None
    if source.is_dir():
        _refuse_heads(source, heads)
        return None
    _check_is_foreign(source)
    foreign = without_wrappers(open_foreign(source), lambda text: None)
    features, own = names.features_in(foreign.table), names.heads_in(foreign.table)
    if not features:
        if own and len(own) == len(foreign.table):
            raise UsageError(
                f"{source} holds the heads of LPIPS alone",
                hint=f"`hdit convert {names.VGG16} --heads {source}`; the first is {names.VGG16_URL}",
            )
        _refuse_heads(source, heads)
        return None
    tensors = _read(source, foreign, features, like="features", what=names.VGG16_URL)
    told = {"vgg16": files.sha256(source)}
    if own and heads is None:
        tensors |= _read(source, foreign, own, like="lin", what=names.HEADS_URL)
        told["heads"] = told["vgg16"]
    elif heads is not None:
        tensors |= _heads_in(heads)
        told["heads"] = files.sha256(heads)
    lpips_file.write(out, tensors, told)
    for note in _notes(foreign.table, replaced=bool(own and heads), told=told):
        tell(note)
    return "heads" in told


def _refuse_heads(source: Path, heads: Path | None) -> None:
    if heads is not None:
        raise UsageError(
            f"--heads {heads} goes with VGG16's weights, and {source} holds none",
            hint=f"SRC is {names.VGG16_URL}",
        )


def _check_is_foreign(source: Path) -> None:
    if not is_pickled(source) and lpips_file.is_lpips(read_announced(source)[1]):
        raise UsageError(
            f"{source} holds weights of LPIPS as hdit keeps them already",
            hint=f"to have other heads, convert {names.VGG16} again",
        )


def _heads_in(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no heads of LPIPS at {path}", hint=f"they are {names.HEADS_URL}")
    foreign = without_wrappers(open_foreign(path), lambda text: None)
    found = names.heads_in(foreign.table)
    if not found:
        raise CheckpointError(f"{path} holds no heads of LPIPS", hint=f"they are {names.HEADS_URL}")
    return _read(path, foreign, found, like="lin", what=names.HEADS_URL)


def _read(where: Path, foreign: Foreign, ours: Mapping[str, str], *, like: str, what: str) -> dict[str, Tensor]:
    """The tensors under our names in float32, once they are known to be those of VGG16 or of its heads.

    Args:
        like: what the names of those that are wanted begin with.
        what: where the right file is.
    """
    wanted = {name: shape for name, shape in lpips_file.wanted(heads=True).items() if name.startswith(like)}
    table = {own: foreign.table[name] for name, own in ours.items()}
    header.check_floats(table, where=str(where))
    network, hint = "VGG16" if like == "features" else "VGG16's heads of LPIPS", f"the right file is {what}"
    if missing := sorted(wanted.keys() - table.keys()):
        raise CheckpointError(f"{where} is not {network}: it has no {missing[0]}", hint=hint)
    if extra := sorted(table.keys() - wanted.keys()):
        raise CheckpointError(f"{where} is not {network}, which have no {extra[0]}", hint=hint)
    for name, entry in table.items():
        if entry.shape != wanted[name]:
            told = f"{name} has shape {list(entry.shape)}, not {list(wanted[name])}"
            raise CheckpointError(f"{where} is not {network}: {told}", hint=hint)
    read = foreign.read()
    tensors = {own: read[name].float().contiguous() for name, own in ours.items()}
    lpips_file.check_values(tensors, where=where)
    return tensors


def _notes(table: header.Table, *, replaced: bool, told: Mapping[str, str]) -> list[str]:
    """What is told besides: what was left out, and weights that are not the published ones."""
    found = []
    if left := names.unused(table):
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        found.append(f"left out, since LPIPS does not use them: {', '.join(left[:_SHOWN])}{more}")
    if replaced:
        found.append("the file's own heads are left out for those of --heads")
    if "heads" not in told:
        found.append(
            "no heads: every channel counts the same, and distances are larger than those of LPIPS; --heads FILE takes "
            f"the published ones, {names.HEADS_URL}"
        )
    published = {"vgg16": ("torchvision", names.VGG16_SHA256), "heads": ("lpips 0.1", names.HEADS_SHA256)}
    for part, sha256 in told.items():
        source, begin = published[part]
        if not sha256.startswith(begin):
            found.append(
                f"{part} is not the file that {source} publishes (SHA-256 {begin}…, and this is {sha256[:8]}…)"
            )
    return found
