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
            help="A checkpoint of k-diffusion's HDiT or of DiT (.safetensors, .pt, .pth, or a diffusers folder), "
            "an AutoencoderKL (a diffusers folder, or a file of latent diffusion), Paella's VQ model (the authors' .pt, or a "
            "diffusers folder), or pytorch-fid's weights.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its configuration (JSON), where it carries none.", show_default=False),
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
    from hdit_cli.engine.sharing.convert import convert_feature_net
    from hdit_cli.engine.sharing.convert_codec import convert_codec
    from hdit_cli.engine.sharing.foreign import name_of
    from hdit_cli.errors import UsageError
    from hdit_cli.recipe.codec import made

    path = out or Path(f"{name_of(source)}.hdit.safetensors")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--out elsewhere, or --force to overwrite")
    if convert_feature_net(source, out=path):
        told = {"path": str(path), "features": "pytorch-fid"}
        say(
            json.dumps(told)
            if json_
            else f"{path}: pytorch-fid's Inception, for --features pytorch-fid:{path} or adm:{path}"
        )
        return
    given = _read_config(config)

    def tell(text: str) -> None:
        say(f"note: {text}", err=True)

    codec = convert_codec(source, out=path, config=given, tell=tell)
    if codec is not None:
        told = {"path": str(path), "codec": codec.type, "factor": codec.factor, "channels": codec.channels}
        told |= {"vocabulary": codec.vocabulary} if codec.vocabulary else {}
        what = made(codec.channels, codec.vocabulary)
        words = f"{path}: a codec, {what} at 1/{codec.factor} of the size, for `[codec] path` and --codec"
        say(json.dumps(told) if json_ else words)
        return
    model = run_conversion(source, out=path, config=given, tell=tell)
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
