"""Feature nets: pytorch-fid's against its own code, exported ones, transformers; and what a user can get wrong."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hdit_cli import catalog, runtime
from hdit_cli.engine.scoring.scores import check_net
from hdit_cli.engine.sharing.convert import convert_feature_net
from hdit_cli.errors import CheckpointError, DataError, UsageError
from hdit_cli.metrics import feature_net, fid_inception
from hdit_cli.metrics.exported_net import ExportedNet
from hdit_cli.metrics.fid_inception import ADMInception, FidInception, InceptionV3, parameter_names
from hdit_cli.metrics.frechet import FID, SFID
from hdit_cli.metrics.inception import Inception
from hdit_cli.metrics.inception_score import InceptionScore

transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")


def pictures(n: int = 3, *, size: tuple[int, int] = (40, 56)) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, *size, 3), dtype=np.uint8))


def drawn_weights() -> dict[str, Tensor]:
    """Random weights, a function of each parameter's name."""
    found = {}
    for name, tensor in InceptionV3().state_dict().items():
        if name.endswith("num_batches_tracked"):
            found[name] = tensor
            continue
        drawn = runtime.normal(0, name, [0], tuple(tensor.shape), like=torch.empty(0))[0]
        if name.endswith("running_var"):
            drawn = 0.5 + drawn.abs()
        elif name.endswith("bn.weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn = drawn * (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1 * drawn
        found[name] = drawn
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """pytorch-fid's file, with other numbers: a dictionary of tensors, pickled as before torch 1.6."""
    path = tmp_path_factory.mktemp("pytorch-fid") / "pt_inception.pth"
    torch.save(drawn_weights(), path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def converted(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "net.safetensors"
    assert convert_feature_net(weights, out=path)
    return path


def test_the_file_has_these_tensors():
    names = parameter_names()
    assert len(names) == 472  # 94 convolutions with their batch norms, and the classifier
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.bn.running_var", "fc.bias"} <= names


@pytest.mark.slow
def test_features_are_pytorch_fids(converted):
    """As its own InceptionV3 gave them for these weights and pictures, 2026-11-21: equal to the last bit then."""
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 56), dtype=np.uint8).transpose(0, 2, 3, 1)
    net = FidInception(converted)
    found = net(list(x))
    assert found.shape == (2, 2048)
    expected = [
        [0.269624, 0.020985, 0.135036, 0.381351, 0.180469, 0.003365, 0.0, 0.50393],
        [0.282353, 0.022427, 0.121602, 0.409251, 0.165836, 0.002933, 0.0, 0.51839],
    ]
    np.testing.assert_allclose(found[:, ::256], expected, rtol=1e-3, atol=1e-5)
    assert found.astype(np.float64).sum() == pytest.approx(1017.9125738831765, rel=1e-4)
    np.testing.assert_array_equal(found[1:], net([x[1]]))  # whatever the batch
    assert net.logits(found).shape == (2, 1008)


@pytest.mark.slow
def test_converted_weights_say_what_they_were_made_of(weights, converted, monkeypatch):
    assert not FidInception(converted).published
    monkeypatch.setattr(fid_inception, "SOURCE_SHA256", "")
    assert FidInception(converted).published
    assert not convert_feature_net(converted, out=converted)  # safetensors already


@pytest.mark.slow
def test_other_files_are_not_taken_for_weights(tmp_path, weights):
    torch.save({"model_ema": {"x": torch.zeros(2)}}, tmp_path / "other.pth")
    assert not convert_feature_net(tmp_path / "other.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    whole = weights.read_bytes()
    for size in (0, 10, 200, 300, 1000, len(whole) // 2):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not a whole torch file" if size else "is empty"):
            convert_feature_net(tmp_path / "cut.pth", out=tmp_path / "out")


@pytest.mark.slow
def test_missing_or_foreign_weights(tmp_path, own_cache, converted):
    with pytest.raises(DataError, match=str(own_cache)) as caught:
        FidInception()
    assert fid_inception.URL in caught.value.hint and "hdit convert" in caught.value.hint
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"has no Conv2d_1a_3x3\.bn\.bias"):
        FidInception(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no net")
    with pytest.raises(DataError, match="no safetensors"):
        FidInception(tmp_path / "text")
    shapes = {**safetensors.torch.load_file(converted), "fc.bias": torch.zeros(3)}
    safetensors.torch.save_file(shapes, tmp_path / "shapes.safetensors")
    with pytest.raises(DataError, match="does not fit"):
        FidInception(tmp_path / "shapes.safetensors")


def resized_slowly(picture: np.ndarray) -> np.ndarray:
    """ResizeBilinear of TensorFlow 1 by its definition, one pixel at a time: align_corners and half_pixel_centers are off."""
    height, width = picture.shape[:2]
    out = np.zeros((299, 299, 3), np.float64)
    for i in range(0, 299, 23):
        for j in range(0, 299, 23):
            y, x = i * height / 299, j * width / 299
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b, c, d = (picture[r, s].astype(float) for r in (top, bottom) for s in (left, right))
            upper, lower = a + (b - a) * (x - left), c + (d - c) * (x - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return out[::23, ::23]


@pytest.mark.parametrize("size", [(40, 56), (299, 299), (512, 300), (1, 1)])
def test_resizing_as_tensorflow_did(size):
    picture = pictures(1, size=size)[0]
    found = fid_inception._resized_as_tensorflow(picture)
    assert found.shape == (3, 299, 299) and found.dtype == np.float32
    np.testing.assert_allclose(found.transpose(1, 2, 0)[::23, ::23], resized_slowly(picture), rtol=1e-4, atol=2e-3)
    if size == (299, 299):
        np.testing.assert_array_equal(found.transpose(1, 2, 0), picture)


@pytest.mark.slow
def test_spatial_features_are_those_of_the_block(converted):
    net, seen = ADMInception(converted), []
    hook = net._net.Mixed_6d.branch1x1.register_forward_hook(lambda _, args, out: seen.append(out[:, :7]))
    found = net(pictures(2))
    hook.remove()
    assert found.shape == (2, 2048 + 2023) and seen[0].shape[1:] == (7, 17, 17)
    np.testing.assert_array_equal(found[:, 2048:], seen[0][:2].permute(0, 2, 3, 1).reshape(2, -1).numpy())
    pooled = feature_net.given(net, found, "inception")
    square = pictures(
        2, size=(299, 299)
    )  # nothing is resized, and the two ways differ in how pictures become numbers alone
    np.testing.assert_allclose(net(square)[:, :2048], FidInception(converted)(square), rtol=2e-2, atol=5e-3)
    np.testing.assert_array_equal(pooled, found[:, :2048])
    assert feature_net.given(net, found, "logits").shape == (2, 1008)


def test_sfid_asks_for_a_net_that_gives_spatial_features():
    class Other:
        kind, path, classifier, spatial = "inception", Path("net.pt"), True, 0

    with pytest.raises(UsageError) as caught:
        check_net([SFID], Other())
    assert "--features adm" in caught.value.hint


class Small(nn.Module):
    """uint8 (N, 3, H, W) => (N, 6), as docs/features.md shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float() / 127.5 - 1).mean((2, 3))


def export(
    path: Path, net: nn.Module, *, dynamic: tuple[int, ...] = (0, 2, 3), dtype: torch.dtype = torch.uint8
) -> Path:
    names = {0: "n", 2: "h", 3: "w"}
    shapes = ({axis: torch.export.Dim(names[axis], min=1 if axis == 0 else 16, max=4096) for axis in dynamic},)
    x = torch.zeros(2, 3, 64, 48, dtype=dtype)
    torch.export.save(torch.export.export(net.eval(), (x,), dynamic_shapes=shapes), path)
    return path


@pytest.mark.slow
def test_an_exported_net(tmp_path):
    torch.manual_seed(0)
    small = Small()
    net = ExportedNet(export(tmp_path / "net.pt2", small))
    mixed = [*pictures(2), *pictures(2, size=(64, 48)), pictures(1)[0]]
    found = net(mixed)
    for row, picture in zip(found, mixed, strict=True):
        with torch.no_grad():
            expected = small(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None])[0]
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found, np.concatenate([net([x]) for x in mixed]))
    assert (net.kind, net.published, net.classifier, len(net.sha256)) == ("exported", False, False, 64)


@pytest.mark.slow
def test_an_exported_net_of_one_shape(tmp_path):
    net = ExportedNet(export(tmp_path / "net.pt2", Small(), dynamic=()))
    of_its_size = pictures(3, size=(64, 48))
    found = net(of_its_size)
    assert found.shape == (3, 6)
    np.testing.assert_allclose(found[2:], net(of_its_size[2:]), rtol=1e-5)
    with pytest.raises(DataError, match="takes pictures of 64x48, not 40x56"):
        net(pictures(1))


@pytest.mark.slow
def test_exported_nets_that_are_none(tmp_path):
    (tmp_path / "text.pt2").write_text("no net")
    floats = export(tmp_path / "floats.pt2", Small(), dtype=torch.float32)
    for path, words in (
        (tmp_path / "no.pt2", "no file"),
        (tmp_path / "text.pt2", "not a program"),
        (floats, "one uint8 tensor"),
    ):
        with pytest.raises(DataError, match=words):
            ExportedNet(path)
    maps = nn.Sequential()
    maps.forward = lambda x: x.float()
    with pytest.raises(DataError, match="not a row for each"):
        ExportedNet(export(tmp_path / "maps.pt2", maps))(pictures(1))


def save_transformer(kind: str, folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "dinov2":
        net = Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14, mlp_ratio=2))
    else:
        net = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**sizes, image_size=32, patch_size=8, intermediate_size=32, projection_dim=12)
        )
    net.save_pretrained(folder)
    return folder


@pytest.mark.slow
@transformers
@pytest.mark.parametrize(("kind", "features", "side"), [("dinov2", 16, 224), ("clip", 12, 32)])
def test_transformers(tmp_path, kind, features, side):
    folder = save_transformer(kind, tmp_path / kind)
    net = catalog.get("features", kind)(folder)
    found = net(pictures())
    assert found.shape == (3, features)
    np.testing.assert_array_equal(found[1:2], net(pictures()[1:2]))
    assert net.resize == f"bicubic-{side}"
    grey = np.full((50, 30, 3), 128, dtype=np.uint8)  # resizing leaves it alone: the net sees one known number
    with torch.no_grad():
        shade = (128 / 255 - torch.tensor(net.mean)) / torch.tensor(net.deviation)
        x = shade[None, :, None, None].expand(1, 3, side, side)
        out = net._net(pixel_values=x)
    expected = out.pooler_output if kind == "dinov2" else out.image_embeds
    np.testing.assert_allclose(net([grey]), expected.numpy(), rtol=1e-4, atol=1e-5)


@transformers
@pytest.mark.slow
def test_the_folder_says_how_pictures_are_prepared(tmp_path):
    folder = save_transformer("dinov2", tmp_path / "net")
    before = catalog.get("features", "dinov2")(folder).sha256
    (folder / "preprocessor_config.json").write_text(
        '{"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    net = catalog.get("features", "dinov2")(folder)
    assert (net.side, net.mean) == (28, (0.5, 0.5, 0.5))
    assert net.sha256 != before
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="holds no dinov2"):
        catalog.get("features", "dinov2")(folder)


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_transformers_missing(tmp_path, kind, monkeypatch):
    loader = catalog.get("features", kind)
    for path in (None, tmp_path):
        with pytest.raises(DataError, match=r"config\.json") as caught:
            loader(path)
        assert f"{kind}:FOLDER" in caught.value.hint
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(DataError, match="needs the package transformers") as caught:
        loader(tmp_path)
    assert "pip install" in caught.value.hint


def test_names_of_nets():
    assert feature_net.parse("inception") == ("inception", None)
    assert feature_net.parse("dinov2:a/b:c") == ("dinov2", Path("a/b:c"))
    assert feature_net.parse("some/net.pt2") == ("exported", Path("some/net.pt2"))
    for wrong in ("vgg", "exported:x", "net.pt", ""):
        with pytest.raises(UsageError, match="names no feature net"):
            feature_net.parse(wrong)


def test_fid_is_of_inception_alone_and_is_needs_a_classifier(tmp_path, net_path):
    exported = ExportedNet(export(tmp_path / "net.pt2", Small()))
    with pytest.raises(UsageError, match="by definition") as caught:
        check_net([FID], exported)
    assert "fd" in caught.value.hint
    check_net([FID], Inception(net_path))
    with pytest.raises(UsageError, match="classifier"):
        check_net([InceptionScore], Inception(net_path))  # this one is without


def test_nvidias_file_has_a_classifier(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 5, 9, stride=8), nn.AdaptiveAvgPool2d(1))
            self.output = nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.layers(x).flatten(1))

    torch.manual_seed(0)
    plain = Net()
    torch.jit.save(torch.jit.script(plain), str(tmp_path / "net.pt"))
    net = Inception(tmp_path / "net.pt")
    check_net([InceptionScore], net)
    features = net(pictures())
    expected = features @ plain.output.weight.detach().numpy().T
    np.testing.assert_allclose(net.logits(features), expected, rtol=1e-6)


@pytest.mark.slow
def test_the_example_of_the_docs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "features.md"
    example = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    net = ExportedNet(Path("net.pt2"))
    assert net([*pictures(2), *pictures(1, size=(300, 200))]).shape == (3, 256)
