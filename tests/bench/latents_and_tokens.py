"""Pixels, latents and tokens side by side: a grid and scores of each run, what the codecs lose, and the table for the gallery.

    python tests/bench/latents_and_tokens.py --pixels RUN --latents RUN --tokens RUN --kl RUN --vq RUN --data DATA \
        --features NET.pt2 --out FOLDER [-n 500] [--seed 0] [--columns 6] [--threads 2]

RUN is a run folder; any may be left out. DATA is the prepared set of pictures with held-out ones in it. Of each run: 30 samples,
a row for each class, and SWD and FD of n samples against the training pictures, as its recipe samples, averaged weights. Of each
codec, as the run has it: PSNR, SWD and FD of the held-out pictures as it gives them back, against these pictures themselves. --kl
and --vq, the runs that made the codecs, tell how long these were trained.

FOLDER/grid-NAME.png (below 300 kB), FOLDER/compared.json with all numbers, and the tables in markdown on stdout.
"""

import argparse
import io
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from quality_against_steps import codec_of, scores, values_of

from hdit_cli import files, load, runtime
from hdit_cli.data.loader import to_x0
from hdit_cli.engine.model import count
from hdit_cli.engine.report.logs import Axes
from hdit_cli.engine.sampling.classes import class_name
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.generate import choose_labels, stream
from hdit_cli.engine.sampling.grid import grid_png, picture_png
from hdit_cli.engine.scoring.job import environment
from hdit_cli.engine.scoring.picture_sets import open_stored
from hdit_cli.engine.scoring.reconstructed import Reconstructed
from hdit_cli.engine.scoring.request import Session
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.reconstruction import psnr

KINDS, CODECS = ("pixels", "latents", "tokens"), {"latents": "kl", "tokens": "vq"}
MOST = 300_000  # bytes of a grid
PICTURES = 30  # of a grid, where it has no classes


def lines_of(path):
    """The lines of a log; none where it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def training_seconds(run):
    """Seconds in training steps, over all its starts; None where nobody wrote them down."""
    timing = lines_of(run / "timing.jsonl") if run else []
    return Axes(lines_of(run / "metrics.jsonl"), timing, batch_size=None).seconds if timing else None


def grid(model, *, columns, seed):
    """A PNG of samples with the recipe's settings, a row for each class, and the settings in a line over it."""
    rows = model.network.classes
    n = rows * columns if rows else PICTURES
    sampling = sampling_of(model, seed=seed, batch_size=n)
    labels = choose_labels(model, n=n, wanted="all" if rows else None, seed=seed)
    images = np.concatenate(
        [part.numpy() for _, part in stream(model, indices=range(n), labels=labels, sampling=sampling)]
    )
    names = None if labels is None else [class_name(model, int(label)) for label in labels]
    told = (
        f"step {model.step:,}, {model.weights} weights, {sampling.sampler} {sampling.steps} steps, cfg {sampling.cfg:g}"
    )
    return small(grid_png(images, labels=names, columns=columns, caption=f"{told}, seed {seed}"))


def small(png):
    """The same picture below MOST bytes: packed harder, else with fewer bits a channel, which is then said on stdout."""
    picture = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGB")
    for bits in (8, 7, 6, 5, 4):
        if len(png) < MOST:
            break
        buffer = io.BytesIO()
        ImageOps.posterize(picture, bits).save(buffer, format="PNG", optimize=True)
        png = buffer.getvalue()
        print(f"note: a grid of {len(png):,} bytes at {bits} bits a channel")
    return png


def generator(kind, run, arguments, session):
    """All that is told of a model that makes pictures; its grid is written."""
    model = load(run, device="cpu")
    (arguments.out / f"grid-{kind}.png").write_bytes(grid(model, columns=arguments.columns, seed=arguments.seed))
    asked = {"n": arguments.n, "features": str(arguments.features), "reference": arguments.data}
    record = scores(run, session=session, sampling={"seed": arguments.seed}, **asked)
    counted = count(Recipe.from_dict(model.recipe), classes=len(model.classes))
    how = record["sampling"]
    return model, {
        "name": kind, "run": str(run), "network": model.recipe["model"]["type"], **counted,
        "step": model.step, "images": model.images_seen, "training_seconds": training_seconds(run),
        "sampling": {name: how[name] for name in ("sampler", "steps", "cfg", "seed") if name in how},
        "scores": values_of(record), "of_the_codec": codec_of(record), "evaluation": record,
    }  # fmt: skip


