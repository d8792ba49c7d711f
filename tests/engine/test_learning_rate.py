"""Learning rates: closed forms, and the rule what a run that goes on may change about them."""

import itertools
import json
import math

import pytest
from tiny_run import tiny_recipe

from hdit_cli.engine.run.events import Finished, Noted
from hdit_cli.engine.training.learning_rate import cosine, inverse_sqrt, learning_rate, warm_up
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import UsageError


def test_warm_up_is_linear_and_ends_at_one():
    assert [warm_up(step, warmup=4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, warmup=0) == 1.0


@pytest.mark.parametrize("final_lr", [0.0, 0.1, 1.0])
def test_cosine(final_lr):
    def at(step):
        return cosine(step, steps=110, warmup=10, final_lr=final_lr)

    assert at(0) == at(10) == 1.0  # the warm-up multiplies it
    assert at(60) == pytest.approx((1 + final_lr) / 2)
    assert at(110) == at(10_000) == pytest.approx(final_lr)
    assert at(35) - final_lr == pytest.approx((1 - final_lr) * (2 + math.sqrt(2)) / 4)
    rates = [at(step) for step in range(10, 111)]
    assert all(b <= a for a, b in itertools.pairwise(rates))


def test_inverse_sqrt():
    assert [inverse_sqrt(step, hold=100) for step in (0, 50, 100)] == [1.0, 1.0, 1.0]
    assert inverse_sqrt(400, hold=100) == 0.5
    assert inverse_sqrt(10_000, hold=100) == pytest.approx(0.1)


def test_a_recipe_without_a_schedule_computes_what_it_always_did():
    factor = learning_rate(tiny_recipe())
    assert [factor(step) for step in range(5)] == [min(1.0, (step + 1) / 3) for step in range(5)]
    assert learning_rate(tiny_recipe(optimizer__warmup=0))(7) == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"optimizer__schedule": "cosine", "optimizer__final_lr": 0.25},
            [min(1, (s + 1) / 3) * (0.25 + 0.375 * (1 + math.cos(math.pi * max(0, s - 3) / 5))) for s in range(8)],
        ),
        (
            {"optimizer__schedule": "inverse-sqrt", "optimizer__hold": 2},
            [min(1, (s + 1) / 3) * min(1, math.sqrt(2 / max(s, 1))) for s in range(8)],
        ),
    ],
    ids=["cosine", "inverse-sqrt"],
)
def test_the_log_of_a_run_follows_the_curve(changes, expected, tiny_data, tmp_path):
    recipe = tiny_recipe(**changes, train__log_every=1, train__sample_every=0)
    train(tmp_path / "run", recipe, data=tiny_data, watch=lambda event: None)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in lines] == pytest.approx([2e-3 * value for value in expected])


def test_more_steps_would_bend_a_cosine_that_was_begun(tiny_data, tmp_path):
    cosine_recipe = tiny_recipe(optimizer__schedule="cosine", train__sample_every=0)
    train(tmp_path / "run", cosine_recipe, data=tiny_data, watch=lambda event: None)
    longer = tiny_recipe(optimizer__schedule="cosine", train__sample_every=0, train__steps=9)
    with pytest.raises(UsageError, match=r"every learning rate of .* depends on train.steps: 8 -> 9"):
        train(tmp_path / "run", longer, data=tiny_data, watch=lambda event: None)


def test_steps_accumulation_and_checkpointing_may_change_under_a_run(tiny_data, tmp_path):
    decay = {"optimizer__schedule": "inverse-sqrt", "optimizer__hold": 4, "train__sample_every": 0}
    train(tmp_path / "run", tiny_recipe(**decay), data=tiny_data, watch=lambda event: None)
    levels = [{**level, "checkpoint": True} for level in tiny_recipe().to_dict()["model"]["levels"]]
    longer = tiny_recipe(**decay, train__steps=9, train__accumulate=2, model__levels=levels)
    seen = []
    train(tmp_path / "run", longer, data=tiny_data, watch=seen.append)
    assert seen[-1] == Finished(9)


def test_a_run_of_a_recipe_from_before_these_keys_goes_on(tiny_data, tmp_path):
    recipe = tiny_recipe(train__sample_every=0)
    train(tmp_path / "run", recipe, data=tiny_data, watch=lambda event: None)
    file = tmp_path / "run" / "recipe.toml"
    lines = [line for line in file.read_text().splitlines() if line.split(" = ")[0].strip() not in ("schedule", "hold")]
    file.write_text("\n".join(lines))
    train(tmp_path / "run", recipe, data=tiny_data, watch=lambda event: None)


def test_a_run_that_never_saved_takes_another_recipe(tiny_data, tmp_path):
    """After a first step that did not fit, the switches that the message names must be accepted."""

    class Full(Exception):
        pass

    def stop(event):
        raise Full

    with pytest.raises(Full):
        train(tmp_path / "run", tiny_recipe(), data=tiny_data, watch=stop)
    assert (tmp_path / "run" / "recipe.toml").is_file()
    train(tmp_path / "run", tiny_recipe(train__batch_size=4), data=tiny_data, watch=lambda event: None)
    with pytest.raises(UsageError, match=r"train.batch_size: 4 -> 8"):
        train(tmp_path / "run", tiny_recipe(), data=tiny_data, watch=lambda event: None)


def test_the_rate_may_change_on_a_run_that_goes_on(tiny_data, tmp_path):
    """Told at the start, and in the next line of the log; what follows is what the new rate makes."""
    train(tmp_path, tiny_recipe(train__steps=4, optimizer__warmup=0), data=tiny_data, watch=lambda event: None)
    seen = []
    lower = tiny_recipe(train__steps=8, optimizer__warmup=0, optimizer__lr=1e-4)
    train(tmp_path, lower, data=tiny_data, watch=seen.append)
    told = [event.text for event in seen if isinstance(event, Noted)]
    assert told == ["the learning rate is 0.0001 from here on; it was 0.002"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["lr"], line.get("lr_before")) for line in lines] == [
        (3, 2e-3, None),
        (4, 2e-3, None),
        (6, 1e-4, 2e-3),
        (8, 1e-4, None),
    ]
    seen.clear()
    train(tmp_path, lower, data=tiny_data, watch=seen.append)
    assert not [event for event in seen if isinstance(event, Noted)]
