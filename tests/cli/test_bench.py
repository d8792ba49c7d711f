"""`hdit bench` as typed, and the laws of what it reports."""

import json
import sys

import pytest

from hdit_cli import cli
from hdit_cli.engine.model import count
from hdit_cli.recipe import load_recipe


def hdit(capsys, *words):
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


@pytest.fixture(scope="module")
def facts(made, tmp_path_factory):
    """Measured once, with data."""
    from hdit_cli.engine.bench.report import Wanted, bench

    recipe = load_recipe(str(made / "tiny.toml"))
    return bench(recipe, data=made / "data", wanted=Wanted(runs=3, steps=3, sizes=(16, 32), batches=(2,)))


def test_as_typed(capsys, made, tmp_path):
    code, out, err = hdit(capsys, "bench", made / "tiny.toml", "--runs", 1, "--steps", 2)
    assert code == 0
    for part in ("training step", "sampling", "attention, level 0", "feed-forward", "strips", "natten", "--data"):
        assert part in out
    assert "matrix product" in err
    assert not list(tmp_path.iterdir())


def test_the_plot(facts, tmp_path):
    pytest.importorskip("matplotlib")
    from hdit_cli.engine.bench.plot import plot

    plot(facts, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_is_told_before_anything_is_measured(capsys, made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = hdit(capsys, "bench", made / "tiny.toml", "--plot", tmp_path / "bench.png")
    assert code == 2
    assert "pip install 'hdit-cli[plot]'" in err
    assert "matrix product" not in err


def test_as_json(capsys, made):
    code, out, _ = hdit(capsys, "bench", made / "tiny.toml", "--runs", 1, "--steps", 2, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["environment"]["torch"]
    assert "data" not in found  # none was given


def test_work_is_counted_as_the_model_counts_it(facts, made):
    gmacs = count(load_recipe(str(made / "tiny.toml")), classes=2)["gmacs"]
    train, sampling = facts["train"], facts["sampling"]
    assert facts["gmacs"] == gmacs
    assert train["tflops"] * train["seconds"][0] == pytest.approx(3 * 2 * gmacs * 4 / 1000, rel=1e-3)
    images = sampling["batch_size"] * sampling["steps"]  # one call a step
    assert sampling["tflops"] * sampling["seconds"][0] == pytest.approx(2 * gmacs * images / 1000, rel=1e-3)
    assert 0 < train["mfu"] < 1


def test_parts_add_up_to_about_the_whole(facts):
    parts, (median, _, most) = facts["parts"], facts["train"]["seconds"]
    assert {"optimizer", "averages", "norms", "feed-forward", "drawing noise"} <= set(parts)
    assert sum(name.startswith("attention, level") for name in parts) == 2
    assert 0.5 * median < sum(parts.values()) < 4 * most  # the stamps cost time too, and other programs run


def test_backends_are_compared_or_say_why_not(facts):
    (level,) = [level for level in facts["attention"] if level["level"] == 0]
    rows = level["backends"]
    assert [name for name, row in rows.items() if row["chosen"]] == ["strips"]
    assert rows["strips"]["both_to_chosen"] == [1, 1, 1]
    assert all(row["why_not"] or "both_seconds" in row for row in rows.values())
    assert level["shape"] == [4, 8, 8, 2, 8]
    assert level["in_compiled_step"] is None  # on a CPU steps are compiled only where they are asked to be


def test_the_backend_of_a_compiled_step_is_told(made, monkeypatch):
    """It is another than eager mode's."""
    from hdit_cli.engine.bench import report, subject

    monkeypatch.setattr(subject.Subject, "compiled", True)
    monkeypatch.setattr(report, "_backends", lambda *args, **how: {})
    measured = subject.Subject(load_recipe(str(made / "tiny.toml")), data=None)
    levels = report._attention(measured, report.Wanted(runs=1))
    assert [level["in_compiled_step"] for level in levels] == ["tiled"]


def test_curves(facts):
    small, large = facts["sizes"]
    assert (small["value"], large["value"], facts["batches"][0]["value"]) == (16, 32, 2)
    assert large["peak_bytes"] > 2 * small["peak_bytes"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--sizes", "a"], 2),
        (["--batches", "0"], 2),
        (["--sizes", "17"], 2),
        (["--runs", "0"], 2),
        (["--data", "nowhere"], 3),
    ],
)
def test_what_is_refused(capsys, made, words, code):
    found, _, err = hdit(capsys, "bench", made / "tiny.toml", *words)
    assert found == code
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--sizes", "--batches"])
@pytest.mark.parametrize("text", ["9" * 5000, "1,-2", "0", "²"])
def test_what_is_no_list_of_numbers(option, text, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "smoke/tiny", option, text])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "is not a list of whole numbers" in err and "hint: " in err
    assert len(err) < 300
