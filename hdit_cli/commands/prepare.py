"""`hdit prepare SRC`: pictures as people have them to a checked, resized, sharded data set."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli.commands import completion
from hdit_cli.commands.numbers import MOST_PROCESSES, MOST_SIDE, real, whole
from hdit_cli.errors import UsageError

if TYPE_CHECKING:
    from hdit_cli.commands.progress import Bar
    from hdit_cli.data.prepare import Progress

_DRAWN_EVERY = 0.1  # seconds
_MOST_WORKERS = 64  # anywhere, or four for each core


def prepare(
    src: Annotated[
        list[Path],
        typer.Argument(
            help="Folder (its sub-folders are classes), .zip, .tar, folder of tars, data set made before, or list of files "
            "(.lst, .txt, .jsonl, .csv, .tsv). Several make one set. A table (metadata.jsonl, metadata.csv, dataset.json) goes "
            "before a .json beside the picture, and that before the folder."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to be made.", show_default="data/<src name><size>")
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Height and width in pixels, or one number for both.")
    ] = "256",
    fit: Annotated[
        str,
        typer.Option(
            metavar="crop|pad|squash",
            help="How a picture comes to that shape; crop is centred.",
            autocompletion=completion.words("crop", "pad", "squash"),
        ),
    ] = "crop",
    format: Annotated[
        str,
        typer.Option(
            metavar="jpeg|webp|png",
            help="How pictures are stored: jpeg (or jpg) has quality 95, 4:4:4; png loses nothing.",
            autocompletion=completion.words("jpeg", "webp", "png"),
        ),
    ] = "jpeg",
    shard_size: Annotated[
        int, typer.Option(help="Pictures in one shard.", parser=whole("--shard-size", least=1, most=100_000_000))
    ] = 1000,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes.", parser=whole("--workers", least=1, most=MOST_PROCESSES), show_default="one per core"
        ),
    ] = None,
    max_pixels: Annotated[
        int,
        typer.Option(
            help="Refuse larger pictures, by their header.", parser=whole("--max-pixels", least=1, most=10**12)
        ),
    ] = 150_000_000,
    background: Annotated[
        str, typer.Option(metavar="COLOUR", help="Colour under transparency and around padded pictures.")
    ] = "white",
    hold_out: Annotated[
        float,
        typer.Option(
            help="Share of the pictures kept out of training, in OUT/held-out, for validation.",
            parser=real("--hold-out", least=0, most=0.5),
        ),
    ] = 0.0,
    buckets: Annotated[
        bool,
        typer.Option(
            "--buckets",
            help="Keep the shapes of pictures: each goes to the nearest of several sizes of about the area of --size.",
        ),
    ] = False,
    bucket_step: Annotated[
        int | None,
        typer.Option(
            help="Sides of buckets are multiples of this many pixels.",
            parser=whole("--bucket-step", least=1, most=MOST_SIDE),
            show_default="a power of two near size / 16: 16 at 256, at least 8",
        ),
    ] = None,
    bucket_ratio: Annotated[
        float | None,
        typer.Option(
            help="Longer side / shorter side of a bucket, at most.",
            parser=real("--bucket-ratio", least=1, most=16, above=True),
            show_default="2",
        ),
    ] = None,
    min_size: Annotated[
        int,
        typer.Option(
            help="Refuse pictures whose shorter side is below this many pixels; 0: none.",
            parser=whole("--min-size", least=0, most=10**9),
        ),
    ] = 0,
    dedupe: Annotated[
        bool,
        typer.Option(
            "--dedupe", help="Keep only the first of pictures that are equal as prepared (else they are only told)."
        ),
    ] = False,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do share I of N of the shards, as $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT; the last one finishes.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            autocompletion=completion.words("local", "ray"),
            help="local: processes here. ray: a Ray cluster that sees source and OUT (pip install 'hdit-cli[ray]').",
        ),
    ] = "local",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End with an error if any file was refused, or a table could not be used whole."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Make a checked, resized, sharded data set from pictures; the same command goes on after an interruption."""
    from hdit_cli.data.prepare.making.start import start_early

    if engine == "local":
        start_early()
    from hdit_cli.commands import following
    from hdit_cli.commands.account import print_pending, print_report
    from hdit_cli.data.prepare import Pending, PrepareOptions, Share, choose_buckets, parse_size, source_name
    from hdit_cli.data.prepare import prepare as make
    from hdit_cli.data.prepare import prepare_share as make_share

    options = PrepareOptions(
        size=parse_size(size),
        fit=fit,
        format=format,
        shard_size=shard_size,
        max_pixels=max_pixels,
        background=background,
        hold_out=hold_out,
        min_size=min_size,
        dedupe=dedupe,
        buckets=choose_buckets(parse_size(size), on=buckets, step=bucket_step, ratio=bucket_ratio),
    )
    target = out or Path("data") / f"{source_name(src[0])}{size.strip().lower()}{'-buckets' if buckets else ''}"
    how: dict[str, Any] = {"out": target, "options": options, "engine": engine, "strict": strict}
    how["workers"] = _cores() if workers is None else workers
    most = max(_MOST_WORKERS, 4 * _cores())
    if engine == "local" and how["workers"] > most:
        raise UsageError(
            f"--workers {workers} are more than this machine can run", hint=f"--workers {_cores()}, one per core"
        )
    share = Share.parse(shards) if shards is not None else None
    with _shown() as progress:
        how["progress"] = progress
        made = make(src, **how) if share is None else make_share(src, share=share, **how)
    if isinstance(made, Pending):
        print_pending(made, as_json=json)
    else:
        print_report(made, as_json=json, asked_to_hold_out=hold_out > 0)
        following.tell(following.after_prepare(target, size=options.size, classes=len(made.classes)))


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _shown() -> "Iterator[Callable[[Progress], None]]":
    """Progress on stderr, from the first file that is told of."""
    with ExitStack() as stack:
        shown: list[Bar] = []
        drawn = 0.0

        def draw(progress: "Progress") -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < _DRAWN_EVERY and progress.done < progress.total:
                return
            drawn = now
            if not shown:
                from hdit_cli.commands.progress import bar

                before = progress.done - 1  # found finished: no part of the speed
                shown.append(stack.enter_context(bar(total=progress.total, initial=before, unit="image")))
            shown[0].set_postfix(kept=progress.kept, refused=progress.refused, refresh=False)
            shown[0].update(progress.done - shown[0].n)

        yield draw
