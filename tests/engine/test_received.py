"""What was received runs nothing: no loader runs a payload, and what would run by its nature is reached only when it was typed."""

import contextlib
import io
import json
import os
import pickle
import shutil
import tomllib
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_evaluate import Net
from test_evaluator import exported
from tiny_run import tiny_recipe

import hdit_cli
from hdit_cli import files
from hdit_cli.cli import main
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, header
from hdit_cli.engine.run.checkpoint import metadata_of, save_inference, serialise
from hdit_cli.engine.sampling.recorded import read_order
from hdit_cli.engine.sharing import convert
from hdit_cli.engine.training.beginning import read_record
from hdit_cli.engine.training.init import read_source
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import CheckpointError, HditError, UsageError
from hdit_cli.metrics.exported_net import ExportedNet
from hdit_cli.metrics.fid_inception import FidInception
from hdit_cli.metrics.inception import Inception
from hdit_cli.metrics.statistics_file import read_statistics
from hdit_cli.metrics.transformer_net import CLIP, DINOv2
from hdit_cli.recipe import Recipe, load_recipe


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def model_for(recipe, **facts):
    torch.manual_seed(0)
    network = build_network(recipe, classes=2)
    return Model(build_task(network, recipe), recipe.to_dict(), ["red", "blue"], step=3, **facts)


def pickles(payload):
    """The payload in every form that something unpickles."""
    zipped, legacy, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"model_ema": payload, "config": payload, "x": payload}, zipped)
    torch.save({"model_ema": payload, "config": payload}, legacy, _use_new_zipfile_serialization=False)
    np.savez(arrays, mu=np.array([payload], dtype=object), sigma=np.array([payload], dtype=object))
    return {
        "pickle": pickle.dumps(payload),
        "zip": zipped.getvalue(),
        "legacy": legacy.getvalue(),
        "npz": arrays.getvalue(),
    }


def programs(payload, folder):
    """Archives of torch.export with a pickle in each place where torch would read one, and with compiled code."""
    whole = folder / "whole.pt2"
    exported(whole)
    pickled = io.BytesIO()
    torch.save((payload,), pickled)
    with zipfile.ZipFile(whole) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    constants = next(name for name in records if name.endswith("_constants_config.json"))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    beside = constants.rpartition("/")[0]
    changes = {
        "inputs": {name: pickled.getvalue() for name in records if "sample_inputs" in name},
        "opaque": {
            constants: json.dumps({"config": {"c": entry}}).encode(),
            f"{beside}/opaque_obj_0": pickle.dumps(payload),
        },
        "tensor": {
            constants: json.dumps({"config": {"c": {**entry, "path_name": "tensor_0"}}}).encode(),
            f"{beside}/tensor_0": pickled.getvalue(),
        },
        "compiled": {f"{beside.partition('/')[0]}/data/aotinductor/model/a.so": b"\x7fELF"},
    }
    for name, changed in changes.items():
        with zipfile.ZipFile(folder / f"{name}.pt2", "w") as archive:
            for record, data in {**records, **changed}.items():
                archive.writestr(record, data)
    return [folder / f"{name}.pt2" for name in changes]


LOADERS = {
    "checkpoint": lambda path: hdit_cli.load(path, device="cpu"),
    "--init": read_source,
    "header": checkpoint.read_header,
    "convert": lambda path: convert.convert(path, out=path.with_suffix(".out"), config=None),
    "convert, feature net": lambda path: convert.convert_feature_net(path, out=path.with_suffix(".out")),
    "exported net": ExportedNet,
    "Inception": Inception,
    "pytorch-fid": FidInception,
    "moments": read_statistics,
    "recipe": lambda path: load_recipe(str(path)),
    "record of samples": read_order,
}


@pytest.mark.parametrize("name", LOADERS)
def test_no_loader_runs_a_payload(name, tmp_path):
    canary, refused = tmp_path / "canary", 0
    for kind, data in pickles(Payload(canary)).items():
        for suffix in (".safetensors", ".pth", ".pt", ".pt2", ".npz", ".pkl", ".json", ".toml"):
            path = tmp_path / f"{kind}{suffix}"
            path.write_bytes(data)
            try:
                LOADERS[name](path)
            except HditError as error:
                refused += 1
                assert error.exit_code in (2, 3, 4)
            assert not canary.exists(), f"{kind}{suffix}"
    assert refused == 32 or name == "convert, feature net"  # which says of other files that they are others
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists()  # the payload is one


