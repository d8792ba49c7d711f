"""Every mutant is caught by a check that passes without it: a suite that finds nothing must be able to find something."""

import checks
import plants
import pytest
import runs
from small import save

IN_PROCESS = {
    "in place": "power",
    "manifest first": "power",
    "rotate first": "power",
    "no file fsync": "power",
    "no folder fsync": "power",
    "fsync after rename": "power",
    "no hash check": "damage",
    "no fall-back": "damage",
    "newest by time": "newest",
    "newest by text": "newest",
    "order ignores the epoch": "order",
    "world size in the seed": "noise",
}


def disk_check(name, place, names):
    if name == "newest":
        return runs.choice_of_the_newest(place, plants=names)
    if name == "order":
        return runs.order_of_pictures(plants=names)
    if name == "noise":
        return runs.noise_of_an_image(plants=names)
    if name == "damage":
        for step in (1, 2, 3):
            save(place / "source", step)
        with plants.planted(*names):
            return checks.corruptions(place / "source", place, count=9)[0]
    with plants.planted(*names):
        return checks.power_loss(place, saves=4, keep=1)[0]


@pytest.mark.parametrize("check", sorted(set(IN_PROCESS.values())))
def test_the_check_passes_without_a_mutant(check, tmp_path):
    assert disk_check(check, tmp_path, ()) == []


@pytest.mark.parametrize("mutant", IN_PROCESS)
def test_a_mutant_of_the_disk_is_caught(mutant, tmp_path):
    assert disk_check(IN_PROCESS[mutant], tmp_path, (mutant,)) != []


KILLED = [
    "in place", "average not restored", "moments not restored", "step off by one", "log window not restored", "log not cut",
    "noise from the global generator", "nothing mended", "saved told too early", "widths not restored", "updates not restored",
    "snapshots not cut",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutant", KILLED)
def test_a_mutant_of_resuming_is_caught_by_kills(servers, unbroken, tmp_path, mutant):
    """Kills in the middle of the second and of the last save, where most goes on at once; the first hit counts."""
    events = unbroken[2]
    at = [events * 7 // 12, events * 2 // 3, events - 4, events - 8, *range(events // 3, events, 5)]
    assert runs.kills(servers, tmp_path, unbroken, at=at, plants=(mutant,)) != []


@pytest.mark.slow
def test_a_swallowed_error_is_caught(servers, unbroken, tmp_path):
    """Which event is which moves with the threads, and not every one belongs to a save: the first that is swallowed counts."""
    middle = unbroken[2] // 2
    places = range(middle, unbroken[2], 3)
    assert runs.failing_disk(servers, tmp_path / "right", unbroken, at=middle) == []
    assert any(
        runs.failing_disk(servers, tmp_path / f"wrong-{at}", unbroken, at=at, plants=["failed save swallowed"])
        for at in places
    )


@pytest.mark.slow
def test_a_missing_lock_is_caught(servers, unbroken, tmp_path):
    assert runs.two_runs(servers, tmp_path, unbroken, plants=["no lock"]) != []


@pytest.mark.slow
def test_a_late_look_at_the_gradient_is_caught(servers, tmp_path):
    late = ["NaN check after the step"]
    assert runs.skipped(servers, tmp_path, fault="nan in gradient", plants=late) != []


@pytest.mark.slow
def test_an_average_of_a_refused_step_is_caught(servers, tmp_path):
    assert runs.skipped(servers, tmp_path, fault="nan in gradient", plants=["average of a refused step"]) != []
