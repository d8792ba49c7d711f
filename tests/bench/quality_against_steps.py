"""Quality against steps, and against seconds: does a model of tokens need fewer of both than a model of pixels?

    python tests/bench/quality_against_steps.py --pixels RUN --tokens RUN --reference DATA --features NET.pt2 --out FOLDER \
        [--pixel-steps 8,12,25,50] [--token-steps 4,8,12,24] [--sampler dpmpp-3m-sde --sampler dpmpp-2m] \
        [-n 500] [--seeds 0] [--batch 16] [--runs 5] [--threads 2]

RUN is a run folder or a checkpoint; --latents RUN is drawn like the pixels. All are scored as `hdit eval-fid` does: SWD and FD of
n samples of each seed, averaged weights, against the same pictures. Then all of them make batches in turns, in this process: the
seconds of an image are the median of the rounds after the first, with decoding. Each --sampler, and each --token-sampler,
is a curve of its own.

FOLDER/quality.json holds all numbers, FOLDER/quality.png is the figure: over steps on the left, over seconds on the right. What
was scored already, of the same weights and settings, is not scored again; the seconds are always taken anew, all together.
"""

import argparse
import io
import json
import math
import os
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from hdit_cli import files, load, runtime
from hdit_cli.engine.bench.clock import Spread, rounds
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.generate import check, choose_labels, stream
from hdit_cli.engine.scoring.evaluate import evaluate
from hdit_cli.engine.scoring.job import digest, environment
from hdit_cli.engine.scoring.plot import Panel, curves_png
from hdit_cli.engine.scoring.request import Request, Session

METRICS = ("swd", "fd")
KINDS = ("pixels", "latents", "tokens")
FAR = 30  # the longest time over the shortest, from which on the right side is drawn over logarithms


@dataclass(frozen=True)
class Point:
    """One way to make pictures. `sampler` is None for the recipe's own."""

    kind: str
    source: Path
    sampler: str | None
    steps: int

    @property
    def series(self):
        """The curve that it lies on."""
        return f"{self.kind}, {self.sampler}" if self.sampler else self.kind

    @property
    def sampling(self):
        """What is asked for besides the recipe's own settings."""
        return {"steps": self.steps, **({"sampler": self.sampler} if self.sampler else {})}


def points_of(arguments):
    """Every way that is compared, in the order of the curves."""
    found = []
    for kind in KINDS:
        source = getattr(arguments, kind)
        steps = arguments.token_steps if kind == "tokens" else arguments.pixel_steps
        samplers = (arguments.token_sampler if kind == "tokens" else arguments.sampler) or [None]
        found += [Point(kind, source, sampler, each) for sampler in samplers if source for each in steps]
    return found


def scores(source, *, session, **asked):
    """The record of one evaluation, as `hdit eval-fid --json` writes it."""
    request = Request(Path(source), metrics=METRICS, allow_small=True, device=torch.device("cpu"), **asked)
    return evaluate(request, on_progress=lambda *_: None, session=session).record()


def values_of(record):
    """Metric => value."""
    return {score["metric"]: score["value"] for score in record["scores"]}


def codec_of(record):
    """Metric => what the codec alone reaches on the reference; empty for pixels."""
    return {s["metric"]: s["details"]["of_the_codec"] for s in record["scores"] if "of_the_codec" in s["details"]}


def score(point, arguments, session):
    """The records of a point, one a seed."""
    asked = {"n": arguments.n, "features": str(arguments.features), "reference": arguments.reference}
    codec = {"codec": arguments.codec} if point.kind == "tokens" and arguments.codec else {}
    return [
        scores(point.source, session=session, sampling={**point.sampling, "seed": seed}, **asked, **codec)
        for seed in arguments.seeds
    ]


def scored(points, arguments, models):
    """Point => its records; those of an earlier call are taken from FOLDER/scores.jsonl."""
    path, session, known = arguments.out / "scores.jsonl", Session(), {}
    for line in path.read_text().splitlines() if path.exists() else []:
        entry = json.loads(line)
        known[json.dumps(entry["key"])] = entry["records"]
    digests = {source: digest(model) for source, model in models.items()}
    data, net = files.sha256(arguments.reference / "manifest.json"), files.sha256(arguments.features)
    found = {}
    for point in points:
        key = [digests[point.source], point.sampling, arguments.n, arguments.seeds, data, net]
        if json.dumps(key) not in known:
            known[json.dumps(key)] = score(point, arguments, session)
            with path.open("a") as file:
                file.write(json.dumps({"key": key, "records": known[json.dumps(key)]}) + "\n")
        found[point] = known[json.dumps(key)]
        means = {
            name: round(statistics.mean(values_of(record)[name] for record in found[point]), 2) for name in METRICS
        }
        print(f"{point.series}, {point.steps} steps: {means}", flush=True)
    return found


def one_batch(model, point, *, batch, through=lambda call: call):
    """Makes a batch of images as `hdit sample` does, and throws it away."""
    sampling = sampling_of(model, **point.sampling, batch_size=batch)
    check(model, sampling)
    labels = choose_labels(model, n=batch, wanted=None, seed=0)
    for _ in stream(model, indices=range(batch), labels=labels, sampling=sampling, through=through):
        pass


