# ruff: noqa: F811 - fixtures of another module
"""Several feature nets of one set of samples: each picture is made once, and each net's scores are what it gives alone."""

import json

import numpy as np
import pytest
from test_evaluate import own_cache, place, save_exported, scored, silent  # noqa: F401 - two are fixtures
from test_unfinished import facts, kept, signal_at

from hdit_cli import files
from hdit_cli.cli import main
from hdit_cli.engine.report.gather import gather
from hdit_cli.engine.sampling import generate
from hdit_cli.engine.scoring import picture_sets, references
from hdit_cli.engine.scoring.evaluate import evaluate
from hdit_cli.engine.scoring.one_pass import collect
from hdit_cli.engine.scoring.request import Request, Session
from hdit_cli.engine.scoring.scores import net_words
from hdit_cli.engine.scoring.sweep import Axis, Sweep, sweep
from hdit_cli.engine.sharing.card import read_scores
from hdit_cli.errors import DataError, Interrupted, UsageError
from hdit_cli.metrics import inception
from hdit_cli.metrics.feature_net import split

METRICS = ("fid", "kd", "is", "fd", "memorisation", "swd")


@pytest.fixture
def nets(place, tmp_path):
    """Inception, and one of torch.export."""
    return [f"inception:{place / 'net.pt'}", str(save_exported(tmp_path))]


def request(place, nets, **changes):
    how = {"metrics": METRICS, "n": 11, "allow_small": True, "sampling": {"batch_size": 2}, **changes}
    return Request(place / "model.safetensors", features=",".join(nets), **how)


def test_each_net_gives_what_it_gives_alone_and_pictures_are_made_once(place, nets, monkeypatch):
    made = []

    def watched(*arguments, **options):
        for numbers, pictures in generate.stream(*arguments, **options):
            made.extend(numbers)
            yield numbers, pictures

    monkeypatch.setattr(picture_sets, "stream", watched)
    together = scored(request(place, nets))
    assert sorted(made) == list(range(11))
    alone = [scored(request(place, nets[:1])), scored(request(place, nets[1:], metrics=("kd", "fd", "memorisation")))]
    assert facts(together) == [score for each in alone for score in facts(each)]
    assert together.facts["features"] == [each.facts["features"] for each in alone]


def test_each_score_names_its_net(place, nets):
    evaluation = scored(request(place, nets))
    told = json.loads(json.dumps(evaluation.record()))
    assert [(score["metric"], score.get("features", {}).get("net")) for score in told["scores"]] == [
        *((name, "inception") for name in METRICS[:-1]),
        ("swd", None),
        *((name, "exported") for name in ("kd", "fd", "memorisation")),
    ]
    assert {score["features"]["sha256"] for score in told["scores"] if "features" in score} == {
        files.sha256(place / "net.pt"),
        told["features"][1]["sha256"],
    }
    assert [score["features"]["resize"] for score in told["scores"] if score["metric"] == "fd"] == [
        "bicubic-299",
        "by the net",
    ]
    assert sum("perfect model" in note and "net.pt2" in note for note in evaluation.notes) == 1
    single = scored(request(place, nets[:1])).record()
    assert isinstance(single["features"], dict) and not any("features" in score for score in single["scores"])


