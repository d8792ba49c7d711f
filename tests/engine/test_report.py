"""The facts of a report: from whole runs, and from runs that are empty, damaged or training at this moment."""

import base64
import io
import json
import os
import re
import socket
import subprocess
from itertools import pairwise

import pytest
from PIL import Image
from report_run import ENVIRONMENT, SIGMAS, full_run, grid, held_out_at, loss_at

from hdit_cli import files
from hdit_cli.engine.report import page, write_report
from hdit_cli.engine.report.gather import gather
from hdit_cli.engine.report.logs import POINTS, Axes, read_log, thinned
from hdit_cli.engine.report.pictures import BUDGET, evenly, grids
from hdit_cli.errors import UsageError

HOSTILE = "</script><script>alert(1)</script><!--\u2028&amp;{{data}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("report") / "run")


def only(folder):
    """The facts of one run."""
    return gather([folder])["runs"][0]


def embedded(html: bytes):
    """The facts inside a page, as a browser finds them: up to the first end of the script element."""
    text = html.decode()
    mark = '<script type="application/json" id="facts">'
    return json.loads(text.partition(mark)[2].partition("</script")[0])


# Facts


def test_curves_are_what_was_logged(run):
    facts = only(run)
    log = facts["log"]
    assert log["step"] == list(range(10, 601, 10)) and log["images"] == [step * 8 for step in log["step"]]
    assert log["loss"] == pytest.approx([loss_at(step) for step in log["step"]], rel=1e-5)
    assert log["hours"] == pytest.approx([step * 0.9 / 3600 for step in log["step"]], rel=1e-4)
    assert log["lr mapping"] == [7e-4] * 60 and log["skipped"][4] == 1
    assert facts["timing"]["memory"] == [1.0] * 60
    assert facts["sigma"]["latest"]["sigmas"] == SIGMAS
    tail = [loss_at(step) * 0.8**0.2 for step in range(550, 601, 10)]
    assert facts["sigma"]["latest"]["loss"][2] == pytest.approx(sum(tail) / 6, rel=1e-5)
    assert facts["sigma"]["over_time"]["0.8"] == pytest.approx([loss_at(s) * 0.8**0.2 for s in log["step"]], rel=1e-5)


def test_what_a_run_started_from_is_told(tmp_path):
    folder = full_run(tmp_path / "run", steps=20)
    assert only(folder)["summary"]["init"] is None
    source = {"path": "runs/old", "sha256": "f" * 64, "weights": "ema", "step": 400}
    (folder / "init.json").write_text(json.dumps({"format": "hdit-init/1", "source": source}))
    assert only(folder)["summary"]["init"] == "old, ema weights of step 400"
    (folder / "init.json").write_text("{")
    facts = only(folder)
    assert facts["summary"]["init"] is None and any("init.json cannot be read" in note for note in facts["notes"])


def test_validation_curves(run):
    curves = {(curve["split"], curve["weights"]): curve for curve in only(run)["validation"]}
    assert set(curves) == {(split, weights) for split in ("held-out", "training") for weights in ("raw", "ema")}
    ema = curves["held-out", "ema"]
    assert ema["table"]["mean"] == pytest.approx([held_out_at(step) for step in range(100, 601, 100)], rel=1e-5)
    assert ema["best"]["step"] == 300 and ema["latest"]["step"] == 600 and ema["latest"]["sigmas"] == SIGMAS


def test_summary(run):
    summary = only(run)["summary"]
    assert (summary["state"], summary["step"], summary["images"]) == ("finished", 600, 4800)
    assert summary["params"] > 10_000 and summary["gmacs"] > 0
    assert summary["trained_seconds"] == pytest.approx(540) and summary["wall_seconds"] == pytest.approx(590)
    assert only(run)["environment"] == [{"step": 600, "environment": ENVIRONMENT}]


def test_names_tell_runs_apart(run, tmp_path):
    other = full_run(tmp_path / "run", steps=100)
    names = [told["name"] for told in gather([run, other, run])["runs"]]
    assert names == [f"{run.parent.name}/run", f"{tmp_path.name}/run"]


def test_a_shipped_recipe_is_the_base(tmp_path):
    from hdit_cli.recipe import load_recipe

    (tmp_path / "recipe.toml").write_text(load_recipe("flowers256", ["train.batch_size=7"]).to_toml())
    facts = only(tmp_path)
    differing = {key for key, text in facts["recipe"].items() if facts["base"]["recipe"].get(key) != text}
    assert facts["base"]["name"] == "flowers256" and differing == {"train.batch_size"}


# Resumed, growing, damaged, missing


