"""Evaluations inside a run: the run stays as it was, its scores are a function of the seed, the best weights are kept."""

import hashlib
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_recipe
from torch import nn

import hdit_cli
from hdit_cli import files
from hdit_cli.cli import main
from hdit_cli.engine.report.gather import gather
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.run.best import BEST, SCORE, best_problem
from hdit_cli.engine.run.verify import verify_run
from hdit_cli.engine.scoring.evaluate import evaluate
from hdit_cli.engine.scoring.request import Request
from hdit_cli.engine.training.evaluator import Evaluator
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import DataError, UsageError
from hdit_cli.recipe import Recipe

EVAL = {"every": 24, "during_n": 6, "during_metrics": ["swd"], "during_weights": ["ema", "0.1"], "batch_size": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))


def scored(**changes) -> Recipe:
    """With an evaluation at steps 3, 6 and 8."""
    return tiny_recipe(eval={**EVAL, **changes.pop("eval", {})}, ema={"stds": [0.1]}, train__sample_every=0, **changes)


def run(folder, recipe, data, watch=lambda event: None):
    seen = []

    def both(event):
        seen.append(event)
        watch(event)

    train(folder, recipe, data=data, watch=both)
    return seen


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digests(folder):
    """Of all that must come out the same."""
    newest = folder / "checkpoints" / checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    wanted = [
        folder / "metrics.jsonl",
        folder / "ckpt.safetensors",
        folder / BEST,
        *sorted(newest.glob("*.safetensors")),
    ]
    state = json.loads((newest / "state.json").read_text())
    return {
        **{str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in wanted},
        "evaluation": state["evaluation"],
    }


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """One unbroken run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HDIT_CACHE", str(folder.parent / "cache"))
        return folder, run(folder, scored(), tiny_data)


def test_scores_stand_in_the_log_and_training_is_what_it_was(whole, tiny_data, tmp_path):
    folder, seen = whole
    found = [line for line in lines(folder) if "eval" in line]
    assert [(line["step"], line["images"]) for line in found] == [(s, 8 * s) for s in (3, 3, 6, 6, 8, 8)]
    assert [line["eval"]["weights"] for line in found[:2]] == ["ema", "std 0.100"]
    assert all(line["eval"]["n"] == 6 and line["eval"]["n_reference"] == 24 for line in found)
    assert [event.step for event in seen if isinstance(event, events.Evaluated)] == [3, 6, 8]
    plain = tmp_path / "run"
    run(plain, scored(eval={"every": 0}), tiny_data)
    assert [line for line in lines(folder) if "eval" not in line] == lines(plain)
    ours, theirs = (checkpoint.load_snapshot(p / "checkpoints" / "step-00000008") for p in (folder, plain))
    for name in ours.raw:
        assert torch.equal(ours.raw[name], theirs.raw[name]) and torch.equal(ours.ema[name], theirs.ema[name])
    assert "evaluation" not in theirs.state and not (plain / BEST).exists()


def test_the_best_is_the_lowest_of_the_first_metric_and_weights(whole, tmp_path):
    folder, _ = whole
    values = {
        line["step"]: line["eval"]["scores"]["swd"]
        for line in lines(folder)
        if line.get("eval", {}).get("weights") == "ema"
    }
    step = min(values, key=lambda step: values[step])
    told = json.loads(checkpoint.read_header(folder / BEST)[SCORE])
    assert (told["step"], told["value"], told["metric"]) == (step, values[step], "swd")
    running = [min(list(values.values())[: i + 1]) for i in range(3)]
    marked = [line["eval"]["best"] for line in lines(folder) if line.get("eval", {}).get("weights") == "ema"]
    assert marked == [True] + [running[i] < running[i - 1] for i in (1, 2)]
    model = hdit_cli.load(folder / BEST, device="cpu")
    assert (model.step, model.weights) == (step, "ema")
    alone = tmp_path / BEST
    alone.write_bytes((folder / BEST).read_bytes())
    request = Request(alone, n=6, metrics=("swd",), sampling={"seed": 0, "batch_size": 3})
    evaluation = evaluate(request, on_progress=lambda *_: None)
    assert evaluation is not None
    assert evaluation.scores[0].value == pytest.approx(values[step], rel=1e-12)  # the command gives what the run logged


def test_verify_compares_the_best_with_its_own_hash(whole, tmp_path):
    folder, _ = whole
    assert (BEST, "") in {(checked.name, checked.problem) for checked in verify_run(folder)}
    data = (folder / BEST).read_bytes()
    path = tmp_path / BEST
    tail, title = len(data) - 5, data.index(b"hourglass-diffusion")
    for place, expected in ((tail, "changed"), (title, "changed"), (data.index(b"hdit.sha256"), "no hash")):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert expected in best_problem(path)
    path.write_bytes(data[:-1])
    assert best_problem(path)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [3, 5, 7])
def test_a_run_that_was_cut_scores_the_same(whole, tiny_data, tmp_path, cut):
    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Stepped) and event.step == cut:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "run", scored(), tiny_data, stop)
    run(tmp_path / "run", scored(), tiny_data)
    assert digests(tmp_path / "run") == digests(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("at", [6, 8])
def test_a_signal_breaks_an_evaluation_off_and_it_is_made_when_the_run_goes_on(
    whole, tiny_data, tmp_path, at, monkeypatch
):
    """Also the one after the last step."""
    original = Evaluator._pictures

    def pictures(self, model):
        if model.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_pictures", pictures)
        seen = run(tmp_path / "run", scored(), tiny_data)
    assert seen[-1] == events.Finished(at, stopped_by="SIGTERM")
    assert [event.step for event in seen if isinstance(event, events.Evaluated)] == [3, 6][: at // 4]
    assert checkpoint.list_steps(tmp_path / "run")[-1] == at
    run(tmp_path / "run", scored(), tiny_data)
    ours, expected = digests(tmp_path / "run"), digests(whole[0])
    if at == 8:  # nothing is saved after the last step: the evaluation is made again whenever the run is started again
        assert ours.pop("evaluation")["step"] == 6 and expected.pop("evaluation")["step"] == 8
    assert ours == expected


@pytest.mark.slow
def test_another_basis_starts_the_best_anew(whole, tiny_data, tmp_path):
    """A score of more pictures does not compare with one of fewer."""
    folder = tmp_path / "run"
    run(folder, scored(train__steps=4), tiny_data)
    before = json.loads(checkpoint.read_header(folder / BEST)[SCORE])
    run(folder, scored(eval={"during_n": 7}), tiny_data)
    after = json.loads(checkpoint.read_header(folder / BEST)[SCORE])
    assert before["n"] == 6 and after["n"] == 7 and after["step"] > before["step"]


@pytest.mark.slow
def test_best_is_known_to_a_run_that_was_not_scored_for_a_while(tiny_data, tmp_path):
    folder = tmp_path / "run"
    run(folder, scored(train__steps=3), tiny_data)
    before = (folder / BEST).read_bytes()
    run(folder, scored(train__steps=4, eval={"every": 0}), tiny_data)
    recipe = scored()
    evaluator = Evaluator(recipe, model=hdit_cli.load(folder, device="cpu"), reader=_reader(tiny_data), folder=folder)
    evaluator.restore(None, step=4)
    assert evaluator.best is not None and evaluator.best["step"] == 3
    evaluator.restore(None, step=2)  # a file from later than the checkpoint tells nothing
    assert evaluator.best is None
    assert (folder / BEST).read_bytes() == before


def _reader(data):
    from hdit_cli.data.reader import ShardReader

    return ShardReader(data)


def test_what_a_user_can_get_wrong(tiny_data, tmp_path):
    with pytest.raises(UsageError, match=r"width 0\.2.*does not track"):
        run(tmp_path / "run", scored(eval={"during_weights": ["0.2"]}), tiny_data)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="neither"):
        scored(eval={"during_weights": ["avg"]})
    with pytest.raises(
        UsageError, match="sfid needs Inception's spatial features"
    ) as caught:  # and nothing is downloaded
        run(tmp_path / "run", scored(eval={"during_metrics": ["sfid"], "features": "inception"}), tiny_data)
    assert caught.value.hint == "--set eval.features=adm" and not (tmp_path / "run").exists()


class Pooled(nn.Module):
    """uint8 (N, 3, H, W) => (N, 12)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)


