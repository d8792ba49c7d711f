"""[codec]: what stands between pictures and the network."""

from hdit_cli.recipe.section import PathText, Section

KEPT = "kl-vae-????????.safetensors"  # copies that a run of latents keeps, by kind and SHA-256


class Codec(Section):
    """Nothing: the network sees pixels. With `path` it sees the latents of that codec, and `model.size` is theirs."""

    path: PathText = ""  # a file that `hdit convert` made of an autoencoder
    sample: bool = True  # training draws each latent anew from the codec's Gaussian; false takes its mean
