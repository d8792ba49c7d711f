"""SIGKILL at every event of a run's disk writes, of the loop and of the thread that saves: nothing shows afterwards."""

import pytest
from harness import SAVE_EVERY, chance, killed_and_resumed, trials

pytestmark = pytest.mark.slow


def test_a_kill_at_every_event(servers, unbroken, tmp_path):
    _, reference, events = unbroken
    kills = range(1, events + 1)
    trials = servers.map(
        lambda kill: killed_and_resumed(servers, tmp_path / str(kill) / "run", [kill], reference=reference), kills
    )
    wrong = {kill: found for kill, (found, _) in zip(kills, trials, strict=True) if found}
    assert wrong == {}
    redone = [steps for _, each in trials for steps in each]
    # a save under way when the kill comes is lost with the steps since the one before it
    assert max(redone) <= 2 * SAVE_EVERY
    print(f"{events} kills, steps computed again: {redone.count(0)} times none, at most {max(redone)}")


@trials(24, 40)
def test_many_kills_in_one_run(servers, unbroken, tmp_path, count):
    _, reference, events = unbroken
    random = chance("many kills")
    plans = [[random.randint(1, events * 2 // 5) for _ in range(5)] for _ in range(count)]
    trials = servers.map(
        lambda n: killed_and_resumed(servers, tmp_path / str(n) / "run", plans[n], reference=reference),
        range(len(plans)),
    )
    assert {n: found for n, (found, _) in enumerate(trials) if found} == {}
    redone = [steps for _, each in trials for steps in each]
    print(f"{len(redone)} kills in {len(plans)} runs, steps computed again: at most {max(redone)}")
    assert len(redone) >= 3.4 * count  # the others came after the end of the run
    assert max(redone) <= 2 * SAVE_EVERY
