"""Tasks done on a Ray cluster. Every node must see the source and the output under the paths that this process does.

A task that a lost worker or node had begun is given to another one; that it is the same there follows from the plan.
"""

import itertools
import os
import sys
from collections.abc import Iterable

from hdit_cli.data.prepare.making.local import Progress, Watch, make_here
from hdit_cli.data.prepare.making.plan import Plan
from hdit_cli.errors import HditError, UsageError

_RETRIES = 8  # of a task whose worker died
_AHEAD = 2  # tasks handed out per core
_STORE_BYTES = 80 << 20  # Ray's smallest: only the plan and a few numbers pass through it


def make_on_ray(plan: Plan, numbers: Iterable[int], *, workers: int, watch: Watch) -> None:
    """Does what is not done yet of some tasks, on the Ray cluster that runs here or that RAY_ADDRESS names.

    Args:
        plan: of the tasks.
        numbers: which of them.
        workers: cores of the cluster that is started on this machine where there is none.
        watch: told after each task.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayTaskError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = "pip install 'hdit-cli[ray]', or leave out --engine ray"
        raise UsageError("--engine ray needs Ray, which is not installed", hint=hint) from error
    _connect(workers)
    try:
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(make_alone)
        shared, coming, running = ray.put(plan), iter(numbers), []
        most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while True:
            running += [remote.remote(shared, number) for number in itertools.islice(coming, most - len(running))]
            if not running:
                return
            ready, running = ray.wait(running)
            for told in ray.get(ready):
                watch.add(told.done, kept=told.kept, refused=told.refused)
    except RayTaskError as error:
        if isinstance(error.cause, HditError):
            raise error.cause from error
        raise
    finally:
        ray.shutdown()


def make_alone(plan: Plan, number: int) -> Progress:
    """One task, by a worker of the cluster; the pictures are decoded in a process of their own, as everywhere."""
    vars(sys.modules["__main__"]).pop(
        "__file__", None
    )  # Ray's script, which that process would import, and Ray with it
    watch = Watch(plan.task(number).entries, None)
    make_here(plan, [number], workers=1, watch=watch)
    return watch.now


def _connect(workers: int) -> None:
    import ray  # pyright: ignore[reportMissingImports]

    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # read when Ray starts a cluster: nothing is sent to its makers
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # none is running
        ray.init(address="local", num_cpus=workers, include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