def codec(kind, latents, run, arguments, session):
    """All that is told of a codec; what it gives back of the held-out pictures is written into a folder and scored there."""
    held_out = open_stored(arguments.data / "held-out")
    folder = arguments.out / f"given-back-{CODECS[kind]}"
    files.make_folder(folder)
    back, each = Reconstructed(held_out, latents), []
    for numbers, pictures in back.batches(range(back.count)):
        originals = next(iter(held_out.batches(numbers)))[1]
        for number, one, other in zip(numbers, originals, pictures, strict=True):
            pair = (to_x0(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]) for picture in (one, other))
            each.append(float(psnr(*pair)))
            files.write_bytes(folder / f"{number:05d}.png", picture_png(other))
    features = str(arguments.features)
    record = scores(folder, session=session, features=features, reference=arguments.data / "held-out")
    encode, decode = latents.network.macs_each(*held_out.size)
    trained = load(run, device="cpu") if run else None
    return {
        "name": CODECS[kind], "codec": latents.kind, "sha256": latents.fingerprint(), "factor": latents.factor,
        "channels": latents.channels, "vocabulary": latents.vocabulary,
        "params": sum(parameter.numel() for parameter in latents.network.parameters()),
        "gmacs": {"encode": encode / 1e9, "decode": decode / 1e9},
        "images": trained.images_seen if trained else None, "training_seconds": training_seconds(run),
        "held_out": back.count, "psnr": statistics.mean(each), "scores": values_of(record), "evaluation": record,
    }  # fmt: skip


def text(value, form):
    """A number in a table, or a dash."""
    return "–" if value is None else format(value, form)


HEAD = (
    "", "network", "parameters", "GMAC a call", "images seen", "training, s", "sampled by", "SWD", "FD", "codec's SWD",
    "codec's FD",
)  # fmt: skip
HEAD_OF_CODECS = (
    "codec", "a picture is", "parameters", "GMAC to encode / decode", "images seen", "training, s", "held out", "PSNR, dB",
    "SWD", "FD",
)  # fmt: skip


def tables(generators, codecs):
    """Both tables in markdown."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in generators:
        how, of_codec = row["sampling"], row["of_the_codec"]
        lines.append((
            row["name"], row["network"], f"{row['params'] / 1e6:.3g} M", f"{row['gmacs']:.3g}", f"{row['images']:,}",
            text(row["training_seconds"], ",.0f"), f"{how['sampler']}, {how['steps']} steps, cfg {how.get('cfg', 1):g}",
            *(text(row["scores"].get(name), ".3g") for name in ("swd", "fd")),
            *(text(of_codec.get(name), ".3g") for name in ("swd", "fd")),
        ))  # fmt: skip
    lines += [None, HEAD_OF_CODECS, ("---",) * len(HEAD_OF_CODECS)]
    for row in codecs:
        made = f"{row['vocabulary']:,} tokens" if row["vocabulary"] else f"{row['channels']} channels"
        lines.append((
            row["codec"], f"{made} at 1/{row['factor']}", f"{row['params'] / 1e6:.3g} M",
            f"{row['gmacs']['encode']:.3g} / {row['gmacs']['decode']:.3g}", text(row["images"], ","),
            text(row["training_seconds"], ",.0f"), str(row["held_out"]), f"{row['psnr']:.2f}",
            *(text(row["scores"].get(name), ".3g") for name in ("swd", "fd")),
        ))  # fmt: skip
    return "\n".join("" if line is None else f"| {' | '.join(line)} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*KINDS, *CODECS.values()):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("data", "features", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=6, help="pictures of a class in a grid")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    runtime.keep_freed_memory()
    session, generators, codecs = Session(), [], []
    for kind in KINDS:
        if run := getattr(arguments, kind):
            model, row = generator(kind, run, arguments, session)
            generators.append(row)
            if kind in CODECS:
                codecs.append(codec(kind, model.latents, getattr(arguments, CODECS[kind]), arguments, session))
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {**environment(torch.device("cpu")), "threads": arguments.threads},
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "generators": generators,
        "codecs": codecs,
    }
    (arguments.out / "compared.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(tables(generators, codecs))


if __name__ == "__main__":
    main()
