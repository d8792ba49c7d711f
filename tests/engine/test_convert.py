"""What `hdit convert` makes of DiT as the authors and diffusers keep it: the same network, and nothing in the file is run."""

import argparse
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import hdit_cli
from hdit_cli.engine.sharing.convert import convert
from hdit_cli.errors import CheckpointError, HditError, UsageError
from hdit_cli.models.dit import BLOCKS, DiT

SHAPE = {"size": (8, 8), "patch": 2, "depth": 2, "width": 48, "heads": 3, "channels": 4, "classes": 5}
CONFIG = {"input_size": 8, "patch_size": 2, "hidden_size": 48, "num_heads": 3, "num_classes": 5}


def network(**options):
    torch.manual_seed(0)
    found = DiT(**{**SHAPE, **options}).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def state(**options):
    return {name: tensor.clone() for name, tensor in network(**options).state_dict().items()}


def diffusers(tensors):
    """Tensors under the names of the diffusers library."""
    shared = {
        "t_embedder.mlp.0": "timestep_embedder.linear_1",
        "t_embedder.mlp.2": "timestep_embedder.linear_2",
        "y_embedder.embedding_table": "class_embedder.embedding_table",
    }
    whole = {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    inside = {
        "adaLN_modulation.1": "norm1.linear",
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    }
    found = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem in shared:
            for block in range(SHAPE["depth"]):
                found[f"transformer_blocks.{block}.norm1.emb.{shared[stem]}.{kind}"] = tensor.clone()
        elif stem in whole:
            found[f"{whole[stem]}.{kind}"] = tensor
        elif stem.startswith("blocks."):
            _, block, part = stem.split(".", 2)
            if part == "attn.qkv":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"transformer_blocks.{block}.attn1.to_{letter}.{kind}"] = third.clone()
            else:
                found[f"transformer_blocks.{block}.{inside[part]}.{kind}"] = tensor
    return found


DIFFUSERS_CONFIG = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4,
    "out_channels": 8, "num_layers": 2, "patch_size": 2, "sample_size": 8, "norm_type": "ada_norm_zero",
    "num_embeds_ada_norm": 5,
}  # fmt: skip


