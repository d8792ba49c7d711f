"""Tars made by others: webdataset's idea of a sample, its traps, and none of its doors to the shell."""

import gzip
import io
import itertools
import os
import pickle
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sources import listed, number_of, pairs, picture, prepared, write_tar

from hdit_cli.errors import DataError


def found(tmp_path, *members):
    """name => (class, caption, notes) of the pictures in a tar of these members; `n` stands for picture number n."""
    data = [(name, picture(value) if isinstance(value, int) else value.encode()) for name, value in members]
    outcomes = prepared(write_tar(tmp_path / "t.tar", data))
    assert len(outcomes) == len(members)
    return {
        entry.path: (entry.group, outcome.members.get(".txt", b"").decode() or None, outcome.codes)
        for entry, outcome in outcomes
        if outcome.verdict == "kept"
    }


def test_dotted_names_keep_apart(tmp_path):
    """The key ends at the first dot, so both are fields of one sample "22"; each takes what has its own field."""
    assert found(
        tmp_path, ("22.05.png", 1), ("22.05.cls", "a"), ("22.05.txt", "A"), ("22.06.png", 2), ("22.06.cls", "b"), ("22.07.png", 3)
    ) == {"22.05.png": ("a", "A", ()), "22.06.png": ("b", None, ()), "22.07.png": (None, None, ())}  # fmt: skip


def test_fields_of_one_sample_share_its_label(tmp_path):
    assert found(tmp_path, ("0.left.png", 1), ("0.right.png", 2), ("0.cls", "a"), ("0.json", '{"caption": "c"}')) == {
        "0.left.png": ("a", "c", ()), "0.right.png": ("a", "c", ()),
    }  # fmt: skip


def test_a_dotted_picture_beside_a_plain_one_takes_nothing_of_it(tmp_path):
    assert found(tmp_path, ("22.png", 1), ("22.cls", "a"), ("22.txt", "A"), ("22.05.png", 2)) == {
        "22.png": ("a", "A", ()), "22.05.png": (None, None, ("bad-caption", "bad-label")),
    }  # fmt: skip


def test_members_of_a_packed_folder_may_lie_anywhere(tmp_path):
    assert found(tmp_path, ("./r/0.png", 1), ("./r/1.png", 2), ("./r/1.txt", "B"), ("./r/0.txt", "A")) == {
        "./r/0.png": ("r", "A", ()), "./r/1.png": ("r", "B", ()),
    }  # fmt: skip


def test_where_names_come_twice_only_neighbours_belong_together(tmp_path):
    members = [("0.png", 1), ("1.png", 2), ("0.cls", "a"), ("1.cls", "b"), ("0.png", 3), ("0.cls", "c"), ("2.png", 4)]
    data = [(name, picture(value) if isinstance(value, int) else value.encode()) for name, value in members]
    assert pairs(prepared(write_tar(tmp_path / "t.tar", data))) == [
        (1, None, None, ("split-sample",)), (3, "c", None, ()), (2, None, None, ("split-sample",)), (4, None, None, ()),
    ]  # fmt: skip


def test_halves_take_nothing_that_the_other_half_may_own(tmp_path):
    """A name comes twice, so that neighbours belong together: but a.cls is a.png's, not a.y's, and a.z has its own."""
    members = [
        ("a.y.png", picture(1)),
        ("a.cls", b"wrong"),
        ("a.txt", b"wrong"),
        ("b.png", picture(2)),
        ("a.png", picture(3)),
    ]
    members += [
        ("b.png", picture(4)),
        ("r/a.z.png", picture(5)),
        ("r/a.cls", b"?"),
        ("c.png", picture(6)),
        ("r/a.z.cls", b"z"),
    ]
    assert pairs(prepared(write_tar(tmp_path / "t.tar", members))) == [
        (3, None, None, ("split-sample",)), (1, None, None, ("split-sample",)), (2, None, None, ()), (4, None, None, ()),
        (6, None, None, ()), (5, None, None, ("split-sample",)),
    ]  # fmt: skip