def exported(path, *, side=16):
    program = torch.export.export(Pooled(), (torch.zeros(1, 3, side, side, dtype=torch.uint8),))
    torch.export.save(program, path)
    return {"features": str(path), "during_metrics": ["kd", "fd"], "during_weights": ["ema"]}


def test_another_net_stands_in_the_log_and_in_what_the_best_compares(tiny_data, tmp_path):
    folder, section = tmp_path / "run", exported(tmp_path / "net.pt2")
    recipe = scored(eval=section, train__steps=3)
    run(folder, recipe, tiny_data)
    (told,) = (line["eval"] for line in lines(folder) if "eval" in line)
    assert list(told["scores"]) == ["kd", "fd"]
    net = {"net": "exported", "sha256": files.sha256(tmp_path / "net.pt2"), "resize": "by the net"}
    assert told["features"] == net
    best = json.loads(checkpoint.read_header(folder / BEST)[SCORE])
    assert best["features"] == net
    model, reader = hdit_cli.load(folder, device="cpu"), _reader(tiny_data)
    kept = {"step": 3, "best": best}
    evaluator = Evaluator(recipe, model=model, reader=reader, folder=folder)
    evaluator.restore(kept, step=3)
    assert evaluator.best == best
    request = Request(folder, n=6, metrics=("kd",), allow_small=True, sampling={"batch_size": 3})
    named = replace(request, features=str(tmp_path / "net.pt2"))  # again: what a checkpoint names is not opened
    alone = evaluate(named, on_progress=lambda *_: None)
    assert alone is not None and alone.facts["features"]["sha256"] == net["sha256"]
    assert alone.scores[0].value == pytest.approx(told["scores"]["kd"], rel=1e-9)
    with (tmp_path / "net.pt2").open("ab") as file:  # the same program in other bytes
        file.write(b" ")
    evaluator.net.sha256 = files.sha256(tmp_path / "net.pt2")
    evaluator.restore(kept, step=3)
    assert evaluator.best is None  # another file is another net: the best starts anew


