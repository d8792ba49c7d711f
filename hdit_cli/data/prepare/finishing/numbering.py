"""Which classes a data set has: those of the plan that a picture was kept of, counted anew.

The plan names every class that a file of the source seems to be of. Which of them come to a picture is known when all tasks
are done, so the shards are numbered by the plan while they are made. In the end those whose labels have changed are written
again: none where each class has a picture.
"""

from collections.abc import Collection, Iterable
from functools import cached_property

from hdit_cli.data.prepare.making.plan import Plan
from hdit_cli.data.prepare.making.task import Record
from hdit_cli.data.shards import NO_LABEL


class Numbering:
    """The classes of a plan that a data set has.

    Args:
        plan: that names them.
        kept: their indices in the plan, ascending.
    """

    def __init__(self, plan: Plan, kept: Iterable[int]) -> None:
        self._all = len(plan.classes)
        self.kept = list(kept)
        self.classes = [plan.classes[index] for index in self.kept]

    @cached_property
    def _new(self) -> dict[int, int]:
        return {old: new for new, old in enumerate(self.kept)}

    def of(self, label: int) -> int:
        """A label of the plan as the data set has it."""
        return NO_LABEL if label == NO_LABEL else self._new.get(label, NO_LABEL)

    def told(self) -> list[int] | None:
        """As a record keeps it."""
        return None if len(self.kept) == self._all else self.kept

    def holds_for(self, plan: Plan, record: Record) -> bool:
        """Whether a task's shards have these labels already."""
        if record.numbered == self.told():
            return True
        before = numbering_of(plan, record)
        labels = {each.label for each in record.pictures if each.row not in record.dropped}
        return all(before.of(label) == self.of(label) for label in labels)


def numbering_of(plan: Plan, record: Record) -> Numbering:
    """That of a task's shards as they are."""
    return Numbering(plan, range(len(plan.classes)) if record.numbered is None else record.numbered)


def numbering_for(plan: Plan, labels: Collection[int]) -> Numbering:
    """That of a data set whose pictures, held-out ones too, have these labels of the plan.

    A list of classes that the sources themselves have stays whole.
    """
    every = range(len(plan.classes))
    return Numbering(plan, every if plan.fixed else (index for index in every if index in labels))
