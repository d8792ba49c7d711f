"""Parts of `first_light.sh` that ask whether numbers are right."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from light import SMALL, Light, refusal
from PIL import Image

from hdit_cli import catalog
from hdit_cli.engine.checking import attention as checking
from hdit_cli.engine.checking import report
from hdit_cli.engine.checking.running import differences
from hdit_cli.engine.run import checkpoint

ROOT = Path(__file__).parents[2]
MAPS = (*checking.MAPS, (64, 64, 7), (33, 70, 7), (8, 8, 8), (17, 40, 4))
# of the levels of the shipped recipes, of other sizes of pictures and of validation: what one training may meet
FLEX_SHAPES = (
    (16, 16), (32, 32), (64, 64), (24, 40), (40, 24), (48, 64), (33, 33), (20, 28), (56, 72), (72, 56), (96, 96), (17, 90),
    (128, 128), (64, 160),
)  # fmt: skip


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "hdit_cli", *words]


def doctor(light: Light) -> None:
    """What `hdit doctor --check` does, each check written down as it ends."""
    wrong = []

    def done(checked: report.Checked) -> None:
        light.note(**{checked.name: vars(checked)})
        wrong.extend([checked.name] if checked.state == report.FAILED else [])
        light.note(verdict=f"wrong: {', '.join(wrong)}" if wrong else f"right up to {checked.name}")

    report.check(tell=lambda text: print(text, flush=True), done=done)
    if wrong:
        raise SystemExit(f"doctor: {wrong}")


def tests(light: Light) -> None:
    """The tests that are marked `gpu`; here they are skipped where there is no GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", ended.stdout[-300:])
    }
    last = ended.stdout.strip().splitlines()[-1:] or [ended.stderr[-300:]]
    light.note(exit_code=ended.returncode, counts=counts, failed=lines[:40], verdict=last[0].strip("= "))
    print(ended.stdout[-6000:])
    if ended.returncode:
        raise SystemExit(f"tests: pytest ended with {ended.returncode}")


def cases(precisions: list[str]) -> list[tuple[str, int, tuple[int, int, int]]]:
    """(precision, width, map) that backends are held against the reference at, the most telling first.

    Kernels are compiled for each, so not every width meets every map: bf16 at the usual width meets all maps, and every width
    in every precision meets one.
    """
    found = [("bf16", 64, each) for each in MAPS]
    for turn, precision in enumerate(sorted(precisions, key=lambda word: word != "tf32")):
        found += [(precision, width, MAPS[(i + turn) % len(MAPS)]) for i, width in enumerate(checking.WIDTHS)]
    return found


def backends(light: Light) -> None:
    """Every backend beside the reference over widths, maps and precisions."""
    wrong, rows, refused = [], {}, {}
    for precision, width, case in cases(checking.precisions(light.device))[:: light.count(1, 6)]:
        for name in catalog.names("attention"):
            dtype = checking.PRECISIONS[precision][0]
            if reason := refusal(name, light.device, dtype=dtype, width=width, kernel=case[2]):
                refused.setdefault(name, {})[f"{precision}, {width}"] = reason
                continue
            with light.finding("last") as facts:
                facts |= {"backend": name, "precision": precision, "head_width": width, "map": case}
                facts |= checking.measure(name, precision, (width, case), device=light.device)
            rows.setdefault(name, []).append(facts)
            wrong += [] if facts.get("right") else [facts]
        worst = {name: max(map(_share, found)) for name, found in rows.items()}
        light.note(cases={name: len(found) for name, found in rows.items()}, worst_share=worst, wrong=wrong[:20])
    light.note(rows=rows, refused=refused, verdict=f"{len(wrong)} wrong" if wrong else "all equal the reference")
    if wrong:
        raise SystemExit(f"backends: {wrong[0]}")


def _share(row: dict) -> float:
    """Of what is allowed."""
    return row.get("worst_roundoffs", float("inf")) / row.get("allowed_roundoffs", 1)


