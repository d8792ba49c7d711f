"""`hdit encode` and what trains from it: bytes, statistics, draws, and what is refused."""

import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe

from hdit_cli.data.encoded import CODEC_FILE, ENCODED
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.stored import StoredReader
from hdit_cli.engine.encoding.encode import Asked, default_out, encode
from hdit_cli.engine.run import codec_file
from hdit_cli.engine.run.verify import verify_data
from hdit_cli.engine.training.loop import train
from hdit_cli.engine.training.setup import batches_of, new_accelerator, new_model
from hdit_cli.engine.training.step import Stepper
from hdit_cli.errors import CheckpointError, DataError, NonFiniteError, StorageError, UsageError
from hdit_cli.models.codecs.kl_vae import KLVAE
from hdit_cli.recipe.kl_vae import KLVAE as Section

MODEL = {
    "size": [8, 8], "patch": 2, "levels": [{"depth": 1, "width": 16, "head_dim": 8, "attention": "global"}],
    "mapping_width": 16, "mapping_depth": 1, "channels": 4, "classes": "data",
}  # fmt: skip


def write_codec(path, *, seed=0, change=lambda tensors: None, **section):
    torch.manual_seed(seed)
    shape = {"widths": (8, 16), "channels": 4, "layers": 1, "groups": 4}
    tensors = KLVAE(**shape).state_dict()
    change(tensors)
    codec_file.write(path, tensors, Section(**shape, **section))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 pictures of 16x16 in two classes, some held out, in shards of 12."""
    from PIL import Image

    root = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    for name in ("red", "blue"):
        (root / name).mkdir()
        for i in range(20):
            Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    out = tmp_path_factory.mktemp("data") / "set16"
    options = PrepareOptions(size=(16, 16), shard_size=12, hold_out=0.2, format="png")
    assert prepare(root, out=out, options=options, workers=1).held_out
    return out


@pytest.fixture(scope="module")
def place(source, tmp_path_factory):
    """A codec without statistics, and the set that was encoded with it."""
    folder = tmp_path_factory.mktemp("encoded")
    codec = write_codec(folder / "vae.safetensors")
    encode(Asked(source, codec, folder / "set"))
    return folder


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def recipe_of(codec, **changes):
    return tiny_recipe(model=MODEL, codec__path=str(codec), diffusion={"sigma_data": 1.0}, **changes)


def damaged_copy(place, folder, name, change):
    shutil.copytree(place / "set", folder)
    data = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(change(data))
    return folder


def rewritten(place, folder, change, name=ENCODED):
    """A copy whose `encoded.json` was changed."""

    def edit(data):
        told = json.loads(data)
        change(told)
        return json.dumps(told).encode()

    return damaged_copy(place, folder, name, edit)


# The set


def test_what_is_stored_is_what_the_codec_makes_of_both_views(source, place):
    reader, codec = ShardReader(place / "set"), codec_file.load_codec(place / "vae.safetensors")
    for folder in (place / "set", place / "set" / "held-out"):
        reader = ShardReader(folder)
        stored = StoredReader(reader)
        for number in range(0, len(reader), 5):
            x = torch.tensor(reader.picture(number)).permute(2, 0, 1)[None] / 127.5 - 1
            for mirrored, view in ((False, x), (True, x.flip(3))):
                found = stored.view(number, mirrored=mirrored)
                assert found.dtype == np.float16 and found.shape == (8, 8, 8)
                wanted = codec.network.moments(view)[0]
                wanted = torch.cat([wanted[:4], (wanted[4:].clamp(-30, 20) / 2).exp()]).detach().numpy()
                assert np.allclose(found, wanted, rtol=2e-3, atol=1e-5)
    assert digests(source).items() <= digests(place / "set").items() | {("x", "x")}
    assert ShardReader(source).fingerprint == ShardReader(place / "set").fingerprint


def test_statistics_are_of_drawn_latents_and_make_their_deviation_one(place):
    """std^2 = Var(mean) + E[std^2], over all training pictures and both views; the codec of the set normalises by them."""
    reader = ShardReader(place / "set")
    stored, codec = StoredReader(reader), codec_file.load_codec(place / "set" / CODEC_FILE)
    views = [stored.view(n, mirrored=m).astype(np.float64) for n in range(len(reader)) for m in (False, True)]
    mean, std = np.split(np.stack(views), 2, axis=1)
    told = reader.encoded.codec.statistics
    assert told["pictures"] == len(reader)
    assert np.allclose(told["mean"], mean.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(told["std"], np.sqrt(mean.var((0, 2, 3)) + (std**2).mean((0, 2, 3))), rtol=1e-9)
    many = torch.from_numpy(np.stack(views)).float().repeat(20, 1, 1, 1)
    drawn = codec.latent(many, torch.randn(len(many), 4, 8, 8))
    assert drawn.mean((0, 2, 3)).abs().max() < 0.02
    assert (drawn.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert reader.encoded.codec.sha256 == codec.fingerprint()
    assert ShardReader(place / "set" / "held-out").encoded.codec.statistics == told
    ours, theirs = load_file(place / "set" / CODEC_FILE), load_file(place / "vae.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_codec_with_statistics_of_its_own_keeps_them(source, tmp_path):
    codec = write_codec(tmp_path / "sd.safetensors", scale=(0.18215,))
    encode(Asked(source, codec, tmp_path / "set"))
    assert (tmp_path / "set" / CODEC_FILE).read_bytes() == codec.read_bytes()
    assert len(ShardReader(tmp_path / "set").encoded.codec.statistics["std"]) == 4  # measured all the same


def test_the_whole_set_verifies_and_a_flipped_bit_is_found(place, tmp_path):
    assert [checked for checked in verify_data(place / "set") if checked.problem] == []
    assert [checked for checked in verify_data(place / "set" / "held-out") if checked.problem] == []
    assert {"00000.codec", CODEC_FILE, "held-out/00000.codec"} <= {each.name for each in verify_data(place / "set")}

    def flipped(data):
        data[100] ^= 1
        return data

    for name in ("00001.codec", "held-out/00000.codec", CODEC_FILE, "00000.tar"):
        folder = damaged_copy(place, tmp_path / name.replace("/", "-"), name, flipped)
        assert [checked.name for checked in verify_data(folder) if checked.problem] == [name]
    folder = damaged_copy(place, tmp_path / "damaged", "00001.codec", flipped)
    stored = StoredReader(ShardReader(folder))
    with pytest.raises(DataError, match=r"00001\.codec is damaged: the checksum of picture"):
        stored.view(ShardReader(folder).first_of(1), mirrored=False)
    folder = damaged_copy(place, tmp_path / "short", "00001.codec", lambda data: data[:-1])
    with pytest.raises(DataError, match=r"00001\.codec is damaged: "):
        StoredReader(ShardReader(folder))
    assert any("00001.codec" in checked.problem for checked in verify_data(folder))


def test_a_finished_set_is_left_as_it_is_and_another_wish_is_refused(source, place, tmp_path):
    before = digests(place / "set")
    assert encode(Asked(source, place / "vae.safetensors", place / "set")).before
    other = write_codec(tmp_path / "other.safetensors", seed=1)
    for asked, words in (
        (Asked(source, other, place / "set"), "codec differ"),
        (Asked(source, place / "vae.safetensors", place / "set", batch_size=3), "batch_size differ"),
        (Asked(source, place / "vae.safetensors", place / "set", pictures=False), "pictures differ"),
        (Asked(source, place / "vae.safetensors", place / "set", precision="bf16"), "precision differ"),
        (Asked(source, place / "vae.safetensors", source), "lie in each other"),
        (Asked(source, place / "vae.safetensors", tmp_path), "is not an encoded set"),
    ):
        with pytest.raises(UsageError, match=words):
            encode(asked)
    assert digests(place / "set") == before
    assert default_out(source, place / "vae.safetensors").name == "set16-kl-vae"


def test_broken_off_and_gone_on_are_the_same_bytes(source, place, tmp_path, monkeypatch):
    """Ctrl-C after some pictures; then one whole shard of it is damaged, and the record of another."""
    from hdit_cli.engine.encoding.work import WORK
    from hdit_cli.errors import Interrupted

    seen = []

    def tell(done, total):
        seen.append(done)
        if done > 20:
            raise KeyboardInterrupt

    asked = Asked(source, place / "vae.safetensors", tmp_path / "set")
    with pytest.raises(Interrupted, match="stopped after about 2"):
        encode(asked, tell=tell)
    assert not (tmp_path / "set" / "manifest.json").exists()
    with pytest.raises(UsageError, match="batch_size differ"):
        encode(Asked(source, place / "vae.safetensors", tmp_path / "set", batch_size=3))
    data = bytearray((tmp_path / "set" / "00000.codec").read_bytes())
    data[7] ^= 1
    (tmp_path / "set" / "00000.codec").write_bytes(data)
    assert (tmp_path / "set" / WORK / "training-00000.json").is_file()
    encode(asked)
    assert digests(tmp_path / "set") == digests(place / "set")


def test_a_full_disk_is_told_and_the_same_call_goes_on(source, place, tmp_path, monkeypatch):
    from hdit_cli import files

    seen = []

    def full(operation, path):
        seen.append(path)
        if operation == "fsync" and "00001.codec" in path:
            raise OSError(errno.ENOSPC, "no space")

    asked = Asked(source, place / "vae.safetensors", tmp_path / "set")
    with monkeypatch.context() as patched:
        patched.setattr(files, "observer", full)
        with pytest.raises(StorageError, match="No space left"):
            encode(asked)
    assert seen and not (tmp_path / "set" / "manifest.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(StorageError, match="MB are free"):
            encode(asked)
    encode(asked)
    assert digests(tmp_path / "set") == digests(place / "set")


def test_the_bytes_do_not_hang_on_the_number_of_threads(source, place, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encode(Asked(source, place / "vae.safetensors", tmp_path / "set"))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert digests(tmp_path / "set") == digests(place / "set")


def test_a_set_in_work_is_left_alone(source, place, tmp_path):
    from hdit_cli import files
    from hdit_cli.engine.encoding.work import WORK

    (tmp_path / "set" / WORK).mkdir(parents=True)
    with (
        files.lock(tmp_path / "set" / WORK / "lock", what="it"),
        pytest.raises(UsageError, match=r"the encoded set .* is in use by"),
    ):
        encode(Asked(source, place / "vae.safetensors", tmp_path / "set"))


def test_in_bfloat16(source, place, tmp_path):
    encode(Asked(source, place / "vae.safetensors", tmp_path / "set", precision="bf16"))
    ours, theirs = (StoredReader(ShardReader(folder / "set")) for folder in (tmp_path, place))
    assert (ours.facts.precision, theirs.facts.precision) == ("bf16", "fp32")
    one, other = (each.view(3, mirrored=True).astype(np.float32) for each in (ours, theirs))
    assert 0 < np.abs(one - other).max() < 0.1


def test_a_codec_that_was_trained_here(source, tmp_path):
    """Its run or checkpoint: a file of its own comes to lie in the set, with the measured statistics where it has Gaussians."""
    from hdit_cli.engine.encoding.encode import codec_file_of
    from hdit_cli.recipe import Recipe

    kinds = {
        "kl-vae": {"widths": [8, 16], "latent_channels": 3, "layers": 1, "groups": 4},
        "vq-vae": {"levels": 1, "bottleneck_blocks": 1, "c_hidden": 12, "codebook_size": 24},
    }
    for kind, shape in kinds.items():
        recipe = Recipe.from_dict(
            {
                "data": {"workers": 0}, "model": {"type": kind, "size": [16, 16], **shape}, "task": {"type": "autoencode"},
                "train": {"steps": 2, "batch_size": 8, "precision": "fp32", "save_every": 2, "sample_every": 0},
                "validation": {"every": 0},
            }
        )  # fmt: skip
        run = tmp_path / kind
        train(run, recipe, data=source, watch=lambda event: None)
        file = codec_file_of(run)
        assert file == run / "ckpt.safetensors" and default_out(source, file).name == f"set16-{kind}"
        encode(Asked(source, file, tmp_path / f"set-{kind}"))
        reader, own = (
            ShardReader(tmp_path / f"set-{kind}"),
            codec_file.load_codec(tmp_path / f"set-{kind}" / CODEC_FILE),
        )
        assert own.fingerprint() == reader.encoded.codec.sha256 != reader.encoded.codec.of
        x = torch.tensor(reader.picture(0)).permute(2, 0, 1)[None] / 127.5 - 1
        stored = torch.from_numpy(StoredReader(reader).view(0, mirrored=False).astype(np.float32))[None]
        before = codec_file.load_codec(file).moments(x)
        assert torch.allclose(own.moments(x).float(), before.float())
        if kind == "kl-vae":
            assert torch.allclose(stored, before, atol=2e-3)
            assert torch.allclose(own.statistics[1], torch.tensor(reader.encoded.codec.statistics["std"]), rtol=1e-5)
        else:
            assert torch.equal(stored[:, 0].long(), before)
        assert encode(Asked(source, file, tmp_path / f"set-{kind}")).before


def test_a_codec_that_makes_no_numbers_is_refused(source, tmp_path):
    def large(tensors):
        tensors["quant_conv.bias"][:4] = 1e6

    def nothing(tensors):
        tensors["quant_conv.bias"][0] = float("nan")

    with pytest.raises(NonFiniteError, match="and float16 ends at 65,504"):
        encode(Asked(source, write_codec(tmp_path / "large.safetensors", change=large), tmp_path / "set"))
    with pytest.raises(CheckpointError, match="holds NaN"):
        encode(Asked(source, write_codec(tmp_path / "nan.safetensors", change=nothing), tmp_path / "other"))
    assert not (tmp_path / "other").exists() and not (tmp_path / "set" / "manifest.json").exists()


def test_a_size_that_is_no_multiple_is_refused(tmp_path):
    from PIL import Image

    (tmp_path / "p").mkdir()
    for i in range(3):
        Image.fromarray(np.full((15, 15, 3), 40 * i, np.uint8)).save(tmp_path / "p" / f"{i}.png")
    prepare(tmp_path / "p", out=tmp_path / "data", options=PrepareOptions(size=(15, 17)), workers=1)
    codec = write_codec(tmp_path / "vae.safetensors")
    with pytest.raises(UsageError, match="15 is no multiple of 2, the codec's factor") as caught:
        encode(Asked(tmp_path / "data", codec, tmp_path / "set"))
    assert "--size 16x16" in caught.value.hint or "--size 16" in caught.value.hint


def test_several_sizes(tmp_path):
    from PIL import Image

    from hdit_cli.data.prepare import choose_buckets

    (tmp_path / "p").mkdir()
    generator = np.random.default_rng(0)
    for i in range(14):
        shape = (32, 16, 3) if i % 3 else (16, 32, 3)
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / "p" / f"{i}.png")
    options = PrepareOptions(
        size=(16, 16), shard_size=6, buckets=choose_buckets((16, 16), on=True, step=4, ratio=2.0), format="png"
    )
    prepare(tmp_path / "p", out=tmp_path / "data", options=options, workers=1)
    encode(Asked(tmp_path / "data", write_codec(tmp_path / "vae.safetensors"), tmp_path / "set", batch_size=2))
    reader = ShardReader(tmp_path / "set")
    stored, codec = StoredReader(reader), codec_file.load_codec(tmp_path / "vae.safetensors")
    assert len(reader.buckets) == 2
    for number in range(len(reader)):
        x = torch.tensor(reader.picture(number)).permute(2, 0, 1)[None] / 127.5 - 1
        assert np.allclose(stored.view(number, mirrored=True)[:4], codec.moments(x.flip(3))[0, :4].numpy(), atol=2e-3)
    assert [each for each in verify_data(tmp_path / "set") if each.problem] == []


def test_tokens(source, tmp_path):
    """The smallest type that holds the vocabulary; batches have them as an embedding takes them, flipped by the same rule."""
    from hdit_cli.data.loader import turned
    from hdit_cli.data.stored_loader import StoredLoader
    from hdit_cli.models.codecs.vq_vae import VQVAE
    from hdit_cli.recipe.vq_vae import VQVAE as TokenSection

    for vocabulary, dtype in ((200, np.uint8), (300, np.uint16)):
        torch.manual_seed(0)
        shape = {"levels": 2, "bottleneck_blocks": 1, "c_hidden": 16, "codebook_size": vocabulary}
        path = tmp_path / f"vq{vocabulary}.safetensors"
        codec_file.write(path, VQVAE(**shape).eval().state_dict(), TokenSection(**shape))
        encode(Asked(source, path, tmp_path / f"set{vocabulary}"))
        reader, codec = ShardReader(tmp_path / f"set{vocabulary}"), codec_file.load_codec(path)
        facts = reader.encoded.codec
        assert (facts.vocabulary, facts.planes, facts.statistics) == (vocabulary, 1, {})
        assert facts.sha256 == codec.fingerprint()
        assert [each for each in verify_data(reader.folder) if each.problem] == []
        stored, index = StoredReader(reader), np.arange(6)
        assert stored.view(0, mirrored=False).dtype == dtype
        how = {"batch_size": 6, "seed": 3, "position": 0, "steps": 1, "slots": [index], "flip": True}
        with StoredLoader(stored, **how) as loader:
            (batch,) = next(iter(loader))
        assert batch.stored.dtype == torch.int64 and batch.stored.shape == (6, 4, 4)
        from hdit_cli.data.order import sample_at

        for row, number in enumerate(sample_at(index, count=len(reader), seed=3)):
            x = torch.tensor(reader.picture(number)).permute(2, 0, 1)[None] / 127.5 - 1
            assert torch.equal(batch.stored[row], codec.encode(x.flip(3) if turned(index, seed=3)[row] else x)[0])
    bad = tmp_path / "bad"
    shutil.copytree(tmp_path / "set300", bad)
    told = json.loads((bad / ENCODED).read_text())
    told["sections"]["codec"]["vocabulary"] = int(StoredReader(ShardReader(bad)).view(0, mirrored=False).max())
    (bad / ENCODED).write_text(json.dumps(told))
    with pytest.raises(DataError, match="a token beyond the"):
        StoredReader(ShardReader(bad)).view(0, mirrored=False)


# A received file


def test_a_set_that_lies_is_refused(place, tmp_path):
    def section(told):
        return told["sections"]["codec"]

    changes = {
        "has a section 'words', which this version": lambda told: told["sections"].update(words={}),
        "has no section": lambda told: told["sections"].clear(),
        "it has no statistics of its latents": lambda told: section(told).pop("statistics"),
        "lack a std for each channel": lambda told: section(told)["statistics"].update(std=[1.0]),
        "a mean in its statistics is no number": lambda told: section(told)["statistics"].update(mean=["a"] * 4),
        "its files are not those of the shards": lambda told: section(told)["shards"][0].update(name="../../x.codec"),
        "sha256 is not a hash": lambda told: section(told)["shards"][0].update(sha256="0"),
        "it is about other pictures": lambda told: told.update(data="0" * 64),
        "format is": lambda told: told.update(format="hdit-encoded/9"),
        "factor is not a number": lambda told: section(told).update(factor=0),
        "planes are not those": lambda told: section(told).update(planes=2),
        "dtype is": lambda told: section(told).update(dtype="object"),
        "neither latents nor tokens": lambda told: section(told).update(vocabulary=9),
        "is not the kind of a codec": lambda told: section(told).update(kind="../x"),
        "pictures is neither": lambda told: told.update(pictures=1),
    }
    for number, (words, change) in enumerate(changes.items()):
        folder = rewritten(place, tmp_path / str(number), change)
        with pytest.raises(DataError, match=words):
            ShardReader(folder)
        assert any(checked.problem for checked in verify_data(folder)), words
    folder = rewritten(place, tmp_path / "factor", lambda told: section(told).update(factor=4))
    with pytest.raises(DataError, match=r"00000\.codec is damaged"):
        StoredReader(ShardReader(folder))


def test_a_set_that_lies_about_its_codec_is_refused(place, tmp_path):
    """The same numbers as those of 16 channels at a quarter of the size: the files are as long, and the codec is another."""

    def change(told):
        section = told["sections"]["codec"]
        twice = {name: 4 * section["statistics"][name] for name in ("mean", "std")}
        section.update(channels=16, planes=32, factor=4, statistics=twice)

    folder = rewritten(place, tmp_path / "set", change)
    with pytest.raises(
        DataError, match="tells of latents of 16 channels at 1/4 of the size, and its codec makes latents of 4"
    ):
        train(tmp_path / "run", recipe_of(folder / CODEC_FILE), data=folder, watch=lambda event: None)


# Training from it


def test_stored_latents_are_those_of_encoding_on_the_fly_with_the_same_draws(source, place):
    """Both rounded to float16, as the set stores them: the same numbers to the last bit, for the same flips and noise."""
    recipe = recipe_of(place / "set" / CODEC_FILE, data={"workers": 0, "flip": True}, train__batch_size=8)
    steppers, readers = {}, {"stored": ShardReader(place / "set"), "pixels": ShardReader(source)}
    for name, reader in readers.items():
        steppers[name] = Stepper(recipe, model=new_model(recipe, reader, path=""), accelerator=new_accelerator(recipe))
    codec = steppers["pixels"].state.model.latents
    moments = codec.moments
    # a picture alone has the last bits that it had among others, but for a few: the codec is given each as when it was encoded
    codec.moments = lambda x: torch.cat([_as_encoded(moments, readers["pixels"], each) for each in x])
    drawn = {}
    for name, reader in readers.items():
        how = {"position": 16, "steps": 3, "slots": [np.arange(0, 4), np.arange(4, 8)], "workers": 0}
        with batches_of(recipe, reader, device=torch.device("cpu"), **how) as loader:
            drawn[name] = [
                steppers[name].draw(batch, first=16 + 8 * s) for s, each in enumerate(loader) for batch in each
            ]
    assert len(drawn["stored"]) == 6
    for ours, theirs in zip(drawn["stored"], drawn["pixels"], strict=True):
        assert torch.equal(ours.x0, theirs.x0) and torch.equal(ours.noise, theirs.noise)
        assert torch.equal(ours.conditions["label"], theirs.conditions["label"])


def _as_encoded(moments, reader, picture):
    """Moments of one picture in the batch in which `encode` had it, rounded to float16: (1, 2 C, h, w)."""
    for shard in range(len(reader.manifest.shards)):
        numbers = np.arange(reader.first_of(shard), reader.first_of(shard + 1))
        for first in range(0, len(numbers), 8):
            batch = torch.from_numpy(np.stack([reader.picture(n) for n in numbers[first : first + 8]]))
            x = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
            for view in (x, x.flip(3)):
                found = (view == picture).flatten(1).all(1).nonzero()
                if len(found):
                    return moments(view)[found[0]].half().float()
    raise AssertionError("it is none of the data set")


def test_a_run_on_stored_latents(place, tmp_path):
    """Gone on is unbroken, with and without a thread that reads ahead; where the latents come from is said."""
    codec, seen = place / "set" / CODEC_FILE, []
    train(tmp_path / "run", recipe_of(codec), data=place / "set", watch=seen.append)
    assert any("latents are read from" in getattr(event, "text", "") for event in seen)
    for workers in (0, 2):
        half = tmp_path / f"half{workers}"
        for steps in (4, 8):
            recipe = recipe_of(codec, train__steps=steps, data={"workers": workers})
            train(half, recipe, data=place / "set", watch=lambda event: None)
        ours, theirs = (load_file(folder / "ckpt.safetensors") for folder in (half, tmp_path / "run"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_set_without_pictures_trains_and_validates(source, place, tmp_path):
    encode(Asked(source, place / "vae.safetensors", tmp_path / "set", pictures=False))
    assert not [*(tmp_path / "set").rglob("*.tar")]
    assert [checked for checked in verify_data(tmp_path / "set") if checked.problem] == []
    codec = tmp_path / "set" / CODEC_FILE
    assert codec.read_bytes() == (place / "set" / CODEC_FILE).read_bytes()
    recipe = recipe_of(codec, validation={"every": 8, "images": 4, "levels": 2})
    train(tmp_path / "run", recipe, data=tmp_path / "set", watch=lambda event: None)
    train(tmp_path / "whole", recipe, data=place / "set", watch=lambda event: None)
    ours, theirs = (load_file(tmp_path / name / "ckpt.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [
        [json.loads(line)["mean"] for line in (tmp_path / name / "validation.jsonl").read_text().splitlines()]
        for name in ("run", "whole")
    ]
    assert lines[0] == pytest.approx(lines[1], rel=2e-3)  # the mean of the latents, rounded to float16 or not
    with pytest.raises(DataError, match="was encoded without them"):
        ShardReader(tmp_path / "set").picture(0)
    with pytest.raises(DataError, match="`hdit encode` needs pictures"):
        encode(Asked(tmp_path / "set", place / "vae.safetensors", tmp_path / "again"))
    scored = recipe_of(codec, eval={"every": 8, "during_n": 4, "during_metrics": ["swd"]})
    with pytest.raises(DataError, match="a score needs pictures"):
        train(tmp_path / "scored", scored, data=tmp_path / "set", watch=lambda event: None)
    with pytest.raises(DataError, match="without \\[codec\\] needs pictures"):
        train(tmp_path / "pixels", tiny_recipe(), data=tmp_path / "set", watch=lambda event: None)


def test_a_codec_that_was_put_in_the_place_of_the_own_one_is_told(place, tmp_path):
    shutil.copytree(place / "set", tmp_path / "set")
    own = write_codec(tmp_path / "set" / CODEC_FILE, seed=1)
    with pytest.raises(DataError, match=r"is not the codec that .* was encoded with") as caught:
        train(tmp_path / "run", recipe_of(own), data=tmp_path / "set", watch=lambda event: None)
    assert "copy it there again" in str(caught.value.hint)


def test_a_codec_of_a_set_that_is_not_there_leads_on_to_encode(tmp_path):
    for name, command in (("codec.safetensors", "hdit encode"), ("vae.safetensors", "hdit convert SRC")):
        with pytest.raises(CheckpointError) as error:
            codec_file.load_codec(tmp_path / name)
        assert command in error.value.hint


def test_a_folder_as_a_codec_leads_on_to_the_file_in_it(place, tmp_path):
    with pytest.raises(CheckpointError, match="a codec is a file") as caught:
        train(tmp_path / "run", recipe_of(place / "set"), data=place / "set", watch=lambda event: None)
    assert str(place / "set" / CODEC_FILE) in str(caught.value.hint)


def test_what_cannot_be_trained_on_stored_latents_is_refused(place, tmp_path):
    other = write_codec(tmp_path / "other.safetensors", seed=1)
    own = place / "set" / CODEC_FILE
    for recipe, words, hint in (
        (recipe_of(other), "was encoded with another codec", str(own)),
        (recipe_of(own, data={"augment": 0.1}), "data.augment is 0.1", "data.augment=0"),
        (recipe_of(own, data={"crop": "random"}), "data.crop is random", "data.crop=none"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            train(tmp_path / "run", recipe, data=place / "set", watch=lambda event: None)
        assert not (tmp_path / "run").exists()
        assert hint in caught.value.hint
    train(tmp_path / "pixels", tiny_recipe(), data=place / "set", watch=lambda event: None)  # its pictures are there
