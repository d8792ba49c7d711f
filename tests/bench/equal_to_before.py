"""Does a source tree compute what another one did, to the last bit? The proof that a refactor changes nothing.

    python tests/bench/equal_to_before.py BEFORE AFTER [--only 'smoke/*'] [--dtype fp64] [--out FOLDER] [--data PICTURES]
    python tests/bench/equal_to_before.py BEFORE AFTER --speed

BEFORE and AFTER are folders that hold `hdit_cli/`. Both run the same public commands in processes of their own, with the
recipes of BEFORE: prepare, train, train that goes on from a run that BEFORE has broken off halfway, sample, info, dry runs,
export. Logs (but for times), tensors, headers, pictures and what `--json` says must be equal; what a recipe or an answer has
gained as a whole section, and memory, is told. One line for each case; exit code 1 at any difference.

What BEFORE has made stays under FOLDER by a hash of its sources, so a second AFTER costs half the time; what AFTER has
made stays likewise, unless `--again`. Paths, names and times of the machine stand in no result.
"""

import argparse
import fnmatch
import hashlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from equality import compare, pictures, speed
from equality.cases import Builder, Case, Command, preparations
from equality.tree import Failed, Tree, key, linked, plan_of, removed


@dataclass
class Pair:
    """Both trees, each with its working folder; `before` may be finished already."""

    before: Tree
    after: Tree
    source: str  # of the pictures, from a working folder

    def prepare(self, name: str, command: Command) -> compare.Found:
        """Makes a data set with both trees; the one of BEFORE is then used by both."""
        found = compare.Found()
        for tree in (self.before, self.after):
            if not self._is_done(tree, f"data-{name}", plan := repr(command)):
                removed(tree.work / "data" / name)
                tree.run(command, tree.work / "printed" / f"data-{name}")
                self._done(tree, f"data-{name}", plan)
        old, new = (tree.work / "data" / name for tree in (self.before, self.after))
        compare.folders(old, new, found, where=f"data/{name}")
        texts = [tree.work / "printed" / f"data-{name}.out" for tree in (self.before, self.after)]
        compare.printed(*texts, found, where=f"`prepare` of {name}")
        if found.differences:
            removed(new)
            shutil.copytree(old, new)
        return found

    def run_and_compare(self, case: Case) -> compare.Found:
        """Runs what was not run yet, and compares."""
        told = self.after.work / "verdicts" / f"{case.folder}.json"
        plan = plan_of(case)
        self._make_before(case, plan)
        if told.is_file() and (kept := json.loads(told.read_text())).pop("plan") == plan:
            return compare.Found(**kept)
        self._make_after(case, plan)
        found = self._compared(case)
        if not found.differences:
            told.parent.mkdir(exist_ok=True)
            told.write_text(json.dumps({"plan": plan, **asdict(found)}))
            if case.large:
                for place in ("runs", "half", "given", "out"):
                    removed(self.after.work / place / case.folder)
        return found

    def _make_before(self, case: Case, plan: str) -> None:
        tree = self.before
        if self._is_done(tree, case.folder, plan):
            return
        self._clear(tree, case)
        self._run(tree, case, case.training(place="runs", steps=case.steps))
        if case.halves:
            self._run(tree, case, case.training(place="half", steps=case.steps // 2))
        linked(tree.work / "runs" / case.folder, tree.work / "given" / case.folder)
        for command in case.after:
            self._run(tree, case, command)
        self._done(tree, case.folder, plan)

    def _make_after(self, case: Case, plan: str) -> None:
        tree = self.after
        if self._is_done(tree, case.folder, plan):
            return
        self._clear(tree, case)
        linked(self.before.work / "runs" / case.folder, tree.work / "given" / case.folder)
        self._run(tree, case, case.training(place="runs", steps=case.steps))
        if case.halves:
            shutil.copytree(self.before.work / "half" / case.folder, tree.work / "half" / case.folder)
            self._run(tree, case, case.training(place="half", steps=case.steps))
        for command in case.after:
            self._run(tree, case, command)
        self._done(tree, case.folder, plan)

    def _run(self, tree: Tree, case: Case, command: Command) -> None:
        printed = tree.work / "printed" / case.folder / command.label.replace(" ", "-")
        code = tree.run(command, printed)
        printed.with_name(f"{printed.name}.code").write_text(str(code))

    def _clear(self, tree: Tree, case: Case) -> None:
        for place in ("runs", "half", "given", "out", "none", "printed"):
            removed(tree.work / place / case.folder)

    def _compared(self, case: Case) -> compare.Found:
        found = compare.Found()
        old, new = self.before.work, self.after.work
        compare.folders(old / "runs" / case.folder, new / "runs" / case.folder, found, where="run")
        if case.halves:
            whole, gone_on = old / "runs" / case.folder, new / "half" / case.folder
            broken_off = f"step-{case.steps // 2:08d}"  # made by BEFORE, when it was to end there
            compare.folders(whole, gone_on, found, where="run gone on with", but=broken_off)
        if case.after:
            compare.folders(old / "out" / case.folder, new / "out" / case.folder, found, where="out")
        commands = (case.training(place="runs", steps=case.steps), *case.after)
        for label in (command.label.replace(" ", "-") for command in commands):
            a, b = (work / "printed" / case.folder / label for work in (old, new))
            codes = [path.with_name(f"{label}.code").read_text() for path in (a, b)]
            if codes[0] != codes[1]:
                found.differs(f"`{label}` ends with {codes[0]} before, {codes[1]} after")
            elif codes[0] == "0":
                compare.printed(a.with_name(f"{label}.out"), b.with_name(f"{label}.out"), found, where=f"`{label}`")
            else:
                found.tell(f"`{label}` is refused by both", case.name)
        return found

    @staticmethod
    def _is_done(tree: Tree, name: str, plan: str) -> bool:
        note = tree.work / "done" / name
        return note.is_file() and note.read_text() == plan

    @staticmethod
    def _done(tree: Tree, name: str, plan: str) -> None:
        note = tree.work / "done" / name
        note.parent.mkdir(exist_ok=True)
        note.write_text(plan)


def set_up(chosen: argparse.Namespace) -> Pair:
    """Working folders, recipes and pictures."""
    out = chosen.out.resolve()
    keys = [key(source) for source in (chosen.before, chosen.after)]
    if chosen.data is None:
        source, made = "../pictures", out / "pictures"
        if not (made / "done").is_file():
            pictures.draw(made)
            (made / "done").touch()
    else:
        source = str(chosen.data.resolve())
        keys[0] += "-" + hashlib.sha256(source.encode()).hexdigest()[:8]
    before = Tree(chosen.before.resolve(), out / f"before-{keys[0]}")
    after = Tree(chosen.after.resolve(), out / f"before-{keys[0]}-after-{keys[1]}")
    if chosen.again:
        removed(after.work)
    for tree in (before, after):
        tree.work.mkdir(parents=True, exist_ok=True)
        removed(tree.work / "recipes")
        shutil.copytree(before.source / "recipes", tree.work / "recipes")
        tree.check()
    return Pair(before, after, source)


def tell(name: str, found: compare.Found, seconds: float) -> None:
    """One line for a case that is equal, and the differences of one that is not."""
    counts = ", ".join(f"{n} {kind}" for kind, n in found.counts.items())
    print(f"{'DIFFERS' if found.differences else 'equal  '}  {name:28} {counts}; {seconds:.1f} s", flush=True)
    shown = found.differences[:5]
    for text in shown:
        print(f"    {text}")
    if len(found.differences) > len(shown):
        print(f"    and {len(found.differences) - len(shown)} more differences")
    if found.tensors:
        print(f"    first tensors: {found.tensors}")
        print(f"    largest difference of a tensor: {found.largest[0]:.3g}, {found.largest[1]}", flush=True)


def compare_all(pair: Pair, chosen: argparse.Namespace) -> int:
    """Prints a line for each case; gives how many differ."""
    dtypes = (chosen.dtype,) if chosen.dtype else ("fp32", "fp64")
    builder = Builder(pair.before.work / "recipes", pair.before.samplers(), dtypes)
    cases = [case for case in builder.all() if _is_wanted(case.name, chosen.only)]
    begun = next((case for case in builder.all() if case.name == "smoke/tiny-fp32"), None)
    if begun and begun not in cases and any("--init" in case.train for case in cases):
        cases.insert(0, begun)  # another case begins from its run
    if not cases:
        raise Failed(f"no case is called {', '.join(chosen.only)}")
    told: dict[str, list[str]] = {}
    bad = 0
    tasks = {f"prepare {name}": (pair.prepare, name, made) for name, made in preparations(pair.source, cases).items()}
    tasks |= {case.name: (pair.run_and_compare, case) for case in cases}
    for name, (compared, *arguments) in tasks.items():
        start = time.monotonic()
        try:
            found = compared(*arguments)
        except Failed as error:
            found = compare.Found([str(error)])
        tell(name, found, time.monotonic() - start)
        bad += bool(found.differences)
        for kind, example in found.told.items():
            told.setdefault(kind, []).append(f"{name}: {example}")
    for kind, examples in told.items():
        print(f"told: {kind}, in {len(examples)} of {len(tasks)} cases ({examples[0]})")
    for text in builder.skipped:
        print(f"left out: {text}")
    print(f"{len(tasks) - bad} of {len(tasks)} cases are equal")
    return bad


def _is_wanted(name: str, only: list[str]) -> bool:
    return not only or any(fnmatch.fnmatch(name, f"{pattern}*") for pattern in only)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="source tree that is right")
    parser.add_argument("after", type=Path, help="source tree that must compute the same")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="cases that begin so; repeatable")
    parser.add_argument("--dtype", choices=("fp64", "fp32"), help="one precision alone")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "hdit-equal"), help="what is kept")
    parser.add_argument("--data", type=Path, help="a folder of pictures in class folders, in place of drawn ones")
    parser.add_argument("--again", action="store_true", help="run AFTER again where it was run before")
    parser.add_argument("--speed", action="store_true", help="compare the time of a training step instead")
    parser.add_argument("--rounds", type=int, default=7, help="of --speed, after one that does not count")
    chosen = parser.parse_args()
    try:
        pair = set_up(chosen)
    except Failed as error:
        parser.error(str(error))
    try:
        if not chosen.speed:
            return 1 if compare_all(pair, chosen) else 0
        recipes = [recipe for recipe in speed.SUBJECTS if _is_wanted(recipe, chosen.only)]
        if not recipes:
            raise Failed(f"--speed knows {' and '.join(speed.SUBJECTS)}")
        for name in {speed.SUBJECTS[recipe][2] for recipe in recipes}:
            stand_in = Case("", "", name, ())
            pair.prepare(name, preparations(pair.source, [stand_in])[name])
        return 0 if speed.paired(pair.before, pair.after, recipes=recipes, rounds=chosen.rounds) else 1
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        pair.before.close()
        pair.after.close()


if __name__ == "__main__":
    sys.exit(main())
