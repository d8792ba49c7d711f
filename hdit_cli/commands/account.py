"""What a preparation came to, as people read it: the table of a report, or what is still missing."""

from typing import TYPE_CHECKING, Any

from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.data.prepare import Pending, Report

_MOST_CLASSES = 20
_MOST_RANGES = 12
_MOST_ALIKE = 5
_MOST_TABLES = 3


def print_report(report: "Report", *, as_json: bool, asked_to_hold_out: bool) -> None:
    """The table at the end of `hdit prepare`."""
    from dataclasses import asdict

    say(*(f"note: {note}" for note in (*report.notes, *_table_notes(report))), err=True)
    if as_json:
        say_json(asdict(report))
        return
    height, width = report.image_size
    told = "complete already" if report.complete_before else "made"
    sizes = f"{len(report.buckets)} sizes around {height}x{width}" if report.buckets else f"{height}x{width}"
    say(f"{report.out}: {told}, {report.kept} pictures of {sizes} in {report.shards} shard(s)")
    rows = _rows(report, asked_to_hold_out=asked_to_hold_out)
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"  {name:<{wide}}  {value:>9}")
    for line in _remarks(report, asked_to_hold_out=asked_to_hold_out):
        say(f"  {line}")


def _table_notes(report: "Report") -> list[str]:
    """Why tables, or rows of them, were of no use."""
    from hdit_cli.data.prepare.finishing.report import TABLE_HINT

    told = [f"{path}: {detail}" for path, detail in report.bad_tables[:_MOST_TABLES]]
    if told:
        more = len(report.bad_tables) - _MOST_TABLES
        told[-1] += f" (and {more} more tables)" if more > 0 else ""
        told[-1] += f"; pictures that it gives no label have no class. It needs: {TABLE_HINT}"
    return told


def _rows(report: "Report", *, asked_to_hold_out: bool) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("seen", report.seen),
        ("kept", report.kept),
        ("refused", report.refused),
        ("side files", report.side),
    ]
    if asked_to_hold_out:
        rows.append(("held out", report.held_out))
    rows += [(f"class {name}", count) for name, count in list(report.classes.items())[:_MOST_CLASSES]]
    if len(report.classes) > _MOST_CLASSES:
        rows.append(("more classes", len(report.classes) - _MOST_CLASSES))
    if report.unlabelled:
        rows.append(("no class", report.unlabelled))
    if report.sides:  # not known of data sets that were made before these were counted
        rows += [("captions", report.captions), ("cropped", report.cropped), ("duplicates", report.duplicates)]
        rows.append(("shorter side, smallest", report.sides["min"]))
        rows.append(("shorter side, median", report.sides["median"]))
        rows.append(("shorter side, largest", report.sides["max"]))
        rows.append((f"  below {min(report.image_size)}", f"{report.smaller / report.kept:.1%}"))
    rows += [(f"  {code}", count) for code, count in report.codes.items()]
    rows += [
        (f"bucket {'{}x{}'.format(*each['size'])}, {each['cropped']:.1%} cropped away", each["count"])
        for each in report.buckets
    ]
    return [*rows, ("megabytes", f"{report.bytes / 1e6:.1f}")]


def _remarks(report: "Report", *, asked_to_hold_out: bool) -> list[str]:
    from hdit_cli.data.prepare.facts.words import look_alikes

    remarks = []
    alike = look_alikes(report.classes)
    if alike:
        groups = "; ".join(" and ".join(group) for group in alike[:_MOST_ALIKE])
        more = f"; and {len(alike) - _MOST_ALIKE} more" if len(alike) > _MOST_ALIKE else ""
        remarks.append(f"classes of their own, though nearly the same name: {groups}{more}")
    heic = report.codes.get("heic", 0)
    if heic:
        what = "1 picture is HEIC" if heic == 1 else f"{heic} pictures are HEIC"
        again = f"then remove {report.out} and run the same command"
        remarks.append(f"{what}, which phones write; to read them: pip install 'hdit-cli[heic]', {again}")
    if report.duplicates:
        groups = f"{report.duplicates} pictures equal an earlier one, in {report.duplicate_groups} groups"
        remarks.append(f"{groups}; {'they were left out' if report.deduped else '--dedupe keeps the first of each'}")
    if report.duplicates_across:
        remarks.append(f"{report.duplicates_across} of them are on both sides of --hold-out")
    if report.held_out:
        held_out = f"the held-out pictures are a data set of their own, {report.out}/held-out"
        remarks.append(f"{held_out}; `hdit train` validates on it")
    elif asked_to_hold_out:
        none = "no picture fell under --hold-out: there are too few for that share"
        remarks.append(f"{none}, so there will be no validation")
    return [
        *remarks,
        f"each file's verdict: {report.out}/report.json, a look at them: {report.out}/preview.png",
    ]


def facts_of(report: "Report") -> dict[str, Any]:
    """What `hdit info` adds to a data set's own facts: what its pictures were, and what became of them."""
    facts: dict[str, Any] = {"seen": report.seen, "refused": report.refused, "side_files": report.side}
    if report.sides:  # not known of data sets that were made before these were counted
        facts |= {"captions": report.captions, "cropped": report.cropped, "duplicates": report.duplicates}
        facts["shorter_side"] = {**report.sides, "share_below": round(report.smaller / report.kept, 4)}
    return {**facts, "codes": report.codes}


def print_pending(pending: "Pending", *, as_json: bool) -> None:
    """What a share of a preparation came to, where more is to be done."""
    from dataclasses import asdict

    if as_json:
        say_json({**asdict(pending), "complete": False})
        return
    say(f"{pending.out}: this share is {pending.own} of {pending.tasks} shards")
    if pending.missing:
        some = "1 shard" if len(pending.missing) == 1 else f"{len(pending.missing)} shards"
        say(f"  still missing: {some}, number {_ranges(pending.missing)}")
    if pending.others:
        say("  another process is at work there; the last one finishes")
    else:
        say("  the shares that make them go on, or the same command without --shards makes what is missing")


def _ranges(numbers: list[int]) -> str:
    """ "0-3, 7, 9-12" of ascending numbers; the first ranges, where there are many."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    told = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_MOST_RANGES]]
    return ", ".join(told) + (", ..." if len(ranges) > _MOST_RANGES else "")
