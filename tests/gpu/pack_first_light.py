"""Makes the folder that a bare machine needs beside the checkout for `first_light.sh`: prepared pictures, and wheels.

python tests/gpu/pack_first_light.py PICTURES [--out first-light] [--megabytes 40] [--python 3.12] [--no-wheels]

The machine has Python, torch with CUDA, and numpy. Everything else that hdit imports comes as wheels, in the versions that are
installed here. With the checkout it must stay within 64 MiB.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("torch", "numpy", "hf-xet")  # there already, and large; the last one is for downloads alone
MOST = 64 << 20  # bytes, with the checkout
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def spelled(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(*names: str) -> dict[str, str]:
    """Versions of these packages and of all that they need and that is installed here."""
    found: dict[str, str] = {}
    waiting = [spelled(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in LEFT_OUT:
            continue
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        found[name] = there.version
        lines = [line for line in there.requires or [] if "extra ==" not in line]
        waiting += [spelled(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in lines]
    return found


def needs_of_hdit() -> dict[str, str]:
    """What hdit and its tests import, torch and numpy aside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return needed(*(re.match(r"[A-Za-z0-9._-]+", line)[0] for line in project["dependencies"]), "pytest")


def fetch(wheels: Path, *, python: str) -> None:
    """Wheels for Linux on x86-64 and a version of Python, by pip."""
    names = [f"{name}=={version}" for name, version in sorted(needs_of_hdit().items())]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    options = ["--python-version", python, "--implementation", "cp", *platforms, "--dest", str(wheels)]
    subprocess.run([*command, *options, *names], check=True)


def pick(pictures: Path, *, count: int) -> list[Path]:
    """So many pictures, as many of each class as of the others where there are enough."""
    folders = sorted({path.parent for path in pictures.rglob("*") if path.suffix.lower() in ENDINGS})
    by_class = [sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS) for folder in folders]
    longest = max(map(len, by_class), default=0)
    return [each[i] for i in range(longest) for each in by_class if i < len(each)][:count]


def prepare(pictures: Path, data: Path, *, megabytes: float, size: int) -> int:
    """Prepares as many pictures as fit; bytes of the data set."""
    count = len(pick(pictures, count=1 << 30))
    while count:
        with tempfile.TemporaryDirectory() as folder:
            for path in pick(pictures, count=count):
                target = Path(folder) / path.relative_to(pictures)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            shutil.rmtree(data, ignore_errors=True)
            command = [sys.executable, "-m", "hdit_cli", "prepare", folder, "--size", str(size), "--out", str(data)]
            subprocess.run([*command, "--shard-size", "200", "--hold-out", "0"], check=True, stdout=subprocess.DEVNULL)
        found = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
        if found <= megabytes * 1e6:
            return found
        count = min(count - 1, int(count * megabytes * 1e6 / found * 0.99))
    raise SystemExit(f"no pictures in {pictures}, or not one within {megabytes} MB")


def size_of_checkout() -> int:
    """Bytes of the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return sum((ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file())


def main() -> None:
    """Reads the command line, fills the folder, says how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("first-light"))
    parser.add_argument("--megabytes", type=float, default=40.0, help="of the pictures")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--python", default="3.12", help="version of the other machine")
    parser.add_argument("--no-wheels", action="store_true")
    given = parser.parse_args()
    data = prepare(given.pictures, given.out / "data", megabytes=given.megabytes, size=given.size)
    if not given.no_wheels:
        shutil.rmtree(given.out / "wheels", ignore_errors=True)
        fetch(given.out / "wheels", python=given.python)
    whole = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    checkout = size_of_checkout()
    print(
        f"{given.out}: {whole / 1e6:.1f} MB, of which pictures {data / 1e6:.1f} MB; the checkout {checkout / 1e6:.1f} MB"
    )
    if whole + checkout > MOST:
        raise SystemExit(f"together over {MOST / 2**20:.0f} MiB: fewer --megabytes")


if __name__ == "__main__":
    main()
