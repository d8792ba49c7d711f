"""`--init` of a DiT: other classes, another size, patch, depth or task; what comes over, exactly, and what is refused."""

import pytest
import torch
from test_init import begin_from, losses, model_of, pictures, run
from tiny_run import tiny_recipe

from hdit_cli.engine.model import Model
from hdit_cli.engine.training.init import Source, match
from hdit_cli.errors import UsageError
from hdit_cli.models.dit import BLOCKS
from hdit_cli.models.dit_blocks import position_table
from hdit_cli.models.dit_growth import area

TASKS = {"ddpm": {"type": "ddpm", "clip": True}, "denoise": {"type": "denoise"}}
ADAPTIVE, TOKENS = ("adaln-zero", "adaln"), ("in-context", "cross-attention")


def recipe_of(task="ddpm", **model):
    section = {"type": "dit", "size": [16, 16], "patch": 2, "depth": 2, "width": 16, "heads": 2, "classes": "data"}
    return tiny_recipe(model={**section, **model}, task=TASKS[task])


def images(size=(16, 16)):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(3))


T = torch.tensor([0, 400, 999])


def labels(index):
    return torch.full((3,), index)


def begun(old, classes=("a",), task="ddpm", **model):
    """A model that starts from another one; its function, and its lines, with the class told by name."""
    new, found = begin_from(old, recipe_of(task, **model), list(classes))
    return new.network, found


# Classes


@pytest.mark.parametrize("block", BLOCKS)
def test_classes_are_matched_by_name(block):
    old = model_of(recipe_of(block=block), ["a", "b", "c"])
    new, found = begun(old, ["c", "x", "a"], block=block)
    for theirs, ours in ((2, 0), (0, 2), (3, 1), (3, 3)):
        assert torch.equal(new(images(), T, label=labels(ours)), old.network(images(), T, label=labels(theirs)))
    text = "\n".join(found.lines())
    assert "classes kept: c, a" in text
    assert 'classes new, starting as "no class": x' in text
    assert "classes left: b" in text
    assert found.table["classes"] == {"loaded": (3, 48), "fitted": (1, 16), "left": (1, 16)}


@pytest.mark.parametrize("block", ADAPTIVE)
def test_with_and_without_classes_the_function_is_the_same(block):
    old = model_of(recipe_of(block=block), ["a", "b"])
    plain, found = begin_from(old, recipe_of(block=block, classes=0), [])
    torch.testing.assert_close(plain.network(images(), T), old.network(images(), T), rtol=1e-5, atol=1e-6)
    assert 'old "no class"' in found.lines()[-1]
    back, found = begun(plain, ["a", "b"], block=block)
    for label in range(3):
        assert torch.equal(back(images(), T, label=labels(label)), plain.network(images(), T))
    assert "start at zero: the model without classes" in found.lines()[-1]


@pytest.mark.parametrize("block", TOKENS)
def test_a_class_that_is_a_token_cannot_be_folded_and_that_is_said(block):
    old = model_of(recipe_of(block=block), ["a", "b"])
    plain, found = begin_from(old, recipe_of(block=block, classes=0), [])
    assert "lacks the token of the class" in found.lines()[-1]
    assert torch.equal(plain.network.t_embedder.mlp[2].bias, old.network.t_embedder.mlp[2].bias)
    _, found = begun(plain, ["a", "b"], block=block)
    assert "a token that the model without classes never saw" in found.lines()[-1]


# Depth


@pytest.mark.parametrize("block", BLOCKS)
def test_deeper_networks_compute_the_same_and_learn(block):
    old = model_of(recipe_of(block=block), ["a"])
    new, found = begun(old, block=block, depth=4)
    assert torch.equal(new(images(), T), old.network(images(), T))
    assert "blocks 2 ... 3 are new, each the identity at the start" in "\n".join(found.lines())
    assert set(found.table["blocks"]) == {"loaded", "new"}
    new.requires_grad_(True)
    new(images(), T).square().sum().backward()
    for block in new.blocks[2:]:
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())


