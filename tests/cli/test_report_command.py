"""`hdit report` as it is typed."""

import json

import pytest

from hdit_cli import cli


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_one_run_gets_its_page_in_its_folder(made, capsys):
    code, out, _ = run(capsys, "report", made / "run", "--json")
    told = json.loads(out)
    page = made / "run" / "report.html"
    assert code == 0 and told["path"] == str(page) and told["bytes"] == page.stat().st_size
    summary = told["runs"][0]["summary"]
    assert (summary["state"], summary["step"], summary["classes"]) == ("finished", 3, ["rose", "tulip"])
    assert summary["pictures"] == 12 and summary["epochs"] == 1.0
    assert told["runs"][0]["notes"] == []


def test_several_runs_get_one_page_here(made, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other" / "samples").mkdir(parents=True)
    code, out, _ = run(capsys, "report", made / "run", "other")
    assert code == 0 and (tmp_path / "report.html").is_file()
    assert "run: finished, step 3 of 3" in out and "other: empty, step 0" in out and "note: no recipe.toml" in out


@pytest.mark.parametrize(("words", "told"), [(["nothing-here"], "no run folder"), ([], "Missing argument")])
def test_refusals(capsys, words, told):
    code, out, err = run(capsys, "report", *words)
    assert code == 2 and told in err and not out


def test_a_file_that_is_no_report_stays(made, capsys, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    code, _, err = run(capsys, "report", made / "run", "--out", tmp_path / "page.html")
    assert code == 2 and "--force" in err and (tmp_path / "page.html").read_text() == "mine"
    assert run(capsys, "report", made / "run", "--out", tmp_path / "page.html", "--force")[0] == 0


def test_all_runs_below_a_folder(made, capsys, tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    for name in ("a", "sweep/b", ".hidden/c"):
        shutil.copytree(made / "run", tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes").mkdir()
    code, out, _ = run(capsys, "report", "runs", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["path"] == "report.html"
    assert [each["path"] for each in told["runs"]] == ["runs/a", "runs/sweep/b"]
    code, out, _ = run(capsys, "report", "runs", "runs/a", "--json")  # named twice
    assert len(json.loads(out)["runs"]) == 2
    code, _, err = run(capsys, "report", "runs/notes")
    assert code == 2
    assert "is not a run" in err


def begun(folder):
    """Makes a finished run look like one that this process is training, at its first step; its lines of metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    (folder / "ckpt.safetensors").unlink()
    return lines


def test_watch_ends_with_the_run(made, capsys, tmp_path, monkeypatch):
    """A page for each thing that the run writes, none while it writes nothing, and one at the end."""
    import shutil

    from hdit_cli.engine.report import watch_report

    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    lines = begun(folder)
    pauses = []

    def pause():
        pauses.append(1)
        if len(pauses) == 2:
            (folder / "metrics.jsonl").write_text("".join(lines[:2]))
        if len(pauses) == 4:
            (folder / ".lock").unlink()

    pages = list(watch_report([folder], out=tmp_path / "r.html", force=False, pause=pause))
    assert len(pauses) == 4
    assert [len(page.facts["runs"][0]["log"]["step"]) for page in pages] == [1, 2, 2]
    assert [page.facts["runs"][0]["summary"]["state"] for page in pages] == ["training", "training", "stopped"]
    # where nothing trains it is written once
    code, _, err = run(capsys, "report", folder, "--watch")
    assert (code, err.count("wrote ")) == (0, 1)


def test_ctrl_c_ends_a_watch_as_it_ends_other_commands(made, capsys, tmp_path, monkeypatch):
    import shutil
    import time

    def interrupt(seconds):
        raise KeyboardInterrupt

    shutil.copytree(made / "run", tmp_path / "run")
    begun(tmp_path / "run")
    monkeypatch.setattr(time, "sleep", interrupt)
    code, _, err = run(capsys, "report", tmp_path / "run", "--watch")
    assert code == 75
    assert "interrupted" in err
    assert (tmp_path / "run" / "report.html").is_file()