def test_a_net_that_is_missing_or_does_not_fit_is_told_before_the_first_step(tiny_data, tmp_path):
    with pytest.raises(DataError, match=r"gone\.pt2") as caught:
        run(
            tmp_path / "run",
            scored(eval={**exported(tmp_path / "net.pt2"), "features": str(tmp_path / "gone.pt2")}),
            tiny_data,
        )
    assert f"put it at {tmp_path / 'gone.pt2'}" in caught.value.hint
    with pytest.raises(DataError, match="takes pictures of 32x32, not 16x16"):
        run(tmp_path / "run", scored(eval=exported(tmp_path / "large.pt2", side=32)), tiny_data)
    with pytest.raises(UsageError, match="kid: needs Inception's features"):
        run(tmp_path / "run", scored(eval={**exported(tmp_path / "net.pt2"), "during_metrics": ["kid"]}), tiny_data)
    with pytest.raises(DataError, match=r"dinov2 are missing.*config\.json"):
        run(tmp_path / "run", scored(eval={"features": "dinov2:none", "during_metrics": ["fd"]}), tiny_data)
    assert not (tmp_path / "run").exists()


def test_a_best_from_before_nets_were_written_down_was_of_inception(tiny_data, tmp_path):
    from test_evaluate import Net

    torch.jit.save(torch.jit.script(Net()), str(tmp_path / "net.pt"))
    recipe = scored(eval={"during_metrics": ["kid"], "features": f"inception:{tmp_path / 'net.pt'}"}, train__steps=3)
    run(tmp_path / "run", recipe, tiny_data)
    best = json.loads(checkpoint.read_header(tmp_path / "run" / BEST)[SCORE])
    old = {name: value for name, value in best.items() if name != "features"}
    model = hdit_cli.load(tmp_path / "run", device="cpu")
    evaluator = Evaluator(recipe, model=model, reader=_reader(tiny_data), folder=tmp_path / "run")
    evaluator.restore({"step": 3, "best": old}, step=3)
    assert evaluator.best == old
    evaluator.restore({"step": 3, "best": {**best, "features": {**best["features"], "sha256": "0" * 64}}}, step=3)
    assert evaluator.best is None


def test_info_and_the_report_know_them(whole, capsys):
    folder, _ = whole
    with pytest.raises(SystemExit) as stopped:
        main(["info", str(folder / BEST), "--json"])
    assert stopped.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["score"]["metric"] == "swd" and facts["step"] == facts["score"]["step"]
    (page,) = gather([folder])["runs"]
    assert [entry["scores"]["swd"] for entry in page["scores"]] == [
        pytest.approx(line["eval"]["scores"]["swd"], rel=1e-5) for line in lines(folder) if "eval" in line
    ]
    assert page["log"]["step"] == [3, 6, 8] and all(value is not None for value in page["log"]["loss"])
