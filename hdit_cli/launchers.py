"""Who started this process as one of several, read from the environment: torchrun, this project's own launcher, or Slurm's srun.

torchrun and the own launcher tell each process its RANK, WORLD_SIZE and so on. srun has words of its own for the same, which are
taken over here (`adopt`). Where a launcher's traces are there and its words are not enough, or not understood, that is an error:
the processes would each take themselves for alone, and all write into one folder.
"""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hdit_cli.errors import UsageError

LAUNCHER = "start it with torchrun, which sets these variables, or `unset` them to run one process"
_MOST_RANKS = 1_000_000


@dataclass(frozen=True)
class Ranks:
    """This process's place among all."""

    rank: int
    world: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def ranks() -> Ranks:
    """Rank and world size as the launcher set them; a lone process is rank 0 of 1.

    Raises:
        UsageError: the environment says something that cannot be.
    """
    rank, world = told("RANK"), told("WORLD_SIZE")
    if rank is None and (world or 1) > 1:
        raise UsageError(f"WORLD_SIZE is {world} in the environment, and RANK is not set", hint=LAUNCHER)
    here = Ranks(rank=rank or 0, world=1 if world is None else world)
    if not here.rank < here.world:
        text = f"RANK is {here.rank} in the environment, and WORLD_SIZE {'not set' if world is None else world}"
        raise UsageError(text, hint=LAUNCHER)
    return here


def told(name: str, *, most: int = _MOST_RANKS) -> int | None:
    """A whole number that a launcher set in the environment; None where it is not there, or empty.

    Raises:
        UsageError: it is no whole number, or larger than `most`.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    number = _whole(text)
    if number is None or number > most:
        raise UsageError(f"{name} is {text[:40]!r} in the environment, and must be a whole number", hint=LAUNCHER)
    return number


def _whole(text: str) -> int | None:
    """The whole number that a text is, of fewer digits than Python refuses to read; None where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def check_meeting() -> None:
    """Raises UsageError for what torch would stop at, or wait for, with less to say."""
    for name, most in (("LOCAL_RANK", _MOST_RANKS), ("MASTER_PORT", 65535)):
        if told(name, most=most) is None:
            raise UsageError(f"RANK is set in the environment, and {name} is not", hint=LAUNCHER)
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise UsageError("RANK is set in the environment, and MASTER_ADDR is not", hint=LAUNCHER)


def is_child() -> bool:
    """Whether a launcher started this process as one of several; asked after `adopt`."""
    return _is_set("RANK")


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


def check_alone(what: str) -> None:
    """Raises UsageError where a launcher started this process as one of several, each of which would do `what`, or wait."""
    adopt()
    if (world := ranks().world) > 1:
        text = f"{what} looks at one process, and a launcher started {world}"
        raise UsageError(text, hint="leave the launcher out, or have it start one process: srun -n 1")


