"""A batch cut up in every way at once (processes, pieces, levels computed twice) trains as the batch in one."""

import json
import os
import subprocess
import sys

import pytest
from tiny_run import tiny_recipe


def losses(folder, recipe, data, *words):
    file = folder.with_suffix(".toml")
    file.write_text(recipe.to_toml())
    command = [sys.executable, "-m", "hdit_cli", "train", file, "--data", data, "--run", folder, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_accumulation_4_and_checkpointing(tiny_data, tmp_path):
    """20 steps in float64, losses equal to 1e-9."""
    plain = tiny_recipe(
        train__batch_size=16, train__precision="fp64", train__steps=20, train__log_every=1, train__sample_every=0
    )
    switches = ["--set", "train.accumulate=4", "--set", "model.levels.0.checkpoint=true"]
    switches += ["--set", "model.levels.1.checkpoint=true", "--processes", "2"]
    expected = losses(tmp_path / "plain", plain, tiny_data)
    found = losses(tmp_path / "cut", plain, tiny_data, *switches)
    assert len(expected) == 20 and expected[-1] != pytest.approx(expected[0], rel=1e-3)
    assert found == pytest.approx(expected, rel=1e-9)
