"""What docs/gpu.md counts: operations and bytes of a step, and the milliseconds that follow from a card's data sheet."""

import re
from pathlib import Path

import pytest

from hdit_cli.engine.checking import report
from hdit_cli.engine.checking.attention import ALLOWED, WIDTHS
from hdit_cli.engine.model import count
from hdit_cli.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
CARDS = re.findall(r"^\| (RTX 4090|H100 SXM) \| ([\d,]+) GB/s \| (\d+) TFLOP/s \| (\d+) \|$", PAGE, re.MULTILINE)
BY_OPERATIONS = re.findall(
    r"^\| `(\S+)`, (\d+) \| ([\d.]+) \| 6 × ([\d.]+) × (\d+) = ([\d,]+) GFLOP \| ([\d.]+) ms \| ([\d.]+) ms \|$",
    PAGE,
    re.MULTILINE,
)
BY_BYTES = re.findall(
    r"^\| `(\S+)`, \d+ \| ([\d.]+) \+ ([\d.]+) = ([\d.]+) GB \| 48 × ([\d,]+) = ([\d.]+) GB \| ([\d.]+) GB "
    r"\| ([\d.]+) ms \| ([\d.]+) ms \|$",
    PAGE,
    re.MULTILINE,
)


def number(text):
    return float(text.replace(",", ""))


def test_operations_a_byte():
    assert len(CARDS) == 2
    for _, memory, products, ratio in CARDS:
        assert round(1e3 * number(products) / number(memory)) == number(ratio)


def test_by_operations():
    assert len(BY_OPERATIONS) == 2
    for name, images, gmacs, again, times, whole, *milliseconds in BY_OPERATIONS:
        assert f"{count(load_recipe(name))['gmacs']:.3f}" == gmacs == again and images == times
        assert round(6 * number(gmacs) * number(images)) == number(whole)
        for (_, _, products, _), told in zip(CARDS, milliseconds, strict=True):
            assert number(whole) / number(products) == pytest.approx(number(told), rel=0.02)


def test_by_bytes():
    assert BY_BYTES
    for name, forward, backward, both, parameters, update, together, *milliseconds in BY_BYTES:
        assert number(forward) + number(backward) == pytest.approx(number(both), abs=0.11)  # each is rounded
        assert count(load_recipe(name))["params"] == number(parameters)
        assert 48 * number(parameters) / 1e9 == pytest.approx(number(update), rel=0.04)
        assert number(both) + number(update) == pytest.approx(number(together), abs=0.1)
        for (_, memory, *_), told in zip(CARDS, milliseconds, strict=True):
            assert 1e3 * number(together) / number(memory) == pytest.approx(number(told), rel=0.01)


def test_the_checks_that_are_told():
    table = PAGE.partition("| check | what is compared")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([A-Za-z ]+) \| ", table, re.MULTILINE) == list(report.CHECKS)
    assert f"heads of {min(WIDTHS)} to {max(WIDTHS)}" in table
    assert set(ALLOWED.values()) == {16.0, 128.0} and "16 roundoffs" in table and "; 128 where" in table


def test_parts_of_first_light_are_told():
    script = (Path(__file__).parents[1] / "gpu" / "first_light.sh").read_text(encoding="utf-8")
    limits = dict(re.findall(r"\[([\w-]+)\]=(\d+)", script))
    for parts, told in re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \| .* \| ([\d s,]+) s \|$", PAGE, re.MULTILINE):
        seconds = re.findall(r"\d+", told)
        names = re.findall(r"`([\w-]+)`", parts)
        assert [limits.pop(name) for name in names] == (seconds if len(seconds) > 1 else seconds * len(names))
    assert not limits