def written(folder, kind, tensors):
    """A checkpoint of the given kind, and the configuration to give with it."""
    if kind == "plain":
        torch.save(tensors, folder / "DiT.pt")
        return folder / "DiT.pt", CONFIG
    if kind == "training":
        # of a network that the authors did not publish
        args = argparse.Namespace(model="own", image_size=64, num_classes=5, num_heads=3, epochs=3, vae="ema")
        other = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        torch.save({"model": other, "ema": tensors, "opt": {"state": {}}, "args": args}, folder / "0000003.pt")
        return folder / "0000003.pt", None
    if kind == "safetensors":
        save_file(tensors, folder / "dit.safetensors")
        return folder / "dit.safetensors", CONFIG
    if kind == "wrapped":
        save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / "dit.safetensors")
        return folder / "dit.safetensors", CONFIG
    part = folder / "pipe" / "transformer"
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(DIFFUSERS_CONFIG))
    named, stem = diffusers(tensors), "diffusion_pytorch_model"
    if kind == "sharded":
        places = {name: f"{stem}-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(named)}
        for place in set(places.values()):
            save_file({name: tensor for name, tensor in named.items() if places[name] == place}, part / place)
        index = {"metadata": {}, "weight_map": places}
        (part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "pickled":
        torch.save(named, part / f"{stem}.bin")
    else:
        save_file(named, part / f"{stem}.safetensors")
    return {"network": part, "file": part / f"{stem}.safetensors"}.get(kind, part.parent), None


KINDS = ("plain", "training", "safetensors", "wrapped", "pipeline", "network", "file", "sharded", "pickled")


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_network(kind, tmp_path):
    wanted, told = network(), []
    path, config = written(tmp_path, kind, state())
    convert(path, out=tmp_path / "out.safetensors", config=config, tell=told.append)
    model = hdit_cli.load(tmp_path / "out.safetensors", device="cpu")
    assert bool(told) == (kind == "wrapped")
    x, t, label = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([1, 5])
    with torch.no_grad():
        assert torch.equal(model.network(x, t, label=label), wanted(x, t, label=label))
    assert model.classes == ["0", "1", "2", "3", "4"]
    assert model.recipe["model"] | {"type": "dit", "heads": 3, "block": "adaln-zero"} == model.recipe["model"]
    task = {"type": "ddpm", "timesteps": 1000, "learned_variance": True, "cfg_channels": 3, "clip": False}
    assert model.recipe["task"] == task
    sample = model.recipe["sample"]
    assert (sample["sampler"], sample["steps"], sample["cfg"]) == ("ddpm", 250, 4.0)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("classes", [0, 5])
def test_blocks_and_shapes_are_read_from_the_tensors(block, classes, tmp_path):
    options = {"block": block, "classes": classes, "channels": 3, "mlp_ratio": 2.1, "learn_variance": False}
    save_file(state(**options), tmp_path / "a.safetensors")
    model = convert(tmp_path / "a.safetensors", out=tmp_path / "o.safetensors", config={"heads": 3})
    assert (model.network.block, model.network.classes, model.network.out_channels) == (block, classes, 3)
    assert model.recipe["task"]["clip"]
    assert model.recipe["sample"]["cfg"] == (4.0 if classes else 1.0)


def test_a_recipe_of_ours_is_a_configuration(tmp_path):
    save_file(state(size=(4, 16), learn_variance=False), tmp_path / "a.safetensors")
    config = {"model": {"type": "dit", "size": [4, 16], "heads": 3}, "task": {"type": "denoise"}, "sample": {}}
    model = convert(tmp_path / "a.safetensors", out=tmp_path / "o.safetensors", config=config)
    assert model.network.size == (4, 16)
    assert model.recipe["task"]["type"] == "denoise"


def test_published_widths_tell_the_heads_and_that_is_said(tmp_path):
    told = []
    save_file(state(width=384, heads=6, depth=1), tmp_path / "a.safetensors")
    model = convert(tmp_path / "a.safetensors", out=tmp_path / "o.safetensors", config=None, tell=told.append)
    assert model.recipe["model"]["heads"] == 6
    assert "6 are taken" in told[0]
    with pytest.raises(CheckpointError, match="says depth 12, and its tensors 1"):
        convert(tmp_path / "a.safetensors", out=tmp_path / "p.safetensors", config={"model": "DiT-S/2"})


def test_classes_that_were_never_dropped(tmp_path):
    """Trained without class dropout there is no row for "no class"."""
    tensors, told = state(), []
    table = "y_embedder.embedding_table.weight"
    save_file({**tensors, table: tensors[table][:5].clone()}, tmp_path / "a.safetensors")
    model = convert(tmp_path / "a.safetensors", out=tmp_path / "o.safetensors", config=CONFIG, tell=told.append)
    assert model.network.classes == 5
    assert model.recipe["sample"]["cfg"] == 1.0
    assert model.recipe["diffusion"]["class_dropout"] == 0.0
    assert "no class" in told[0]


@pytest.mark.parametrize(("said", "notes"), [({}, 1), ({"num_classes": 0}, 0)])
def test_a_file_without_a_table_of_classes(said, notes, tmp_path):
    """Perhaps it was left out: that it becomes a network without classes is told, unless that was said."""
    told = []
    tensors = {name: tensor for name, tensor in state().items() if not name.startswith("y_embedder.")}
    settings = {key: value for key, value in CONFIG.items() if key != "num_classes"} | said
    torch.save({"model": tensors, "ema": tensors, "opt": {}, "args": argparse.Namespace(**settings)}, tmp_path / "a.pt")
    model = convert(tmp_path / "a.pt", out=tmp_path / "o.safetensors", config=None, tell=told.append)
    assert model.network.classes == 0
    assert len(told) == notes and all("no table of classes" in note for note in told)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({}, None, "how many heads"),
        ({}, {**CONFIG, "depth": 3}, "says depth 3, and its tensors 2"),
        ({}, {**CONFIG, "num_classes": 9}, "says classes 9"),
        ({}, {**CONFIG, "mlp_ratio": 3}, "mlp_ratio 3"),
        ({}, {**CONFIG, "input_size": 12}, "12 x 12"),
        ({}, {**CONFIG, "num_heads": 5}, "multiple of heads 5"),
        ({}, {**CONFIG, "num_heads": "many"}, "no count"),
        ({}, {**CONFIG, "norm_type": "ada_norm_single"}, "ada_norm_single"),
        ({}, {**CONFIG, "type": "unet"}, "unet"),
        ({"pos_embed": torch.zeros(1, 16, 48)}, CONFIG, "pos_embed is not DiT's table"),
        ({"blocks.1.mlp.fc2.bias": torch.zeros(3)}, CONFIG, "has shape"),
        ({"blocks.1.mlp.fc2.bias": None}, CONFIG, "lacks blocks.1.mlp.fc2.bias"),
        ({"blocks.999999999.mlp.fc2.bias": torch.zeros(3)}, CONFIG, "describes no network"),
        ({"blocks.x.y": torch.zeros(3)}, CONFIG, "none of a DiT"),
        ({"extra": torch.zeros(3)}, CONFIG, "unknown tensor extra"),
        ({"final_layer.linear.weight": torch.zeros(7, 48)}, CONFIG, "channels in"),
        ({"x_embedder.proj.weight": torch.zeros(48)}, CONFIG, "none of a DiT"),
        ({"y_embedder.embedding_table.weight": torch.full((6, 48), torch.nan)}, CONFIG, "NaN"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(change, config, words, tmp_path):
    tensors = {**state(), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "a.safetensors")
    with pytest.raises(HditError) as caught:
        convert(tmp_path / "a.safetensors", out=tmp_path / "o.safetensors", config=config)
    assert words in str(caught.value)
    assert caught.value.exit_code in (2, 4)
    assert caught.value.hint
    assert not (tmp_path / "o.safetensors").exists()


def test_rounded_positions_are_kept_and_told(tmp_path):
    """The authors' average drifts by 1.7e-4, and half precision by more: the numbers that were used stay."""
    for dtype in (torch.float16, torch.bfloat16):
        told, tensors = [], {name: tensor.to(dtype) for name, tensor in state().items()}
        save_file(tensors, tmp_path / "a.safetensors")
        model = convert(tmp_path / "a.safetensors", out=tmp_path / "o.safetensors", config=CONFIG, tell=told.append)
        assert torch.equal(model.network.pos_embed, tensors["pos_embed"].float())
        assert "pos_embed differs" in told[0]


@pytest.mark.parametrize("place", ["args", "ema", "opt", "inside args"])
def test_nothing_in_a_training_file_runs(place, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    stored = {"model": state(), "ema": state(), "opt": {}, "args": argparse.Namespace(num_heads=3)}
    planted = {**stored, place: Evil()} if place in stored else {**stored, "args": argparse.Namespace(vae=Evil())}
    torch.save(planted, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="plain values") as caught:
        convert(tmp_path / "evil.pt", out=tmp_path / "o.safetensors", config=CONFIG)
    assert "nothing in it was run" in (caught.value.hint or "")
    assert not (tmp_path / "canary").exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    torch.save(stored, tmp_path / "good.pt")
    convert(tmp_path / "good.pt", out=tmp_path / "o.safetensors", config=None)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("../outside.safetensors", "which its index names"),
        ("missing.safetensors", "which its index names"),
        (3, "where it lies"),
    ],
)
def test_an_index_names_files_of_its_folder_alone(place, words, tmp_path):
    path, _ = written(tmp_path, "sharded", state())
    index = path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    told = json.loads(index.read_text())
    save_file({"x": torch.zeros(1)}, path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": {**told["weight_map"], "x": place}}))
    with pytest.raises(CheckpointError, match=words):
        convert(path, out=tmp_path / "o.safetensors", config=None)


def test_diffusers_blocks_must_agree_and_folders_hold_weights(tmp_path):
    path, _ = written(tmp_path, "pipeline", state())
    file = path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(CheckpointError, match="do not agree"):
        convert(path, out=tmp_path / "o.safetensors", config=None)
    (path / "transformer" / "config.json").unlink()
    with pytest.raises(UsageError, match="size of images"):
        convert(path, out=tmp_path / "o.safetensors", config=None)
    file.unlink()
    with pytest.raises(CheckpointError, match="holds no"):
        convert(path, out=tmp_path / "o.safetensors", config=None)


def test_other_programs_checkpoints_are_named(tmp_path):
    save_file(state(), tmp_path / "dit.safetensors")
    with pytest.raises(CheckpointError) as caught:
        hdit_cli.load(tmp_path / "dit.safetensors", device="cpu")
    assert f"`hdit convert {tmp_path / 'dit.safetensors'}` turns DiT" in (caught.value.hint or "")
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="names that nothing here knows"):
        convert(tmp_path / "other.safetensors", out=tmp_path / "o.safetensors", config=None)
