"""recipe, info and doctor: what they print, for people and for programs."""

import json

import pytest

from hdit_cli import cli
from hdit_cli.recipe import load_recipe, recipe_text, shipped


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return printed.out


def facts(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json"))


def test_recipe_prints_text_that_loads(capsys, tmp_path):
    out = run(capsys, "recipe", "flowers256")
    assert out == recipe_text("flowers256")
    path = tmp_path / "flowers256.toml"
    path.write_text(out)
    assert load_recipe(str(path)) == load_recipe("flowers256")
    assert facts(capsys, "recipe", "flowers256") == load_recipe("flowers256").to_dict()


def test_recipe_lists(capsys):
    assert facts(capsys, "recipe") == shipped()
    lines = run(capsys, "recipe").splitlines()
    assert [line.split()[0] for line in lines] == shipped()
    assert all(len(line.split()) > 3 for line in lines)


# Counts of the published models: arXiv 2401.11605 tables 7 and 8, k-diffusion's configurations, counted by its own code

COUNTS = {
    "flowers256": (22_361_274, 11.636),
    "cifar10": (20_981_809, 1.967),
    "imagenet128": (117_003_805, 31.369),
    "imagenet256-557m": (557_416_522, 197.587),
    "ffhq1024-85m": (85_079_300, 206.076),
}

TABLE_8 = [
    (16, 8, 1024, 116_388_224, 29.399),
    (16, 12, 1280, 266_990_320, 67.957),
    (16, 16, 1536, 507_245_696, 129.467),
    (8, 8, 1024, 133_885_857, 44.437),
    (8, 12, 1280, 294_432_921, 91.452),
    (8, 16, 1536, 546_861_489, 163.298),
    (4, 8, 1024, 138_694_322, 59.780),
    (4, 12, 1280, 301_836_142, 115.328),
    (4, 16, 1536, 557_416_522, 197.587),
]


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name, capsys):
    params, gmacs = COUNTS[name]
    found = facts(capsys, "info", name)
    assert found["params"] == params and found["gmacs"] == pytest.approx(gmacs, abs=6e-4)
    page = run(capsys, "info", name)
    assert f"{params:,}" in page and f"{gmacs:.3f}" in page


@pytest.mark.parametrize(("patch", "depth", "width", "params", "gmacs"), TABLE_8)
def test_table_8(patch, depth, width, params, gmacs, capsys, tmp_path):
    outer = {16: [], 8: [2], 4: [4, 2]}[patch]
    levels = [f'{{ depth = 2, width = {width // part}, attention = "neighborhood" }}' for part in outer]
    levels.append(f'{{ depth = {depth}, width = {width}, attention = "global" }}')
    path = tmp_path / "table8.toml"
    path.write_text(f"[model]\nsize = [256, 256]\npatch = {patch}\nclasses = 1000\nlevels = [{', '.join(levels)}]\n")
    found = facts(capsys, "info", str(path))
    assert found["params"] == params and found["gmacs"] == pytest.approx(gmacs, abs=6e-4)


def test_info_of_a_recipe(capsys):
    found = facts(capsys, "info", "smoke/shifted-window")
    assert found["kind"] == "recipe" and found["image_size"] == [48, 32]
    assert [level["tokens"] for level in found["levels"]] == [[12, 8], [6, 4]]
    assert (found["sigma_min"], found["sigma_max"]) == (0.01, 80.0)
    page = run(capsys, "info", "smoke/shifted-window").splitlines()
    head, first = [line.split() for line in page if line.startswith("level")][:2]
    assert dict(zip(head[1:], first[2:], strict=True))["attention"] == "shifted-window"


# What commands leave behind


@pytest.fixture
def data_set(tmp_path):
    from hdit_cli.data import shards

    folder = tmp_path / "data"
    folder.mkdir()
    with shards.writing_shard(folder, 0) as writer:
        for key, label in enumerate([0, 1, 1, -1]):
            writer.add(key, {".png": b"picture"}, label=label)
    info = writer.info(shards.shard_name(0))
    shards.save_manifest(folder, shards.Manifest(4, ["daisy", "rose"], [32, 32], [info], {"name": "flowers"}, {}))
    return folder


@pytest.fixture
def run_folder(tmp_path, data_set):
    from hdit_cli.engine.model import Model, build_network, build_task
    from hdit_cli.engine.run import checkpoint

    recipe = load_recipe("smoke/tiny", [f"data.path={data_set}"])
    network = build_task(build_network(recipe, classes=2), recipe).eval()
    model = Model(network, recipe.to_dict(), ["daisy", "rose"], step=7, images_seen=112, data={"path": str(data_set)})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text(recipe.to_toml())
    checkpoint.save_inference(folder / "ckpt.safetensors", model)
    return folder


def test_info_of_a_data_set(capsys, data_set):
    found = facts(capsys, "info", str(data_set))
    assert found["kind"] == "data set" and found["count"] == 4 and found["image_size"] == [32, 32]
    assert found["classes"] == {"daisy": 1, "rose": 2} and found["without_class"] == 1
    assert len(found["fingerprint"]) == 64
    assert "rose" in run(capsys, "info", str(data_set))


def test_info_of_a_checkpoint_and_a_run(capsys, run_folder, data_set):
    found = facts(capsys, "info", str(run_folder / "ckpt.safetensors"))
    wanted = {"kind": "checkpoint", "name": "tiny", "step": 7, "images_seen": 112, "weights": "ema", "classes": 2}
    assert {key: found[key] for key in wanted} == wanted and found["class_names"] == ["daisy", "rose"]
    from_run = facts(capsys, "info", str(run_folder))
    assert from_run == {**found, "kind": "run", "checkpoints": [], "snapshots": []}
    # the recipe alone finds the number of classes in the data it names
    assert facts(capsys, "info", str(run_folder / "recipe.toml"))["params"] == found["params"]
    (run_folder / "ckpt.safetensors").unlink()
    assert facts(capsys, "info", str(run_folder))["params"] == found["params"]


def test_info_of_what_is_none_of_these(capsys, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for name, code in {tmp_path: 2, tmp_path / "cut.safetensors": 4, tmp_path / "absent": 2}.items():
        with pytest.raises(SystemExit) as stop:
            cli.main(["info", str(name)])
        printed = capsys.readouterr()
        assert stop.value.code == code and "hint:" in printed.err and not printed.out


def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path))
    found = facts(capsys, "doctor")
    assert found["packages"]["torch"] and found["device"] in found["devices"][0] + "".join(found["devices"])
    attention = found["attention"]
    assert attention["used"] not in attention["not_used"] and "reference" in attention["not_used"]
    assert all(attention["not_used"].values())
    assert not found["inception"]["at_hand"] and found["inception"]["path"] in found["mend"][0]
    page = run(capsys, "doctor")
    assert f"{attention['used']} will run" in page and "to mend" in page
    assert attention["compiled"] == "tiled" or found["device"] != "cpu"
    assert f"attention by {attention['compiled']}" in page or found["why_not_compiled"] in page
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in facts(capsys, "doctor")["why_not_compiled"] or found["device"] != "cpu"


@pytest.mark.parametrize(
    ("command", "code", "words"), [("info", 2, "ema-0.050.safetensors"), ("verify", 4, "run folder")]
)
def test_a_folder_of_weights_is_no_data_set(capsys, tmp_path, command, code, words):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "ema-0.050.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        cli.main([command, str(tmp_path)])
    assert stop.value.code == code and words in capsys.readouterr().err
