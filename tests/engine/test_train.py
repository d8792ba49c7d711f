"""A run: what it writes, how it goes on, and that it computes the same however it is cut or shared."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe

import hdit_cli
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.run.folder import RunFolder, set_aside
from hdit_cli.engine.training import arithmetic
from hdit_cli.engine.training.loop import Trainer, train
from hdit_cli.errors import CheckpointError, NonFiniteError, UsageError

EXACT = ("metrics.jsonl", "ckpt.safetensors")


def run(folder, recipe, data):
    seen = []
    train(folder, recipe, data=data, watch=seen.append)
    return seen


def digests(folder):
    """SHA-256 of all that must come out the same: logs, grids, weights, optimizer."""
    wanted = [folder / name for name in EXACT]
    wanted += sorted((folder / "samples").iterdir())
    newest = checkpoint.list_steps(folder)[-1]
    wanted += sorted((folder / "checkpoints" / checkpoint.step_name(newest)).glob("*.safetensors"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in wanted}


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """One unbroken run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, tiny_recipe(), tiny_data)


def test_what_a_run_writes(whole):
    folder, seen = whole
    kinds = [type(event) for event in seen]
    assert kinds[0] is events.Started
    assert kinds[-1] is events.Finished
    assert kinds.count(events.Stepped) == 8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert [line["images"] for line in lines] == [24, 48, 64]
    assert lines[0]["lr"] == pytest.approx(2e-3)
    assert {p.name for p in (folder / "samples").iterdir()} == {
        f"step-0000000{step}-{name}.png" for step in (0, 4, 8) for name in ("ema", "raw")
    }
    assert checkpoint.list_steps(folder) == [4, 8]
    assert (folder / "recipe.toml").is_file()
    assert not list(folder.rglob(".tmp-*"))


def test_the_checkpoint_alone_is_enough(whole):
    folder, _ = whole
    model = hdit_cli.load(folder / "ckpt.safetensors", device="cpu")
    assert model.classes == ["blue", "red"]
    assert (model.step, model.images_seen, model.weights) == (8, 64, "ema")
    assert model.data["class_counts"] == [12, 12]
    images = hdit_cli.generate(model, n=3, steps=2)
    assert images.shape == (3, 16, 16, 3)
    assert images.dtype == torch.uint8
    raw = hdit_cli.load(folder, weights="raw", device="cpu")
    assert raw.weights == "raw"
    header = checkpoint.read_header(folder / "ckpt.safetensors")
    assert header["format"] == "pt"
    assert all(isinstance(value, str) for value in header.values())


def test_a_complete_run_does_nothing(whole, tiny_data):
    folder, _ = whole
    before = digests(folder)
    assert [type(e) for e in run(folder, tiny_recipe(), tiny_data)] == [events.Started, events.Finished]
    assert digests(folder) == before


@pytest.mark.parametrize("cut", [1, 4, 5])
def test_a_run_that_was_cut_ends_with_the_same_bits(whole, tiny_data, tmp_path, cut):
    """Cut after any step, between log lines and after a save; the second part is another process's view of the folder."""
    folder = tmp_path / "run"
    cut_at(folder, tiny_data, step=cut)
    run(folder, tiny_recipe(), tiny_data)
    assert digests(folder) == digests(whole[0])


def cut_at(folder, data, *, step):
    """Trains until a step was taken, as a killed process would."""

    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Stepped) and event.step == step:
            raise Cut

    with pytest.raises(Cut):
        train(folder, tiny_recipe(), data=data, watch=stop)


