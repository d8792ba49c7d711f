"""Bytes that a compiled training step moves by inductor's count, for a card that need not be there.

    python tests/gpu/step_bytes.py [RECIPE] [--batch 32] [--card sm_89] [--set a.b=c] [--code FOLDER]

Every kernel's reads and writes are counted once each, as if nothing stayed in a cache; kernels of libraries are counted by their
arguments. No GPU is used and no time is measured.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "offline"))
import pretended


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="flowers256")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--card", choices=pretended.CARDS, default="sm_89")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--attention", help="a backend by name, in the place of the one that is chosen")
    parser.add_argument("--code", type=Path, help="where the generated code goes")
    arguments = parser.parse_args()
    if reason := pretended.missing():
        sys.exit(reason)
    words = [arguments.recipe, "--batch", str(arguments.batch)]
    words += [word for change in arguments.changes for word in ("--set", change)]
    words += ["--attention", arguments.attention] if arguments.attention else []
    if arguments.code:
        arguments.code.mkdir(parents=True, exist_ok=True)
        words += ["--out", str(arguments.code.resolve())]
    with tempfile.TemporaryDirectory() as folder:
        facts = json.loads(
            pretended.run("step_code.py", *words, card=arguments.card, folder=Path(folder), timeout=7200)
        )
    facts["gigabytes"] = round(sum(part["bytes"] for part in facts["passes"].values()) / 1e9, 1)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
