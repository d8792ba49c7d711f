"""What `hdit train` shows of long things besides training."""

from pathlib import Path

from hdit_cli.commands import progress
from hdit_cli.commands.train import Watcher
from hdit_cli.engine.run import events


def test_a_grid_has_lines_of_its_own_and_no_part_in_the_speed_of_training(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    started = events.Started(
        params=1, gmacs=1.0, images=2, classes=0, split="batch 2 = 2", device="cpu", step=0, steps=10
    )
    with Watcher(quiet=False) as watcher:
        watcher(started)
        for done in range(1, 5):
            now[0] += 100.0
            watcher(events.Working("drawing step 0 raw", done, 4, "image"))
        watcher(events.Drawn(Path("step-0-raw.png")))
        assert now[0] - watcher.bar.start_t == 0
    err = capsys.readouterr().err
    assert "drawing step 0 raw:  50%" in err
    assert "2/4" in err
    assert "drew step-0-raw.png" in err