def test_a_resumed_run_counts_its_hours_on():
    """At step 30 the process died; it went on from 20: the clock started anew, and 30 was done twice."""
    timing = [{"step": s, "trained_seconds": t} for s, t in ((10, 10), (20, 20), (30, 30), (30, 12), (40, 22))]
    axes = Axes([], timing, batch_size=4)
    assert axes.seconds == 52
    assert [round(hours * 3600) for hours in axes.columns([10, 20, 30, 40])["hours"]] == [10, 20, 42, 52]
    assert axes.columns([41])["hours"] == [None] and axes.columns([41])["images"] == [164]


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 610, "lo', b'{"step": 610, "loss": 0.1', b"\xff\xfe", b"[" * 5000],
    ids=["cut", "open", "bytes", "deep"],
)
def test_half_a_line(run, tmp_path, tail):
    for name in ("metrics", "timing", "validation", "scores"):
        (tmp_path / f"{name}.jsonl").write_bytes((run / f"{name}.jsonl").read_bytes() + tail)
    facts = only(tmp_path)
    assert facts["log"]["step"][-1] == 600
    assert sum("cut short" in note for note in facts["notes"]) == 4


ODD = [
    "null", "[]", "3", '{"step": "10"}', '{"step": true}', '{"step": -1}', '{"step": 1e3}', "{}", '{"step": 99999999999999999999}',
    '{"step": 0}', '{"step": 5, "images": null, "loss": NaN, "grad_norm": Infinity, "lr": "x", "lrs": 3, "loss_by_sigma": 5}',
    '{"step": 6, "images": "many", "loss": ' + "9" * 400 + ', "lrs": [1, null], "loss_by_sigma": [[1], [0, 1], ["a", "b"], 3]}',
    '{"step": 7, "loss": [1], "mean": 1, "sigmas": 3, "weights": {}, "split": null, "n": "x"}',
    '{"step": 8, "mean": 0.5, "sigmas": [1, 2], "loss": [1], "scores": {"fid": "low", "kid": 1}, "sampling": [], "reference": "d"}',
    '{"step": 9, "scores": [], "time": "now", "trained_seconds": null, "images_per_second": {}, "peak_bytes": -1}',
]  # fmt: skip


def test_odd_lines_are_left_out(tmp_path):
    for name in ("metrics", "timing", "validation", "scores"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(ODD) + "\n")
    facts = only(tmp_path)
    assert any(note.startswith("9 lines of metrics.jsonl") for note in facts["notes"])
    assert facts["log"]["step"] == [0, 5, 6, 7, 8, 9] and "loss" not in facts["log"]
    assert [score["scores"] for score in facts["scores"]] == [{"kid": 1.0}]
    embedded(page.build(gather([tmp_path])))  # no NaN came through


def test_the_newest_line_of_a_step_counts(tmp_path):
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 0.5), (2, 0.4), (3, 0.3), (2, 0.2))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert only(tmp_path)["log"]["loss"] == [0.5, 0.2, 0.3]


@pytest.mark.parametrize("kind", ["empty", "recipe", "broken recipe", "foreign recipe", "binary", "folders for files"])
def test_little_or_nothing_there(tmp_path, run, kind):
    run_folder = tmp_path / "run"
    (run_folder / "samples").mkdir(parents=True)
    if kind == "recipe":
        (run_folder / "recipe.toml").write_bytes((run / "recipe.toml").read_bytes())
    elif kind == "broken recipe":
        (run_folder / "recipe.toml").write_text("[model\n")
    elif kind == "foreign recipe":
        (run_folder / "recipe.toml").write_text("[train]\nsteps = 'many'\nwhen = 2026-11-21\nbatch_size = nan\n")
    elif kind == "binary":
        names = ("recipe.toml", "metrics.jsonl", "scores.jsonl", "ckpt.safetensors", ".lock")
        for name in (*names, "samples/step-00000001-ema.png"):
            (run_folder / name).write_bytes(bytes(range(256)) * 3)
    elif kind == "folders for files":
        for name in ("recipe.toml", "metrics.jsonl", "ckpt.safetensors", "samples/step-00000001-ema.png"):
            (run_folder / name).mkdir()
    report = write_report([run_folder], out=tmp_path / "report.html", force=False)
    facts = embedded(report.path.read_bytes())["runs"][0]
    assert facts["summary"]["state"] == "empty" and facts["log"]["step"] == [] and facts["notes"]
    unread = any(note.startswith("metrics.jsonl cannot be read:") for note in facts["notes"])
    assert unread == (kind == "folders for files")


def test_a_run_that_is_training(run, tmp_path):
    folder = full_run(tmp_path / "run", steps=300)
    assert only(folder)["summary"]["state"] == "stopped"
    with files.lock(folder / ".lock", what="run"):
        assert only(folder)["summary"]["state"] == "training"
        with pytest.raises(UsageError), files.lock(folder / ".lock", what="run"):
            pass  # looking did not take it away
    (folder / ".lock").write_text(f"host {socket.gethostname()} pid {2**22 + 1} since 2026-11-21 06:00:00\n")
    assert only(folder)["summary"]["state"] == "stopped"
    (folder / ".lock").write_text(f"host elsewhere pid {os.getpid()} since 2026-11-21 06:00:00\n")
    assert only(folder)["summary"]["state"] == "stopped"


