"""Training under failing disks, signals, rivals, odd places and numbers that are not finite."""

import json
import os
import signal

import pytest
import runs
from harness import STEPS, after_the_end, after_the_kill, chance, leftovers, tiny, trials
from safetensors.torch import load_file

from hdit_cli.engine.run import checkpoint

pytestmark = pytest.mark.slow


@trials(8, 40)
def test_a_failing_disk_stops_a_run_with_74(servers, unbroken, tmp_path, count):
    random = chance("failing disk")
    events = unbroken[2]
    for n in range(count):
        at, code = random.randint(10, events - 2), random.choice([28, 5, 122, 30, 13, 24])
        place = tmp_path / str(n)
        assert runs.failing_disk(servers, place, unbroken, at=at, code=code) == [], (at, code)


def test_a_limit_on_the_size_of_files(servers, unbroken, tmp_path):
    """RLIMIT_FSIZE, from the second save on: the kernel itself refuses."""
    run = tmp_path / "run"
    went = servers.run({"run": run, "plants": ["small files"]})
    assert went.code == 74, went.notes
    assert checkpoint.list_steps(run) == [2]
    assert after_the_kill(run, went) == []
    assert leftovers(run) == []
    assert after_the_end(run, servers.run({"run": run}), reference=unbroken[1]) == []


@trials(4, 20)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_saves_and_a_second_start_goes_on(servers, unbroken, tmp_path, number, count):
    """At any event, of the loop or of the thread that saves."""
    random = chance(f"signal {number}")
    for n in range(count):
        run, at = tmp_path / str(n) / "run", random.randint(20, unbroken[2] * 2 // 5)
        went = servers.run({"run": run, "signals": [[at, number]]})
        if went.last("step") == 0:  # before the first step there is nothing to save: it ends at once
            assert went.code == 130, (at, went.notes)
            assert checkpoint.list_steps(run) == []
        else:
            assert went.code == 75, (at, went.notes)
            assert checkpoint.list_steps(run)[-1] == went.last("step") == went.last("saved"), at
        assert leftovers(run) == []
        went = servers.run({"run": run})
        assert went.code == 0, went.notes
        assert_same_tensors(run, unbroken[0])


def assert_same_tensors(run, reference):
    """The newest checkpoints, log and grids; the older ones depend on where the run was stopped."""
    name = checkpoint.step_name(checkpoint.list_steps(reference)[-1])
    newest, told = run / "checkpoints" / name, set()
    wanted, found = (
        json.loads((folder / "state.json").read_text()) for folder in (reference / "checkpoints" / name, newest)
    )
    if "owed" in found:  # it was stopped within the last step's grids; the second start drew them
        told = {"state.json", "manifest.json"}
        less = [{key: state[key] for key in state if key not in ("owed", "log_bytes")} for state in (wanted, found)]
        assert less[0] == less[1]
    for file in sorted((reference / "checkpoints" / name).iterdir()):
        assert file.name in told or file.read_bytes() == (newest / file.name).read_bytes(), file.name
    for file in [reference / "metrics.jsonl", reference / "ckpt.safetensors", *(reference / "samples").iterdir()]:
        assert file.read_bytes() == (run / file.relative_to(reference)).read_bytes(), file.name


@trials(4, 20)
def test_two_signals_stop_at_once_and_nothing_is_broken(servers, unbroken, tmp_path, count):
    random = chance("two signals")
    for n in range(count):
        run, at = tmp_path / str(n) / "run", random.randint(20, unbroken[2] * 2 // 5)
        went = servers.run({"run": run, "signals": [[at, signal.SIGTERM], [at + 1, signal.SIGINT]]})
        assert went.code in (130, 75), (at, went.notes)  # 75: the second came while the first was being obeyed
        assert after_the_kill(run, went) == []
        assert leftovers(run / "checkpoints") == []
        assert servers.run({"run": run}).code == 0
        assert_same_tensors(run, unbroken[0])


def test_two_runs_in_one_folder(servers, unbroken, tmp_path):
    assert runs.two_runs(servers, tmp_path, unbroken) == []


@pytest.mark.parametrize("where", ["image", "loss", "gradient", "weight", "average", "moment"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_never_in_a_checkpoint(servers, tmp_path, value, where):
    assert runs.not_finite(servers, tmp_path, fault=f"{value} in {where}") == []


@pytest.mark.parametrize("where", ["image", "loss", "gradient"])
def test_a_skipped_step_changes_nothing_and_is_counted(servers, tmp_path, where):
    assert runs.skipped(servers, tmp_path, fault=f"nan in {where}") == []


def test_skipping_has_an_end(servers, tmp_path):
    """A weight that is NaN makes every step bad: the cap stops the run; nothing bad is saved."""
    recipe = tiny(train__nonfinite="skip", train__nonfinite_cap=2, train__log_every=1)
    went = servers.run({"run": tmp_path / "run", "recipe": recipe, "plants": ["nan in weight"]})
    assert went.code == 5
    assert went.last("step") == 4
    assert checkpoint.list_steps(tmp_path / "run") == [2]


PLACES = ["a b", "x#y", "what?", "{}", "%20", "größe 日本", "n" * 200]


@pytest.mark.parametrize("name", PLACES)
def test_odd_names_of_the_run_folder(servers, unbroken, tmp_path, name):
    went = servers.run({"run": tmp_path / name})
    assert after_the_end(tmp_path / name, went, reference=unbroken[1]) == []


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_modes_of_files_follow_the_umask(servers, tmp_path, mask):
    run = tmp_path / "run"
    assert servers.run({"run": run, "umask": mask}).code == 0
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in run.rglob("*")}
    assert modes == {(False, 0o666 & ~mask), (True, 0o777 & ~mask)}


def test_a_linked_run_folder(servers, unbroken, tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    went = servers.run({"run": tmp_path / "link"})
    assert after_the_end(tmp_path / "real", went, reference=unbroken[1]) == []


def test_a_place_that_cannot_be_written_is_refused(servers, tmp_path):
    (tmp_path / "file").write_text("")
    went = servers.run({"run": tmp_path / "file" / "run", "log": str(tmp_path / "log")})
    assert went.code == 74


def test_workers_may_change_over_a_kill(servers, unbroken, tmp_path):
    """2 workers, killed, then none: the same tensors, log and grids; the recipe in the headers tells of the change."""
    run = tmp_path / "run"
    went = servers.run({"run": run, "recipe": tiny(data__workers=2), "kill": unbroken[2] // 2})
    assert went.code == -9
    assert servers.run({"run": run}).code == 0
    name = checkpoint.step_name(STEPS)
    for file in ("model", "ema", "optimizer"):
        ours, theirs = (load_file(r / "checkpoints" / name / f"{file}.safetensors") for r in (run, unbroken[0]))
        assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert (run / "metrics.jsonl").read_bytes() == (unbroken[0] / "metrics.jsonl").read_bytes()
