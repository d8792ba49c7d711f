"""SIGKILL anywhere in an encoding, and the same command again: the set is the same to the last byte, and nothing is left over."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="forks")]

SCRIPT = Path(__file__).with_name("encode_kills.py")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A data set with held-out pictures, and a codec."""
    import torch
    from PIL import Image

    from hdit_cli.data.prepare import PrepareOptions, prepare
    from hdit_cli.engine.run import codec_file
    from hdit_cli.models.codecs.kl_vae import KLVAE
    from hdit_cli.recipe.kl_vae import KLVAE as Section

    folder, generator = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(16):
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
    options = PrepareOptions(size=(8, 8), shard_size=8, hold_out=0.3, format="png")
    assert prepare(folder / "pictures", out=folder / "data", options=options, workers=1).held_out
    torch.manual_seed(0)
    shape = {"widths": (8, 8), "channels": 2, "layers": 1, "groups": 4}
    codec_file.write(folder / "vae.safetensors", KLVAE(**shape).state_dict(), Section(**shape))
    return folder


def test_killed_at_any_change_of_the_disk(given, tmp_path):
    words = [sys.executable, SCRIPT, given / "data", given / "vae.safetensors", tmp_path, 24]
    ran = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    *wrong, told = map(json.loads, ran.stdout.splitlines())
    assert wrong == []
    assert told["events"] > 40 and told["struck"] > 40
