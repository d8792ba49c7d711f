"""`hdit encode DATA`: what a codec makes of the pictures of a data set, beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli.commands import sampling as shared
from hdit_cli.commands.numbers import MOST_BATCH, whole
from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.engine.encoding.encode import Outcome


def encode(
    data: Annotated[Path, typer.Argument(help="A data set made by `hdit prepare`, with its held-out pictures.")],
    codec: Annotated[
        Path,
        typer.Option(
            metavar="CKPT",
            help="The codec: a file that `hdit convert` made, or a run or checkpoint of one that was trained here.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to be made.", show_default="DATA-<kind of codec>")
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Pictures that the codec sees at once; the last bits of what it makes hang on it.",
            parser=whole("--batch-size", least=1, most=MOST_BATCH),
        ),
    ] = 8,
    drop_pictures: Annotated[
        bool,
        typer.Option(
            "--drop-pictures",
            help="Leave the pictures out: it still trains, and what needs pixels names the first data set.",
        ),
    ] = False,
    precision: shared.Precision = None,
    device: shared.Device = None,
    processes: shared.Processes = 1,
    oversubscribe: shared.Oversubscribe = False,
    json_: Annotated[bool, typer.Option("--json", help="The facts as JSON on stdout.")] = False,
) -> None:
    """Store what a codec makes of each picture beside it; the same command goes on after an interruption."""
    from hdit_cli.engine.launch import relaunch

    code = relaunch(processes, oversubscribe=oversubscribe)
    if code is not None:
        raise typer.Exit(code)
    from hdit_cli import runtime
    from hdit_cli.commands.progress import Bars
    from hdit_cli.engine.encoding.encode import Asked, codec_file_of, default_out
    from hdit_cli.engine.encoding.encode import encode as make

    codec = codec_file_of(shared.located(codec))
    asked = Asked(
        data=data,
        codec=codec,
        out=out or default_out(data, codec),
        batch_size=batch_size,
        pictures=not drop_pictures,
        precision=precision.value if precision is not None else None,
        device=runtime.device(device),
    )
    main = runtime.ranks().is_main
    with Bars(quiet=not main) as bars:
        outcome = make(asked, tell=lambda done, total: bars.pictures("encoding", done, total))
    if main:
        facts = _facts(outcome)
        say_json(facts) if json_ else say(*_page(facts))


def _facts(outcome: "Outcome") -> dict[str, Any]:
    reader, codec = outcome.reader, outcome.encoded.codec
    return {
        "path": str(reader.folder),
        "complete_before": outcome.before,
        "count": len(reader),
        "held_out": outcome.held_out,
        "image_size": list(reader.image_size),
        "pictures": outcome.encoded.pictures,
        "codec": {
            "path": str(reader.folder / "codec.safetensors"),
            **{name: getattr(codec, name) for name in ("kind", "sha256", "of", "factor", "channels", "vocabulary")},
        },
        **{name: getattr(codec, name) for name in ("dtype", "batch_size", "precision", "device", "statistics")},
        "bytes": sum(shard.bytes for shard in codec.shards),
    }


def _page(facts: dict[str, Any]) -> list[str]:
    codec, told = facts["codec"], "complete already" if facts["complete_before"] else "made"
    height, width = (side // codec["factor"] for side in facts["image_size"])
    of = f"tokens below {codec['vocabulary']:,}" if codec["vocabulary"] else f"{codec['channels']} channels"
    held_out = f" and {facts['held_out']} held out" if facts["held_out"] else ""
    without = "" if facts["pictures"] else ", without the pictures"
    lines = [
        f"{facts['path']}: {told}, {facts['count']} pictures{held_out}{without}",
        f"  each is {height}x{width} {of}, as it is and mirrored; {facts['bytes'] / 1e6:.1f} MB of {facts['dtype']}",
    ]
    for name in ("mean", "std") if facts["statistics"] else ():
        lines.append(f"  {name:<5} {', '.join(f'{value:.4g}' for value in facts['statistics'][name])}")
    return [*lines, f"  for a recipe: [codec] path = {codec['path']!r}, and --data {facts['path']}"]
