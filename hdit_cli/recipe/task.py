"""[task]: what is learnt, and how pictures come of it."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from hdit_cli import catalog
from hdit_cli.recipe.diffusion import Diffusion
from hdit_cli.recipe.network import NetworkSection
from hdit_cli.recipe.section import PathText, Probability, Problem, Section
from hdit_cli.recipe.sections import Sample

DEFAULT_TASK = "denoise"
Weight = Annotated[float, Field(ge=0.0, le=1e6)]


class Denoise(Section):
    """Karras et al. 2022: the clean image from one with noise of any level sigma. `[diffusion]` says how."""

    outputs: ClassVar[int] = 1
    cfg_channels: ClassVar[int] = 0
    type: Literal["denoise"] = "denoise"

    def problems(self, *, model: NetworkSection, diffusion: Diffusion, sample: Sample) -> Iterator[Problem]:
        """What of the rest of a recipe does not go with the task; arguments as in `Ddpm.problems`."""
        if model.told == "nothing":
            yield ("task", "type"), 'is "denoise", and an autoencoder is trained by task.type = "autoencode"'
        if model.told == "share":
            yield ("task", "type"), f'is "denoise", and a network of type "{model.type}" makes tokens: "tokens"'
        elif sample.sampler in (*catalog.OVER_TIMESTEPS, *catalog.OVER_TOKENS):
            fitting = ", ".join(catalog.over_noise_levels())
            other = "tokens" if sample.sampler in catalog.OVER_TOKENS else "ddpm"
            yield ("sample", "sampler"), f'is {sample.sampler!r}, which is for task.type = "{other}"; one of: {fitting}'

    def facts(self, diffusion: Diffusion) -> dict[str, Any]:
        """What `hdit info` tells of it."""
        names = ("sigma_data", "sigma_min", "sigma_max", "weighting")
        told = {name: getattr(diffusion, name) for name in names}
        return {"task": self.type, **told, "density": diffusion.density.model_dump()}

    def arguments(self, diffusion: Diffusion) -> dict[str, Any]:
        """Keyword arguments of the task, beside its network."""
        names = ("sigma_data", "sigma_min", "sigma_max", "weighting", "gamma", "class_dropout")
        density = diffusion.density
        return {name: getattr(diffusion, name) for name in names} | {"density": (density.type, density.options())}


class Ddpm(Section):
    """Ho et al. 2020 with learned variance (Nichol & Dhariwal 2021), as DiT was trained: the noise at a timestep.

    Its own table of betas takes the place of `[diffusion]`, of which `class_dropout` alone is read.
    """

    type: Literal["ddpm"] = "ddpm"
    timesteps: Annotated[int, Field(ge=21, le=100_000)] = 1000  # the last beta, 20 / timesteps, must stay below 1
    learned_variance: bool = True  # the loss is then the squared error plus the variational bound in bits
    cfg_channels: Annotated[int, Field(ge=0, le=64)] = 0  # channels, from the first, that guidance acts on; 0 = all
    clip: bool = False  # sampling clamps what it takes for the clean image to [-1, 1]; for pixels, never for latents

    @property
    def outputs(self) -> int:
        """Values that the network returns for each channel."""
        return 2 if self.learned_variance else 1

    def problems(self, *, model: NetworkSection, diffusion: Diffusion, sample: Sample) -> Iterator[Problem]:
        """What of the rest of a recipe does not go with the task.

        Args:
            model, sample: the sections.
            diffusion: the section, complete.
        """
        if self.cfg_channels > model.channels:
            what = f"is {self.cfg_channels}, and an image has {model.channels} channels; 0 is all"
            yield ("task", "cfg_channels"), what
        if model.told != "timestep":
            yield ("task", "type"), 'is "ddpm", which is for a network that is told timesteps: model.type = "dit"'
        elif sample.sampler in catalog.OVER_TOKENS:
            fitting = ", ".join(name for name in catalog.names("sampler") if name not in catalog.OVER_TOKENS)
            yield ("sample", "sampler"), f'is {sample.sampler!r}, which is for task.type = "tokens"; one of: {fitting}'
        yield from _own_noise(diffusion, "ddpm has a table of its own, so leave it out")
        if sample.sampler in catalog.OVER_TIMESTEPS and sample.steps > self.timesteps:
            text = (
                f"must be at most task.timesteps {self.timesteps}, which {sample.sampler} goes over, is {sample.steps}"
            )
            yield ("sample", "steps"), text

    def facts(self, diffusion: Diffusion) -> dict[str, Any]:
        """What `hdit info` tells of it."""
        return {"task": self.type, **self.model_dump(exclude={"type"})}

    def arguments(self, diffusion: Diffusion) -> dict[str, Any]:
        """Keyword arguments of the task, beside its network."""
        return self.model_dump(exclude={"type", "cfg_channels"}) | {"class_dropout": diffusion.class_dropout}


class Tokens(Section):
    """Rampas et al. 2022: all clean tokens at once from ones of which a share is replaced by random ones, as Paella was trained.

    Of `[diffusion]`, `class_dropout` alone is read.
    """

    outputs: ClassVar[int] = 1
    cfg_channels: ClassVar[int] = 0
    type: Literal["tokens"] = "tokens"
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1  # of the labels
    t_min: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.001  # the least share of noise that training draws
    kept_weight: Probability = 0.3  # of tokens that no noise replaced, in the loss at t = 0; at t = 1 they weigh 1

    def problems(self, *, model: NetworkSection, diffusion: Diffusion, sample: Sample) -> Iterator[Problem]:
        """What of the rest of a recipe does not go with the task; arguments as in `Ddpm.problems`."""
        if model.told != "share":
            yield ("task", "type"), 'is "tokens", which is for a network of tokens: model.type = "paella"'
        elif sample.sampler not in catalog.OVER_TOKENS:
            fitting = ", ".join(catalog.OVER_TOKENS)
            yield ("sample", "sampler"), f"is {sample.sampler!r}, which makes numbers and no tokens; one of: {fitting}"
        yield from _own_noise(diffusion, "tokens have none of it, so leave it out")

    def facts(self, diffusion: Diffusion) -> dict[str, Any]:
        """What `hdit info` tells of it."""
        return {"task": self.type, **self.model_dump(exclude={"type"})}

    def arguments(self, diffusion: Diffusion) -> dict[str, Any]:
        """Keyword arguments of the task, beside its network."""
        settings = {"smoothing": self.smoothing, "t_min": self.t_min, "kept_weight": self.kept_weight}
        return {**settings, "class_dropout": diffusion.class_dropout}


def _own_noise(diffusion: Diffusion, why: str) -> Iterator[Problem]:
    """What a recipe says of the noise of the task denoise, for another task."""
    usual, found = Diffusion().chosen(), diffusion.chosen()
    for key in Diffusion.model_fields:
        if key != "class_dropout" and found[key] != usual[key]:
            yield ("diffusion", key), f"is of the task denoise; {why}"


class Autoencode(Section):
    """Pictures to a latent and back: what trains a codec. The loss is a mean over the values of a picture.

    L1, the pyramid and what the latent is charged for from the start; from `gan_start` on a critic, where `gan_weight` is set.
    """

    outputs: ClassVar[int] = 1
    cfg_channels: ClassVar[int] = 0
    type: Literal["autoencode"] = "autoencode"
    multiscale: Weight = 1.0  # of the bands of a Laplacian pyramid, beside 1 for L1
    kl: Weight = 1e-6  # kl-vae: of the divergence of a whole latent in nats, to the sum over a picture's values
    commitment: Weight = 1.0  # vq-vae: of the distance between latents and codes
    codebook: Literal["ema", "gradient"] = (
        "ema"  # vq-vae: a code is the mean of what it stands for, or learns by gradient
    )
    codebook_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # of that mean, per step
    restart_every: Annotated[int, Field(ge=0, le=1_000_000)] = (
        50  # steps after which rare codes are put elsewhere; 0 = never
    )
    perceptual_weight: Weight = 0.0  # of LPIPS; 0 = none
    perceptual: PathText = ""  # its weights, a file that `hdit convert` made
    gan_weight: Weight = 0.0  # of the critic, balanced against the rest at the last layer; 0 = none
    gan_start: Annotated[int, Field(ge=0, le=1_000_000_000_000)] = 0  # image of the run from which on it judges
    feature_matching: Weight = (
        2.0  # of the distance between what the critic sees in a picture and in its reconstruction
    )
    critic_width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = 64
    critic_layers: Annotated[int, Field(ge=1, le=5)] = 3  # convolutions that halve the map
    critic_lr: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-4

    def problems(self, *, model: NetworkSection, diffusion: Diffusion, sample: Sample) -> Iterator[Problem]:
        """What of the rest of a recipe does not go with the task; arguments as in `Ddpm.problems`."""
        if model.told != "nothing":
            yield ("task", "type"), 'is "autoencode", which is for model.type = "kl-vae" or "vq-vae"'
            return
        for key in _OF_CODEBOOKS if model.type == "kl-vae" else ("kl",):
            if getattr(self, key) != type(self).model_fields[key].default:
                yield ("task", key), f"acts on nothing: model.type is {model.type!r}"
        if self.codebook == "gradient":
            for key in ("codebook_decay", "restart_every"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    yield ("task", key), 'acts on nothing with codebook = "gradient"'
        if self.perceptual and not self.perceptual_weight:
            yield ("task", "perceptual"), "acts on nothing while perceptual_weight is 0"
        small = [side for side in model.size if side < SMALLEST_LPIPS]
        if self.perceptual_weight and small:
            yield (
                ("task", "perceptual_weight"),
                f"needs pictures of {SMALLEST_LPIPS} pixels at least, and a side is {small[0]}",
            )
        for key in _OF_CRITICS if not self.gan_weight else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                yield ("task", key), "acts on nothing while gan_weight is 0"
        if model.type == "vq-vae" and self.gan_weight == 0 and self.multiscale == 0 and self.commitment == 0:
            yield ("task", "commitment"), "is 0, and nothing keeps the latents near their codes"
        sides = [side for side in model.size if side < 2 ** (self.critic_layers + 1) + 4]
        if self.gan_weight and sides:
            yield (
                ("task", "critic_layers"),
                f"is {self.critic_layers}, and of {sides[0]} pixels nothing is left to judge",
            )
        yield from _only_default(diffusion.chosen(), Diffusion().chosen(), "diffusion", "is of tasks with noise")
        shown = ("n", "batch_size")
        usual = Sample()
        for key in Sample.model_fields:
            if key not in shown and getattr(sample, key) != getattr(usual, key):
                yield ("sample", key), "is of tasks that draw pictures; an autoencoder reads n and batch_size alone"

    def facts(self, diffusion: Diffusion) -> dict[str, Any]:
        """What `hdit info` tells of it."""
        return {"task": self.type, **self.model_dump(exclude={"type"})}

    def arguments(self, diffusion: Diffusion) -> dict[str, Any]:
        """Keyword arguments of the task, beside its network."""
        return self.model_dump(exclude={"type", "perceptual"})


SMALLEST_LPIPS = 16  # pixels of a side: of fewer nothing is left after VGG's poolings
_OF_CODEBOOKS = ("commitment", "codebook", "codebook_decay", "restart_every")
_OF_CRITICS = ("gan_start", "feature_matching", "critic_width", "critic_layers", "critic_lr")


def _only_default(found: dict[str, Any], usual: dict[str, Any], section: str, why: str) -> Iterator[Problem]:
    for key in Diffusion.model_fields:
        if found[key] != usual[key]:
            yield (section, key), f"{why}, so leave it out"


def _task_type(value: Any) -> Any:
    return value.get("type", DEFAULT_TASK) if isinstance(value, dict) else getattr(value, "type", None)


AnyTask = Annotated[
    Annotated[Denoise, Tag("denoise")]
    | Annotated[Ddpm, Tag("ddpm")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[Autoencode, Tag("autoencode")],
    Discriminator(_task_type),
]
