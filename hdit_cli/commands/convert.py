"""`hdit convert SRC`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hdit_cli.commands.say import say

_LARGEST_CONFIG = 1 << 24  # bytes


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A checkpoint of k-diffusion's HDiT, of DiT or of Paella (.safetensors, .pt, .pth, or a diffusers folder), "
            "an AutoencoderKL (a diffusers folder, or a file of latent diffusion), Paella's VQ model (the authors' .pt, or a "
            "diffusers folder), an AutoencoderDC (a diffusers folder), pytorch-fid's weights, or torchvision's VGG16 for a "
            "perceptual loss.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its configuration (JSON), where it carries none.", show_default=False),
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With VGG16: the heads of LPIPS, the lpips package's vgg.pth.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="<name>.hdit.safetensors")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Facts on stdout as JSON.")] = False,
) -> None:
    """Turn a foreign checkpoint into ours."""
    import json

    from hdit_cli.engine.sharing.convert import convert as run_conversion
    from hdit_cli.engine.sharing.convert_codec import convert_codec
    from hdit_cli.engine.sharing.foreign import name_of
    from hdit_cli.errors import UsageError
    from hdit_cli.recipe.codec import made

    path = out or Path(f"{name_of(source)}.hdit.safetensors")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--out elsewhere, or --force to overwrite")
    if heads is None and _as_feature_net(source, path, json_=json_):
        return
    if _as_perceptual_loss(source, heads, path, config=config, json_=json_):
        return
    given = _read_config(config)
    codec = convert_codec(source, out=path, config=given, tell=_tell)
    if codec is not None:
        told = {"path": str(path), "codec": codec.type, "factor": codec.factor, "channels": codec.channels}
        told |= {"vocabulary": codec.vocabulary} if codec.vocabulary else {}
        what = made(codec.channels, codec.vocabulary)
        words = f"{path}: a codec, {what} at 1/{codec.factor} of the size, for `[codec] path` and --codec"
        say(json.dumps(told) if json_ else words)
        return
    model = run_conversion(source, out=path, config=given, tell=_tell)
    facts = {
        "path": str(path),
        "params": sum(p.numel() for p in model.network.parameters()),
        "size": list(model.image_size),
        "classes": model.network.classes,
        "step": model.step,
    }
    if json_:
        say(json.dumps(facts))
    else:
        height, width = model.image_size
        say(f"{path}: {facts['params']:,} parameters, {height}x{width}, {facts['classes'] or 'no'} classes")


def _tell(text: str) -> None:
    say(f"note: {text}", err=True)


def _as_feature_net(source: Path, path: Path, *, json_: bool) -> bool:
    import json

    from hdit_cli.engine.sharing.convert import convert_feature_net

    if not convert_feature_net(source, out=path):
        return False
    told = {"path": str(path), "features": "pytorch-fid"}
    words = f"{path}: pytorch-fid's Inception, for --features pytorch-fid:{path} or adm:{path}"
    say(json.dumps(told) if json_ else words)
    return True


def _as_perceptual_loss(source: Path, heads: Path | None, path: Path, *, config: Path | None, json_: bool) -> bool:
    import json

    from hdit_cli.engine.sharing.convert_lpips import convert_lpips

    with_heads = convert_lpips(source, heads=heads, out=path, tell=_tell)
    if with_heads is None:
        return False
    if config is not None:
        _tell(f"--config {config} was not needed: VGG16 is always the same network")
    kind = "LPIPS" if with_heads else "VGG16 without heads"
    told = {"path": str(path), "perceptual": "vgg16", "heads": with_heads}
    say(json.dumps(told) if json_ else f"{path}: {kind}, for task.perceptual of a recipe that trains a codec")
    return True


def _read_config(path: Path | None) -> dict[str, Any] | None:
    import json

    from hdit_cli import files
    from hdit_cli.errors import UsageError

    if path is None:
        return None
    try:
        config = json.loads(files.read_regular(path, most=_LARGEST_CONFIG))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no JSON object", hint="give the configuration file of the training run")
    return config
