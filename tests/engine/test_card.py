"""The model card beside every export."""

import json
import pathlib
import re

import pytest
from test_generate import make

import hdit_cli
from hdit_cli import cli
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.folder import run_of
from hdit_cli.engine.sharing.card import best_known, read_scores
from hdit_cli.engine.sharing.card_file import parts_of, place_for

yaml = pytest.importorskip("yaml")


def export(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", *map(str, words), "--json"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return json.loads(printed.out), printed.err


def unconditional():
    model = make((), model__classes=0)
    model.data = {}
    return model


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
        "`flowers16`",
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
    checkpoint.save_inference(tmp_path / "lone.safetensors", unconditional())
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
    assert place_for(tmp_path / "sub" / "other.safetensors") == tmp_path / "sub" / "README.md"  # they share it


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


EVIL = "<img src=x onerror=alert(1)>"
NAMES = (
    EVIL,
    "a`](javascript:alert(1)) `<script>alert(1)</script>",
    "x\u202e| [link](http://evil.example) ![p](http://evil.example/p.png) | www.evil.example",
    "```\u2028# heading",
    "--> <!-- hdit card: file 000000000000 other.safetensors -->",
)


@pytest.fixture
def hostile(run):
    """The run with names that are HTML and Markdown wherever a name can stand."""
    model = make(NAMES)
    model.recipe["name"] = EVIL[:20].strip("<")
    model.step, model.data = 1000, {"path": f"/home/someone/{EVIL}", "fingerprint": "f" * 64, "class_counts": [1] * 5}
    model.data["init"] = {"path": f"/home/someone/{EVIL}.safetensors", "sha256": "0" * 64, "weights": "ema", "step": 3}
    model.recipe["data"]["path"] = f"/home/someone/{EVIL}"
    checkpoint.save_inference(run / "ckpt.safetensors", model)
    reference = {"path": f"/home/someone/{EVIL}", "count": 9}
    sampling = {"sampler": EVIL, "steps": "<b>", "label": EVIL}
    line = {"step": 1000, "weights": "ema", "n": 10, "scores": {EVIL: 1.0, "fid": 2.0}, "reference": reference}
    with (run / "scores.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n" + json.dumps({**line, "sampling": sampling}) + "\n")
    return run


@pytest.mark.parametrize("suffix", ["safetensors", "pt2"])  # the card of the one or of the other form
def test_no_name_is_markup(hostile, tmp_path, capsys, suffix):
    facts, _ = export(capsys, hostile, "--out", tmp_path / "out" / f"a b`<i>.{suffix}")
    text = pathlib.Path(facts["card"]).read_text()
    assert "someone" not in text
    assert all(found.startswith("<!-- hdit card: ") for found in re.findall(r"<[^>\n]{0,40}", text))
    assert [part.kind for part in parts_of(text)] == ["about", "file", "more"]
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"][0]["metrics"]
    commonmark = pytest.importorskip("markdown_it")
    tokens = commonmark.MarkdownIt("commonmark", {"html": True}).enable("table").parse(text.split("---\n", 2)[2])
    html = [t for each in tokens for t in [each, *(each.children or [])] if t.type.startswith("html")]
    assert all(token.content.startswith("<!-- hdit card: ") for token in html)
    links = [t.attrs for each in tokens for t in each.children or [] if t.type in ("link_open", "image")]
    assert [next(iter(attrs.values())) for attrs in links if "evil" in str(attrs) or "javascript" in str(attrs)] == []


@pytest.mark.parametrize("form", ["safetensors", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_an_export_names_no_folder(hostile, tmp_path, capsys, form):
    before = (hostile / "ckpt.safetensors").read_bytes()
    facts, _ = export(capsys, hostile, "--out", tmp_path / "a.bin", "--to", form)
    data = pathlib.Path(facts["path"]).read_bytes()
    assert b"someone" not in data
    assert str(pathlib.Path(hdit_cli.__file__).parent).encode() not in data  # nor where the code lay
    assert (hostile / "ckpt.safetensors").read_bytes() == before  # the run's own file knows where its data lies
    if form != "safetensors":
        return
    header = checkpoint.read_header(tmp_path / "a.bin")
    assert json.loads(header["hdit.data"])["path"] == EVIL
    assert json.loads(header["hdit.data"])["init"]["path"] == f"{EVIL}.safetensors"


@pytest.mark.parametrize(
    ("path", "name"),
    [("/home/me/flowers/", "flowers"), ("C:\\Users\\me\\flowers", "flowers"), ("..", ""), ("~", ""), ("a/./", "a")],
)
def test_names_of_folders(path, name):
    from hdit_cli.recipe import named, without_folders

    assert named(path) == name
    for features, told in (
        (f"dinov2:{path}", f"dinov2:{name}"),
        ("inception", "inception"),
        (f"clip:{path}", f"clip:{name}"),
    ):
        assert without_folders({"eval": {"features": features}})["eval"]["features"] == told


def test_two_exports_share_a_card(run, tmp_path, capsys):
    out = tmp_path / "out"
    export(capsys, run, "--out", out / "a.safetensors")
    facts, _ = export(capsys, run, "--out", out / "b.safetensors", "--dtype", "bf16")
    assert facts["card"] == str(out / "README.md")
    assert sorted(path.name for path in out.glob("*.md")) == ["README.md"]
    text = (out / "README.md").read_text()
    assert text.count("hdit sample a.safetensors") == text.count("hdit sample b.safetensors") == 1
    assert text.count("## Recipe") == text.count("# tiny\n") == 1  # of one model
    # another model: with a head, classes and a recipe of its own
    checkpoint.save_inference(tmp_path / "lone.safetensors", unconditional())
    export(capsys, tmp_path / "lone.safetensors", "--out", out / "c.safetensors", "--no-grid")
    text = (out / "README.md").read_text()
    assert text.count("## Recipe") == 2
    assert len(yaml.safe_load(text.split("---\n")[1])["model-index"]) == 1  # only the first one has scores
    # written again, one is named once; what is gone is named no more
    export(capsys, run, "--out", out / "b.safetensors", "--force")
    (out / "a.safetensors").unlink()
    export(capsys, tmp_path / "lone.safetensors", "--out", out / "c.safetensors", "--force", "--no-grid")
    files = [part.file for part in parts_of((out / "README.md").read_text()) if part.kind == "file"]
    assert sorted(files) == ["b.safetensors", "c.safetensors"]
