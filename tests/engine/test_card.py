"""The model card beside every export."""

import json

import pytest
from test_generate import make

from hdit_cli import cli
from hdit_cli.engine import checkpoint
from hdit_cli.engine.card import best_known, place_for, read_scores, run_of

yaml = pytest.importorskip("yaml")


def export(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", *map(str, words), "--json"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return json.loads(printed.out), printed.err


@pytest.fixture
def run(tmp_path):
    """A folder as training leaves it: a checkpoint, a grid of it, scores."""
    folder = tmp_path / "flowers"
    (folder / "samples").mkdir(parents=True)
    model = make(("rose", "tulip: late", "no"))
    model.step, model.images_seen = 1000, 16_000
    model.data = {"path": "/home/someone/data/flowers16", "fingerprint": "f" * 64, "class_counts": [60, 30, 10]}
    checkpoint.save_inference(folder / "ckpt.safetensors", model)
    (folder / "recipe.toml").write_text("")
    (folder / "samples" / "step-00001000-ema.png").write_bytes(b"the grid of the run")
    lines = [
        {"step": 1000, "weights": "ema", "n": 500, "scores": {"fid": 31.0, "swd": 9.0}},
        {"step": 1000, "weights": "ema", "n": 5000, "scores": {"fid": 30.25}},
        {"step": 500, "weights": "ema", "n": 5000, "scores": {"fid": 44.0, "kid": float("nan")}},
        {"step": 1000, "weights": "raw", "n": 5000, "scores": {"fid": 12.0}},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\nnot json\n{"step": 3}\n[]\n'
    (folder / "scores.jsonl").write_text(text)
    return folder


def test_a_card_has_score_recipe_and_grid(run, tmp_path, capsys):
    out = tmp_path / "out" / "flowers.safetensors"
    facts, said = export(capsys, run, "--out", out, "--license", "cc-by-4.0")
    assert said == ""
    assert facts["card"] == str(tmp_path / "out" / "README.md")
    assert (tmp_path / "out" / "flowers-grid.png").read_bytes() == b"the grid of the run"
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("cc-by-4.0", "hdit-cli")
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == {"fid": 30.25, "swd": 9.0}
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "flowers16"
    for words in (
        "![samples](flowers-grid.png)",
        f"SHA-256 `{facts['sha256']}`",
        "1,000 steps, 16,000 images seen",
        "- `tulip: late` (30 pictures)",
        "| 500 | ema | 5,000 |  |  | 44 |",
        "hdit sample flowers.safetensors",
        "`pip install .` in a clone",
        "label='rose'",
        "mapping_width = 16",
        "`data/flowers16`",
    ):
        assert words in text
    assert "someone" not in text


def test_model_hubs_read_the_front_matter(run, tmp_path, capsys):
    hub = pytest.importorskip("huggingface_hub")
    export(capsys, run, "--out", tmp_path / "out" / "x.safetensors")
    card = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "unknown"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {"fid": 30.25, "swd": 9.0}
    assert card.data.to_dict()["library_name"] == "hdit-cli"


def test_a_lone_file_gets_a_grid_drawn_and_no_score(tmp_path, capsys):
    checkpoint.save_inference(tmp_path / "lone.safetensors", make((), model__classes=0))
    facts, said = export(capsys, tmp_path / "lone.safetensors", "--out", tmp_path / "out" / "lone.safetensors")
    assert "drawing a grid" in said
    assert (tmp_path / "out" / "lone-grid.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "model-index" not in text
    assert "## Scores" not in text
    assert "## Classes" not in text
    assert "generate(model, n=4, seed=0)" in text
    facts, said = export(capsys, tmp_path / "lone.safetensors", "--out", tmp_path / "b" / "x.safetensors", "--no-grid")
    assert (facts["grid"], said) == (None, "")
    assert "![" not in (tmp_path / "b" / "README.md").read_text()


def test_no_readme_of_others_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    facts, _ = export(capsys, run, "--out", tmp_path / "a.safetensors")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert facts["card"] == str(tmp_path / "a.md")
    (tmp_path / "b.md").write_text("mine too")
    assert place_for(tmp_path / "b.safetensors") == tmp_path / "b-model-card.md"
    assert place_for(tmp_path / "a.pt2") == tmp_path / "a.md"  # the same model in another form
    export(capsys, run, "--out", tmp_path / "sub" / "a.safetensors")
    assert place_for(tmp_path / "sub" / "other.safetensors") == tmp_path / "sub" / "other.md"


def test_runs_and_scores_are_found(run, tmp_path):
    assert run_of(run) == run
    assert run_of(run / "ckpt.safetensors") == run
    deep = run / "checkpoints" / "step-00001000"
    deep.mkdir(parents=True)
    (deep / "ema.safetensors").write_bytes(b"")
    assert run_of(deep / "ema.safetensors") == run
    assert run_of(tmp_path / "x.safetensors") is None
    assert [scored.step for scored in read_scores(run)] == [1000, 1000, 500, 1000]
    assert read_scores(run)[2].scores == {"fid": 44.0}
    assert read_scores(tmp_path) == read_scores(None) == []
    model = make()
    model.step = 500
    assert [(s.scores["fid"], s.n) for s in best_known(read_scores(run), model).values()] == [(44.0, 5000)]


def test_a_score_of_one_class_is_shown_as_such_and_does_not_count(run, tmp_path, capsys):
    sampling = {"sampler": "heun", "steps": 20, "cfg": 1.5, "label": "rose"}
    reference = {"path": "/home/someone/data/flowers16/held-out", "count": 9}
    line = {"step": 1000, "weights": "ema", "n": 9000, "scores": {"fid": 1.0}, "sampling": sampling}
    whole = {"step": 1000, "weights": "ema", "n": 9000, "scores": {"kid": 2.0}, "sampling": {}, "reference": reference}
    with (run / "scores.jsonl").open("a") as file:
        file.write(json.dumps({**line, "reference": reference}) + "\n" + json.dumps(whole) + "\n")
    export(capsys, run, "--out", tmp_path / "out" / "x.safetensors")
    text = (tmp_path / "out" / "README.md").read_text()
    results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    told = {r["dataset"]["name"]: {m["type"]: m["value"] for m in r["metrics"]} for r in results}
    assert told == {"flowers16": {"fid": 30.25, "swd": 9.0}, "flowers16/held-out": {"kid": 2.0}}
    assert "| 1,000 | ema | 9,000 | heun, 20 steps, cfg 1.5, class rose | flowers16/held-out | 1 |" in text
