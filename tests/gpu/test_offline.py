"""What a card would be given of a compiled training step, read without one: torch's own code for a pretended device."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "offline"))
import pretended
import torch

from hdit_cli.models.attention import flex

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(pretended.missing()), reason=pretended.missing() or "-")]

SMALL = """
[model]
type = "hdit"
size = [96, 80]
patch = 4
mapping_width = 64
mapping_depth = 1
levels = [
  { depth = 1, width = 64, attention = "neighborhood", kernel = 7, dropout = 0.1 },
  { depth = 1, width = 64, attention = "global" },
]
[train]
steps = 10
batch_size = 8
precision = "bf16"
"""

BYTES = 195e6  # 188.6 million as of writing; 231.9 with attention in plain torch


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretended")
    (folder / "small.toml").write_text(SMALL)
    return folder


def step(place, *words, card):
    """Facts and code of the small recipe's step."""
    out = place / "-".join([card, *(word.strip("-") for word in words)])
    out.mkdir()
    said = pretended.run(
        "step_code.py", str(place / "small.toml"), "--batch", "8", "--out", str(out), *words, card=card, folder=place
    )
    return json.loads(said.splitlines()[-1])["passes"], {path.stem: path.read_text() for path in out.glob("*.py")}


def assert_whole(code):
    """Nothing that waits for the device, runs on the CPU, or scatters."""
    assert set(code) == {"forward", "backward"}
    for text in code.values():
        for word in (".item()", "device='cpu'", "cpp_fused", "index_put", ".tolist()"):
            assert word not in text


@pytest.mark.parametrize("card", ["sm_89", "sm_90"])
def test_a_step_is_whole_and_attention_is_one_kernel(place, card):
    passes, code = step(place, card=card)
    assert_whole(code)
    for name, operator in (("forward", ""), ("backward", "_backward")):
        others = passes[name]["others"]
        assert sum(count for call, count in others.items() if f"neighborhood_attention{operator}" in call) == 2
    assert sum(each["bytes"] for each in passes.values()) < BYTES


def test_the_plain_backend_too(place):
    """Below compute capability 9 bfloat16 has no atomic addition in generated code: a scatter would be a kernel of its own."""
    _, code = step(place, "--attention", "tiled", card="sm_89")
    assert_whole(code)


def test_flexattention_goes_into_the_graph(place):
    """By its own fused kernels, and its plan is a constant."""
    _, code = step(place, "--attention", "flex", card="sm_89")
    assert_whole(code)
    for text in code.values():
        assert len(re.findall(r"^\s+triton_tem_\w+\.run\(", text, re.MULTILINE)) == 2
        assert "bmm" not in text  # as scores of all tokens would need


@pytest.mark.skipif(importlib.util.find_spec("natten") is None, reason="natten is not installed")
@pytest.mark.parametrize("card", ["sm_89", "sm_90"])
def test_natten_goes_into_the_graph(place, card):
    """By its own operators, with nothing broken off: what it has in Python is followed, its kernels are never called."""
    passes, code = step(place, "--natten", card=card)
    assert_whole(code)
    for name in ("forward", "backward"):
        calls = [call for call in passes[name]["others"] if "natten" in call and name in call]
        assert len(calls) == 1 and passes[name]["others"][calls[0]] == 2
        assert ("hopper" in calls[0]) == (card == "sm_90")


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 64), ("float32", 128)])
def test_flexattentions_shared_memory_is_what_is_written_down(place, dtype, width):
    said = pretended.run("flex_memory.py", "--dtype", dtype, "--width", str(width), card="sm_89", folder=place)
    found = json.loads(said.splitlines()[-1])
    forward, backward = flex.SHARED_MEMORY[8, getattr(torch, dtype).itemsize]
    number = flex.WIDTHS.index(width)
    assert (found["forward"], found["backward"]) == (forward[number], backward[number])
