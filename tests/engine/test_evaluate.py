"""Scoring: exact counts, nothing depends on batches or processes, the cache, and everything a user can get wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hdit_cli import runtime
from hdit_cli.cli import main
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import save_inference
from hdit_cli.engine.scoring import references
from hdit_cli.engine.scoring.evaluate import Evaluation, evaluate
from hdit_cli.engine.scoring.one_pass import Fed, collect
from hdit_cli.engine.scoring.picture_sets import Generated, Stored, open_stored, some_of
from hdit_cli.engine.scoring.references import collect_reference
from hdit_cli.engine.scoring.request import Request
from hdit_cli.engine.training.setup import new_model
from hdit_cli.errors import CheckpointError, DataError, UsageError
from hdit_cli.metrics.frechet import FID
from hdit_cli.metrics.inception import Inception
from hdit_cli.metrics.kernel import KID
from hdit_cli.metrics.sliced import SWD
from hdit_cli.recipe import load_recipe
from hdit_cli.tasks.sampling import Sampling

METRICS = (FID, KID, SWD)
FEW = Sampling(steps=2, sampler="euler", batch_size=4)


def silent(what: str, done: int, total: int) -> None:
    pass


class Net(nn.Module):
    """The outer shape of the published Inception file, with twelve features and five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(12, 5, bias=False)
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 9, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures, a data set `set`, a checkpoint `model.safetensors`, a net `net.pt`."""
    folder = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(0)
    for i in range(10):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = folder / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(path)
    options = PrepareOptions(size=(32, 32), format="png")
    prepare(folder / "pictures", out=folder / "set", options=options, workers=1)
    recipe = load_recipe("smoke/tiny", [f"data.path={json.dumps(str(folder / 'set'))}", "eval.n=6", "sample.steps=2"])
    model = new_model(recipe, ShardReader(folder / "set"), path=str(folder / "set"))
    model.weights = "ema"
    save_inference(folder / "model.safetensors", model)
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Net()), str(folder / "net.pt"))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_of(place: Path) -> Model:
    from hdit_cli.engine.load import load

    return load(place / "model.safetensors", device="cpu")


def scored(request: Request) -> Evaluation:
    evaluation = evaluate(request, on_progress=silent)
    assert evaluation is not None
    return evaluation


def values(evaluation: Evaluation) -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores}


@pytest.mark.parametrize(("n", "world"), [(1, 2), (6, 2), (11, 3)])
def test_every_picture_is_counted_once_on_any_number_of_processes(place, n, world, monkeypatch):
    net, model = Inception(place / "net.pt"), model_of(place)
    labels = torch.arange(n) % 2
    alone = collect(Generated(model, n, labels, FEW), [Fed(METRICS, net)], on_progress=silent)[0]
    seen: list[int] = []
    parts: list[dict] = []
    for rank in range(world):
        monkeypatch.setattr(runtime, "ranks", lambda rank=rank: runtime.Ranks(rank, world))
        pictures = Generated(model, n, labels, FEW, keep=lambda numbers, batch: seen.extend(numbers))
        parts.append(collect(pictures, [Fed(METRICS, net)], on_progress=silent)[0])
    assert sorted(seen) == list(range(n))
    for kind in METRICS:
        whole = kind.merged([part[kind.name].arrays() for part in parts])
        assert whole.count == n == alone[kind.name].count
        for name, array in whole.arrays().items():
            order = np.argsort(whole.arrays()["index"]) if "index" in whole.arrays() else slice(None)
            rows = order if name not in ("count", "mean", "scatter", "size") else slice(None)
            # a lone batch of another size may move a pixel by one step in 255
            np.testing.assert_allclose(array[rows], alone[kind.name].arrays()[name], rtol=1e-9, atol=1e-6)


def test_scores_do_not_depend_on_the_batch(place):
    base = Request(
        place / "set", reference=place / "pictures", metrics=("fid", "kid", "swd"), features=f"inception:{place / 'net.pt'}",
        allow_small=True,
    )  # fmt: skip
    by_size = []
    for size in (1, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hdit_cli.engine.scoring.picture_sets._READ", size)
            by_size.append(values(scored(base)))
    assert by_size[1] == pytest.approx(by_size[0], rel=1e-9, abs=1e-9)


def test_a_set_against_itself(place):
    request = Request(
        place / "set",
        reference=place / "set",
        metrics=("fid", "swd"),
        features=f"inception:{place / 'net.pt'}",
        allow_small=True,
    )
    found = values(scored(request))
    assert 0 <= found["fid"] <= 1e-3
    assert found["swd"] == 0


def test_a_checkpoint_is_scored_against_its_data_and_saved_pictures_score_the_same(place, tmp_path):
    how = {"metrics": ("fid", "kid", "swd"), "features": f"inception:{place / 'net.pt'}", "allow_small": True}
    evaluation = scored(Request(place / "model.safetensors", save=tmp_path / "out", **how))
    assert [(score.n, score.n_reference) for score in evaluation.scores] == [(6, 10)] * 3
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    again = scored(Request(tmp_path / "out", reference=place / "set", **how))
    assert values(again) == pytest.approx(values(evaluation), rel=1e-12)
    record = json.loads(json.dumps(evaluation.record()))
    assert record["sampling"]["steps"] == 2
    assert record["sampling"]["seed"] == 0
    assert record["features"]["published"] is False
    assert record["features"]["resize"] == "bicubic-299"
    assert record["reference"]["fingerprint"] == ShardReader(place / "set").fingerprint
    assert any("not the published" in note for note in evaluation.notes)
    assert any("biased" in note for note in evaluation.notes)


def test_sampling_options_reach_the_sampler(place):
    base = scored(Request(place / "model.safetensors", metrics=("swd",)))
    other = scored(Request(place / "model.safetensors", metrics=("swd",), sampling={"seed": 1, "sampler": "heun"}))
    assert other.facts["sampling"]["sampler"] == "heun"
    assert values(base) != values(other)
    assert scored(Request(place / "model.safetensors", metrics=("swd",), n=3)).scores[0].n == 3


def test_reference_features_come_from_the_cache_the_second_time(place, own_cache, monkeypatch):
    net, reference = Inception(place / "net.pt"), open_stored(place / "set")
    first = collect_reference(reference, [Fed(METRICS, net)], on_progress=silent)[0]
    assert sorted(path.name[:4] for path in (own_cache / "reference").iterdir()) == ["mome", "rows", "swd-"]
    read: list[tuple[str, ...]] = []

    def watched(pictures, fed, **options):
        read.append(tuple(kind.name for kind in fed[0].metrics))
        return collect(pictures, fed, **options)

    monkeypatch.setattr(references, "collect", watched)
    second = collect_reference(reference, [Fed(METRICS, net)], on_progress=silent)[0]
    assert not read
    (own_cache / "reference" / next(p.name for p in (own_cache / "reference").glob("swd-*"))).unlink()
    monkeypatch.setattr(references, "_LARGEST", 0)
    for _ in range(2):
        second = collect_reference(reference, [Fed(METRICS, net)], on_progress=silent)[0]
    assert read == [("swd",), ("swd",)]  # patches too large to keep are made again
    for kind in METRICS:
        for name, array in first[kind.name].arrays().items():
            np.testing.assert_array_equal(array, second[kind.name].arrays()[name])


def test_a_damaged_or_foreign_cache_is_made_again(place, own_cache):
    net, reference = Inception(place / "net.pt"), open_stored(place / "set")
    collect_reference(reference, [Fed((FID,), net)], on_progress=silent)
    (path,) = (own_cache / "reference").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert collect_reference(reference, [Fed((FID,), net)], on_progress=silent)[0]["fid"].count == 10
    assert path.read_bytes() == good
    fewer = Stored(reference.reader, name="set", n=4)
    assert collect_reference(fewer, [Fed((FID,), net)], on_progress=silent)[0]["fid"].count == 4
    assert len(list((own_cache / "reference").iterdir())) == 2


def test_of_too_many_pictures_some_are_chosen_once_for_all(place, monkeypatch):
    monkeypatch.setattr(SWD, "limit", 4)
    states = collect(open_stored(place / "set"), [Fed((SWD,))], on_progress=silent)[0]
    assert sorted(states["swd"].arrays()["index"]) == some_of(10, 4).tolist()


def test_progress_ends_at_the_number_of_pictures(place):
    seen: list[tuple[str, int, int]] = []
    request = Request(place / "model.safetensors", metrics=("swd",))
    evaluate(request, on_progress=lambda what, done, total: seen.append((what, done, total)))
    assert ("generated", 6, 6) in seen
    assert (str(place / "set"), 10, 10) in seen


def test_what_a_user_can_get_wrong(place, tmp_path):
    checkpoint, data, net = place / "model.safetensors", place / "set", place / "net.pt"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Request, type[Exception], str]] = [
        (Request(checkpoint, metrics=("fid",), features=f"inception:{net}"), DataError, "few pictures"),
        (Request(checkpoint, n=1, metrics=("kid",), features=f"inception:{net}"), DataError, "at least 2"),
        (Request(checkpoint, metrics=("kid",), features=f"inception:{tmp_path / 'no.pt'}"), DataError, "weights"),
        (Request(checkpoint, metrics=("nope",)), UsageError, "nope"),
        (Request(checkpoint, metrics=("swd",), reference=tmp_path / "no"), DataError, "no folder"),
        (Request(checkpoint, metrics=("swd",), reference=tmp_path / "empty"), DataError, "no pictures"),
        (Request(checkpoint, metrics=("swd",), reference=tmp_path / "full"), DataError, "empty"),
        (Request(checkpoint, metrics=("swd",), sampling={"size": (64, 64)}), DataError, "equal sizes"),
        (Request(checkpoint, metrics=("swd",), label="rose"), UsageError, "unknown class"),
        (Request(checkpoint, metrics=("swd",), save=tmp_path / "full"), UsageError, "not an empty"),
        (Request(data, metrics=("swd",)), UsageError, "no data to compare"),
        (Request(data, metrics=("swd",), reference=data, n=11), DataError, "holds 10"),
        (Request(data, metrics=("swd",), reference=data, sampling={"steps": 3}), UsageError, "nothing is sampled"),
        (Request(place / "nowhere", metrics=("swd",)), CheckpointError, "no checkpoint"),
        (Request(net, metrics=("swd",)), CheckpointError, "net.pt"),
    ]
    for request, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            evaluate(request, on_progress=silent)
        assert caught.value.hint, words  # type: ignore[attr-defined]


@pytest.mark.slow
def test_data_that_moved_or_changed(place, tmp_path):
    model = model_of(place)
    model.data["path"] = str(tmp_path / "gone")
    save_inference(tmp_path / "moved.safetensors", model)
    with pytest.raises(DataError, match="gone") as caught:
        evaluate(Request(tmp_path / "moved.safetensors", metrics=("swd",)), on_progress=silent)
    assert "--reference" in caught.value.hint
    model.data.update(path=str(place / "set"), fingerprint="0" * 64)
    save_inference(tmp_path / "changed.safetensors", model)
    notes = scored(Request(tmp_path / "changed.safetensors", metrics=("swd",))).notes
    assert any("changed" in note for note in notes)


def test_weights_are_downloaded_only_where_nobody_named_a_file(place, own_cache, monkeypatch):
    asked = []

    def download(**options):
        asked.append(options)
        raise DataError("no network", hint="somewhere else")

    monkeypatch.setattr("hdit_cli.metrics.inception.download", download)
    scored(Request(place / "set", reference=place / "set", metrics=("kid",), features=f"inception:{place / 'net.pt'}"))
    assert not asked
    with pytest.raises(DataError, match="no network"):
        evaluate(Request(place / "set", reference=place / "set", metrics=("kid",)), on_progress=silent)
    assert len(asked) == 1


def test_the_grid_of_sample_is_not_a_picture_of_the_set(place, tmp_path):
    for name in ("00000.png", "00001.png", "grid.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert open_stored(tmp_path).count == 3
    (tmp_path / "samples.json").write_text("{}")
    assert open_stored(tmp_path).count == 2


class Pooled(nn.Module):
    """uint8 (N, 3, H, W) => (N, 27): a net of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x.float(), 3).flatten(1)


