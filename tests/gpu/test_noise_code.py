"""A batch's noise on a card, read without one: one kernel that only writes, and the numbers that it computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "offline"))
import pretended

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(pretended.missing()), reason=pretended.missing() or "-")]

OFFLINE = Path(pretended.__file__).parent
IMAGES, NUMBERS = 3, 3 * 32 * 33  # more than one block, and a last one that is not full


@pytest.mark.parametrize("card", pretended.CARDS)
def test_noise_is_one_kernel_and_its_numbers_are_right(card, tmp_path):
    words = (str(IMAGES), str(NUMBERS), str(tmp_path / "code.py"))
    facts = json.loads(pretended.run("noise_code.py", *words, card=card, folder=tmp_path).splitlines()[-1])
    assert (facts["triton_launches"], facts["others"]) == (1, {})
    written, read = 4 * IMAGES * NUMBERS, 4 * 8 * IMAGES
    assert facts["bytes"] <= written + read
    code = (tmp_path / "code.py").read_text()
    for word in (".item()", "device='cpu'", "cpp_fused"):
        assert word not in code

    place = {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(OFFLINE.parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(OFFLINE / "noise_run.py"), *words],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 1e-5
