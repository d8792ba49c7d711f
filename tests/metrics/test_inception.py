"""The feature net: clean-fid's own resizing and wrapper as judges, where its weights come from, what goes wrong."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from hdit_cli import runtime
from hdit_cli.errors import DataError, NonFiniteError
from hdit_cli.metrics import inception
from hdit_cli.metrics.inception import Inception


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [(32, 32), (299, 299), (480, 360), (17, 900), (1, 1)])
def test_resizing_is_clean_fids_to_the_last_float(size):
    oracle = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    x = picture(*size)
    found = inception.resize(x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, oracle(x).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore")
def test_features_are_those_of_clean_fids_wrapper(net_path):
    wrapper = pytest.importorskip("cleanfid.inception_torchscript").InceptionV3W(str(net_path.parent), download=False)
    pictures = [picture(40, 30, seed) for seed in range(3)]
    with torch.no_grad():
        expected = wrapper(torch.from_numpy(np.stack([inception.resize(x) for x in pictures])))
    found = Inception(net_path)(pictures)
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_batch(net_path):
    net = Inception(net_path)
    pictures = [picture(20 + seed, 30, seed) for seed in range(5)]  # of different sizes, as in a folder
    together = net(pictures)
    np.testing.assert_array_equal(together, np.concatenate([net([x]) for x in pictures]))


def test_a_named_file_is_used_and_marked_as_not_published(net_path):
    net = Inception(net_path)
    assert net.sha256 == hashlib.sha256(net_path.read_bytes()).hexdigest()
    assert not net.published
    assert Inception(net_path.parent).path == net_path  # its folder will do


def test_the_published_hash_is_known_as_such(net_path, monkeypatch):
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(net_path.read_bytes()).hexdigest())
    assert Inception(net_path).published


def test_the_cache_takes_only_the_published_file(net_path, own_cache, monkeypatch):
    own_cache.mkdir()
    (own_cache / inception.FILE).write_bytes(net_path.read_bytes())
    assert inception.locate() == own_cache / inception.FILE
    with pytest.raises(DataError, match="not the published") as caught:
        Inception()
    assert "--inception" in caught.value.hint
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(net_path.read_bytes()).hexdigest())
    assert Inception().published


def test_missing_weights_say_where_from_and_where_to(own_cache, tmp_path):
    assert inception.locate() is None
    for path in (None, tmp_path / "nowhere.pt", tmp_path):
        with pytest.raises(DataError) as caught:
            Inception(path)
        assert caught.value.exit_code == 3
        assert inception.URL in caught.value.hint
        assert str(own_cache / inception.FILE) in caught.value.hint
        assert "--metrics swd" in caught.value.hint


def test_not_a_net_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("not a net")
    with pytest.raises(DataError, match="not a TorchScript"):
        Inception(tmp_path / "text.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "other.pt"))
    with pytest.raises(DataError, match="not a TorchScript Inception"):
        Inception(tmp_path / "other.pt")


def test_features_that_are_not_finite_are_refused(tmp_path):
    class Bad(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) / 0

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Bad()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    torch.jit.save(torch.jit.script(Net()), str(tmp_path / "bad.pt"))
    with pytest.raises(NonFiniteError):
        Inception(tmp_path / "bad.pt")([picture(8, 8)])


def serve(monkeypatch, source) -> None:
    def open_it(url, timeout):
        if isinstance(source, Exception):
            raise source
        return source

    monkeypatch.setattr(inception, "urlopen", open_it)


def test_download_arrives_whole_and_checked(net_path, own_cache, monkeypatch):
    data = net_path.read_bytes()
    serve(monkeypatch, io.BytesIO(data))
    seen = []
    path = inception.download(
        expected=hashlib.sha256(data).hexdigest(), progress=lambda done, total: seen.append((done, total))
    )
    assert path == own_cache / inception.FILE == inception.published_path()
    assert path.read_bytes() == data
    assert seen[-1] == (len(data), 0)


class Breaking(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise TimeoutError("timed out")
        return super().read(4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (URLError("no route"), "cannot be reached"),
        (TimeoutError("slow"), "cannot be reached"),
        (io.BytesIO(b"a login page"), "SHA-256"),
        (Breaking(b"half of it"), "broke off"),
    ],
)
def test_a_download_that_fails_leaves_nothing(own_cache, monkeypatch, source, message):
    serve(monkeypatch, source)
    with pytest.raises(DataError, match=message) as caught:
        inception.download()
    assert inception.URL in caught.value.hint
    assert not own_cache.exists() or not list(own_cache.iterdir())


def test_cache_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "mine"))
    assert runtime.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("HDIT_CACHE")
    assert runtime.cache_folder().parts[-2:] == (".cache", "hdit")


BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("scipy", "torchvision", "cleanfid"):
            raise ModuleNotFoundError(name + " is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_metric_tests_pass_without_scipy_and_torchvision():
    here = Path(__file__).parent
    names = ("catalog", "peers", "statistics_file", "frechet", "kernel", "sliced", "patch_grid", "inception")
    tests = [str(here / f"test_{name}.py") for name in names]
    # hypothesis looks at scipy only where it is imported already
    words = ["-q", "-p", "no:cacheprovider", "-n", "0", "-m", "not slow", *tests]
    done = subprocess.run([sys.executable, "-c", BLOCK, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


FLOWERS = Path(__file__).parents[2].parent / "shared" / "data" / "flowers"


@pytest.mark.skipif(not FLOWERS.is_dir(), reason="no photographs here")
def test_resizing_fifty_photographs_by_its_description():
    """clean-fid's: each colour channel alone, as float32, by Pillow's bicubic filter, clipped, not rounded."""
    paths = sorted(FLOWERS.rglob("*.jpg"))[::25][:50]
    sizes = set()
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            pixels = np.asarray(
                opened.convert("RGB").crop((0, 0, opened.width - 3 * number, opened.height - 2 * number))
            )
        sizes.add(pixels.shape)
        found = inception.resize(pixels)
        for c in range(3):
            channel = Image.frombytes("F", pixels.shape[1::-1], pixels[..., c].astype("<f4").tobytes())
            expected = np.clip(np.array(channel.resize((299, 299), resample=Image.Resampling.BICUBIC)), 0, 255)
            np.testing.assert_array_equal(found[c], expected)
    assert len(paths) == 50 and len(sizes) > 20