def test_a_run_keeps_its_arithmetic(whole, tiny_data, tmp_path, monkeypatch):
    """Begun where new runs take fewer passes, it goes on so where they do not, bit by bit; its checkpoints say so."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(arithmetic, "of_new_run", lambda device, *, weights: arithmetic.FEWER_PASSES)
        run(tmp_path / "whole", tiny_recipe(), tiny_data)
        cut_at(tmp_path / "cut", tiny_data, step=5)
    run(tmp_path / "cut", tiny_recipe(), tiny_data)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert digests(tmp_path / "whole") != digests(whole[0])
    newest = checkpoint.list_steps(tmp_path / "cut")[-1]
    state = json.loads((tmp_path / "cut" / "checkpoints" / checkpoint.step_name(newest) / "state.json").read_text())
    assert state["arithmetic"] == arithmetic.FEWER_PASSES


def test_a_checkpoint_that_names_no_arithmetic_goes_on_as_it_began(whole, tiny_data, tmp_path, monkeypatch):
    """As all from before there was a choice, on a machine whose new runs take another."""
    cut_at(tmp_path / "run", tiny_data, step=5)
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert "arithmetic" not in json.loads((folder / "state.json").read_text())
    monkeypatch.setattr(arithmetic, "of_new_run", lambda device, *, weights: arithmetic.FEWER_PASSES)
    run(tmp_path / "run", tiny_recipe(), tiny_data)
    assert digests(tmp_path / "run") == digests(whole[0])


def test_more_steps_later_equal_more_steps_at_once(whole, tiny_data, tmp_path):
    """train.steps may change on resume. The log line of the first end is part of the history."""
    folder = tmp_path / "run"
    shorter = tiny_recipe(train__steps=6, train__log_every=2)
    run(folder, shorter, tiny_data)
    run(folder, tiny_recipe(train__log_every=2), tiny_data)
    newest = folder / "ckpt.safetensors"
    ours, expected = load_file(newest), load_file(whole[0] / "ckpt.safetensors")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("then", [1, 3])
def test_the_window_of_the_log_survives_another_number_of_processes(tiny_data, tmp_path, then):
    """Saved by 2 processes two steps after a line of the log; the next line is the mean over processes and steps."""
    run(tmp_path / "run", tiny_recipe(train__steps=5, train__save_every=5), tiny_data)
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    snapshot = checkpoint.load_snapshot(newest)
    snapshot.state["window"] |= {"loss": [1.0, 3.0], "steps": 2}
    losses = []
    for rank in range(then):
        folder = RunFolder(tmp_path / "run")
        state = Trainer(folder, tiny_recipe(train__steps=5, train__save_every=5), data=tiny_data).state
        state.restore(snapshot, rank=rank, world=then)
        losses.append(float(state.window.loss))
    assert sum(losses) / then == pytest.approx(2.0)


def test_a_run_in_use_is_not_set_aside(tiny_data, tmp_path):
    """It would go on writing into the folder that has its name next."""
    tried = []

    def watch(event):
        if isinstance(event, events.Stepped) and event.step == 5:
            with pytest.raises(UsageError, match=f"in use by .* pid {os.getpid()}") as caught:
                set_aside(tmp_path / "run")
            tried.append(caught.value.exit_code)

    train(tmp_path / "run", tiny_recipe(), data=tiny_data, watch=watch)
    assert tried == [2]
    assert set_aside(tmp_path / "run") == tmp_path / "run.old-1"
    assert not (tmp_path / "run").exists()


def test_a_changed_recipe_is_refused_with_the_difference(whole, tiny_data):
    with pytest.raises(UsageError, match=r"optimizer.eps: 1e-08 -> 1e-06") as caught:
        run(whole[0], tiny_recipe(optimizer__eps=1e-6), tiny_data)
    assert "--fresh" in caught.value.hint


def test_other_data_under_a_run_is_refused(whole, tiny_data, tmp_path):
    from hdit_cli.data.prepare import PrepareOptions, prepare

    prepare(tiny_data, out=tmp_path / "data", options=PrepareOptions(size=(16, 16), shard_size=12), workers=1)
    before = digests(whole[0])
    with pytest.raises(UsageError, match="not the one"):
        run(whole[0], tiny_recipe(train__steps=9), tmp_path / "data")
    assert digests(whole[0]) == before
    shutil.copytree(tiny_data, tmp_path / "moved")
    run(whole[0], tiny_recipe(), tmp_path / "moved")  # the same data elsewhere is fine


def test_a_damaged_newest_checkpoint_is_set_aside(whole, tiny_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    target = folder / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    seen = run(folder, tiny_recipe(), tiny_data)
    warned = [event.text for event in seen if isinstance(event, events.Warned)]
    assert warned == [
        "checkpoint step-00000008 is damaged: optimizer.safetensors has changed since it was written; "
        "set aside as step-00000008.bad"
    ]
    assert next(e for e in seen if isinstance(e, events.Started)).step == 4
    assert (folder / "checkpoints" / "step-00000008.bad").is_dir()
    assert digests(folder) == digests(whole[0])


def test_all_checkpoints_damaged_is_an_error(whole, tiny_data, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    for step in (4, 8):
        (folder / "checkpoints" / checkpoint.step_name(step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint"):
        run(folder, tiny_recipe(), tiny_data)


@pytest.mark.slow
def test_accumulation_is_the_large_batch(tiny_data, tmp_path):
    """In float64 without dropout: the same losses to 1e-9, whatever the split of the batch."""
    found = []
    for accumulate in (1, 2, 4):
        recipe = tiny_recipe(train__accumulate=accumulate, train__precision="fp64", train__log_every=1)
        folder = tmp_path / str(accumulate)
        run(folder, recipe, tiny_data)
        found.append([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert found[2] == pytest.approx(found[0], rel=1e-9)


def test_noise_levels_are_stratified_over_the_batch(tiny_data, tmp_path):
    recipe = tiny_recipe(train__batch_size=8, train__accumulate=2)
    trainer = Trainer(RunFolder(tmp_path), recipe, data=tiny_data)
    from hdit_cli.data.loader import Loader

    with Loader(trainer.reader, batch_size=8, seed=0, position=16, steps=1, slots=trainer.slots) as loader:
        batches = next(iter(loader))
    density = trainer.stepper.state.model.task.density
    edges = density(torch.linspace(1e-9, 1 - 1e-9, 9, dtype=torch.float64))
    low, high = edges[1:], edges[:-1]  # u = 0 is the noisy end
    for batch in batches:
        sigma = trainer.stepper.draw(batch, first=16).level.double()
        slots = torch.from_numpy(batch.index - 16)
        assert (sigma >= low[slots] * 0.999).all()
        assert (sigma <= high[slots] * 1.001).all()


def test_a_non_finite_loss_stops_before_it_does_harm(tiny_data, tmp_path, monkeypatch):
    recipe = tiny_recipe(train__log_every=1)
    trainer = Trainer(RunFolder(tmp_path), recipe, data=tiny_data)
    from hdit_cli.data.loader import Loader

    with Loader(trainer.reader, batch_size=8, seed=0, position=0, steps=3, slots=trainer.slots) as loader:
        batches = list(loader)
    trainer.stepper.step(batches[0])
    before = {name: t.clone() for name, t in trainer.state.model.network.state_dict().items()}
    average = {name: t.clone() for name, t in trainer.state.ema.network.state_dict().items()}
    moments = {name: t.clone() for name, t in trainer.state.optimizer_tensors().items()}
    original = trainer.stepper.draw
    monkeypatch.setattr(
        trainer.stepper, "draw", lambda *a, **k: (drawn := original(*a, **k))._replace(x0=drawn.x0 * float("nan"))
    )
    trainer.stepper.step(batches[1])
    monkeypatch.setattr(trainer.stepper, "draw", original)
    trainer.stepper.step(batches[2])  # finite again, and still masked: the host has not looked yet
    assert all(torch.equal(t, before[name]) for name, t in trainer.state.model.network.state_dict().items())
    assert all(torch.equal(t, average[name]) for name, t in trainer.state.ema.network.state_dict().items())
    assert all(torch.equal(t, moments[name]) for name, t in trainer.state.optimizer_tensors().items())
    with pytest.raises(NonFiniteError, match="not updated"):
        trainer.guard.check(trainer.state.step)
    with pytest.raises(NonFiniteError):
        trainer.save()
    assert checkpoint.list_steps(tmp_path) == []


def test_ema_follows_its_formula(tiny_data, tmp_path):
    trainer = Trainer(RunFolder(tmp_path), tiny_recipe(), data=tiny_data)
    from hdit_cli.data.loader import Loader

    name = "patch_in.proj.weight"
    average = trainer.state.model.network.state_dict()[name].clone().double()
    with Loader(trainer.reader, batch_size=8, seed=0, position=0, steps=4, slots=trainer.slots) as loader:
        for step, batches in enumerate(loader):
            trainer.stepper.step(batches)
            decay = hdit_cli.ema_decay(step, power=0.75, max_value=0.9999)
            average = decay * average + (1 - decay) * trainer.state.model.network.state_dict()[name].double()
    found = trainer.state.ema.network.state_dict()[name].double()
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-7)


def command(*words, env=None, cwd=None, timeout=240):
    full = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=full,
        cwd=cwd,
        timeout=timeout,
    )


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_processes_compute_what_one_does(tiny_data, tmp_path):
    """1, 2 and 3 processes: the losses of 20 float64 steps agree to 1e-9; 3 that go on end with the same bits."""
    recipe = tiny_recipe(
        train__batch_size=12, train__precision="fp64", train__steps=20, train__log_every=1, train__sample_every=0
    )
    file = tmp_path / "tiny.toml"
    file.write_text(recipe.to_toml())
    found = {}
    for processes in (1, 2, 3):
        folder = tmp_path / f"run{processes}"
        share = ["--processes", processes, "--oversubscribe"] if processes > 1 else []
        done = command("train", file, "--data", tiny_data, "--run", folder, *share)
        assert done.returncode == 0, done.stderr
        found[processes] = losses(folder)
    assert len(found[1]) == 20
    assert found[2] == pytest.approx(found[1], rel=1e-9)
    assert found[3] == pytest.approx(found[1], rel=1e-9)
    folder = shutil.copytree(tmp_path / "run3", tmp_path / "resumed")
    shutil.rmtree(folder / "checkpoints" / checkpoint.step_name(20))
    done = command("train", file, "--data", tiny_data, "--run", folder, "--processes", 3, "--oversubscribe")
    assert done.returncode == 0, done.stderr
    assert "goes on from step 16" in done.stderr
    assert digests(folder) == digests(tmp_path / "run3")


@pytest.mark.slow
def test_torchrun_is_understood(tiny_data, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(tiny_recipe().to_toml())
    # the `--` keeps torchrun from taking --run for its own --run-path
    words = [
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "--",
        "hdit_cli",
        "train",
        str(file),
        "--data",
        str(tiny_data),
    ]
    words = [sys.executable, "-m", "torch.distributed.run", *words, "--run", str(tmp_path / "run")]
    for fresh in ([], ["--fresh"]):
        done = subprocess.run([*words, *fresh], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "2 processes" in done.stderr
        assert len(losses(tmp_path / "run")) == 3
    assert len(losses(tmp_path / "run.old-1")) == 3


def srun(tasks, words, *, nodes, end_at=None):
    """What srun does: so many tasks of one command at once, each told its place in Slurm's words. Their codes and outputs.

    Args:
        end_at: a file; when it is there, all tasks get SIGTERM, as `scancel` sends it.
    """
    each = tasks // nodes
    port = 20_000 + os.getpid() % 10_000
    children = []
    for task in range(tasks):
        told = {
            "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": tasks, "SLURM_STEP_NUM_TASKS": tasks,
            "SLURM_PROCID": task, "SLURM_LOCALID": task % each, "SLURM_NODEID": task // each,
            "SLURM_STEP_NODELIST": "localhost" if nodes == 1 else "localhost,127.0.0.[1-1]",
            "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})", "MASTER_PORT": port,
        }  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in told.items()}}
        command = [sys.executable, "-m", "hdit_cli", *map(str, words)]
        children.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 120
    while end_at and not end_at.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in children if end_at else ():
        child.send_signal(signal.SIGTERM)
    texts = [child.communicate(timeout=240)[1] for child in children]
    return [child.returncode for child in children], texts


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_plain_srun_is_understood(nodes, tiny_data, tmp_path):
    """Two tasks on one machine, and on two that are one: the bytes of two processes of the own launcher."""
    file, folder = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tiny_recipe().to_toml())
    words = ["train", file, "--data", tiny_data, "--run"]
    for fresh in ([], ["--fresh"]):
        codes, texts = srun(2, [*words, folder, *fresh], nodes=nodes)
        assert codes == [0, 0], texts
        assert "batch 8 = 2 processes x 4" in texts[0]
    assert (tmp_path / "run.old-1").is_dir()
    done = command(*words, tmp_path / "own", "--processes", 2, "--oversubscribe")
    assert done.returncode == 0, done.stderr
    assert digests(folder) == digests(tmp_path / "own")


@pytest.mark.slow
def test_scancel_saves(tiny_data, tmp_path):
    file, folder = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tiny_recipe(train__steps=100_000, train__save_every=100_000, train__sample_every=0).to_toml())
    words = ["train", file, "--data", tiny_data, "--run", folder]
    codes, texts = srun(2, words, nodes=2, end_at=folder / "metrics.jsonl")
    assert codes == [75, 75], texts
    assert len(checkpoint.list_steps(folder)) == 1
    assert "the same command goes on from there" in texts[0]


@pytest.mark.slow
def test_two_agents_of_torchrun(tiny_data, tmp_path):
    """As two machines would meet, on one."""
    file, folder = tmp_path / "tiny.toml", tmp_path / "run"
    file.write_text(tiny_recipe().to_toml())
    port = 20_000 + os.getpid() % 10_000
    words = ["--nnodes", 2, "--nproc_per_node", 1, "--rdzv_id", "t", "--rdzv_backend", "c10d"]
    words += ["--rdzv_endpoint", f"localhost:{port}", "-m", "--", "hdit_cli", "train", file, "--data", tiny_data]
    full = [sys.executable, "-m", "torch.distributed.run", *map(str, words), "--run", str(folder)]
    agents = [subprocess.Popen(full, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [agent.communicate(timeout=240)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], texts
    assert any("2 processes" in text for text in texts)
    assert checkpoint.list_steps(folder) == [4, 8]
