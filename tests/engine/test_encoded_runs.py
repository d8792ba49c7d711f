"""What trains from an encoded set of tokens is what trains from its pictures; and a DC-AE's latents are encoded as others."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokens_run import token_codec, token_recipe

from hdit_cli.data.encoded import CODEC_FILE
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.stored import StoredReader
from hdit_cli.engine.encoding.encode import Asked, encode
from hdit_cli.engine.run.codec_file import load_codec, write
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import UsageError
from hdit_cli.recipe.dc_ae import DCAE


def weights(run):
    return load_file(run / "ckpt.safetensors")


def test_tokens_that_were_stored_train_the_same_network(tiny_data, tmp_path):
    codec = token_codec(tmp_path / "codec.safetensors")
    with pytest.raises(UsageError, match="which are computed in fp32 and not in bf16"):
        encode(Asked(tiny_data, codec, tmp_path / "set", precision="bf16"))
    encode(Asked(tiny_data, codec, tmp_path / "set"))
    assert ShardReader(tmp_path / "set").encoded.codec.precision == "fp32"
    for name, place, data in (("fly", codec, tiny_data), ("stored", tmp_path / "set" / CODEC_FILE, tmp_path / "set")):
        recipe = token_recipe(place, train__sample_every=0)
        train(tmp_path / name, recipe, data=data, watch=lambda event: None)
    fly, stored = weights(tmp_path / "fly"), weights(tmp_path / "stored")
    assert fly.keys() == stored.keys() and all(torch.equal(fly[name], stored[name]) for name in fly)


def test_latents_of_a_dc_ae_are_stored_without_noise(tiny_data, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed: it is of the extra `latents`")
    from hdit_cli.models.codecs.dc_ae import DCAE as Network

    sides = {"block_types": ("ResBlock",) * 2, "block_out_channels": (8, 16), "layers_per_block": (1, 1)}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    section = DCAE(
        latent_channels=4,
        scaling_factor=0.5,
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        decoder_norm_types=("rms_norm", "rms_norm"),
        decoder_act_fns=("silu", "silu"),
        **both,
    )
    torch.manual_seed(0)
    write(tmp_path / "codec.safetensors", Network(**section.arguments()).state_dict(), section)
    encode(Asked(tiny_data, tmp_path / "codec.safetensors", tmp_path / "set"))
    reader, codec = ShardReader(tmp_path / "set"), load_codec(tmp_path / "set" / CODEC_FILE)
    for number in (0, 13):
        x = torch.tensor(reader.picture(number)).permute(2, 0, 1)[None] / 127.5 - 1
        found = StoredReader(reader).view(number, mirrored=True)
        assert not found[4:].any() and np.allclose(found[:4], codec.encode(x.flip(3))[0], rtol=2e-3, atol=1e-4)