def test_shallower_networks_keep_the_first_blocks():
    old = model_of(recipe_of(depth=3), ["a"])
    new, found = begun(old)
    assert all(torch.equal(p, dict(old.network.named_parameters())[name]) for name, p in new.named_parameters())
    assert "block 2 is left" in "\n".join(found.lines())
    assert set(found.table["blocks"]) == {"loaded", "left"}


# Size, patch, channels


@pytest.mark.parametrize("size", [(32, 32), (32, 8), (8, 24)])
def test_another_size_is_the_old_network_at_it(size):
    """(32, 8) has as many tokens as the old one, in another order: their positions must not be loaded."""
    old = model_of(recipe_of(), ["a"])
    new, found = begun(old, size=size)
    assert torch.equal(new(images(size), T, label=labels(0)), old.network(images(size), T, label=labels(0)))
    grid = (size[0] // 2, size[1] // 2)
    assert torch.equal(new.pos_embed[0], position_table(*grid, 16))
    note = f"positions computed for {grid[0]} x {grid[1]} tokens (8 x 8 there), not interpolated"
    assert note in "\n".join(found.lines())
    assert found.table["positions"].keys() == {"new", "left"}
    assert found.table["blocks"].keys() == {"loaded"}


def test_positions_of_the_same_grid_are_loaded():
    old = model_of(recipe_of(), ["a"])
    with torch.no_grad():
        old.network.pos_embed.add_(0.25)
    new, found = begun(old)
    assert torch.equal(new.pos_embed, old.network.pos_embed)
    assert found.table["positions"].keys() == {"loaded"}


@pytest.mark.parametrize(("patch", "size"), [(4, (32, 32)), (1, (8, 8)), (3, (24, 24)), (4, (16, 16)), (1, (16, 16))])
def test_another_patch_is_the_old_network_on_the_resized_picture(patch, size):
    old = model_of(recipe_of(), ["a"])
    new, found = begun(old, patch=patch, size=size)
    small = (size[0] * 2 // patch, size[1] * 2 // patch)

    def resized(x, matrix):
        x = x.unflatten(-2, (-1, matrix.shape[1])).unflatten(-1, (-1, matrix.shape[1])).double()
        return torch.einsum("ncyixj, ai, bj -> ncyaxb", x, matrix, matrix).flatten(-2).flatten(-3, -2).float()

    x, forth = images(size), area(2, patch)
    seen = resized(x, torch.linalg.pinv(forth))
    assert seen.shape[-2:] == small
    expected = resized(old.network(seen, T, label=labels(0)), forth)
    torch.testing.assert_close(new(x, T, label=labels(0)), expected, rtol=1e-4, atol=1e-5)
    assert f"patches of {patch} fitted to those of 2" in "\n".join(found.lines())
    assert found.table["patches"]["fitted"][0] == 4
    flat = torch.nn.functional.interpolate(images((8, 8)), scale_factor=2)
    wide = torch.nn.functional.interpolate(images((8, 8)), scale_factor=patch)
    tokens = old.network.x_embedder(flat)
    torch.testing.assert_close(new.x_embedder(wide), tokens, rtol=1e-4, atol=1e-5)


def test_the_variance_comes_and_goes():
    old = model_of(recipe_of(), ["a"])
    plain, found = begin_from(old, recipe_of("denoise"), ["a"])
    answer = old.network(images(), T)
    torch.testing.assert_close(plain.network(images(), T), answer[:, :3], rtol=1e-5, atol=1e-5)
    text = "\n".join(found.lines())
    assert "the outputs for the variance are left" in text
    assert "it learnt the task ddpm, and starts here with denoise" in text
    back, found = begun(plain, patch=4)
    again = back(images((16, 16)), T)
    assert again.shape[1] == 6 and torch.equal(again[:, 3:], torch.zeros(3, 3, 16, 16)) and again[:, :3].abs().max() > 0
    assert "the outputs for the variance are new, and start at zero" in "\n".join(found.lines())


def test_other_channels_start_anew_between_the_same_blocks():
    """Two channels with a variance have as many outputs as four without: they are not the same ones."""
    old = model_of(recipe_of(channels=2), ["a"])
    new, found = begin_from(old, recipe_of("denoise", channels=4), ["a"])
    assert found.table["patches"].keys() == {"loaded", "new", "left"}
    assert found.table["blocks"].keys() == {"loaded"}
    assert torch.equal(new.network(torch.randn(3, 4, 16, 16), T), torch.zeros(3, 4, 16, 16))


def test_counts_add_up():
    """Every tensor of the new network is loaded, fitted or new; every one of the old one loaded, used or left."""
    old = model_of(recipe_of(), ["a", "b"])
    changes = [{}, {"size": [32, 32]}, {"patch": 4}, {"depth": 3}, {"depth": 1}, {"channels": 1}]
    for change in changes:
        new, found = begun(old, ["a", "c", "d"], **change)
        kinds = [
            sum(cells.get(kind, (0, 0))[1] for cells in found.table.values())
            for kind in ("loaded", "fitted", "new", "left")
        ]
        assert sum(kinds[:3]) == sum(t.numel() for t in new.state_dict().values())
        used = {*found.copies.values(), *(name for names in found.fitted.values() for name in names)}
        state = old.network.state_dict()
        rows = sum(row is not None for row in found.rows) + 1
        used_numbers = sum(state[name].numel() for name in used) + 16 * rows
        assert used_numbers + kinds[3] == sum(t.numel() for t in state.values())


# What does not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 32}, "a block of old.safetensors does not fit the recipe: width 16 there, 32 here; heads 2 there, 2 here"),
        ({"heads": 4}, "width 16 there, 16 here; heads 2 there, 4 here"),
        ({"mlp_ratio": 2.0}, "mlp_ratio 4.0 there, 2.0 here"),
        ({"block": "adaln"}, "model.block is adaln-zero there, adaln here"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, words):
    old = model_of(recipe_of(), ["a"])
    with pytest.raises(UsageError, match=words) as caught:
        match(Source(old, "old.safetensors", ""), recipe_of(**changes), classes=["a"])
    assert "or train without --init" in caught.value.hint


@pytest.mark.parametrize(("theirs", "ours"), [("dit", "hdit"), ("hdit", "dit")])
def test_another_family_is_refused(theirs, ours):
    recipes = {"dit": recipe_of("denoise"), "hdit": tiny_recipe()}
    old: Model = model_of(recipes[theirs], ["a"])
    with pytest.raises(UsageError, match=f"model.type is {theirs} there, {ours} here"):
        match(Source(old, "old.safetensors", ""), recipes[ours], classes=["a"])


# The run

CASES = {
    "same": {},
    "larger": {"size": [32, 32]},
    "larger patches": {"size": [32, 32], "patch": 4},
    "smaller patches": {"patch": 1},
    "deeper": {"depth": 3},
    "unconditional": {"classes": 0},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    run(folder / "run", running(120, lr=2e-3), pictures(folder, ["red", "blue"]))
    return folder / "run"


def running(steps=4, lr=2e-4, **model):
    fixed = {
        "steps": steps,
        "save_every": 1000,
        "sample_every": 0,
        "log_every": 1,
        "batch_size": 16,
        "precision": "fp32",
    }
    recipe = recipe_of(**{"width": 32, **model}).to_dict()
    recipe["train"].update(fixed)
    recipe["optimizer"].update(warmup=0, lr=lr)
    return tiny_recipe(**recipe)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_starts_below_a_new_run(case, trained, tmp_path):
    recipe = running(**CASES[case])
    data = pictures(tmp_path, ["red", "blue"], size=recipe.model.size[0])
    run(tmp_path / "init", recipe, data, init=trained)
    run(tmp_path / "new", recipe, data)
    first, new = losses(tmp_path / "init"), losses(tmp_path / "new")
    most = 0.85 if case == "larger patches" else 0.5  # averaging leaves 3/4 of the noise unseen
    assert first[0] < most * new[0]
    assert sum(first) < most * sum(new)
