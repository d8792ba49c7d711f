"""Power cuts, failing disks and damaged checkpoints, without training: thousands of states in seconds."""

import errno
import os
import shutil

import checks
import pytest
from harness import chance, leftovers, trials
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from small import right, save, snapshot

from hdit_cli import files
from hdit_cli.engine.run import checkpoint, rotation
from hdit_cli.errors import CheckpointError, NonFiniteError, StorageError, UsageError


@pytest.mark.parametrize("keep", [1, 2])
def test_every_state_after_a_power_cut(tmp_path, keep):
    """After each system call of six saves with rotation: a verified checkpoint, not older than what was told, right."""
    wrong, states = checks.power_loss(tmp_path, keep=keep)
    assert wrong == []
    assert states >= 135


@trials(75, 750)
def test_disk_errors_at_random_events(tmp_path, count):
    wrong, struck = checks.disk_errors(tmp_path, count=count, chance=chance("errors"))
    assert wrong == []
    assert struck == count


@trials(600, 6000)
def test_damaged_checkpoints_are_found_and_set_aside(tmp_path, count):
    for step in (1, 2, 3):
        save(tmp_path / "source", step, values=1500)  # 6 kB a tensor, more than a page
    wrong, done = checks.corruptions(tmp_path / "source", tmp_path, count=count, chance=chance("damage"))
    assert wrong == []
    assert sum(done.values()) == count
    assert min(done.values()) >= count // 9


@pytest.mark.slow
def test_no_false_alarm_on_whole_checkpoints(tmp_path):
    for n in range(200):
        run = tmp_path / str(n % 4)
        save(run, n + 1)
        told = []
        newest = checkpoint.newest_verified(run, warn=told.append)
        assert told == []
        assert right(newest)
        assert newest.name == checkpoint.step_name(n + 1)


def test_nothing_is_loaded_where_all_are_damaged(tmp_path):
    random = chance("all damaged")
    for n in range(5):
        run = tmp_path / str(n)
        for step in (1, 2):
            save(run, step)
        for step in (1, 2):
            victim = random.choice(sorted((run / "checkpoints" / checkpoint.step_name(step)).iterdir()))
            victim.write_bytes(victim.read_bytes()[:-1])
        for _ in range(2):  # the second time they are .bad already
            with pytest.raises(CheckpointError, match="every checkpoint"):
                checkpoint.newest_verified(run, warn=lambda text: None)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = sorted(p for p in tmp_path.rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=snapshot(2).size))
    with pytest.raises(StorageError, match="are free"):
        save(tmp_path, 2)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_number_that_is_not_finite_is_never_published(tmp_path):
    save(tmp_path, 1)
    for part in ("raw", "ema", "optimizer"):
        for value in (float("nan"), float("inf"), -float("inf")):
            poisoned = snapshot(2)
            getattr(poisoned, part)["layer1.weight"][7] = value
            with pytest.raises(NonFiniteError, match=r"layer1\.weight"):
                checkpoint.save_snapshot(tmp_path, poisoned)
            assert checkpoint.list_steps(tmp_path) == [1]
            assert not list(tmp_path.rglob(".tmp-*"))


def test_the_choice_does_not_depend_on_the_clock(tmp_path):
    """Modification times of 1970 and 2100, in any order: the newest step is the newest."""
    for step in (9, 10, 11):
        save(tmp_path, step, keep=3)
    for times in ([0, 1, 2], [2, 1, 0], [4102444800, 0, 1e9]):
        for step, when in zip((9, 10, 11), times, strict=True):
            os.utime(tmp_path / "checkpoints" / checkpoint.step_name(step), (when, when))
        assert checkpoint.newest_verified(tmp_path, warn=pytest.fail).name == checkpoint.step_name(11)
        rotation.rotate(tmp_path, keep=3)
        assert checkpoint.list_steps(tmp_path) == [9, 10, 11]


def test_a_checkpoint_that_cannot_be_read_now_is_not_set_aside(tmp_path, monkeypatch):
    """Too many open files, no permission: it may be whole, and to go on from an older one would lose work."""
    for step in (1, 2):
        save(tmp_path, step)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256", refused)
        with pytest.raises(StorageError, match=r"step-00000002.*Permission denied"):
            checkpoint.newest_verified(tmp_path, warn=lambda text: None)
    assert checkpoint.newest_verified(tmp_path, warn=lambda text: None).name == checkpoint.step_name(2)