def test_a_link_owns_what_has_its_name_and_hides_what_it_would_tell(tmp_path):
    """Links are refused: what lies beside one is still of it alone, and no folder steps in for a class that is a link."""
    write_tar(
        tmp_path / "t.tar",
        [("r/a.x.png", picture(1)), ("r/a.cls", b"of a"), ("r/b.png", picture(2)), ("r/c.png", picture(3))],
    )
    with tarfile.open(tmp_path / "t.tar", "a") as archive:
        for name, kind in (("r/a.png", tarfile.SYMTYPE), ("r/b.cls", tarfile.LNKTYPE), ("r/c.txt", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "r/a.cls"
            archive.addfile(link)
    told = prepared(tmp_path / "t.tar")
    assert pairs(told) == [
        (1, None, None, ("split-sample",)), (2, None, None, ("split-sample",)), (3, "r", None, ("split-sample",)),
    ]  # fmt: skip
    assert [entry.path for entry, _ in told if entry.code == "not-a-file"] == ["r/a.png", "r/b.cls", "r/c.txt"]


def test_duplicate_keys_and_case_twins_have_no_class(tmp_path):
    """webdataset raises for these samples."""
    data = [("0.png", picture(1)), ("0.cls", b"a"), ("0.png", picture(2)), ("0.cls", b"b")]
    assert {pair[1:] for pair in pairs(prepared(write_tar(tmp_path / "d.tar", data)))} == {(None, None, ("bad-label",))}
    twins = found(tmp_path, ("x.png", 1), ("x.PNG", 2), ("x.txt", "?"), ("X.png", 3), ("X.cls", "own"))
    assert twins == {
        "x.png": (None, None, ("bad-caption",)), "x.PNG": (None, None, ("bad-caption",)), "X.png": ("own", None, ()),
    }  # fmt: skip


def test_what_webdataset_drops_is_told(tmp_path):
    data = [
        ("__meta__/a.png", picture(1)),
        ("__notes__", b"x"),
        (".hidden.png", picture(2)),
        ("plain", picture(3)),
        ("d/.x.png", picture(4)),
    ]
    assert (
        len(
            list(webdataset.WebDataset(str(write_tar(tmp_path / "t.tar", data)), shardshuffle=False, empty_check=False))
        )
        <= 1
    )
    told = {entry.path: (outcome.verdict, entry.group) for entry, outcome in prepared(tmp_path / "t.tar")}
    assert told == {
        "__meta__/a.png": ("side", "__meta__"), "__notes__": ("side", None), ".hidden.png": ("kept", None),
        "plain": ("kept", None), "d/.x.png": ("kept", "d"),
    }  # fmt: skip


def test_the_folder_a_tar_is_named_after_is_no_class(tmp_path):
    data = [("t/rose/a.png", picture(1)), ("t/b.png", picture(2))]
    assert listed(write_tar(tmp_path / "t.tar", data))[0].classes == ["rose"]
    assert listed(write_tar(tmp_path / "u.tar", data))[0].classes == ["t"]


@pytest.mark.parametrize("wrong", ["", "  \n", "a\nb", "x" * 300, "\xff"])
def test_labels_that_are_none(tmp_path, wrong):
    (told,) = found(tmp_path, ("rose/0.png", 1), ("rose/0.cls", wrong.encode("latin-1").decode("latin-1"))).values()
    assert told == (
        ("rose", None, ())
        if not wrong.strip()
        else (None, None, ("bad-label",))
        if wrong != "\xff"
        else ("\xff", None, ())
    )


@pytest.mark.parametrize("end", [1024, 1300, 2048, 2049])
def test_a_cut_tar_is_told_wherever_the_cut(tmp_path, end):
    data = [("r/0.png", picture(1)), ("r/0.cls", b"a"), ("r/1.png", picture(2))]
    os.truncate(write_tar(tmp_path / "t.tar", data), end)
    (_, refusal), *rest = ((entry.path, outcome) for entry, outcome in prepared(tmp_path / "t.tar"))
    kept = pairs(prepared(tmp_path / "t.tar"))
    assert any(outcome.codes == ("damaged",) for _, outcome in [("", refusal), *rest])
    assert kept[0][:2] == ((1, None) if end >= 2048 else (1, "r"))  # the class may be of a second r/0


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz"])
def test_compressed_tars_are_refused_clearly(tmp_path, pack):
    with tarfile.open(tmp_path / "t.tar", f"w:{pack}") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(DataError, match=r"compressed with .*; unpack it first"):
        listed(tmp_path / "t.tar")
    write_tar(tmp_path / "s" / "0.tar", [("a.png", picture(1))])
    (tmp_path / "s" / "1.tar").write_bytes(gzip.compress(b"x"))
    assert listed(tmp_path / "s")[1]["1.tar"].code == "damaged"


def test_a_sample_does_not_reach_into_the_next_tar(tmp_path):
    write_tar(tmp_path / "0.tar", [("5.png", picture(1))])
    write_tar(tmp_path / "1.tar", [("5.cls", b"wrong"), ("6.png", picture(2)), ("6.cls", b"right")])
    assert pairs(prepared(tmp_path)) == [(1, None, None, ()), (2, "right", None, ())]


def test_the_last_sample_of_a_cut_tar_may_be_two_of_one_name(tmp_path):
    """The text may be of the second one, whose picture is lost: the first one must not have it."""
    data = [("a.png", picture(1)), ("a.txt", b"of the second"), ("a.png", picture(2))]
    path = write_tar(tmp_path / "t.tar", data)
    os.truncate(path, 512 + -(-len(picture(1)) // 512) * 512 + 1024)
    ((number, _, caption, codes),) = pairs(prepared(path))
    assert (number, caption, codes) == (1, None, ("split-sample",))


NAMES = ["a", "b", "a.x", "a.y", "c/a", "c/b.x", "A"]
MEMBERS = {"c": ["cls"], "t": ["txt"], "j": ["json"], "ct": ["cls", "txt"], "cj": ["cls", "json"]}
BLOCK = 512  # of a tar; each member here has one for its header and one for its bytes


@st.composite
def colliding(draw):
    """Samples (name, what they have) one behind the other, perhaps cut off; or of single names, in any order.

    Returns the samples, the members in their order as (number of the sample, suffix), and where to cut: None = nowhere.
    """
    several = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["", *MEMBERS])), min_size=1, max_size=7)
    samples = draw(several)
    shuffled = draw(st.booleans())
    if shuffled:
        samples = list(dict(samples).items())
    members = []
    for number, (_, has) in enumerate(samples):
        members += draw(st.permutations([(number, suffix) for suffix in ["png", *MEMBERS.get(has, [])]]))
    if shuffled:
        members = draw(st.permutations(members))
    return samples, members, draw(st.none() | st.integers(BLOCK, BLOCK * (2 * len(members) + 2)))


def in_order(names, order, blocks=None):
    """An example of `colliding`: name => what it has, its members' names as they follow, how many blocks are left."""
    samples = list(names.items())
    numbers = {name: number for number, (name, _) in enumerate(samples)}
    members = [(numbers[name], suffix) for name, _, suffix in (one.rpartition(".") for one in order.split())]
    return samples, members, blocks and blocks * BLOCK


WHOLE_NAME_IS_ELSEWHERE = in_order(
    {"a": "c", "a.x": "c", "a.y": "", "b": "ct", "c/a": "c", "c/b.x": "ct"},
    "a.png a.x.png a.x.cls b.png a.y.png a.cls b.cls b.txt c/a.png c/a.cls c/b.x.png c/b.x.cls c/b.x.txt",
    blocks=13,
)


@settings(max_examples=100, deadline=None)
@given(world=colliding())
@example(world=WHOLE_NAME_IS_ELSEWHERE)
@example(
    world=in_order({"a": "c", "a.y": "", "b": "c"}, "a.y.png a.cls b.png b.cls a.png", blocks=8)
)  # its picture is lost
@example(world=in_order({"a": "j", "a.y": "", "b": "j"}, "a.json a.y.png b.png b.json a.png", blocks=8))
@example(
    world=in_order({"a": "t", "a.y": "t", "b": ""}, "a.y.png a.txt b.png a.y.txt a.png", blocks=6)
)  # its own is lost
def test_no_picture_takes_anothers_label_or_caption(tmp_path_factory, world):
    samples, order, cut = world
    members, truth = [], {}
    for number, (name, has) in enumerate(samples):
        label = f"class{number}" if set(has) & set("cj") else "c" if name.startswith("c/") else None
        truth[number] = (label, f"text{number}" if set(has) & set("tj") else None)
    for number, suffix in order:
        told = {
            "png": picture(number),
            "cls": b"class%d" % number,
            "txt": b"text%d" % number,
            "json": b'{"label": "class%d", "caption": "text%d"}' % (number, number),
        }
        members.append((f"{samples[number][0]}.{suffix}", told[suffix]))
    path = write_tar(tmp_path_factory.mktemp("t") / "x.tar", members)
    os.truncate(path, path.stat().st_size if cut is None else cut)
    try:
        outcomes = prepared(path)
    except DataError:
        assert cut is not None
        return
    kept = pairs(outcomes)
    assert len({number for number, *_ in kept}) == len(kept)
    for number, label, caption, codes in kept:
        folder = "c" if samples[number][0].startswith("c/") else None
        assert label in (None, folder, truth[number][0]) and caption in (None, truth[number][1])
        if cut is None:
            assert label == truth[number][0] or codes, "what was lost is told"
            assert caption == truth[number][1] or codes
    if cut is None:
        assert len(kept) == len(samples) and len(outcomes) == len(members)


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(
        st.builds(
            "{}{}.{}".format,
            st.sampled_from(["a", "b", "c/a"]),
            st.sampled_from(["", ".x", ".y"]),
            st.sampled_from(["png", "png", "cls", "json", "txt"]),
        ),
        min_size=2,
        max_size=9,
        unique=True,
    ),
    order=st.randoms(use_true_random=False),
)
@example(names=["a.cls", "a.png", "a.y.png", "b.png", "a.x.png", "a.x.json"], order=random.Random(3))
def test_order_and_a_cut_change_nothing_of_whose_a_file_is(tmp_path_factory, names, order):
    """In any order the same; cut off, what the whole tar gives or nothing, while every kind of file was seen before."""
    kinds = ["z.png", "z.cls", "z.json", "z.txt"]
    names = [*kinds, *sorted(names)]
    root = tmp_path_factory.mktemp("t")

    def written(names):
        texts = {"cls": "class %s", "json": '{"label": "json %s", "caption": "told %s"}', "txt": "text %s"}
        filled = {name: texts.get(name.rpartition(".")[2], "").replace("%s", name).encode() for name in names}
        pictures = {name: picture(number) for number, name in enumerate(sorted(names)) if name.endswith("png")}
        return write_tar(root / "x.tar", [(name, pictures.get(name) or filled[name]) for name in names])

    def told():
        outcomes = {entry.path: (entry, outcome) for entry, outcome in prepared(root / "x.tar")}
        return {
            name: (entry.group, outcome.members.get(".txt"), outcome.codes)
            for name, (entry, outcome) in outcomes.items()
            if outcome.verdict == "kept"
        }

    written(names)
    whole = told()
    order.shuffle(rest := names[4:])
    path = written([*kinds, *rest])
    assert told() == whole
    os.truncate(path, 2 * BLOCK * order.randint(5, len(names)))
    for name, (label, caption, codes) in told().items():
        assert label in (None, whole[name][0]) and (label == whole[name][0] or codes)
        own = (
            f"told {name.removesuffix('.png')}.json".encode()
        )  # what it has where its .txt may be among what was cut off
        assert caption in (None, whole[name][1], own)
        assert caption == whole[name][1] or caption == own or codes


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a.png", "a.cls", "a.x.png", "a.x.cls", "b.png", "b.cls", "b.PNG", ".png", "c/.cls"]),
        min_size=1,
        max_size=9,
    )
)
def test_a_class_is_one_that_webdataset_has_in_the_same_sample(tmp_path_factory, names):
    members = [(name, picture(n) if name.lower().endswith("png") else b"%d" % n) for n, name in enumerate(names)]
    path = write_tar(tmp_path_factory.mktemp("t") / "x.tar", members)
    numbers = itertools.count()
    runs = webdataset.tariterators.group_by_keys(
        ({"fname": name, "data": value, "__url__": ""} for name, value in members),
        keys=lambda name: (webdataset.tariterators.base_plus_ext(name)[0], str(next(numbers))),
    )
    together = [{value for key, value in run.items() if key[0] != "_"} for run in runs]
    for number, label, _, _ in pairs(prepared(path)):
        if label is not None and len(set(names)) < len(names):  # else the members may lie anywhere
            assert any(picture(number) in run and label.encode() in run for run in together) or label == "c"


