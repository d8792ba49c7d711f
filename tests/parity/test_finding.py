"""Cases are found by their layout, wherever they lie below the folders that are looked through."""

import golden


def write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


BESIDE = ("config.json", "io.safetensors", "facts.json")


def test_cases_are_found_by_their_layout(tmp_path):
    wanted = [
        write(tmp_path / "plain", "net.safetensors", *BESIDE),
        write(tmp_path / "kept" / "any name", "net.safetensors", *BESIDE),
        write(tmp_path / "other", "net.safetensors", *BESIDE),
    ]
    write(tmp_path / "half", "net.safetensors", "config.json", "facts.json")
    write(tmp_path / "another", "other.safetensors", *BESIDE)
    places = [tmp_path, tmp_path / "other", tmp_path / "kept" / ".." / "kept", tmp_path / "absent"]
    assert golden.cases("net.safetensors", places) == sorted(wanted)


def test_the_folder_that_is_named_is_looked_through(tmp_path, monkeypatch):
    monkeypatch.delenv("HDIT_GOLDEN", raising=False)
    before = golden.cases("kdiffusion.safetensors")
    case = write(tmp_path / "kept" / "case", "kdiffusion.safetensors", *BESIDE)
    monkeypatch.setenv("HDIT_GOLDEN", str(tmp_path))
    assert golden.cases("kdiffusion.safetensors") == sorted([*before, case])
    monkeypatch.setenv("HDIT_GOLDEN", "")
    assert golden.cases("kdiffusion.safetensors") == before
