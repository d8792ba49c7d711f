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