def test_rotation_does_not_count_damaged_ones(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (tmp_path / "checkpoints" / checkpoint.step_name(3) / "state.json").write_text("{}")
    save(tmp_path, 4, keep=2)
    assert checkpoint.list_steps(tmp_path) == [2, 3, 4]  # 4 and 2 verify; 3 is set aside when a run starts


def test_rotation_takes_a_link_to_a_checkpoint_and_leaves_the_folder(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "kept"
    save(run, 1)
    os.rename(run / "checkpoints" / checkpoint.step_name(1), elsewhere)
    (run / "checkpoints" / checkpoint.step_name(1)).symlink_to(elsewhere)
    save(run, 2, keep=1)
    assert checkpoint.list_steps(run) == [2]
    assert (elsewhere / "manifest.json").is_file()
    assert leftovers(run) == []


def test_rotation_removes_nothing_while_the_newest_does_not_read_back(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (tmp_path / "checkpoints" / checkpoint.step_name(3) / "state.json").write_text("{}")
    with pytest.raises(StorageError, match="does not read back"):
        rotation.rotate(tmp_path, keep=1)
    assert checkpoint.list_steps(tmp_path) == [1, 2, 3]


def test_a_lock_that_the_file_system_does_not_have_is_refused(tmp_path, monkeypatch):
    import fcntl

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StorageError, match="cannot lock"), files.lock(tmp_path / ".lock", what="run"):
        pass


def test_a_lock_of_a_folder_that_was_moved_meanwhile_is_none(tmp_path, monkeypatch):
    import fcntl

    (tmp_path / "run").mkdir()
    taken = fcntl.flock

    def late(handle, how):
        if (tmp_path / "run").exists():
            os.rename(tmp_path / "run", tmp_path / "run.old-1")
        taken(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UsageError, match="moved away"), files.lock(tmp_path / "run" / ".lock", what="run"):
        pass


def test_a_lock_is_free_again_and_names_its_holder(tmp_path):
    taken = rf"run x is in use by host .* pid {os.getpid()}"
    with (
        files.lock(tmp_path / ".lock", what="run x"),
        pytest.raises(UsageError, match=taken),
        files.lock(tmp_path / ".lock", what="run x"),
    ):
        pass
    with files.lock(tmp_path / ".lock", what="run x"):
        pass


class Rotation(RuleBasedStateMachine):
    """Saves, crashes inside a save, damages and restarts in any order."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.run = Path(self.folder.name)
        self.step, self.keep, self.whole = 0, 2, set()

    def teardown(self):
        files.observer = None
        self.folder.cleanup()

    @rule(gap=st.sampled_from([1, 9, 90, 9_999_999]))
    def save(self, gap):
        self.step = min(self.step + gap, 99_999_990 + self.step % 10)
        if self.step in checkpoint.list_steps(self.run):
            return
        save(self.run, self.step, keep=self.keep, values=4)
        self.whole.add(self.step)
        self.whole = set(sorted(self.whole)[-self.keep :])

    @rule(at=st.integers(1, 40))
    def crash_while_saving(self, at):
        """An exception that nothing expects, at any event; as after a kill, temporaries go at the next start."""
        left = [at]

        def observer(operation, path):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        files.observer = observer
        step = self.step + 1
        try:
            save(self.run, step, keep=self.keep, values=4)
        except KeyboardInterrupt:
            pass
        finally:
            files.observer = None
        files.reap(self.run / "checkpoints")
        if step in checkpoint.list_steps(self.run):
            self.step = step
            self.whole = set(sorted({*self.whole, step})[-self.keep :])

    @precondition(lambda self: len(self.whole) > 1)
    @rule(choice=st.integers(0, 9))
    def damage(self, choice):
        step = sorted(self.whole)[choice % len(self.whole)]
        (self.run / "checkpoints" / checkpoint.step_name(step) / "optimizer.safetensors").write_bytes(b"")
        self.whole.remove(step)

    @precondition(lambda self: self.whole)
    @rule()
    def restart(self):
        newest = checkpoint.newest_verified(self.run, warn=lambda text: None)
        assert newest.name == checkpoint.step_name(max(self.whole))
        rotation.mend(self.run, newest, keep=self.keep)
        public = (self.run / "ckpt.safetensors").read_bytes()
        assert public == (newest / "ema.safetensors").read_bytes()

    @rule(name=st.sampled_from(["step-9", "old-step-00000009", "step-00000009.bak", "step-000000009", "best"]))
    def a_stray_folder(self, name):
        (self.run / "checkpoints" / name).mkdir(parents=True, exist_ok=True)

    @invariant()
    def verified_ones_remain(self):
        found = [s for s in checkpoint.list_steps(self.run) if not checkpoint.verify(self._folder(s))]
        assert set(found) >= self.whole
        assert all(right(self._folder(step)) for step in found[-1:])

    def _folder(self, step):
        return self.run / "checkpoints" / checkpoint.step_name(step)


SETTINGS = settings(
    max_examples=50, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestRotation(Rotation.TestCase):
    settings = SETTINGS


@pytest.mark.slow
@pytest.mark.long
class TestRotationLonger(Rotation.TestCase):
    settings = settings(SETTINGS, max_examples=500)
