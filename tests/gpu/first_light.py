"""One part of `first_light.sh`: python tests/gpu/first_light.py PART --result FILE --work FOLDER [--data FOLDER] [--rehearse]

`merge RESULTS FILE` puts the results of all parts into one file, and says what became of each.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

PARTS = {  # name => (module:function)
    "doctor": "parts_right:doctor",
    "tests": "parts_right:tests",
    "backends": "parts_right:backends",
    "flex-shapes": "parts_right:flex_shapes",
    "warm": "parts_fast:warm",
    "flowers": "parts_fast:flowers",
    "eager": "parts_fast:eager",
    "attention": "parts_fast:attention",
    "profile": "parts_fast:profile",
    "imagenet": "parts_fast:imagenet",
    "sampling": "parts_fast:sampling",
    "resume": "parts_right:resume",
}


def merge(results: Path, target: Path) -> None:
    """All results in the order of the parts."""
    found = {}
    for name in PARTS:
        path, ended = results / f"{name}.json", results / f"{name}.ended"
        facts = json.loads(path.read_text()) if path.is_file() else {}
        if ended.is_file():
            facts["ended"] = ended.read_text().strip()
        if facts:
            found[name] = facts
    target.write_text(json.dumps(found, indent=1) + "\n")
    for name, facts in found.items():
        print(
            f"{name:<12} {facts.get('ended', 'under way'):<28} {facts.get('seconds', 0):>6} s  {facts.get('verdict', '')}"
        )


def main() -> None:
    """Runs one part, or merges."""
    if sys.argv[1:2] == ["merge"]:
        merge(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    from light import Light

    module, _, function = PARTS[given.part].partition(":")
    given.work.mkdir(parents=True, exist_ok=True)
    light = Light(rehearse=given.rehearse, data=given.data, work=given.work, result=given.result)
    getattr(import_module(module), function)(light)
    light.note()
    print(json.dumps(light.facts)[:2000])


if __name__ == "__main__":
    main()
