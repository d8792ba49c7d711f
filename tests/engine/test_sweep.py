# ruff: noqa: F811 - fixtures of another module
"""Sweeps: what may be typed, the table, finished points kept, the best one; the picture of the memorisation check."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from test_evaluate import own_cache, place, scored, silent  # noqa: F401 - two are fixtures

from hdit_cli.cli import main
from hdit_cli.commands.sweep import parse
from hdit_cli.engine.scoring import sweep as sweeping
from hdit_cli.engine.scoring.evaluate import run as run_job
from hdit_cli.engine.scoring.plot import Panel, curves_png, ticks
from hdit_cli.engine.scoring.request import Request, Session
from hdit_cli.engine.scoring.sweep import Axis, Sweep, best, sweep
from hdit_cli.errors import CheckpointError, UsageError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cfg=1:3:0.5", (1.0, 1.5, 2.0, 2.5, 3.0)),
        ("cfg=1:1.5:0.1", (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)),
        ("cfg=1:2:0.7,4", (1.0, 1.7, 4.0)),
        ("steps=10,20,10", (10, 20)),
        ("sampler=heun,dpmpp-3m-sde", ("heun", "dpmpp-3m-sde")),
        ("weights=ema,0.05,raw", ("ema", "0.050", "raw")),
        ("weights=0.05:0.1:0.05", ("0.050", "0.100")),
        ("seed=0:2:1", (0, 1, 2)),
    ],
)
def test_what_may_be_typed(text, values):
    (axis,) = parse([text])
    assert axis == Axis(text.partition("=")[0], values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text",
    ["cfg", "cfg=", "eta=1", "cfg=a", "cfg=3:1:1", "cfg=1:3:0", "cfg=1:3", "cfg=1:2:3:4", "cfg=nan", "cfg=1:1e9:1e-9",
     "steps=0", "steps=1.5", "sampler=nope", "weights=avg", "steps=1:600:1"],
)  # fmt: skip
def test_what_may_not(text):
    with pytest.raises(UsageError) as caught:
        parse([text])
    assert caught.value.hint
    with pytest.raises(UsageError, match="twice"):
        parse(["cfg=1", "cfg=2"])


@pytest.mark.slow
def test_finished_points_are_kept_and_a_wider_sweep_makes_the_new_ones_alone(place, tmp_path, monkeypatch):
    made = []

    def counted(job, session, **options):
        made.append(job.pictures.sampling.steps)
        return run_job(job, session, **options)

    monkeypatch.setattr(sweeping, "run", counted)
    base = Request(place / "model.safetensors", metrics=("swd",), sampling={"batch_size": 3})
    wanted = Sweep(base, (Axis("steps", (2, 1)),), tmp_path / "out")
    table = sweep(wanted, Session(), on_progress=silent)
    assert made == [2, 1] and table is not None
    alone = scored(Request(place / "model.safetensors", metrics=("swd",), sampling={"batch_size": 3, "steps": 1}))
    assert table["points"][1]["record"]["scores"][0]["value"] == alone.scores[0].value
    values = [point["record"]["scores"][0]["value"] for point in table["points"]]
    assert table["best"] == int(np.argmin(values))
    again = sweep(Sweep(base, (Axis("steps", (1, 2, 3)),), tmp_path / "out"), Session(), on_progress=silent)
    assert made == [2, 1, 3] and again is not None
    assert [point["steps"] for point in again["points"]] == [1, 2, 3]
    assert again["points"][:2] == table["points"][::-1]
    other = Sweep(Request(place / "model.safetensors", n=5, metrics=("swd",)), (Axis("steps", (1,)),), tmp_path / "out")
    sweep(other, Session(), on_progress=silent)
    assert made[-1] == 1 and len(made) == 4  # of other options nothing is taken over
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert picture.size[0] > 500


def test_a_point_that_cannot_be_is_refused_before_any_is_made(place, tmp_path):
    base = Request(place / "model.safetensors", metrics=("swd",))
    with pytest.raises(UsageError, match="raw"):
        sweep(Sweep(base, (Axis("weights", ("raw",)),), tmp_path / "x"), Session(), on_progress=silent)
    with pytest.raises(UsageError, match="nothing to vary"):
        pictures = Request(place / "pictures", reference=place / "set", metrics=("swd",), sampling={})
        sweep(Sweep(pictures, (Axis("n", (1,)),), tmp_path / "x"), Session(), on_progress=silent)
    assert not (tmp_path / "x").exists()


def test_the_best_goes_by_the_direction_of_the_metric():
    def entries(better, *values):
        return [{"record": {"scores": [{"metric": "m", "value": value, "better": better}]}} for value in values]

    assert best(entries("lower", 3, 1, 1, 2)) == 1
    assert best(entries("higher", 3, 1, 4, 4)) == 2
    assert best(entries(None, 3, 1)) is None


def test_the_command_prints_a_table(place, tmp_path, capsys):
    words = ["eval-fid", str(place / "model.safetensors"), "--metrics", "swd", "-n", "4", "--sweep", "steps=1,2"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--out", str(tmp_path / "s")])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert out.splitlines()[0].split() == ["steps", "swd"] and out.count("<- best") == 1
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "s"), "--json"])
    assert len(json.loads(capsys.readouterr().out)["points"]) == 2
    for wrong in (["--sweep", "nope=1"], ["--out", "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(["eval-fid", str(place / "model.safetensors"), *wrong])
        assert stopped.value.code == 2


def test_ticks_are_round_and_cover_the_range():
    for low, high in ((0.0, 1.0), (-3.2, 17.1), (1e-5, 3e-5), (99.0, 100.5)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 8
        assert len(set(np.round(np.diff(found), 12))) == 1


def test_a_curve_of_one_point_and_of_gaps_is_drawn():
    for series in ({"": [1.0]}, {"a": [None], "b": [0.0]}):
        assert Image.open(io.BytesIO(curves_png([Panel("x", series)], x=["ema"], x_name="weights"))).size == (760, 340)


def test_the_memorisation_check_is_drawn(place, tmp_path):
    request = Request(
        place / "model.safetensors",
        metrics=("memorisation",),
        features=f"inception:{place / 'net.pt'}",
        grid=tmp_path / "here" / "near.png",
    )
    evaluation = scored(request)
    assert evaluation.facts["nearest"] == str(tmp_path / "here" / "near.png")
    with Image.open(tmp_path / "here" / "near.png") as picture:
        assert picture.size[1] > 340 + 6 * 64  # a histogram, and a row for each of six samples
    assert any("held-out" in note for note in evaluation.notes)


def test_a_picture_of_the_set_finds_itself(place, tmp_path):
    """Samples that are training pictures are at no distance from themselves."""
    request = Request(
        place / "set",
        reference=place / "set",
        metrics=("memorisation",),
        features=f"inception:{place / 'net.pt'}",
        grid=tmp_path / "near.png",
    )
    pairs = scored(request).scores[0].details["closest"]
    assert all(pair["picture"] == pair["reference"] for pair in pairs)


def test_the_folder_of_a_step_is_a_checkpoint(place, tmp_path):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "ema.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    assert scored(Request(folder, metrics=("swd",), n=2)).facts["model"]["origin"] == str(folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors") as caught:
        scored(Request(folder, metrics=("swd",), weights="raw"))
    assert "ema.safetensors" in caught.value.hint
