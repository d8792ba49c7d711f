"""Peak memory of `hdit prepare` at 1,000 and at 20,000 pictures, which it makes itself: python tests/bench/prepare_memory.py

The pictures are small, so that what grows with their number would be seen beside what one of them needs. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from alternate import adopt_orphans, ended

MEASURED = """
import json, sys
from pathlib import Path
from hdit_cli.data.prepare import PrepareOptions, prepare
if __name__ == "__main__":
    options = PrepareOptions(size=(16, 16), hold_out=0.05)
    report = prepare(Path(sys.argv[1]), out=Path(sys.argv[2]), options=options, workers=int(sys.argv[3]))
    own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps({"kept": report.kept, "duplicates": report.duplicates, "parent": own}))
"""


def make_pictures(folder: Path, count: int) -> None:
    """Pictures of 24 x 24 pixels in folders of 1,000; every hundredth is a copy of the one before."""
    import numpy as np
    from PIL import Image

    for number in range(count):
        inside = folder / f"{number // 1000:03d}"
        inside.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number - (number % 100 == 99)).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inside / f"{number:06d}.png", compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1000,20000")
    parser.add_argument("--workers", default="2")
    arguments = parser.parse_args()
    adopt_orphans()
    for count in map(int, arguments.counts.split(",")):
        with tempfile.TemporaryDirectory() as place:
            source, script = Path(place) / "pictures", Path(place) / "measured.py"
            make_pictures(source, count)
            script.write_text(MEASURED)
            command = [sys.executable, str(script), str(source), str(Path(place) / "out"), arguments.workers]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            worker = max(used.ru_maxrss for used in ended())  # the workers' server outlives the command
            print(
                f"{count:>7} pictures: parent {told['parent'] / 1024:.1f} MB, largest worker {worker / 1024:.1f} MB, "
                f"{told['kept']} kept, {told['duplicates']} duplicates",
                flush=True,
            )


if __name__ == "__main__":
    main()