DOORS = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo",
    "pickle.find_class", "urllib.Request",
}  # fmt: skip
opened, is_watched = [], []
sys.addaudithook(lambda event, _: opened.append(event) if is_watched and event in DOORS else None)


class Boom:
    def __reduce__(self):
        return os.system, ("touch CANARY",)


def test_shell_urls_rewriting_and_pickles_are_never_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "GOPEN_REWRITE": "=pipe:touch CANARY;",
        "WDS_REWRITE": "a=pipe:touch CANARY",
        "WDS_SECURE": "0",
    }.items():
        monkeypatch.setenv(key, value)
    boom = pickle.dumps(Boom())
    names = [
        "pipe:touch CANARY",
        "shard#1.tar",
        "s?x.tar",
        "{0..1}.tar",
        "a::b.tar",
        "http:..x.tar",
        "$(touch CANARY).tar",
    ]
    for number, name in enumerate(names):
        members = [
            ("0.png", picture(number)),
            *((f"0.{kind}", boom) for kind in ("pyd", "pth", "npy", "pickle", "cls", "json")),
        ]
        write_tar(tmp_path / name, members)
        write_tar(tmp_path / "set" / f"{number}{name}.tar", members)
    is_watched.append(True)
    try:
        kept = [pair[0] for source in [*names, "set"] for pair in pairs(prepared(Path(source)))]
        caught = list(opened)
        with pytest.raises(OSError, match="No such file"):
            subprocess.Popen(["no such program"])
    finally:
        is_watched.clear()
    assert sorted(kept) == sorted([*range(len(names))] * 2)
    assert not caught and opened, "nothing was opened, and the watch is awake"
    assert not list(tmp_path.rglob("CANARY"))


def test_order_is_of_bytes_whatever_lies_between_a_tar_and_its_members(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", picture(1)), ("b.png", picture(2))])
    os.truncate(tmp_path / "0.tar", 1300)
    for name in ("0.tar.md", "0.tar-x.png", "0.tas.png"):
        (tmp_path / name).write_bytes(picture(random.Random(name).randrange(99) + 3))
    _, entries = listed(tmp_path)
    assert list(entries)[:3] == ["0.tar", "0.tar-x.png", "0.tar.md"] and "0.tar/a.png" in entries
    assert number_of(picture(300)) == 300
