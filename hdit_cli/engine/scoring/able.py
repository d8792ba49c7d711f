"""What can be scored where nobody says what: of the metrics wanted those that can be, and which could not."""

from collections.abc import Callable, Sequence

from hdit_cli import catalog
from hdit_cli.errors import DataError
from hdit_cli.metrics.metric import Metric

INSTEAD = ("kid", "swd")  # need few pictures; no weights


def able(
    wanted: Sequence[type[Metric]], *, check: Callable[[type[Metric]], None], open_nets: Callable[[], object]
) -> tuple[list[type[Metric]], list[str]]:
    """The metrics that can be, those of INSTEAD among them where one cannot, and one sentence on what is left out.

    Args:
        check: raises DataError for a metric that these pictures do not allow.
        open_nets: raises DataError where the feature net is missing.

    Raises:
        DataError: none can be.
    """
    refused: dict[str, DataError] = {}
    found = _checked(wanted, check=check, open_nets=open_nets, refused=refused)
    if not refused:
        return list(wanted), []
    asked = list(refused)
    more = [kind for kind in (catalog.get("metric", name) for name in INSTEAD) if kind not in wanted]
    found += _checked(more, check=check, open_nets=open_nets, refused=refused)
    if not found:
        raise refused[asked[0]]
    said: dict[str, list[str]] = {}
    for name in asked:
        error = refused[name]
        said.setdefault(f"{error.message}; what brings it: {error.hint}", []).append(name.upper())
    return found, ["left out: " + "; ".join(f"{' and '.join(names)} ({why})" for why, names in said.items())]


def _checked(
    wanted: Sequence[type[Metric]],
    *,
    check: Callable[[type[Metric]], None],
    open_nets: Callable[[], object],
    refused: dict[str, DataError],
) -> list[type[Metric]]:
    """Those that can be; the errors of the others go into `refused`."""
    found = []
    for kind in wanted:
        try:
            check(kind)
            if kind.needs is not None:
                open_nets()
            found.append(kind)
        except DataError as error:
            refused[kind.name] = error
    return found