# What is not a run, and what may be overwritten


@pytest.mark.parametrize(("made", "words"), [(None, "no run folder"), ("", "not a run"), ("manifest.json", "data set")])
def test_not_a_run(tmp_path, made, words):
    place = tmp_path / "x"
    if made is not None:
        place.mkdir()
        if made:
            (place / made).write_text("{}")
    with pytest.raises(UsageError, match=words):
        write_report([place], out=tmp_path / "report.html", force=False)
    assert not (tmp_path / "report.html").exists()


def test_only_a_report_is_replaced(run, tmp_path):
    out = tmp_path / "deep" / "report.html"
    first = write_report([run], out=out, force=False)
    assert first.bytes == out.stat().st_size
    write_report([run], out=out, force=False)
    out.write_text("my own page")
    with pytest.raises(UsageError, match="not a report"):
        write_report([run], out=out, force=False)
    assert out.read_text() == "my own page"
    write_report([run], out=out, force=True)
    assert page.is_report(out)


# Size


def test_long_logs_become_means():
    lines = [{"step": step, "loss": float(step % 2)} for step in range(1, 4 * POINTS + 1)]
    table = thinned(lines, {"loss": lambda line: line["loss"]}, Axes([], [], batch_size=2))
    assert len(table["loss"]) == POINTS and table["lines_per_point"] == 4 and set(table["loss"]) == {0.5}
    assert table["step"][0] == 4 and table["step"][-1] == 4 * POINTS


@pytest.mark.parametrize(("total", "n"), [(1, 4), (4, 4), (5, 4), (1000, 40), (41, 40)])
def test_evenly(total, n):
    chosen = evenly(range(total), n)
    assert chosen[0] == 0 and chosen[-1] == total - 1 and len(set(chosen)) == len(chosen) == min(n, total)
    gaps = [b - a for a, b in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_many_grids_are_cut_to_the_budget(tmp_path):
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    for step in range(0, 6000, 100):
        Image.fromarray(noise).save(tmp_path / f"step-{step:08d}-ema.png", compress_level=0)
    (tmp_path / "step-00000100-ema.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told = grids(tmp_path, runs=12)
    steps = [each["step"] for each in told["shown"]]
    assert told["total"] == 60 and steps[0] == 0 and steps[-1] == 5900 and len(steps) == 4
    sizes = [len(base64.b64decode(each["pictures"]["ema"].partition(",")[2])) for each in told["shown"]]
    assert sum(sizes) <= BUDGET / 12


def test_a_large_grid_is_made_smaller_and_keeps_its_shape(tmp_path):
    Image.new("RGB", (4000, 2000), (10, 200, 30)).save(tmp_path / "step-00000001-raw.png")
    told = grids(tmp_path, runs=1)
    address = told["shown"][0]["pictures"]["raw"]
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert address.startswith("data:image/webp;base64,") and picture.size == (1600, 800) and told["scale"] == 0.4
    assert all(abs(a - b) < 6 for a, b in zip(picture.getpixel((800, 400)), (10, 200, 30), strict=True))


def test_a_grid_that_cannot_be_read_is_named(tmp_path):
    grid(tmp_path / "step-00000001-ema.png", level=3)
    (tmp_path / "step-00000002-ema.png").write_bytes(b"no picture")
    told = grids(tmp_path, runs=1)
    assert [each["step"] for each in told["shown"]] == [1]
    assert told["notes"][0].startswith("step-00000002-ema.png cannot be shown")


def test_a_grid_of_another_format_reaches_no_other_decoder(tmp_path, monkeypatch):
    """EPS starts Ghostscript; a pipe would be waited for; other damage may raise anything."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "step-00000001-ema.png").write_bytes(eps)
    os.mkfifo(tmp_path / "step-00000002-ema.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "step-00000003-ema.png", "TIFF")
    told = grids(tmp_path, runs=1)
    assert told["shown"] == [] and len(told["notes"]) == 3 and started == []


# The file


def test_names_cannot_leave_their_place():
    facts = {"runs": [{"name": HOSTILE, "surrogate": "\udcff"}]}
    html = page.build(facts)
    found = embedded(html)
    assert found["runs"] == facts["runs"]
    assert found["bytes"] == pytest.approx(len(html), abs=10)
    assert html.count(b"</script") == 2 and html.count(b"<script") == 2 and b"alert(1)<" not in html


def test_the_policy_lets_in_only_what_is_inside():
    html = page.build({"runs": []}).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and "connect-src" not in rules
    assert all(rules[name].startswith("'sha256-") for name in ("script-src", "style-src"))
    assert "unsafe" not in policy
    outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+", html.replace("http://www.w3.org/2000/svg", ""))
    assert outside == []


def test_read_log_of_nothing(tmp_path):
    assert not read_log(tmp_path / "metrics.jsonl").found
