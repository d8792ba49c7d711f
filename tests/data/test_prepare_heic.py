"""HEIC, which phones write: refused by name with the way to read it, or read where pillow-heif is installed."""

import io
from pathlib import Path

import iccprofiles as icc
import numpy as np
import pytest
from PIL import Image
from sources import OPTIONS, picture, prepared, write_folder

from hdit_cli.commands.account import print_report
from hdit_cli.data.folder import FolderReader
from hdit_cli.data.prepare import prepare
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures import heic, pictures
from hdit_cli.data.prepare.pictures.fit import fit
from hdit_cli.data.prepare.pictures.pictures import read_picture
from hdit_cli.engine.sampling.picture import read_picture_for
from hdit_cli.errors import DataError

HOPPER = Path(__file__).parents[2].parent / "shared" / "data" / "odd" / "hopper.heif"
INSTALL = "pip install 'hdit-cli[heic]'"
FILE = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40)
BRANDS = {
    b"heic": "HEIF", b"heix": "HEIF", b"mif1heic": "HEIF", b"mif1miafheix": "HEIF", b"msf1hevc": "HEIF", b"avif": "AVIF",
    b"mif1" + b"xxxx" * 9 + b"avif": "AVIF", b"avismsf1": "AVIF", b"mp42": "", b"isomheix"[:4]: "",
}  # fmt: skip


@pytest.fixture
def unread(monkeypatch):
    monkeypatch.setattr(pictures, "is_read", lambda: False)


@pytest.mark.parametrize(("brands", "kind"), BRANDS.items())
def test_the_brands_of_a_file_tell_its_kind(brands, kind):
    box = b"ftyp" + brands[:4] + bytes(4) + brands
    head = (len(box) + 4).to_bytes(4, "big") + box + b"heicavif"  # what stands behind the box says nothing
    assert heic.brand_kind(head) == kind


def test_refused_with_a_code_of_its_own_and_the_install_line(tmp_path, unread):
    files = {"a.heic": FILE, "b.jpg": FILE, "c.heic": picture(1)}  # content decides
    outcomes = {entry.path: outcome for entry, outcome in prepared(write_folder(tmp_path / "in", files))}
    assert [outcomes[name].codes for name in files] == [("heic",), ("heic",), ()]
    assert INSTALL in outcomes["b.jpg"].detail


def test_the_table_of_prepare_and_its_errors_lead_on(tmp_path, capsys):
    if heic.is_read():
        pytest.skip("pillow-heif is installed, and the processes of prepare use it")
    source = write_folder(tmp_path / "in", {"a.heic": FILE, "b.jpg": FILE, "c.png": picture(1)})
    report = prepare(source, out=tmp_path / "out", options=OPTIONS, workers=1)
    assert report.codes == {"heic": 2} and report.kept == 1
    print_report(report, as_json=False, asked_to_hold_out=False)
    told = capsys.readouterr().out
    assert (
        f"2 pictures are HEIC, which phones write; to read them: {INSTALL}" in told and f"remove {tmp_path}/out" in told
    )
    (source / "c.png").unlink()
    with pytest.raises(DataError) as caught:
        prepare(source, out=tmp_path / "none", options=OPTIONS, workers=1)
    assert INSTALL in caught.value.hint and "the same command" in caught.value.hint


def test_eval_fid_and_init_image_say_so_too(tmp_path, unread):
    write_folder(tmp_path, {"a.heic": FILE})
    with pytest.raises(DataError, match=r"hdit-cli\[heic\]"):
        FolderReader(tmp_path).picture(0)
    with pytest.raises(DataError, match=r"hdit-cli\[heic\]"):
        read_picture_for(tmp_path / "a.heic", size=(8, 8), channels=3)


def test_where_a_decoder_is_there_it_is_used_and_the_profile_followed(monkeypatch):
    """A decoder that stands in for pillow-heif, registered with Pillow as that one is."""
    colours = np.random.default_rng(5).integers(40, 200, (16, 16, 3), dtype=np.uint8)

    class Opened(Image.Image):
        format = "HEIF"

    def opened(stream, name):
        image = Opened()
        plain = Image.fromarray(colours)
        image._im, image._mode, image._size = plain.im, plain.mode, plain.size
        image.info = {"icc_profile": icc.rgb(icc.DISPLAY_P3, 2.2)}
        return image

    Image.init()
    monkeypatch.setattr(pictures, "is_read", lambda: True)
    monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
    monkeypatch.setitem(Image.OPEN, "HEIF", (opened, None))
    options = PrepareOptions(size=(16, 16))
    image, notes = fit(read_picture(io.BytesIO(FILE), options), options)
    assert notes == ["icc"]
    assert np.abs(np.asarray(image) - icc.to_srgb(colours, icc.DISPLAY_P3, 2.2)).max() <= 1


@pytest.mark.skipif(not heic.is_read() or not HOPPER.is_file(), reason=f"needs pillow-heif, and {HOPPER}")
def test_a_real_one():
    options = PrepareOptions(size=(128, 128))
    data = HOPPER.read_bytes()
    image, notes = fit(read_picture(io.BytesIO(data), options), options)
    assert notes == [] and np.asarray(image).std() > 20
    for cut in (len(data) // 2, len(data) - 9):
        with pytest.raises(pictures.Refused) as caught:
            read_picture(io.BytesIO(data[:cut]), options)
        assert caught.value.code in ("truncated", "damaged")