def test_pickle_and_compiled_code_in_a_program_are_refused(tmp_path):
    canary = tmp_path / "canary"
    for path in programs(Payload(canary), tmp_path):
        with pytest.raises(HditError, match="nothing of it was run") as caught:
            ExportedNet(path)
        assert not canary.exists() and "export the net again" in caught.value.hint
    assert ExportedNet(tmp_path / "whole.pt2")([np.zeros((16, 16, 3), dtype=np.uint8)]).shape == (1, 12)
    with contextlib.suppress(TypeError):  # of its own warning
        torch.export.load(tmp_path / "inputs.pt2")
    assert canary.exists()  # by torch alone it would have run
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("net", [DINOv2, CLIP])
def test_a_folder_of_the_transformers_library_brings_no_code(net, tmp_path):
    pytest.importorskip("transformers")
    folder, canary = tmp_path / "net", tmp_path / "canary"
    folder.mkdir()
    told = {
        "model_type": "clip",
        "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"},
        "architectures": ["Evil"],
    }
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    torch.save({"x": Payload(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(HditError):
        net(folder)
    assert not canary.exists()


# What a header names


def opened(monkeypatch):
    """Names of the files that torch is asked to run from now on."""
    seen = []
    for module, name in ((torch.export, "load"), (torch.jit, "load")):
        monkeypatch.setattr(
            module, name, lambda path, *a, **k: seen.append(str(path)) or (_ for _ in ()).throw(RuntimeError("x"))
        )
    return seen


@pytest.mark.parametrize("named", ["net.pt2", "inception:net.pt", "pytorch-fid:net.pt", "dinov2:.", "clip:."])
def test_a_net_that_a_header_names_is_never_opened(named, tmp_path, monkeypatch, tiny_data, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hdit_cli.metrics.inception.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("none")))
    exported(tmp_path / "net.pt2")
    torch.jit.save(torch.jit.script(Net()), str(tmp_path / "net.pt"))
    recipe = tiny_recipe(eval={"features": named, "metrics": ["fd"]}, sample={"steps": 1})
    save_inference(tmp_path / "a.safetensors", model_for(recipe, data={"path": str(tiny_data)}))
    seen = opened(monkeypatch)
    model = hdit_cli.load(tmp_path / "a.safetensors", device="cpu")
    assert model.left_out == named
    assert model.recipe["eval"]["features"] == ("inception" if named == "net.pt2" else named.partition(":")[0])
    assert Recipe.from_dict(model.recipe).eval.features == model.recipe["eval"]["features"]
    for words, code in (
        (["info", "a.safetensors"], 0),
        (["sample", "a.safetensors", "-n", "1", "--out", "s"], 0),
        (["export", "a.safetensors", "--out", "b.safetensors", "--no-grid"], 0),
        (
            ["eval-fid", "a.safetensors", "-n", "2", "--allow-small", "--metrics", "fd"],
            3,
        ),  # no weights of the net by its name
        (["eval-fid", "b.safetensors", "-n", "2", "--allow-small", "--sweep", "seed=0,1", "--metrics", "fd"], 3),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == code, capsys.readouterr().err
        if words[:2] == ["eval-fid", "a.safetensors"]:
            assert f"--features {named}" in capsys.readouterr().err
    read_source(tmp_path / "a.safetensors")
    assert seen == []
    assert json.loads(checkpoint.read_header(tmp_path / "b.safetensors")["hdit.recipe"])["eval"]["features"] != named


def test_a_net_that_is_typed_is_opened_and_the_notes_say_what_was_not(tmp_path, monkeypatch, tiny_data, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    torch.jit.save(torch.jit.script(Net()), str(tmp_path / "net.pt"))
    exported(tmp_path / "net.pt2")
    recipe = tiny_recipe(eval={"features": "net.pt2", "metrics": ["fd"]}, sample={"steps": 1})
    save_inference(tmp_path / "a.safetensors", model_for(recipe, data={"path": str(tiny_data)}))
    words = ["eval-fid", "a.safetensors", "-n", "4", "--allow-small", "--json"]

    def scored(*more):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        assert stop.value.code == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    typed = scored("--features", "net.pt2")
    assert typed["features"]["net"] == "exported" and not any("not opened" in note for note in typed["notes"])
    # no net of that name is in the cache here: the file that stands for it is put there
    monkeypatch.setattr("hdit_cli.metrics.inception.SHA256", files.sha256(tmp_path / "net.pt"))
    (tmp_path / "cache").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "net.pt", tmp_path / "cache" / "inception-2015-12-05.pt")
    left = scored()
    assert left["features"]["net"] == "inception"
    (note,) = [note for note in left["notes"] if "not opened" in note]
    assert "net.pt2" in note and "--features net.pt2" in note
    assert not any("not opened" in note for note in scored("--metrics", "swd")["notes"])  # no net, nothing to say


def test_a_recipe_of_a_run_folder_names_no_net_that_runs(tmp_path, monkeypatch, tiny_data, capsys):
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "net.pt2")
    section = {"features": "net.pt2", "every": 8, "during_metrics": ["fd"], "during_n": 4}
    (tmp_path / "received" / "checkpoints").mkdir(parents=True)
    text = tiny_recipe(eval=section, optimizer__warmup=0).to_toml()
    for name in ("received/recipe.toml", "own.toml"):
        (tmp_path / name).write_text(text)
    (tmp_path / "link.toml").symlink_to("received/recipe.toml")
    (tmp_path / "over.toml").write_text('extends = "received/recipe.toml"\n')
    seen = []
    monkeypatch.setattr("hdit_cli.metrics.exported_net.load_program", lambda path: seen.append(path) or 1 / 0)
    for name in ("received/recipe.toml", "link.toml", "over.toml"):
        with pytest.raises(SystemExit) as stop:
            main(["train", name, "--data", str(tiny_data), "--run", "run"])
        told = capsys.readouterr().err
        assert stop.value.code == 2 and "--set eval.features=net.pt2" in told, told
    assert seen == [] and not (tmp_path / "run").exists()
    for words in (["own.toml"], ["received/recipe.toml", "--set", "eval.features=net.pt2"]):
        with pytest.raises(SystemExit) as stop:
            main(["train", *words, "--data", str(tiny_data), "--run", "run"])
        assert stop.value.code == 3 and seen.pop().name == "net.pt2"  # typed: it was opened
    taken = Recipe.from_dict(tomllib.loads(text)).without_files()
    with pytest.raises(UsageError, match=r"net\.pt2"):
        train(tmp_path / "run", taken, data=tiny_data, watch=lambda event: None)


def test_data_that_a_header_names_is_pictures_whatever_its_name(tmp_path, tiny_data, monkeypatch):
    from hdit_cli.engine.scoring.request import Request, Session, reference_of

    shutil.copytree(tiny_data, tmp_path / "data.npz")
    model = model_for(tiny_recipe(), data={"path": str(tmp_path / "data.npz")})
    found, _ = reference_of(Request(tmp_path / "a.safetensors"), model, Session(), moments=True)
    assert found.count == 24
    model.data["path"] = str(tmp_path / "moments.npz")
    np.savez(tmp_path / "moments.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(HditError, match="is not at"):
        reference_of(Request(tmp_path / "a.safetensors"), model, Session(), moments=True)


# Files that are waited for, and files that others leave


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe of a Unix")
def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch, tiny_data, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "a.pth", "a.toml", "a.json", "a.npz", "a.pt2", "a.pt", "a.png"):
        os.mkfifo(tmp_path / name)
    save_inference(tmp_path / "whole.safetensors", model_for(tiny_recipe(), data={"path": str(tiny_data)}))
    (tmp_path / "net").mkdir()
    os.mkfifo(tmp_path / "net" / "model.safetensors")
    (tmp_path / "net" / "config.json").write_text("{}")
    data, few = str(tiny_data), ["-n", "2", "--allow-small"]
    for words, code in (
        (["info", "a.safetensors"], 4), (["sample", "a.safetensors"], 4), (["export", "a.safetensors"], 4),
        (["eval-fid", "a.safetensors"], 4), (["convert", "a.safetensors"], 4), (["convert", "a.pth"], 4),
        (["train", "a.toml"], 2), (["train", "smoke/tiny", "--data", "a.json"], 3), (["info", "a.toml"], 2),
        (["sample", "--from", "a.json"], 2), (["convert", "whole.safetensors", "--config", "a.json"], 2),
        (["eval-fid", "whole.safetensors", *few, "--metrics", "fid", "--reference", "a.npz"], 3),
        (["eval-fid", "whole.safetensors", *few, "--metrics", "fd", "--features", "a.pt2"], 3),
        (["eval-fid", "whole.safetensors", *few, "--metrics", "fd", "--features", "dinov2:net"], 3),
        (["eval-fid", "whole.safetensors", *few, "--metrics", "fd", "--inception", "a.pt"], 3),
        (["sample", "whole.safetensors", "--init-image", "a.png", "--out", "s"], 3),
        (["train", "smoke/tiny", "--data", data, "--init", "a.safetensors", "--set", "model.size=[16,16]"], 4),
        (["sample", "/dev/zero"], 4), (["info", "/dev/null"], 4), (["convert", "/dev/zero"], 4),
    ):  # fmt: skip
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        told = capsys.readouterr().err
        assert stop.value.code == code, f"{words}: {told}"
        assert told.count("error: ") == 1 and "bug" not in told


def run_with(folder, recipe):
    """A run folder with one checkpoint folder, as training leaves it."""
    raw = model_for(recipe, weights="raw")
    window = {"loss": [0.5], "by_sigma": [], "grad_norm": 1.0, "skipped": 0, "steps": 1}
    state = {"step": 3, "data": "0" * 64, "window": window}
    ema = model_for(recipe)
    tensors = (dict(raw.network.state_dict()), dict(ema.network.state_dict()))
    heads = {"raw": metadata_of(raw), "ema": metadata_of(ema)}
    checkpoint.save_snapshot(folder, checkpoint.Snapshot(*tensors, {}, state, headers=heads))
    return folder / "checkpoints" / "step-00000003"


def test_what_others_leave_beside_a_checkpoint_does_not_condemn_it(tmp_path, capsys):
    step = run_with(tmp_path, tiny_recipe())
    left = [
        ".nfs000000000001a2b300000001",
        ".DS_Store",
        "._ema.safetensors",
        "Thumbs.db",
        "desktop.ini",
        ".fuse_hidden0001",
        "a~",
    ]
    for name in left:
        (step / name).write_bytes(b"x")
    (step / "@eaDir").mkdir()
    assert checkpoint.verify(step) == ""
    assert checkpoint.newest_verified(tmp_path, warn=lambda text: pytest.fail(text)) == step
    assert checkpoint.load_snapshot(step).averages.tensors == {}
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    assert stop.value.code == 0
    with pytest.raises(SystemExit):
        main(["info", str(step)])
    assert "._ema" not in capsys.readouterr().err
    (step / "ema-0.100.safetensors").write_bytes(b"x")  # a name of ours that the manifest does not know
    assert "ema-0.100.safetensors is unexpected" in checkpoint.verify(step)


def test_a_folder_that_a_file_system_holds_on_to_is_left_for_later(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()

    def busy(path):
        raise OSError(39, "Directory not empty", str(path))  # NFS: a file that is still open was renamed to .nfs...

    monkeypatch.setattr(files.shutil, "rmtree", busy)
    files.remove_folder(tmp_path / "old")
    assert not (tmp_path / "old").exists()


STATES = [
    {"step": "3"},
    {"window": None},
    {"data": None},
    {"noise_scale": [1]},
    {"log_bytes": {"a": "b"}},
    {"nonfinite_in_row": "x"},
    {"arithmetic": 3},
    {"arithmetic": True},
]
STATES += [
    {"window": {"loss": [], "grad_norm": 1, "steps": 1}},
    {"window": {"loss": ["x"], "grad_norm": 1, "steps": 1}},
]
STATES += [
    {"window": {"loss": [1], "by_sigma": [[1]], "grad_norm": 1, "steps": 1}},
    {"evaluation": {"step": 1, "best": {}}},
]


def test_a_state_of_other_types_is_no_bug(tmp_path):
    path = run_with(tmp_path, tiny_recipe()) / "state.json"
    state = json.loads(path.read_text())
    checkpoint.load_snapshot(path.parent)
    texts = [json.dumps({**state, **change}) for change in STATES] + [
        "",
        "[]",
        "[" * 5000,
        '{"a": NaN}',
        '{"a": "\\ud800"}',
    ]
    for text in texts:
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
            checkpoint.load_snapshot(path.parent)
    (tmp_path / "init.json").write_text('{"format": "hdit-init/1", "source": {"path": 3}}')
    with pytest.raises(UsageError, match=r"init\.json cannot be read"):
        read_record(tmp_path)


def test_an_own_header_is_read_as_it_was_written(tmp_path):
    """Names with line breaks too: `hdit prepare` keeps what a folder is called."""
    recipe = tiny_recipe()
    data = {"path": "/data/a b", "fingerprint": "f" * 64, "class_counts": [1, 0], "later": {"key": [1, None]}}
    data["init"] = {"path": "x", "sha256": "0" * 64, "weights": "raw", "step": 7}
    model = model_for(recipe, data=data, weights="std 0.050", images_seen=24)
    model.classes = ["a\nb\x1b[31m", "花 \U0001f600"]
    (tmp_path / "a.safetensors").write_bytes(serialise(model.network.state_dict(), metadata_of(model)))
    facts = header.read_facts(checkpoint.read_header(tmp_path / "a.safetensors"), where="a")
    assert (facts.recipe, facts.classes, facts.data) == (recipe, model.classes, data)
    assert (facts.step, facts.images_seen, facts.weights, facts.score) == (3, 24, "std 0.050", None)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")  # no metadata
    assert checkpoint.read_header(tmp_path / "other.safetensors") == {}
    with pytest.raises(CheckpointError, match="hdit checkpoint"):
        hdit_cli.load(tmp_path / "other.safetensors")
