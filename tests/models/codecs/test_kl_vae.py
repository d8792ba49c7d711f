"""The KL autoencoder: published counts, and files of others under our names."""

import pytest
import torch

from hdit_cli.models.codecs import kl_vae_names as names
from hdit_cli.models.codecs.kl_vae import KLVAE, Gaussian
from hdit_cli.models.foreign import Misfit, Unsupported

SD = (128, 256, 512, 512)
COUNTS = {
    "SD 1, SD 2, SDXL": (SD, 4, True, 83_653_863),
    "SD3, Flux": (SD, 16, False, 83_819_683),
    "LDM f4": ((128, 256, 512), 3, True, 55_312_063),
    "64 wide f4": ((64, 128, 256), 4, True, 13_859_495),
    "64 wide f8": ((64, 128, 256, 256), 4, True, 20_945_575),
    "tiny f4": ((32, 64, 128), 4, True, 3_478_919),
    "tiny f8": ((32, 64, 128, 128), 4, True, 5_252_487),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def built(widths, channels, **options):
    with torch.device("meta"):
        return KLVAE(widths=widths, channels=channels, **options)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    widths, channels, quant, wanted = COUNTS[name]
    assert count(built(widths, channels, quant=(quant, quant))) == wanted


def test_counts_of_the_halves():
    network = built(SD, 4)
    assert (count(network.encoder), count(network.decoder), len(network.state_dict())) == (34_163_592, 49_490_179, 248)
    assert len(built(SD, 16, quant=(False, False)).state_dict()) == 244


def test_multiply_accumulates():
    assert [round(macs / 1e9, 1) for macs in built(SD, 4).macs_each(256, 256)] == [136.4, 311.1]
    assert [round(macs / 1e9) for macs in built(SD, 4).macs_each(512, 512)] == [558, 1257]
    assert [round(macs / 1e9, 2) for macs in built((32, 64, 128), 4).macs_each(64, 64)] == [0.63, 1.26]


def small(**options):
    torch.manual_seed(0)
    return KLVAE(widths=(8, 16, 24), channels=4, layers=1, groups=4, **options).eval()


@torch.no_grad()
def test_a_file_of_latent_diffusion_is_the_same_network():
    network = small(attends=(2,))
    ours = network.state_dict()
    theirs = names.to_ldm(ours)
    assert theirs["encoder.mid.attn_1.q.weight"].shape == (24, 24, 1, 1)
    assert torch.equal(theirs["decoder.up.0.block.0.conv1.weight"], ours["decoder.up_blocks.2.resnets.0.conv1.weight"])
    assert torch.equal(
        theirs["encoder.down.2.attn.0.norm.bias"], ours["encoder.down_blocks.2.attentions.0.group_norm.bias"]
    )
    whole = {f"first_stage_model.{name}": tensor for name, tensor in theirs.items()}
    whole |= {"model.diffusion_model.out.weight": torch.zeros(1), "first_stage_model.loss.logvar": torch.zeros(())}
    for file in (theirs, whole):
        assert names.is_ldm(file) and not names.is_diffusers(file)
        back = names.tensors(file)
        assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)
    found = names.arguments_of({n: tuple(t.shape) for n, t in ours.items()}, {"norm_num_groups": 4})
    twin = KLVAE(**found).eval()
    twin.load_state_dict(ours)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(twin.moments(x), network.moments(x))


def test_old_names_of_the_attention():
    ours = small().state_dict()
    swap = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(ours)
    for name in [name for name in ours if ".attentions." in name]:
        for new, before in swap.items():
            if f".{new}." in name:
                old[name.replace(f".{new}.", f".{before}.")] = old.pop(name)
    assert old.keys() != ours.keys() and names.tensors(old).keys() == ours.keys()


@pytest.mark.parametrize("options", [{}, {"attends": (1, 2)}, {"quant": (False, False)}, {"middle_attention": False}])
def test_arguments_by_shapes(options):
    ours = small(**options).state_dict()
    found = names.arguments_of({name: tuple(t.shape) for name, t in ours.items()}, {"norm_num_groups": 4})
    wanted = {"attends": (), "quant": (True, True), "middle_attention": True, **options}
    assert {key: found[key] for key in wanted} == wanted
    assert found["widths"] == (8, 16, 24) and found["layers"] == 1 and found["channels"] == 4


def test_what_does_not_fit_is_told():
    shapes = {name: tuple(tensor.shape) for name, tensor in small().state_dict().items()}
    with pytest.raises(Misfit, match="latent_channels 8"):
        names.arguments_of(shapes, {"norm_num_groups": 4, "latent_channels": 8})
    with pytest.raises(Misfit, match="groups"):
        names.arguments_of(shapes)  # 32 groups do not divide a width of 8
    with pytest.raises(Unsupported, match="CrossAttnDownBlock2D"):
        names.arguments_of(shapes, {"norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D"]})
    with pytest.raises(Misfit, match="none of a KL autoencoder"):
        names.arguments_of({"encoder.conv_in.weight": (8, 3, 3, 3)})
    with pytest.raises(Misfit, match=r"encoder\.extra\.weight"):
        names.tensors({**names.to_ldm(small().state_dict()), "encoder.extra.weight": torch.zeros(1)})


def test_the_gaussian_in_closed_form():
    mean, log_variance = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.0, -2.0, 1.0])
    gaussian = Gaussian(torch.cat([mean, log_variance]).view(1, 6, 1, 1))
    reference = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(reference, torch.distributions.Normal(0.0, 1.0)).sum()
    z = torch.tensor([0.1, 0.2, 0.3])
    assert torch.allclose(gaussian.kl(), kl[None], rtol=1e-6)
    assert torch.allclose(gaussian.nll(z.view(1, 3, 1, 1)), -reference.log_prob(z).sum()[None], rtol=1e-6)
    extreme = Gaussian(torch.tensor([0.0, 0.0, 100.0, -100.0]).view(1, 4, 1, 1))
    assert extreme.log_variance.flatten().tolist() == [20.0, -30.0]


def test_scaling():
    assert names.scaling_of(None) == (0.0, 1.0)
    assert names.scaling_of({"scaling_factor": 1.5305, "shift_factor": 0.0609}) == (0.0609, 1.5305)
    assert names.scaling_of({"scaling_factor": 0.18215, "shift_factor": None}) == (0.0, 0.18215)
