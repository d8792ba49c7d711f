"""Three hundred hostile checkpoints: each is refused in a sentence, at once, and nothing is written, run or waited for."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("hostile_checkpoints.py")

# the script with one guard taken down
PLANTED = """
import sys
sys.path.insert(0, {folder!r})
import hostile_checkpoints
{fault}
sys.argv = ["", "20"]
sys.exit(hostile_checkpoints.main())
"""
FAULTS = {
    "a weight of any type": "from hdit_cli.engine.run import header\nheader.check_floats = lambda *_, **__: None",
    "a program that a header names": "import torch\nfrom hdit_cli.metrics import exported_net\n"
    "from hdit_cli.recipe import Recipe\nRecipe.without_files = lambda self: self\n"
    "exported_net.load_program = torch.export.load",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, env=env)


def test_every_hostile_checkpoint_is_refused():
    done = run(str(SCRIPT), "300")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong; " in done.stdout


def test_the_script_finds_a_guard_that_is_taken_down():
    for name, fault in FAULTS.items():
        done = run("-c", PLANTED.format(folder=str(SCRIPT.parent), fault=fault))
        assert done.returncode == 1, f"{name}: {done.stdout}{done.stderr[-2000:]}"
        print(name, "=>", done.stdout.splitlines()[-1][:200])