def save_exported(folder: Path) -> Path:
    program = torch.export.export(Pooled(), (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),))
    torch.export.save(program, folder / "net.pt2")
    return folder / "net.pt2"


def test_metrics_of_any_net_in_one_pass(place, tmp_path):
    """`memorisation` of pictures that are the training set; classes, precision; each state is collected once."""
    names = ("fd", "kd", "precision-recall", "memorisation")
    request = Request(
        place / "set", reference=place / "set", metrics=names, features=str(save_exported(tmp_path)), allow_small=True
    )
    evaluation = scored(request)
    found = {score.metric: score for score in evaluation.scores}
    assert list(found) == ["fd", "kd", "precision", "recall", "density", "coverage", "memorisation"]
    assert found["fd"].value == pytest.approx(0, abs=1e-3)
    assert (found["precision"].value, found["precision"].better, found["fd"].better) == (1, "higher", "lower")
    assert found["memorisation"].value == pytest.approx(0, abs=1e-3)
    assert all(pair["picture"] == pair["reference"] for pair in found["memorisation"].details["closest"])
    assert evaluation.facts["features"]["net"] == "exported"
    assert any("--hold-out" in note for note in evaluation.notes)
    assert any(note.startswith("FD at n = 10:") for note in evaluation.notes)
    json.dumps(evaluation.record())


