"""`hdit bench` measures what `train` and `sample` do: the step compiled as the recipe says, each against its own product."""

import time
from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_recipe

from hdit_cli import precision, runtime
from hdit_cli.engine.bench import report
from hdit_cli.engine.bench.clock import Product
from hdit_cli.engine.bench.report import Wanted, bench
from hdit_cli.engine.bench.subject import Subject
from hdit_cli.errors import UsageError

COMPILING = 0.4  # seconds of the pretended compiler
CPU = torch.device("cpu")


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that takes its time at the first call of a function and then counts the calls, by the function's name."""
    calls = {}

    def compile(plain, **_):
        def run(*args, **kwargs):
            if plain.__name__ not in calls:
                time.sleep(COMPILING)
            calls[plain.__name__] = calls.get(plain.__name__, 0) + 1
            return plain(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(runtime, "why_not_compiled", lambda device: "")
    return calls


def recipe(**changes):
    return tiny_recipe(train__batch_size=4, sample__steps=2, model__classes=2, **changes)


WANTED = Wanted(runs=1, steps=2)


def test_the_step_is_the_compiled_one_where_training_compiles_it(compiler):
    facts = bench(recipe(train__compile=True), data=None, wanted=replace(WANTED, batches=(2,)))
    train, (point,) = facts["train"], facts["batches"]
    assert train["compiled"]
    assert compiler["loss"] == (1 + 2 + 1) + (
        1 + 1
    )  # the first, to warm up, the round; parts are eager; the curve's point
    assert point["seconds"][0] < 0.8 * COMPILING
    assert train["compile_seconds"] > 0.8 * COMPILING  # told apart
    assert train["seconds"][2] < 0.8 * COMPILING
    assert {"feed-forward", "norms", "drawing noise"} <= set(facts["parts"])
    assert not facts["sampling"]["compiled"]  # as `sample` on a CPU


def test_the_step_is_eager_where_training_does_not_compile_it(compiler):
    train = report._train(Subject(recipe(), data=None), WANTED)
    assert not compiler and not train["compiled"] and train["compile_seconds"] is None


def test_compiled_and_eager_take_turns(compiler):
    subject = Subject(recipe(), data=None)
    report._train(subject, WANTED)
    assert not compiler  # the recipe's own step
    found = report._compiled(subject, WANTED)
    assert compiler["loss"] == 1 + 2  # the first, one to warm up, the round: none in the eager turns
    assert {"first_step_seconds", "eager_seconds", "compiled_seconds", "times_faster"} == set(found)


def test_sampling_is_compiled_where_sample_would(compiler, monkeypatch):
    real = report.paced

    def paced(model, sampling, *, images, batch_size, compile):
        assert (images, batch_size, compile) == (report.MANY, None, None)  # nobody says: the machine does
        return real(model, sampling, images=images, batch_size=batch_size, compile=True)

    monkeypatch.setattr(report, "paced", paced)
    sampling = report._sampling(Subject(recipe(), data=None), WANTED)
    assert sampling["compiled"] and sampling["compile_seconds"] > 0.8 * COMPILING
    assert sampling["seconds"][2] < 0.8 * COMPILING
    assert 0 <= sampling["outside_the_network"][0] < 1


def test_each_is_held_against_a_product_of_its_own_precision():
    subject = Subject(recipe(), data=None)
    assert report._train(subject, WANTED)["product"] == "fp32"
    sampling = report._sampling(subject, replace(WANTED, precision="bf16"))
    assert sampling["product"] == sampling["precision"] == "bf16"
    with pytest.raises(UsageError, match="tf32"):
        bench(recipe(), data=None, wanted=replace(WANTED, precision="tf32"))


def test_float32_is_trained_in_tf32_where_there_is_one(monkeypatch):
    subject = Subject(recipe(), data=None)
    assert subject.precision == "fp32"
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)
    monkeypatch.setattr("hdit_cli.engine.bench.subject.has_tf32", lambda device: True)
    assert subject.precision == "tf32"


@pytest.mark.parametrize(
    ("word", "dtype", "switch"),
    [
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
        ("fp64", torch.float64, "highest"),
    ],
)
def test_products(word, dtype, switch, monkeypatch):
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(torch.get_float32_matmul_precision())
            return super().__torch_function__(func, types, args, kwargs or {})

    product = Product(CPU, word)
    assert product.a.dtype == product.b.dtype == dtype
    product.a, before = product.a[:2].as_subclass(Watched), torch.get_float32_matmul_precision()
    seen.clear()
    product()
    assert set(seen) == {switch}
    assert torch.get_float32_matmul_precision() == before


def test_what_cannot_be_compiled_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(runtime, "why_not_compiled", lambda device: "no compiler is installed (g++)")
    watched = []
    with pytest.raises(UsageError, match="no compiler"):
        bench(recipe(), data=None, wanted=Wanted(runs=1, steps=1, compiled=True), watch=watched.append)
    assert not watched


@pytest.mark.parametrize("crop", ["random", "center"])
def test_pictures_are_cut_as_training_cuts_them(crop, tiny_data):
    """Of the size that the recipe trains on, for which the work is counted, and not of the size they are stored in."""
    wanted = tiny_recipe(data={"workers": 0, "crop": crop}, model={**tiny_recipe().to_dict()["model"], "size": [8, 8]})
    subject = Subject(wanted, data=tiny_data)
    assert {tuple(batch.pixels.shape[1:]) for batch in subject.batches} == {(3, 8, 8)}