def network_calls(model, point):
    """How often a sampling calls its network."""
    calls = []

    def counted(call):
        def called(*given, **named):
            calls.append(1)
            return call(*given, **named)

        return called

    one_batch(model, point, batch=1, through=counted)
    return len(calls)


def timed(points, arguments, models):
    """Point => seconds of an image in each round."""
    calls = {
        str(number): partial(one_batch, models[point.source], point, batch=arguments.batch)
        for number, point in enumerate(points)
    }
    seconds = rounds(calls, runs=arguments.runs, device=torch.device("cpu"))
    return {point: [s / arguments.batch for s in seconds[str(number)]] for number, point in enumerate(points)}


def told(point, records, seconds, calls):
    """All that is known of a point, as JSON values."""
    each = {name: [values_of(record)[name] for record in records] for name in METRICS}
    return {
        **asdict(point), "source": str(point.source), "series": point.series, "network_calls": calls,
        "scores": {name: {"mean": statistics.mean(values), "each": values} for name, values in each.items()},
        "of_the_codec": codec_of(records[0]),
        "seconds_an_image": dict(zip(("median", "least", "most"), Spread.of(seconds).told(), strict=True)),
        "evaluations": records,
    }  # fmt: skip


def column(rows, x_of, *, x_name):
    """Panels of each metric over one axis: a curve for each series, half of the range of the seeds as bars, and codecs alone."""
    x = sorted({x_of(row) for row in rows})
    panels = []
    for name in METRICS:
        curves, bars = {}, {}
        for row in rows:
            place, each = x.index(x_of(row)), row["scores"][name]["each"]
            curves.setdefault(row["series"], [None] * len(x))[place] = row["scores"][name]["mean"]
            bars.setdefault(row["series"], [None] * len(x))[place] = (max(each) - min(each)) / 2
            if row["of_the_codec"]:
                ends = (0, len(x) - 1)  # a level line over the whole panel
                floor = [row["of_the_codec"][name] if place in ends else None for place in range(len(x))]
                curves[f"codec of {row['kind']}"] = floor
        panels.append(Panel(name.upper(), dict(sorted(curves.items(), key=lambda each: "codec" in each[0])), bars))
    return curves_png(panels, x=x, x_name=x_name)


def figure(rows):
    """PNG: over steps on the left, over seconds of an image on the right."""
    seconds = [row["seconds_an_image"]["median"] for row in rows]
    if max(seconds) < FAR * min(seconds):
        over, name = (lambda row: row["seconds_an_image"]["median"]), "wall seconds an image"
    else:
        over, name = (lambda row: math.log10(row["seconds_an_image"]["median"])), "log10 of wall seconds an image"
    sides = [
        Image.open(io.BytesIO(png), formats=("PNG",))
        for png in (column(rows, lambda row: row["steps"], x_name="steps"), column(rows, over, x_name=name))
    ]
    whole = Image.new("RGB", (sum(side.width for side in sides), sides[0].height), "white")
    for number, side in enumerate(sides):
        whole.paste(side, (number * sides[0].width, 0))
    buffer = io.BytesIO()
    whole.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def table(rows):
    """The numbers as a table in markdown."""
    lines = ["| | steps | calls | SWD | FD | s an image |", "|---|---|---|---|---|---|"]
    for row in rows:
        swd, fd = (f"{row['scores'][name]['mean']:.3g}" for name in METRICS)
        seconds = row["seconds_an_image"]["median"]
        lines.append(f"| {row['series']} | {row['steps']} | {row['network_calls']} | {swd} | {fd} | {seconds:.3g} |")
    return "\n".join(lines)


def arguments_of():
    def steps(text):
        return [int(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path)
    parser.add_argument("--codec", type=Path, help="of the tokens, where it does not lie beside the run")
    parser.add_argument("--reference", type=Path, required=True, help="prepared data set of pictures")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pixel-steps", type=steps, default=[8, 12, 25, 50])
    parser.add_argument("--token-steps", type=steps, default=[4, 8, 12, 24])
    parser.add_argument("--sampler", action="append", help="of pixels and latents; the recipe's where none is named")
    parser.add_argument("--token-sampler", action="append", help="of tokens; the recipe's where none is named")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seeds", type=steps, default=[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    found = parser.parse_args()
    if not any(getattr(found, kind) for kind in KINDS):
        parser.error("name a run: --pixels, --latents, --tokens")
    return found


def main():
    arguments = arguments_of()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    runtime.keep_freed_memory()
    points = points_of(arguments)
    models = {}
    for point in points:
        codec = arguments.codec if point.kind == "tokens" else None
        if point.source not in models:
            models[point.source] = load(point.source, device="cpu", codec=codec)
        check(models[point.source], sampling_of(models[point.source], **point.sampling))
    records = scored(points, arguments, models)
    calls = {point: network_calls(models[point.source], point) for point in points}
    load_before = os.getloadavg()[0]
    seconds = timed(points, arguments, models)
    rows = [told(point, records[point], seconds[point], calls[point]) for point in points]
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {**environment(torch.device("cpu")), "threads": arguments.threads, "cores": os.cpu_count()},
        "load": [load_before, os.getloadavg()[0]],
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "points": rows,
    }
    (arguments.out / "quality.json").write_text(json.dumps(facts, indent=1) + "\n")
    (arguments.out / "quality.png").write_bytes(figure(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
