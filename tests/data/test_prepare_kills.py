"""SIGKILL anywhere, and the same command again: the data set is the same to the last byte, and nothing is left over."""

import sys

import pytest
from prepare_jobs import Jobs, digests, make_pictures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server of jobs waits for orphans as Linux does")

PLAIN = {"size": [16, 16], "shard_size": 6, "format": "png"}
FULL = {**PLAIN, "hold_out": 0.3, "dedupe": True}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    found = Jobs(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("source") / "pictures", count=18)


@pytest.fixture(scope="module")
def unbroken(jobs, source, tmp_path_factory):
    """The digests and the number of events of a preparation that nothing happened to."""
    made = {}
    for name, options in (("plain", PLAIN), ("full", FULL)):
        out = tmp_path_factory.mktemp("unbroken") / name
        went = jobs.run(source, out, options=options)
        assert went["code"] == 0, went
        made[name] = digests(out), went["events"]
    return made


def killed_and_resumed(jobs, source, out, *, kills, reference, **job):
    """What is wrong after a run that was killed at each of some events in turn, then let finish; how often it was killed."""
    struck = 0
    for kill in kills:
        went = jobs.run(source, out, kill=kill, **job)
        struck += went["code"] == -9
        if went["code"] not in (0, -9):
            return [went], struck
    went = jobs.run(source, out, **job)
    found = digests(out)
    wrong = [name for name in sorted({*found, *reference}) if found.get(name) != reference.get(name)]
    return [*wrong, *([went] if went["code"] else [])], struck


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_fifty_kills(jobs, source, unbroken, tmp_path, workers):
    """With everything on: two data sets in one pass, duplicates taken out of the shards of both in the end.

    Each preparation is killed at one of 25 points spread over all events, and once more half-way through what remains.
    """
    reference, events = unbroken["full"]
    firsts = [1 + (2 * n + workers - 1) * (events - 1) // 50 for n in range(25)]
    assert len(set(firsts)) == 25
    struck = 0
    for first in firsts:
        kills = [first, 1 + (events - first) // 2]
        wrong, times = killed_and_resumed(
            jobs, source, tmp_path / str(first), kills=kills, reference=reference, options=FULL, workers=workers
        )
        assert wrong == [], f"killed at events {kills} of {events}"
        struck += times
    assert struck == 50


@pytest.mark.slow
def test_many_kills_in_one_run(jobs, source, unbroken, tmp_path):
    for name, options in (("plain", PLAIN), ("full", FULL)):
        reference, events = unbroken[name]
        kills = [(7 * n * n + 11) % (events // 4) + 1 for n in range(12)]
        wrong, struck = killed_and_resumed(
            jobs, source, tmp_path / name, kills=kills, reference=reference, options=options
        )
        assert wrong == [] and struck > 6


def test_a_kill_while_duplicates_are_taken_out(jobs, source, unbroken, tmp_path):
    """In the second half of the events: the shards stand, some of them rewritten."""
    reference, events = unbroken["full"]
    for part in (0.6, 0.75, 0.95):
        wrong, struck = killed_and_resumed(
            jobs, source, tmp_path / str(part), kills=[int(part * events)], reference=reference, options=FULL
        )
        assert (wrong, struck) == ([], 1)