@pytest.mark.slow
def test_held_out_pictures_stand_beside_the_samples(place, tmp_path):
    rng = np.random.default_rng(1)
    for i in range(40):
        path = tmp_path / "more" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    options = PrepareOptions(size=(32, 32), hold_out=0.3)
    prepare(tmp_path / "more", out=tmp_path / "set", options=options, workers=1)
    request = Request(
        tmp_path / "set", reference=tmp_path / "set", metrics=("memorisation",), features=str(save_exported(tmp_path))
    )
    (score,) = scored(request).scores
    assert score.details["held_out"]["n"] > 0
    assert score.details["share_closer"] == 1  # the training pictures themselves


def test_each_class_by_itself(place):
    features, data = f"inception:{place / 'net.pt'}", place / "set"
    request = Request(data, reference=data, metrics=("fid-per-class",), features=features, allow_small=True)
    evaluation = scored(request)
    table = evaluation.scores[0].details["classes"]
    assert [row["n"] for row in table.values()] == [5, 5]
    assert evaluation.facts["classes"] == ["a", "b"]
    with pytest.raises(DataError, match="classes"):
        scored(Request(place / "pictures", reference=data, metrics=("fid-per-class",), features=features))


def test_a_file_of_moments_as_reference(place, tmp_path):
    net = Inception(place / "net.pt")
    rows = net([open_stored(place / "set").reader.picture(i) for i in range(10)]).astype(np.float64)
    np.savez(tmp_path / "moments.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    base = Request(
        place / "set", reference=tmp_path / "moments.npz", metrics=("fid",), features=f"inception:{place / 'net.pt'}",
        allow_small=True,
    )  # fmt: skip
    evaluation = scored(base)
    assert evaluation.scores[0].value <= 1e-3
    assert (evaluation.scores[0].n, evaluation.scores[0].n_reference) == (10, None)
    assert evaluation.facts["reference"]["count"] is None
    assert any("which net and resize" in note for note in evaluation.notes)
    with pytest.raises(DataError, match="kid need every picture"):
        scored(replace(base, metrics=("fid", "kid")))
    with pytest.raises(DataError, match="12 numbers, those of the reference 3"):
        np.savez(tmp_path / "moments.npz", mu=np.zeros(3), sigma=np.eye(3))
        scored(base)