def flex_shapes(light: Light) -> None:
    """FlexAttention at more shapes than a compiled function keeps by itself: right each time, and no scores in memory."""
    dtype, width, heads, images = torch.bfloat16, 64, 2, 2
    if reason := refusal("flex", light.device, dtype=dtype, width=width, kernel=7):
        light.note(skipped=reason, verdict=f"skipped: {reason}")
        return
    bad = []
    for height, columns in FLEX_SHAPES:
        with light.finding(f"{height}x{columns}") as facts:
            q, k, v, gradient = (t.to(light.device) for t in checking.inputs(height, columns, width, dtype=dtype))
            tensors = [t.expand(images, -1, -1, -1, -1).contiguous() for t in (q, k, v, gradient)]
            start = time.perf_counter()
            found = checking.forward_and_backward(tensors, kernel=7, backend="flex")
            facts["first_seconds"] = time.perf_counter() - start
            exact = checking.forward_and_backward(tensors, kernel=7, backend="tiled")
            unit = checking.PRECISIONS["bf16"][1]
            errors = [checking.worst_token(a, b.cpu().double()) / unit for a, b in zip(found, exact, strict=True)]
            again = lambda: checking.forward_and_backward(tensors, kernel=7, backend="flex")  # noqa: B023, E731
            scores = images * heads * (height * columns) ** 2 * dtype.itemsize
            facts |= {"worst_roundoffs": max(errors), "bytes": light.peak_of(again), "bytes_of_all_scores": scores}
            most = max(scores / 2, 64 * tensors[0].nbytes)  # of small maps all scores are no more than the rest
            facts["right"] = max(errors) <= 2 * checking.ALLOWED["bf16"] and facts["bytes"] < most
        bad += [] if facts.get("right") else [f"{height}x{columns}"]
    light.note(verdict=f"wrong or dense: {', '.join(bad)}" if bad else f"{len(FLEX_SHAPES)} shapes right, none dense")
    if bad:
        raise SystemExit(f"flex-shapes: {bad}")


# Kill and resume


def resume(light: Light) -> None:
    """A deterministic run of ffhq1024-85m, one picture at a time, killed and gone on with, beside an unbroken one."""
    side = light.count(1024, 32)
    data = _noise_set(light.work / "pictures", light.work / "data", side=side)
    unbroken, killed = light.work / "unbroken", light.work / "killed"
    with light.finding("unbroken") as facts:
        facts |= _train(light, data, unbroken)
    if facts.get("exit_code"):
        light.note(verdict=facts["told"])  # out of memory, where the card is small: a finding
        if facts["exit_code"] != 6:
            raise SystemExit(f"resume: {facts['told']}")
        return
    with light.finding("killed") as facts:
        facts |= _train(light, data, killed, kill_at=killed / "checkpoints" / checkpoint.step_name(SAVED))
    with light.finding("gone_on") as facts:
        facts["from"] = checkpoint.list_steps(killed)
        facts |= _train(light, data, killed)
    different = differences(unbroken, killed, step=STEPS)
    light.note(different=different[:20], verdict=f"{len(different)} tensors differ" if different else "the same bits")
    if different:
        raise SystemExit(f"resume: {different[:3]}")


STEPS, SAVED = 9, 3


def _noise_set(source: Path, out: Path, *, side: int) -> Path:
    """Three pictures of noise, prepared."""
    generator = np.random.default_rng(0)
    (source / "noise").mkdir(parents=True, exist_ok=True)
    for number in range(3):
        coarse = generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(source / "noise" / f"{number}.png")
    subprocess.run(
        _command("prepare", str(source), "--size", str(side), "--out", str(out), "--format", "png"), check=True
    )
    return out


def _train(light: Light, data: Path, run: Path, *, kill_at: Path | None = None) -> dict:
    """The command line of a user; killed when a checkpoint appears."""
    name = SMALL if light.rehearse else "ffhq1024-85m"
    values = {
        "train.batch_size": 1, "train.deterministic": "true", "train.steps": STEPS, "train.save_every": SAVED,
        "train.sample_every": 0, "train.log_every": 1, "train.keep": 2, "data.workers": 0,
    }  # fmt: skip
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    start = time.perf_counter()
    with open(light.work / f"{run.name}.log", "a") as log:
        words = _command("train", name, "--data", str(data), "--run", str(run), *sets)
        process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ)
        try:
            while process.poll() is None:
                if kill_at is not None and kill_at.is_dir():
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                time.sleep(0.01)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    told = (light.work / f"{run.name}.log").read_text()[-400:]
    return {
        "exit_code": process.returncode,
        "seconds": time.perf_counter() - start,
        "told": told.strip().splitlines()[-1:],
    }