# Cores


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_threads(processes: int) -> str:
    """For TORCHINDUCTOR_COMPILE_THREADS: each of `processes` of this machine compiles with its share of the cores.

    By itself each would start as many compilers as there are cores, 32 at most.
    """
    return str(min(32, max(1, cores() // processes)))


def share_cores() -> None:
    """Sets how many compilers this process starts, unless the user has; before torch's compiler is loaded."""
    here = told("LOCAL_WORLD_SIZE") or 1
    if here > 1 and not _is_set("TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = compile_threads(1 if _bound(here) else here)


def _bound(processes: int) -> bool:
    """Whether the cores that this process may use are its own already: Slurm binds tasks so."""
    on_node = _whole(os.environ.get("SLURM_CPUS_ON_NODE", "").strip())
    return on_node is not None and cores() * processes <= on_node


# Slurm and MPI

# what launchers of MPI programs tell each process; PMI's and PMIx's are set by srun too
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "FLUX_TASK_RANK")
_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")  # set by srun alone
_FIRST_RESERVED = 2**32 - 256  # numbers of steps from here on mean the batch script, an interactive shell and the like
_MOST_MACHINES = 100_000
_MOST_RANGES = 8  # in one name: `rack[1-4]node[01-16]` has two
_FIRST_PORT, _PORTS = 20_000, 10_000  # below those that systems give away


def adopt() -> None:
    """Takes over what srun told this task, as if torchrun had: RANK, WORLD_SIZE, LOCAL_RANK, the address to meet at.

    Does nothing where RANK is set, where there is one task, and in a shell or a script of an allocation that srun did not start.
    MASTER_ADDR, MASTER_PORT and OMP_NUM_THREADS stay as the user set them.

    Raises:
        UsageError: a launcher started several processes, and they are not told enough to find each other.
    """
    if is_child():
        return
    task = _task()
    _refuse_mpi(task)
    if task is None:
        return
    here = {
        "RANK": task.rank,
        "WORLD_SIZE": task.tasks,
        "LOCAL_RANK": task.local,
        "LOCAL_WORLD_SIZE": task.on_node,
    }
    os.environ.update({name: str(value) for name, value in here.items()})
    if not _is_set("MASTER_ADDR"):
        os.environ["MASTER_ADDR"] = task.address
    if not _is_set("MASTER_PORT"):
        os.environ["MASTER_PORT"] = str(_port())
    if not _is_set("OMP_NUM_THREADS"):  # as torchrun and the own launcher do: or each takes all cores
        share = cores() if _bound(task.on_node) else cores() // task.on_node
        os.environ["OMP_NUM_THREADS"] = str(max(1, share))


@dataclass(frozen=True)
class _Task:
    """A task of a step that srun started, one of several.

    Attributes:
        rank, tasks: its number, and how many there are.
        local, on_node: the same on its own machine.
        address: of the first machine.
    """

    rank: int
    tasks: int
    local: int
    on_node: int
    address: str


def _task() -> _Task | None:
    """What srun told this process; None where it is no task of a step, or the only one."""
    rank = told("SLURM_PROCID")
    # a batch script has SLURM_PROCID=0 and SLURM_NTASKS too, and no step
    if rank is None or not (rank or any(map(_is_set, _STEP))) or _reserved_step():
        return None
    sizes = ((name, told(name)) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"))
    name, tasks = next(((name, value) for name, value in sizes if value is not None), ("SLURM_NTASKS", None))
    if tasks is None or rank >= tasks:
        found = f"SLURM_PROCID is {rank} in the environment, and {name} {'not set' if tasks is None else tasks}"
        raise UsageError(found, hint=_UNSET_SLURM)
    if tasks == 1:
        return None
    hosts = _hosts()
    node = told("SLURM_NODEID") or 0
    local = told("SLURM_LOCALID")
    if local is None:
        if len(hosts) > 1:
            raise UsageError("srun started several tasks, and SLURM_LOCALID is not set", hint=_UNSET_SLURM)
        local = rank
    if local > rank:  # tasks are numbered from the first machine on, or dealt out: never so
        found = f"SLURM_PROCID is {rank} in the environment, and SLURM_LOCALID, its number on its machine, {local}"
        raise UsageError(found, hint=_UNSET_SLURM)
    on_node = max(_on_node(node, tasks=tasks, nodes=max(1, len(hosts))), local + 1)
    several = len(hosts) > 1 or on_node < tasks
    if several and not hosts and not _is_set("MASTER_ADDR"):
        text = f"srun started {tasks} tasks on several machines, and SLURM_STEP_NODELIST is not set"
        raise UsageError(text, hint="export MASTER_ADDR=HOST, the machine of task 0; or start it with torchrun")
    return _Task(rank, tasks, local, on_node, hosts[0] if several and hosts else "127.0.0.1")


_UNSET_SLURM = "start it with srun or torchrun; or, for one process, `unset SLURM_PROCID`"


def _reserved_step() -> bool:
    name = "SLURM_STEP_ID" if _is_set("SLURM_STEP_ID") else "SLURM_STEPID"
    number = told(name, most=2**32 - 1)
    return number is not None and number >= _FIRST_RESERVED


def _hosts() -> list[str]:
    """The machines of the step, the first one that of task 0; none where nothing names them."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if text := os.environ.get(name, "").strip():
            try:
                return [*hosts_of(text)]
            except ValueError as error:
                hint = "export MASTER_ADDR=HOST, the machine of task 0"
                raise UsageError(f"{name} cannot be read: {error}", hint=hint) from None
    return []


def _on_node(node: int, *, tasks: int, nodes: int) -> int:
    """Tasks on machine number `node` of the step, from Slurm's `2(x3),1`."""
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE") or ""
    machines, told, here = 0, 0, None
    for word in text.split(","):
        if (found := re.fullmatch(r"\s*(\d{1,6})(?:\(x(\d{1,6})\))?\s*", word)) is None:
            return -(-tasks // nodes)
        each, times = int(found[1]), int(found[2] or 1)
        if machines <= node < machines + times:
            here = each
        machines, told = machines + times, told + each * times
    return -(-tasks // nodes) if here is None or told != tasks else here


def hosts_of(text: str) -> Iterator[str]:
    """The names of a Slurm node list: `host[01-03,07],other` is host01, host02, host03, host07, other.

    Raises:
        ValueError: it is no node list, or a longer one than there is a cluster for; one sentence.
    """
    names = [*itertools.islice(_named(text), _MOST_MACHINES + 1)]
    if len(names) > _MOST_MACHINES:
        raise ValueError(f"{text[:80]!r} names more than {_MOST_MACHINES:,} machines")
    yield from names


def _named(text: str) -> Iterator[str]:
    words = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    one_too_many = any(word.count("[") > _MOST_RANGES for word in words)
    if ",".join(words) != text or not all(map(str.strip, words)) or not words or one_too_many:
        raise ValueError(f"{text[:80]!r} is no list of machines")
    for word in words:
        yield from _expanded(word.strip())


def _expanded(word: str) -> Iterator[str]:
    before, bracket, rest = word.partition("[")
    if not bracket:
        yield word
        return
    inside, _, after = rest.partition("]")
    for part in inside.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"{part[:40]!r} in {word[:80]!r} is neither a number nor a range")
        for number in range(int(found[1]), int(found[2] or found[1]) + 1):
            for end in _expanded(after):
                yield f"{before}{number:0{len(found[1])}d}{end}"


def _port() -> int:
    """Where the tasks of this step meet: the same for all, and another for other steps of the machine."""
    job, step = (_whole(os.environ.get(name, "").strip()) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_PORT + (job * 7 + step) % _PORTS


def _refuse_mpi(task: _Task | None) -> None:
    """Raises UsageError where mpirun or the like started several processes."""
    size, rank = (task.tasks, task.rank) if task else (1, 0)
    for names, known, least in ((_SIZES, size, 2), (_RANKS, rank, 1)):
        for name in names:
            number = _whole(os.environ.get(name, "").strip())
            if number is not None and number >= least and number != known:
                raise UsageError(
                    f"a launcher started several processes ({name} is {number}), and RANK, which tells them apart, is not set",
                    hint="on one machine leave the launcher out and say --processes N; on several start it with torchrun or "
                    f"srun; or, if there is no launcher, `unset {name}`",
                )
