"""Shares of one plan, in processes of their own, at once or one after the other: the data set is that of a single run."""

import contextlib
import json
import sys
import time
from pathlib import Path

import pytest
from prepare_jobs import Jobs, digests, make_pictures

from hdit_cli import files
from hdit_cli.data.prepare import Pending, PrepareOptions, Share, prepare, prepare_share
from hdit_cli.errors import DataError, UsageError

OPTIONS = {"size": [16, 16], "shard_size": 4, "format": "png", "hold_out": 0.2}
CHOSEN = PrepareOptions(**{**OPTIONS, "size": (16, 16)})
linux = pytest.mark.skipif(sys.platform != "linux", reason="the server of jobs waits for orphans as Linux does")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    found = Jobs(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("source") / "pictures", count=20)


@pytest.fixture(scope="module")
def whole(jobs, source, tmp_path_factory):
    """The digests of a run without shares."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert jobs.run(source, out, options=OPTIONS)["code"] == 0
    return digests(out)


@linux
def test_one_after_the_other(jobs, source, whole, tmp_path):
    out = tmp_path / "out"
    for number, missing in ((2, [0, 2, 3, 5]), (1, [2, 5])):
        went = jobs.run(source, out, options=OPTIONS, share=f"{number}/3")
        assert (went["code"], went["missing"], went["others"]) == (0, missing, False)
        assert not (out / "manifest.json").exists()
    went = jobs.run(source, out, options=OPTIONS, share="3/3")
    assert went["code"] == 0 and went["kept"] and digests(out) == whole
    again = jobs.run(source, out, options=OPTIONS, share="1/3")
    assert again["kept"] == went["kept"] and digests(out) == whole


@linux
def test_shares_racing_on_one_folder(jobs, source, whole, tmp_path):
    """Disjoint ones, one of them twice, and one of another cut: exactly one finishes, none fails."""
    for number in range(4):
        out = tmp_path / str(number)
        started = [jobs.start(source, out, options=OPTIONS, share=share) for share in ("1/2", "2/2", "2/2", "1/3")]
        went = [jobs.wait(job) for job in started]
        assert [each["code"] for each in went] == [0] * 4, went
        assert sum("kept" in each for each in went) >= 1 and digests(out) == whole


def test_another_share_begins_between_two_looks_at_the_folder(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    list_folder = Path.iterdir

    def list_after_the_other(path):
        if path == out:
            (out / ".prepare").mkdir(exist_ok=True)
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", list_after_the_other)
    went = prepare_share(source, share=Share(1, 2), out=out, options=CHOSEN, workers=1)
    assert isinstance(went, Pending)


@linux
def test_the_plain_command_does_what_is_missing(jobs, source, whole, tmp_path):
    out = tmp_path / "out"
    assert jobs.run(source, out, options=OPTIONS, share="2/3")["missing"] == [0, 2, 3, 5]
    before = {path: path.stat().st_mtime_ns for path in out.glob("0000[14].tar")}
    assert jobs.run(source, out, options=OPTIONS)["code"] == 0
    assert digests(out) == whole and before and {path: path.stat().st_mtime_ns for path in before} == before


@linux
def test_a_killed_share_is_told_as_missing_and_goes_on(jobs, source, whole, tmp_path):
    out = tmp_path / "out"
    assert jobs.run(source, out, options=OPTIONS, share="1/2", kill=25)["code"] == -9
    assert list(out.rglob(".tmp-*"))
    went = jobs.run(source, out, options=OPTIONS, share="2/2")
    assert went["missing"] and not set(went["missing"]) & {1, 3, 5} and not went["others"]
    assert "kept" in jobs.run(source, out, options=OPTIONS, share="1/2")
    assert digests(out) == whole


@linux
def test_while_another_is_at_work(jobs, source, whole, tmp_path):
    """A share that ends first leaves the end to the other one; a run without shares waits for nobody."""
    out, go = tmp_path / "out", tmp_path / "go"
    paused = jobs.start(source, out, options=OPTIONS, share="1/2", pause=str(go))
    deadline = time.monotonic() + 30
    while not list(out.glob(".tmp-00000.*")) + list(out.glob("held-out/.tmp-00000.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    went = jobs.run(source, out, options=OPTIONS, share="2/2")
    assert went["others"] and went["missing"] == [0, 2, 4]
    plain = jobs.run(source, out, options=OPTIONS)
    assert plain["code"] == 2 and "in use by host" in plain["error"]
    overlapping = jobs.run(source, out, options=OPTIONS, share="1/1")  # takes what nobody has in hand
    assert overlapping["others"] and 0 in overlapping["missing"]
    go.touch()
    assert "kept" in jobs.wait(paused) and digests(out) == whole


@linux
def test_a_damaged_shard_of_a_share_is_made_again(jobs, source, whole, tmp_path):
    for name in ("00001.tar", "00001.idx", ".prepare/00001.json"):
        out = tmp_path / name.replace("/", "-")
        assert jobs.run(source, out, options=OPTIONS, share="2/2")["missing"] == [0, 2, 4]
        data = bytearray((out / name).read_bytes())
        data[len(data) // 3] ^= 1
        (out / name).write_bytes(data)
        assert jobs.run(source, out, options=OPTIONS, share="2/2")["missing"] == [0, 2, 4]
        assert "kept" in jobs.run(source, out, options=OPTIONS, share="1/2")
        assert digests(out) == whole


@linux
def test_a_share_of_something_else_is_refused(jobs, source, tmp_path):
    out = tmp_path / "out"
    assert jobs.run(source, out, options=OPTIONS, share="2/2")["missing"]
    before = digests(out)
    other = jobs.run(source, out, options={**OPTIONS, "fit": "pad"}, share="1/2")
    assert other["code"] == 2 and "other options (fit differ)" in other["error"]
    copy = make_pictures(tmp_path / "copy" / "pictures", count=19)
    moved = jobs.run(copy, out, options=OPTIONS, share="1/2")
    assert moved["code"] == 2 and "another source" in moved["error"]
    assert {name: each for name, each in digests(out).items() if "lock" not in name} == {
        name: each for name, each in before.items() if "lock" not in name
    }


def test_the_source_may_be_seen_under_another_name(source, tmp_path, monkeypatch):
    """As on another machine, or from another folder: the plan names no place outside the source."""
    first = prepare_share(source, share=Share(1, 2), out=tmp_path / "out", options=CHOSEN, workers=1)
    assert isinstance(first, Pending)
    other = tmp_path / "mounted elsewhere"
    other.mkdir()
    source_there = source.rename(other / source.name)
    try:
        monkeypatch.chdir(other)
        report = prepare(Path(source.name), out=tmp_path / "out", options=CHOSEN, workers=1)
    finally:
        source_there.rename(source)
    assert report.refused == 2 and "unreadable" not in report.codes


def test_a_damaged_plan_is_refused(source, tmp_path):
    for name in ("plan.json", "entries.jsonl"):
        out = tmp_path / name
        prepare_share(source, share=Share(30, 30), out=out, options=CHOSEN, workers=1)
        (out / ".prepare" / name).write_bytes((out / ".prepare" / name).read_bytes()[:-20])
        with pytest.raises(UsageError, match="damaged") as caught:
            prepare(source, out=out, options=CHOSEN, workers=1)
        assert caught.value.hint
    (out / ".prepare" / "plan.json").write_text(json.dumps({"format": "hdit-prepare-plan/1"}))
    with pytest.raises(UsageError, match="another version"):
        prepare(source, out=out, options=CHOSEN, workers=1)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_a_share_that_is_none(text):
    with pytest.raises(UsageError, match="is not a share") as caught:
        Share.parse(text)
    assert "SLURM_ARRAY_TASK_ID" in caught.value.hint
    assert Share.parse(" 2/3 ") == Share(2, 3)


def test_shares_cover_each_task_once():
    for count in range(9):
        tasks = sorted(task for number in range(1, 5) for task in Share(number, 4).of_tasks(count))
        assert tasks == list(range(count))


def test_strict_stops_the_last_share(source, tmp_path):
    out = tmp_path / "out"
    prepare_share(source, share=Share(1, 2), out=out, options=CHOSEN, workers=1, strict=True)
    with pytest.raises(DataError, match="2 of 23 files were refused"):
        prepare_share(source, share=Share(2, 2), out=out, options=CHOSEN, workers=1, strict=True)
    assert not (out / "manifest.json").exists()
    assert prepare(source, out=out, options=CHOSEN, workers=1).refused == 2


def test_a_lock_is_shared_or_held_alone(tmp_path):
    path = tmp_path / "lock"
    with contextlib.ExitStack() as hold:
        for wait in (False, True):
            hold.enter_context(files.lock(path, what="x", shared=True, wait=wait))
        with pytest.raises(UsageError, match="in use"), files.lock(path, what="x"):
            pass
    with files.lock(path, what="x"), pytest.raises(UsageError, match="in use"):
        hold.enter_context(files.lock(path, what="x", shared=True))
