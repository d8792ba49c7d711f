"""The door for writing: temporaries are their owner's while it lives, and nothing of ours is written through a link."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hdit_cli import files, owned
from hdit_cli.errors import StorageError, UsageError

WRITES = {
    "write_bytes": "with files.replacing(path) as handle: handle.write(b'x'); wait()",
    "staged_folder": "with files.staged_folder(path) as stage: files.write_bytes(stage / 'a', b'x'); wait()",
}
PROGRAM = """
import sys, pathlib
from hdit_cli import files
path = pathlib.Path(sys.argv[1])
def wait():
    print("ready", flush=True)
    sys.stdin.read(1)
"""


def temporaries(folder):
    return [path for path in folder.iterdir() if path.name.startswith(owned.TEMPORARY)]


@pytest.mark.parametrize("way", WRITES)
def test_what_another_process_writes_is_left_until_it_is_dead(tmp_path, way):
    for end in ("it goes on", "it is killed"):
        target = tmp_path / end
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM + WRITES[way], target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"ready\n"
        files.reap(tmp_path)
        assert len(temporaries(tmp_path)) == 1
        if end == "it goes on":
            child.communicate(b"x", timeout=30)
            assert child.returncode == 0 and target.exists()
        else:
            child.send_signal(signal.SIGKILL)
            child.communicate(timeout=30)
            assert len(temporaries(tmp_path)) == 1
            files.reap(tmp_path)
            assert not target.exists()
        assert temporaries(tmp_path) == []


def test_what_another_thread_writes_is_left(tmp_path):
    """The thread that saves, and a command in the same process."""
    with files.replacing(tmp_path / "a") as handle, files.staged_folder(tmp_path / "b") as stage:
        handle.write(b"x")
        files.write_bytes(stage / "inside", b"y")
        thread = threading.Thread(target=files.reap, args=(tmp_path,))
        thread.start()
        thread.join()
    assert (tmp_path / "a").read_bytes() == b"x" and (tmp_path / "b" / "inside").read_bytes() == b"y"


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    with files.replacing(tmp_path / "a") as first, files.replacing(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first"  # the outer one ends last
    assert temporaries(tmp_path) == []


def test_writers_and_a_reaper_at_once(tmp_path):
    """Whatever the order of their calls, each file is written, and each folder."""
    over = threading.Event()

    def reap():
        while not over.is_set():
            files.reap(tmp_path)

    reapers = [threading.Thread(target=reap) for _ in range(2)]
    for thread in reapers:
        thread.start()
    try:
        for number in range(60):
            files.write_bytes(tmp_path / "file", b"%d" % number)
            with files.staged_folder(tmp_path / f"folder {number}") as stage:
                files.write_bytes(stage / "a", b"%d" % number)
            assert (tmp_path / "file").read_bytes() == (tmp_path / f"folder {number}" / "a").read_bytes()
    finally:
        over.set()
        for thread in reapers:
            thread.join()


def left_by(machine, tmp_path, *, days):
    """A temporary as a process on some machine leaves it."""
    path = tmp_path / f".tmp-step-{machine}-123-00000000"
    path.mkdir()
    (path / "a").write_bytes(b"x")
    for each in (path / "a", path):
        os.utime(each, (time.time() - days * 86400,) * 2)
    return path


def test_what_another_machine_left_goes_after_a_day(tmp_path):
    """Its locks may not be seen here."""
    old, new = left_by("abcdef", tmp_path, days=1.1), left_by("abcde0", tmp_path, days=0.9)
    files.reap(tmp_path)
    assert not old.exists() and new.exists()


def test_what_an_earlier_version_left_goes(tmp_path):
    """Its names end with the number of a process, which may have been given to another one since."""
    (tmp_path / f".tmp-ckpt.safetensors-{os.getpid()}").write_bytes(b"x")
    files.reap(tmp_path)
    assert temporaries(tmp_path) == []


def test_without_locks_what_is_new_is_left(tmp_path, monkeypatch):
    def refused(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(owned.fcntl, "flock", refused)
    files.write_bytes(tmp_path / "a", b"x")  # written all the same
    here = owned._machine()
    new, old = left_by(here, tmp_path, days=0), tmp_path / f".tmp-x-{here}-1-00000001"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    files.reap(tmp_path)
    assert new.exists() and not old.exists()


def test_names_as_long_as_they_may_be(tmp_path):
    for name in ("n" * 255, "ö" * 127):
        files.write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


# Links


def test_reaping_removes_a_link_and_follows_none(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"mine")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".tmp-link").symlink_to(tmp_path / "elsewhere")
    stage = tmp_path / "in" / ".tmp-stage"
    stage.mkdir()
    (stage / "inner").symlink_to(tmp_path / "elsewhere")
    files.reap(tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []
    assert (tmp_path / "elsewhere" / "a").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["link", "dangling", "loop", "pipe"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.append_line(path, "x"),
        files.sync_file,
        lambda path: files.truncate(path, 0),
        lambda path: files.lock(path, what="it").__enter__(),
    ],
    ids=["append", "sync", "truncate", "lock"],
)
def test_logs_and_locks_are_plain_files(tmp_path, kind, write):
    target, path = tmp_path / "mine.txt", tmp_path / "log"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else target)
    if kind == "link":
        target.write_bytes(b"mine")
    with pytest.raises(
        (UsageError, StorageError)
    ) as caught:  # a pipe without a reader cannot even be opened for writing
        write(path)
    assert caught.value.hint
    if kind != "pipe":
        assert isinstance(caught.value, UsageError) and "is a link" in caught.value.message
    assert target.read_bytes() == b"mine" if kind == "link" else not target.exists()


def test_a_lock_does_not_cut_what_is_no_lock(tmp_path):
    """Under the name of a lock may lie a file of the user's, also by a hard link."""
    (tmp_path / "mine.txt").write_bytes(b"mine")
    os.link(tmp_path / "mine.txt", tmp_path / ".lock")
    with pytest.raises(UsageError, match="not a lock file"):
        files.lock(tmp_path / ".lock", what="it").__enter__()
    assert (tmp_path / "mine.txt").read_bytes() == b"mine"
    for left in (b"", b"host old pid 1 since then\n", b"\0\0\0\0\0\0\0\0", b"ho"):  # after a kill, after a power cut
        (tmp_path / "l").write_bytes(left)
        with files.lock(tmp_path / "l", what="it"):
            assert f"pid {os.getpid()}" in (tmp_path / "l").read_text()


def test_a_file_with_another_name_elsewhere_is_unshared(tmp_path):
    (tmp_path / "backup").write_bytes(b"old\n")
    os.link(tmp_path / "backup", tmp_path / "log")
    files.unshare(tmp_path / "log")
    files.append_line(tmp_path / "log", "new")
    assert (tmp_path / "backup").read_bytes() == b"old\n" and (tmp_path / "log").read_bytes() == b"old\nnew\n"


def test_a_folder_that_is_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.make_folder(tmp_path / "link" / "a")  # above, and the folder itself, a link is the user's own wish
    files.make_folder(tmp_path / "link")
    with pytest.raises(UsageError, match="is a link"):
        files.make_own_folder(tmp_path / "link")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(UsageError, match="leads nowhere"):
        files.make_folder(tmp_path / "nowhere" / "a")
    assert not (tmp_path / "missing").exists()