def run_hdit(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HDIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hdit_cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_three_processes_score_as_one(place, tmp_path):
    """Every metric, every number of it; pictures are made one by one, so that they are the same to the last bit."""
    words = (
        "eval-fid", str(place / "model.safetensors"), "-n", "11", "--allow-small", "--json", "--inception", str(place / "net.pt"),
        "--batch-size", "1", "--metrics", "fid,kid,is,precision-recall,fid-per-class,fd,kd,memorisation,swd",
    )  # fmt: skip
    found = {1: run_hdit(*words, cache=tmp_path / "1")}
    found[3] = run_hdit(*words, "--processes", "3", "--oversubscribe", cache=tmp_path / "3")
    assert all(done.returncode == 0 for done in found.values()), [done.stderr for done in found.values()]
    told = {count: json.loads(done.stdout) for count, done in found.items()}
    assert [told[count]["processes"] for count in found] == [1, 3]
    assert [score["n"] for score in told[1]["scores"]] == [11] * 12
    same(told[3]["scores"], told[1]["scores"])


def same(found, expected) -> None:
    """Every number at any depth, to 1e-9 relative; all else equal."""
    if isinstance(expected, dict | list):
        keys = list(expected) if isinstance(expected, dict) else range(len(expected))
        assert len(found) == len(expected)
        for key in keys:
            same(found[key], expected[key])
    else:
        assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def test_the_command_prints_n_beside_every_score(place, tmp_path, capsys):
    def typed(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["eval-fid", str(place / "model.safetensors"), *words])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    code, out, err = typed()  # the metrics of the recipe
    assert code == 0, err
    assert out.startswith("SWD")
    assert "n = 6 against 10" in out
    assert "euler" not in out and "dpmpp-3m-sde 2 steps, cfg 1, seed 0" in out
    code, out, err = typed("--metrics", "swd", "--json", "-n", "2", "--class", "all", "--cfg-interval", "0.1:5")
    assert json.loads(out)["scores"][0]["n"] == 2
    assert json.loads(out)["sampling"]["cfg_interval"] == [0.1, 5]
    code, out, err = typed("--metrics", "fid")
    assert code == 3 and not out
    assert "--allow-small" in err and "Traceback" not in err
    code, out, err = typed("--metrics", "kid", "--inception", str(tmp_path / "none.pt"))
    assert code == 3
    assert "inception-2015-12-05.pt" in err and str(tmp_path) in err
    assert typed("--metrics", "nope")[0] == 2
    assert typed("-n", "0")[0] == 2


# The log of a run's scores


@pytest.mark.parametrize("where", ["ckpt.safetensors", "checkpoints/step-00000000/ema.safetensors", "."])
def test_scores_of_a_runs_checkpoint_are_added_to_the_run(place, tmp_path, where):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000000").mkdir(parents=True)
    (run / "recipe.toml").write_text("")
    (run / (where if where != "." else "ckpt.safetensors")).write_bytes((place / "model.safetensors").read_bytes())
    request = Request(run / where, metrics=("swd",), sampling={"seed": 3})
    evaluations = [scored(request), scored(request)]
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [line["scores"] for line in lines] == [values(evaluation) for evaluation in evaluations]
    assert lines[0]["sampling"]["seed"] == 3 and lines[0]["reference"]["count"] == 10
    assert (lines[0]["step"], lines[0]["weights"], lines[0]["n"]) == (0, "ema", 6)


def test_scores_are_told_where_they_cannot_be_added(place, tmp_path):
    run = tmp_path / "run"
    (run / "scores.jsonl").mkdir(parents=True)
    (run / "recipe.toml").write_text("")
    (run / "ckpt.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    evaluation = scored(Request(run, metrics=("swd",)))
    assert evaluation.scores and "were not added" in evaluation.notes[-1]


def test_pictures_have_no_run_to_add_to(place):
    scored(Request(place / "pictures", reference=place / "set", metrics=("swd",)))
    scored(Request(place / "model.safetensors", metrics=("swd",)))
    assert not list(place.rglob("scores.jsonl"))