def test_the_runs_log_has_a_line_for_each_net_and_each_has_its_picture(place, nets, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("")
    (run / "ckpt.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    words = ["eval-fid", str(run), "--features", ",".join(nets), "--metrics", "is,fd,memorisation,swd", "-n", "11"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--allow-small"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    sha = [files.sha256(place / "net.pt"), files.sha256(tmp_path / "net.pt2")]
    (of_inception, of_exported) = (line for line in page.splitlines() if line.startswith("FD "))
    assert of_inception.endswith(f"of inception, bicubic-299, sha256 {sha[0][:12]}")
    assert of_exported.endswith(f"of exported, by the net, sha256 {sha[1][:12]}")
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [line["features"]["sha256"] for line in lines] == sha
    assert [list(line["scores"]) for line in lines] == [["is", "fd", "memorisation", "swd"], ["fd", "memorisation"]]
    drawn = [f"memorisation-inception-{sha[0][:8]}.png", f"memorisation-exported-{sha[1][:8]}.png"]
    assert sorted(path.name for path in run.glob("*.png")) == sorted(drawn)
    assert all(name in page for name in drawn)
    (shown,) = gather([run])["runs"]  # the report joins only scores of one net
    assert [score["sampling"].split(", ")[-1] for score in shown["scores"]] == [
        f"inception {sha[0][:8]}",
        f"exported {sha[1][:8]}",
    ]
    assert [scored.sampling.split(", ")[-1] for scored in read_scores(run)] == [
        f"inception {sha[0][:8]}",
        f"exported {sha[1][:8]}",
    ]


@pytest.mark.parametrize("what", ["generated", pytest.param("set", marks=pytest.mark.slow)])
def test_broken_off_it_goes_on_with_all_nets_bit_for_bit(place, nets, tmp_path, monkeypatch, what):
    monkeypatch.setattr("hdit_cli.engine.scoring.picture_sets._READ", 4)
    wanted = request(place, nets)
    expected = facts(scored(wanted))
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "other"))
    with pytest.raises(Interrupted, match=r"after [468] of 1[01] .* saved"):
        evaluate(wanted, on_progress=signal_at(what, 4))
    assert len(kept(tmp_path / "other")) == 1
    seen = []
    again = evaluate(wanted, on_progress=lambda what, done, total: seen.append((what, done)))
    assert again is not None and facts(again) == expected
    assert min(done for name, done in seen if what in name) > 4  # what was done was not done again
    assert not kept(tmp_path / "other")


def test_references_are_kept_for_each_net(place, nets, own_cache, monkeypatch):
    """What one net alone has left there is taken, and the order of the nets does not matter."""
    read = []

    def watched(pictures, fed, **options):
        read.append([tuple(kind.name for kind in each.metrics) for each in fed])
        return collect(pictures, fed, **options)

    monkeypatch.setattr(references, "collect", watched)
    scored(request(place, nets[1:], metrics=("fd", "kd")))
    scored(request(place, nets, metrics=("fd", "kd")))
    scored(request(place, nets[::-1], metrics=("fd", "kd")))
    assert read == [[("fd", "kd")], [("fd", "kd"), ()]]
    assert len(list((own_cache / "reference").iterdir())) == 4


def test_what_several_nets_cannot_do(place, nets, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.pt2").write_bytes((tmp_path / "net.pt2").read_bytes() + b" ")
    cases = [
        (
            request(place, [nets[1], str(other / "net.pt2")], metrics=("is", "fd")),
            UsageError,
            "^is: needs Inception's features",
        ),
        (request(place, nets, metrics=("fid", "swd")), UsageError, r"net\.pt2, and none of the metrics fid,swd"),
        (request(place, nets, metrics=("swd",)), UsageError, "none of the metrics swd"),
        (request(place, [nets[1], nets[1]], metrics=("fd",)), UsageError, r"one net twice: .*net\.pt2"),
        (request(place, [nets[0], "nowhere.pt2"]), DataError, "nowhere.pt2"),
        (request(place, [nets[0], "vgg"]), UsageError, "'vgg' names no feature net"),
        (request(place, [nets[0], ""]), UsageError, "'' names no feature net"),
    ]
    for wanted, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            evaluate(wanted, on_progress=silent)
        assert caught.value.hint, words
    with pytest.raises(UsageError, match="one feature net"):
        base = request(place, nets)
        sweep(Sweep(base, (Axis("cfg", (1.0, 2.0)),), tmp_path), Session(), on_progress=silent)


def test_moments_of_one_net_are_no_reference_for_two(place, nets, tmp_path):
    np.savez(tmp_path / "moments.npz", mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(UsageError, match="moments of one net's features, and --features names 2"):
        evaluate(request(place, nets, metrics=("fd",), reference=tmp_path / "moments.npz"), on_progress=silent)


def test_the_published_net_goes_without_saying():
    assert net_words({"net": "inception", "sha256": inception.SHA256}) == net_words(None) == net_words({}) == ""
    assert net_words({"net": "clip", "sha256": "0123456789"}) == "clip 01234567"


def test_a_list_of_nets(tmp_path):
    assert split("inception") == ["inception"]
    assert split("inception, clip:a,b.pt2") == ["inception", "clip:a", "b.pt2"]
    (tmp_path / "a,b.pt2").write_bytes(b"")
    assert split(str(tmp_path / "a,b.pt2")) == [str(tmp_path / "a,b.pt2")]
    with pytest.raises(UsageError):
        split("a,b.pt2")
