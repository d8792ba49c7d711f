"""Who started this process: Slurm's words are taken over, MPI's are refused, and a lone process stays one."""

import os
import socket

import pytest

from hdit_cli import cli, launchers, runtime
from hdit_cli.engine import launch
from hdit_cli.errors import UsageError

FOREIGN = ("SLURM", "PMI", "OMPI", "MV2", "FLUX", "PALS", "JSM", "MASTER", "OMP_", "TORCHINDUCTOR")
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "HDIT_PROCESSES")


@pytest.fixture(autouse=True)
def clean():
    """An environment that no launcher has touched, put back afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(FOREIGN) or name in OURS:
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


STEP = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
NODES = {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
THIRD = {**STEP, **NODES, "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}


def adopted(**told):
    os.environ.update(told)
    launchers.adopt()
    return {name: os.environ.get(name) for name in (*OURS[:4], "MASTER_ADDR")}


def test_a_task_of_srun_knows_its_place():
    found = adopted(**THIRD)
    assert found == {
        "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu07",
    }  # fmt: skip
    assert runtime.ranks() == launchers.Ranks(2, 4)
    launchers.check_meeting()
    port = os.environ["MASTER_PORT"]
    assert 20_000 <= int(port) < 30_000
    for name in (*OURS[:4], "MASTER_PORT"):
        del os.environ[name]
    adopted(**(THIRD | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}))
    assert os.environ["MASTER_PORT"] == port
    del os.environ["RANK"], os.environ["MASTER_PORT"]
    adopted(**(THIRD | {"SLURM_STEP_ID": "1"}))
    assert os.environ["MASTER_PORT"] != port  # a second step of the job, perhaps at the same time


def test_what_the_user_set_stays():
    found = adopted(**THIRD, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234", OMP_NUM_THREADS="3")
    assert (found["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["OMP_NUM_THREADS"]) == ("10.0.0.1", "1234", "3")


def test_the_least_that_srun_says_is_enough():
    """One machine: no node list is needed, nor tasks of each machine."""
    found = adopted(SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_LOCALID="1", SLURM_NODEID="0", SLURM_STEP_ID="0")
    assert found == {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "gpu[1-2]"},  # salloc
        {
            "SLURM_JOB_ID": "1",
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
        },  # sbatch
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash, inside an allocation of four
        {**STEP, "SLURM_STEP_ID": str(2**32 - 6), "SLURM_PROCID": "0"},  # the interactive step of salloc
        {**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMI_SIZE": "1", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "what?"},
        {},
    ],
)
def test_a_lone_process_stays_alone(told):
    assert set(adopted(**told).values()) == {None}
    assert runtime.join_processes() == launchers.Ranks(0, 1)


@pytest.mark.parametrize("told", [{}, THIRD, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}])
def test_rank_is_there_and_nothing_else_is_asked(told):
    """torchrun under srun or mpirun."""
    found = adopted(**told, RANK="1", WORLD_SIZE="3")
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "3", None)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is 2"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE is 4"),
        ({"MV2_COMM_WORLD_SIZE": "8"}, "MV2_COMM_WORLD_SIZE is 8"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK is 1"),
        # mpirun inside a job starts its own daemons with srun: one a machine
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", **NODES,
          "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"}, "OMPI_COMM_WORLD_SIZE is 8"),
        ({**STEP, "SLURM_PROCID": "7"}, "SLURM_PROCID is 7 in the environment, and SLURM_STEP_NUM_TASKS 4"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID is 1 in the environment, and SLURM_NTASKS not set"),
        ({**THIRD, "SLURM_NTASKS": "x", "SLURM_STEP_NUM_TASKS": ""}, "SLURM_NTASKS is 'x'"),
        ({**THIRD, "SLURM_STEP_NODELIST": "gpu[07-"}, "SLURM_STEP_NODELIST cannot be read"),
        ({**THIRD, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "command", [["train", "smoke/tiny", "--data", "none"], ["sample", "none"], ["eval-fid", "none"]]
)
def test_several_that_cannot_find_each_other_are_refused(command, told, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.environ.update(told)
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert names in text and "hint: " in text and "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


NO_NUMBERS = [" 7 ", "1 2", "²", "9" * 5000, "-1", "x"]


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize(
    "name",
    ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE", "PMI_SIZE", "PMIX_RANK"],
)
def test_odd_words_of_a_launcher_are_passed_over_or_told(name, text):
    """Never a traceback, and never a task of several that takes itself for alone."""
    try:
        found = adopted(**{**THIRD, name: text})
        launchers.share_cores()
    except UsageError as error:
        assert name in error.message and error.hint
    else:
        assert (found["RANK"], found["WORLD_SIZE"]) == ("2", "4")
        launchers.check_meeting()


def test_a_list_of_tasks_is_not_written_out():
    found = adopted(**{**THIRD, "SLURM_STEP_TASKS_PER_NODE": ",".join(["2(x999999)"] * 2000)})
    assert found["LOCAL_WORLD_SIZE"] == "2"


def test_more_before_it_on_its_machine_than_in_all_is_told():
    with pytest.raises(UsageError, match=r"SLURM_PROCID is 2 .* SLURM_LOCALID.* 900"):
        adopted(**{**THIRD, "SLURM_LOCALID": "900"})


def test_pmi_of_srun_itself_is_no_other_launcher():
    found = adopted(**THIRD, PMI_SIZE="4", PMI_RANK="2", PMIX_RANK="2")
    assert found["RANK"] == "2"


def test_processes_beside_srun_are_refused(monkeypatch):
    adopted(**THIRD)
    with pytest.raises(UsageError, match="as one of several, and --processes starts more"):
        launch.relaunch(2)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("host[01-03,07],other", ["host01", "host02", "host03", "host07", "other"]),
        ("n1", ["n1"]),
        ("a-b.c,d", ["a-b.c", "d"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("n[1,3]-ib,m[5]", ["n1-ib", "n3-ib", "m5"]),
    ],
)
def test_node_lists(text, hosts):
    assert list(launchers.hosts_of(text)) == hosts


@pytest.mark.parametrize(
    "text",
    ["", "n[1", "n1]", "n[a-b]", "n[3-1]", "n[]", "a,,b", "n[1-[2]]", " , ", "a, ,b",
     "n[0-99999999]", "n[0-999][0-999]", "n" + "[0-9]" * 9, "n" + "[0]" * 2000],
)  # fmt: skip
def test_what_is_no_node_list(text):
    with pytest.raises(ValueError, match=r"."):
        list(launchers.hosts_of(text))


# Cores


@pytest.fixture
def sixteen(monkeypatch):
    monkeypatch.setattr(launchers, "cores", lambda: 16)


def test_compilers_by_share_of_the_cores(sixteen):
    child = launch._environment(1, 4, 29500)
    assert child["TORCHINDUCTOR_COMPILE_THREADS"] == "4"
    os.environ.update(RANK="0", LOCAL_WORLD_SIZE="32")  # torchrun's
    launchers.share_cores()
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "1"


def test_compilers_as_the_user_said(sixteen):
    os.environ.update(TORCHINDUCTOR_COMPILE_THREADS="7", LOCAL_WORLD_SIZE="4")
    assert launch._environment(1, 4, 29500)["TORCHINDUCTOR_COMPILE_THREADS"] == "7"
    launchers.share_cores()
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "7"


@pytest.mark.parametrize(("on_node", "share"), [("32", "16"), ("16", "8"), ("", "8")])
def test_cores_that_slurm_bound_are_not_shared_again(on_node, share, sixteen):
    adopted(**THIRD, SLURM_CPUS_ON_NODE=on_node)
    launchers.share_cores()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["TORCHINDUCTOR_COMPILE_THREADS"]) == (share, share)


def test_who_does_not_come_is_waited_for_and_told(monkeypatch):
    from datetime import timedelta

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    monkeypatch.setattr(runtime, "_COMING_UP", timedelta(seconds=1))
    with pytest.raises(UsageError, match=f"2 processes were to meet at 127.0.0.1:{port}"):
        runtime.join_processes()
