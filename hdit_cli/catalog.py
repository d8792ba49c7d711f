"""Every component by kind and name: strings only, imported on use. Adding one is a new file and a line here."""

import difflib
from importlib import import_module
from typing import Any

from hdit_cli.errors import UsageError

CATALOG: dict[str, dict[str, str]] = {
    "model": {
        "hdit": "hdit_cli.models.hdit:HDiT",
        "dit": "hdit_cli.models.dit:DiT",
        "paella": "hdit_cli.models.paella:Paella",
    },
    "codec": {  # what stands between pictures and a network of latents or tokens
        "kl-vae": "hdit_cli.models.codecs.kl_vae:KLVAE",
        "vq-vae": "hdit_cli.models.codecs.vq_vae:VQVAE",
        "dc-ae": "hdit_cli.models.codecs.dc_ae:DCAE",
    },
    "growth": {  # what `train --init` asks a network of that type
        "hdit": "hdit_cli.models.hdit_growth:HDiTGrowth",
        "dit": "hdit_cli.models.dit_growth:DiTGrowth",
        "paella": "hdit_cli.models.paella_growth:PaellaGrowth",
        "kl-vae": "hdit_cli.models.codecs.growth:AutoencoderGrowth",
        "vq-vae": "hdit_cli.models.codecs.growth:AutoencoderGrowth",
    },
    "task": {
        "denoise": "hdit_cli.tasks.denoise:Denoise",
        "ddpm": "hdit_cli.tasks.ddpm:DDPM",
        "autoencode": "hdit_cli.tasks.autoencode:Autoencode",
        "tokens": "hdit_cli.tasks.tokens:Tokens",
    },
    "foreign": {  # checkpoints of other programs, which `hdit convert` takes
        "k-diffusion": "hdit_cli.models.hdit_names",
        "dit": "hdit_cli.models.dit_names",
        "paella": "hdit_cli.models.paella_names",
    },
    "attention": {  # in the order of preference; "reference" is the judge, chosen only by name
        "natten": "hdit_cli.models.attention.natten",
        "fused": "hdit_cli.models.attention.fused",
        "flex": "hdit_cli.models.attention.flex",
        "strips": "hdit_cli.models.attention.strips",
        "tiled": "hdit_cli.models.attention.tiled",
        "reference": "hdit_cli.models.attention.reference",
    },
    "sampler": {
        "euler": "hdit_cli.diffusion.samplers.euler:euler",
        "euler-ancestral": "hdit_cli.diffusion.samplers.euler:euler_ancestral",
        "heun": "hdit_cli.diffusion.samplers.second_order:heun",
        "dpm-2": "hdit_cli.diffusion.samplers.second_order:dpm_2",
        "lms": "hdit_cli.diffusion.samplers.lms:lms",
        "dpmpp-2m": "hdit_cli.diffusion.samplers.dpmpp:dpmpp_2m",
        "dpmpp-2m-sde": "hdit_cli.diffusion.samplers.dpmpp:dpmpp_2m_sde",
        "dpmpp-3m-sde": "hdit_cli.diffusion.samplers.dpmpp:dpmpp_3m_sde",
        "ddpm": "hdit_cli.diffusion.samplers.timesteps:ddpm",
        "ddim": "hdit_cli.diffusion.samplers.timesteps:ddim",
        "paella": "hdit_cli.diffusion.tokens:sample",
        "paella-v1": "hdit_cli.diffusion.tokens:edit",
    },
    "schedule": {
        "karras": "hdit_cli.diffusion.schedules:karras",
        "exponential": "hdit_cli.diffusion.schedules:exponential",
    },
    "density": {
        "cosine": "hdit_cli.diffusion.densities:cosine",
        "cosine-interpolated": "hdit_cli.diffusion.densities:cosine_interpolated",
        "lognormal": "hdit_cli.diffusion.densities:lognormal",
        "loglogistic": "hdit_cli.diffusion.densities:loglogistic",
        "loguniform": "hdit_cli.diffusion.densities:loguniform",
        "split-lognormal": "hdit_cli.diffusion.densities:split_lognormal",
    },
    "weighting": {
        "karras": "hdit_cli.diffusion.weightings:karras",
        "snr": "hdit_cli.diffusion.weightings:snr",
        "soft-min-snr": "hdit_cli.diffusion.weightings:soft_min_snr",
        "min-snr": "hdit_cli.diffusion.weightings:min_snr",
    },
    "learning-rate": {
        "constant": "hdit_cli.engine.training.learning_rate:constant",
        "cosine": "hdit_cli.engine.training.learning_rate:cosine",
        "inverse-sqrt": "hdit_cli.engine.training.learning_rate:inverse_sqrt",
    },
    "metric": {
        "fid": "hdit_cli.metrics.frechet:FID",
        "sfid": "hdit_cli.metrics.frechet:SFID",
        "kid": "hdit_cli.metrics.kernel:KID",
        "is": "hdit_cli.metrics.inception_score:InceptionScore",
        "precision-recall": "hdit_cli.metrics.manifold:PrecisionRecall",
        "fid-per-class": "hdit_cli.metrics.per_class:PerClassFID",
        "fd": "hdit_cli.metrics.frechet:FD",
        "kd": "hdit_cli.metrics.kernel:KD",
        "memorisation": "hdit_cli.metrics.memorisation:Memorisation",
        "swd": "hdit_cli.metrics.sliced:SWD",
        "patch-grid": "hdit_cli.metrics.patch_grid:PatchGrid",
    },
    "features": {
        "inception": "hdit_cli.metrics.inception:Inception",
        "pytorch-fid": "hdit_cli.metrics.fid_inception:FidInception",
        "adm": "hdit_cli.metrics.fid_inception:ADMInception",
        "dinov2": "hdit_cli.metrics.transformer_net:DINOv2",
        "clip": "hdit_cli.metrics.transformer_net:CLIP",
        "exported": "hdit_cli.metrics.exported_net:ExportedNet",
    },
    "export": {
        "safetensors": "hdit_cli.engine.sharing.export:to_safetensors",
        "torch-export": "hdit_cli.engine.sharing.export:to_torch_export",
    },
}

OVER_TIMESTEPS = ("ddpm", "ddim")  # samplers of networks that are told timesteps
OVER_TOKENS = ("paella", "paella-v1")  # of networks of tokens; all others go over noise levels


def names(kind: str) -> list[str]:
    """All names of a kind, in catalog order."""
    return list(CATALOG[kind])


def network(name: str) -> Any:
    """The class of a network by the type of its [model] section: a backbone, or a codec that can be trained."""
    return get("model" if name in CATALOG["model"] else "codec", name)


def over_noise_levels() -> list[str]:
    """The samplers of denoisers of noise levels."""
    return [name for name in names("sampler") if name not in (*OVER_TIMESTEPS, *OVER_TOKENS)]


def check(kind: str, name: str) -> None:
    """Raises UsageError where a kind has no component of that name; the nearest one is in the hint. Imports nothing."""
    table = CATALOG[kind]
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
        best = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"unknown {kind} {name[:100]!r}", hint=f"{best}one of: {', '.join(table)}")


def get(kind: str, name: str) -> Any:
    """Imports and returns the component `name` of a kind.

    Raises:
        UsageError: no such name; the nearest one is in the hint.
    """
    check(kind, name)
    module, _, attribute = CATALOG[kind][name].partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
