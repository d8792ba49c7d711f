"""What a picture may cost: stuck, asleep, hungry and crashing ones get their code, and cost no other picture anything."""

import os
import signal
import time

import badimages
import numpy as np
import pytest
from badimages import NOISE, H, W
from costly_places import CostlyPlace

from hdit_cli.data.prepare import PrepareOptions
from hdit_cli.data.prepare.making.workers import Workers
from hdit_cli.data.prepare.pictures.limits import Limits, limits_for
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.places import Place

OPTIONS = PrepareOptions(size=(H, W), format="png")
LIMITS = Limits(memory=256 << 20, seconds=2)

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limits are held on Linux")


def test_costly_pictures_get_their_code_and_cost_no_other_anything(entries_of, tmp_path):
    good = entries_of((f"good {number}.png", badimages.VALID["png"]) for number in range(40))
    bad = {
        "stuck": ("too-slow",),
        "asleep": ("too-slow",),
        "hungry": ("too-large",),
        "SIGKILL": ("crashed",),
        "SIGSEGV": ("crashed",),
        "SIGABRT": ("crashed",),
    }
    entries = good.copy()
    for number, how in enumerate(bad):
        entries.insert(3 + 6 * number, Entry(how, CostlyPlace(how)))
    start = time.monotonic()
    with Workers(2, OPTIONS, limits=LIMITS) as workers:
        told = list(workers.outcomes(iter(entries)))
    assert [entry.path for entry, _ in told] == [entry.path for entry in entries]
    plain = {outcome.digest for entry, outcome in told if entry.path not in bad and outcome.codes == ()}
    assert len(plain) == 1
    assert {entry.path: outcome.codes for entry, outcome in told if entry.path in bad} == bad
    assert sum(outcome.codes == () for _, outcome in told) == len(good)
    print(f"{len(bad)} costly pictures among {len(good)} good ones: {time.monotonic() - start:.1f} s")


def test_details_tell_why(entries_of):
    with Workers(1, OPTIONS, limits=LIMITS) as workers:
        told = [
            outcome.detail
            for _, outcome in workers.outcomes([Entry(x, CostlyPlace(x)) for x in ("SIGSEGV", "SIGKILL")])
        ]
    assert told == [
        "the process that decoded it died (SIGSEGV)",
        "the process that decoded it was killed, most likely because memory ran out",
    ]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP"])
def test_memory_is_held(entries_of, kind):
    """16 megapixels need more than 24 MB, whatever the decoder; the next picture finds the memory free again."""
    large = badimages.saved(np.broadcast_to(np.uint8([9, 30, 200, 99]), (4000, 4000, 4)).copy(), kind)
    entries = entries_of(
        [("before.png", badimages.VALID["png"]), ("large", large), ("after.png", badimages.VALID["png"])]
    )
    with Workers(1, OPTIONS, limits=Limits(memory=24 << 20, seconds=60)) as workers:
        before, held, after = (outcome for _, outcome in workers.outcomes(entries))
    assert before.codes == after.codes == () and before.digest == after.digest
    assert held.verdict == "refused"
    assert held.codes[0] == ("damaged" if kind == "WEBP" else "too-large")  # WebP's decoder does not tell why it failed
    with Workers(1, OPTIONS) as workers:  # and by default it is kept
        assert [outcome.verdict for _, outcome in workers.outcomes(entries)] == ["kept"] * 3


def test_the_default_grows_with_max_pixels_alone():
    small, large = (limits_for(PrepareOptions(max_pixels=pixels)) for pixels in (10**6, 10**8))
    assert large.seconds - small.seconds == pytest.approx(99)
    assert small.memory <= large.memory and small.memory >= 1 << 28


def test_an_alarm_that_was_ignored_by_the_parent_is_deadly_in_the_workers():
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        with Workers(1, OPTIONS, limits=Limits(memory=1 << 30, seconds=0.5)) as workers:
            told = [outcome.codes for _, outcome in workers.outcomes([Entry("stuck", CostlyPlace("stuck"))])]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert told == [("too-slow",)]


def test_a_pipe_that_took_the_place_of_a_file(tmp_path, entries_of):
    os.mkfifo(tmp_path / "pipe.jpg")
    pipe = Place(str(tmp_path / "pipe.jpg"), "file", 0, 1000)
    good = entries_of([("good.png", badimages.VALID["png"])])
    with Workers(1, OPTIONS) as workers:
        told = [o for _, o in workers.outcomes([Entry("a", pipe), Entry("b", good[0].place, caption=pipe)])]
    assert [outcome.codes for outcome in told] == [("not-a-file",), ("bad-caption",)]
    assert np.array_equal(told[1].size, NOISE.shape[:2])
