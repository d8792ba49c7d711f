"""`hdit prepare SRC`: pictures as people have them to a checked, resized, sharded data set."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hdit_cli.data.prepare import Progress

_LINE_EVERY = 5.0  # seconds between plain lines, where stderr is no terminal


def prepare(
    src: Annotated[
        list[Path],
        typer.Argument(
            help="Folder (its sub-folders are classes), .zip, .tar, folder of tars, data set made before, or list of files "
            "(.lst, .txt, .jsonl, .csv). Several make one set. A table (metadata.jsonl, metadata.csv, dataset.json) goes "
            "before a .json beside the picture, and that before the folder."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to be made (default: data/<src name><size>).")] = None,
    size: Annotated[str, typer.Option(help="Pixels: 256, or height x width as 256x384.")] = "256",
    fit: Annotated[str, typer.Option(help="crop (centred), pad, or squash.")] = "crop",
    format: Annotated[str, typer.Option(help="jpeg (quality 95, 4:4:4), webp, or png (lossless).")] = "jpeg",
    shard_size: Annotated[int, typer.Option(help="Pictures in one shard.")] = 1000,
    workers: Annotated[int | None, typer.Option(help="Processes (default: one per core).")] = None,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger pictures, by their header.")] = 150_000_000,
    background: Annotated[str, typer.Option(help="Colour under transparency and around padded pictures.")] = "white",
    hold_out: Annotated[
        float, typer.Option(help="Share of the pictures kept out of training, in OUT/held-out, for validation.")
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
            show_default="a power of two near size / 16: 16 at 256, at least 8",
        ),
    ] = None,
    bucket_ratio: Annotated[
        float | None, typer.Option(help="Longer side / shorter side of a bucket, at most.", show_default="2")
    ] = None,
    min_size: Annotated[
        int, typer.Option(help="Refuse pictures whose shorter side is below this many pixels; 0: none.")
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
            help="local: processes here. ray: a Ray cluster that sees source and OUT (pip install 'hdit[ray]')."
        ),
    ] = "local",
    strict: Annotated[bool, typer.Option("--strict", help="End with an error if any file was refused.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Make a checked, resized, sharded data set from pictures; the same command goes on after an interruption."""
    from hdit_cli.data.prepare.start import start_early

    if engine == "local":
        start_early()
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
    share = Share.parse(shards) if shards is not None else None
    with _shown() as progress:
        how["progress"] = progress
        made = make(src, **how) if share is None else make_share(src, share=share, **how)
    if isinstance(made, Pending):
        print_pending(made, as_json=json)
    else:
        print_report(made, as_json=json, asked_to_hold_out=hold_out > 0)


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _shown() -> "Iterator[Callable[[Progress], None]]":
    """Progress on stderr: a bar on a terminal, else a line every few seconds."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(unit=" images", dynamic_ncols=True, smoothing=0.1) as bar:

            def draw(progress: "Progress") -> None:
                if bar.total is None:
                    bar.reset(total=progress.total)
                    bar.initial = bar.n = progress.done - 1
                bar.total = progress.total  # more once it is known how many are held out
                bar.update(progress.done - bar.n)
                bar.set_postfix(kept=progress.kept, refused=progress.refused, refresh=False)

            yield draw
        return
    lines = _Lines()
    yield lines
    lines.last()


class _Lines:
    """Plain lines: images, images/s, time left."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None  # when, and how many were done before
        self._told = 0.0
        self._newest: Progress | None = None

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        self._start = self._start or (now, progress.done - 1)
        self._newest = progress
        if now - max(self._told, self._start[0]) >= _LINE_EVERY:
            self._tell(progress, now)

    def last(self) -> None:
        if self._newest is not None:
            self._tell(self._newest, time.monotonic())

    def _tell(self, progress: "Progress", now: float) -> None:
        assert self._start is not None, "there was progress"
        self._told = now
        rate = (progress.done - self._start[1]) / max(now - self._start[0], 1e-6)
        left = (progress.total - progress.done) / max(rate, 1e-6)
        refused = f", {progress.refused} refused" if progress.refused else ""
        minutes, seconds = divmod(round(left), 60)
        told = f"{progress.done}/{progress.total} images, {rate:.0f} images/s, {minutes}:{seconds:02d} left{refused}"
        print(told, file=sys.stderr, flush=True)
