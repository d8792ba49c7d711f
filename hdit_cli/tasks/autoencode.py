"""Pictures to a small latent and back (Kingma & Welling 2014; van den Oord et al. 2017; Esser et al. 2021, arXiv 2012.09841).

The autoencoder learns by what its reconstructions lack; from some image on a critic of patches helps it, which learns at once
with it. There is one backward pass: the autoencoder is judged by a copy of the critic that takes no gradient, the critic by
reconstructions that pass none on.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from hdit_cli import runtime
from hdit_cli.errors import UsageError
from hdit_cli.models.codebook import Codebook, one_of_each
from hdit_cli.models.codecs.autoencoder import Through
from hdit_cli.models.codecs.vq_vae import VQVAE
from hdit_cli.models.critic import PatchCritic
from hdit_cli.tasks.reconstruction import hinge, l1, multiscale
from hdit_cli.tasks.sampling import Sampling
from hdit_cli.tasks.task import Beside, Losses, Place

_MOST = 1e4  # of the weight that balances the critic
_TINY = 1e-4


class Pictures(NamedTuple):
    """A batch with its random numbers, on the device.

    Attributes:
        x0: pixels (N, 3, H, W) in [-1, 1].
        noise: (N, C, h, w), what latents are drawn by; (N, 0) where they are not.
        level: (N,), not a number: there is no noise on the pictures.
        conditions: none.
        slot: int64 (N,), places of the images in their step.
        judged: whether the critic has begun.
        restarts: int64 (K, 2), an image of the step and a place in its latent for each code, where rare codes are put; else (0, 2).
    """

    x0: Tensor
    noise: Tensor
    level: Tensor
    conditions: dict[str, Tensor]
    slot: Tensor
    judged: bool
    restarts: Tensor


class Autoencode(nn.Module):
    """An autoencoder, what it is charged for, its critic, and the upkeep of its codebook.

    Args:
        network: a `models.codecs.autoencoder.Autoencoder`.
        multiscale: weight of the pyramid beside L1's 1.
        kl: of the divergence in nats of a whole latent, to the sum over a picture's values.
        commitment: of the distance between latents and codes.
        codebook: "ema", the mean of what a code stands for, or "gradient".
        codebook_decay: of that mean, per step.
        restart_every: steps after which codes that are hardly used are put elsewhere; 0 is never.
        gan_weight: of the critic, balanced against the rest at the last layer; 0 is none.
        gan_start: image of the run from which on there is a critic.
        feature_matching: weight of the distance of the critic's maps.
        critic_width, critic_layers, critic_lr: of the critic.
        perceptual_weight: of a perceptual loss, the module `perceptual` of (x, y) to (N,), once it is set.
        critic: one that is there already.
    """

    paints: ClassVar[bool] = False
    usual: ClassVar[Sampling] = Sampling()  # nothing is sampled, which `check` says
    measures: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        network: Any,
        *,
        multiscale: float,
        kl: float,
        commitment: float,
        codebook: str,
        codebook_decay: float,
        restart_every: int,
        gan_weight: float,
        gan_start: int,
        feature_matching: float,
        critic_width: int,
        critic_layers: int,
        critic_lr: float,
        perceptual_weight: float = 0.0,
        critic: PatchCritic | None = None,
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {
            "multiscale": multiscale, "kl": kl, "commitment": commitment, "codebook": codebook, "codebook_decay": codebook_decay,
            "restart_every": restart_every, "gan_weight": gan_weight, "gan_start": gan_start, "feature_matching": feature_matching,
            "critic_width": critic_width, "critic_layers": critic_layers, "critic_lr": critic_lr,
            "perceptual_weight": perceptual_weight,
        }  # fmt: skip
        self.network = network
        self.scale, self.kl, self.commitment = multiscale, kl, commitment
        self.decay, self.restart_every = codebook_decay, restart_every
        self.gan_weight, self.gan_start, self.feature_matching = gan_weight, gan_start, feature_matching
        self.critic_lr, self.perceptual_weight = critic_lr, perceptual_weight
        self.perceptual: nn.Module | None = None  # given by the engine, which reads its weights
        like = next(iter(network.parameters()))
        with torch.device(like.device):
            self.critic = critic
            if gan_weight and critic is None:
                self.critic = PatchCritic(width=critic_width, layers=critic_layers, pictures=network.pictures).to(
                    like.dtype
                )
            quantised = isinstance(network, VQVAE)
            self.upkeep = Codebook(*network.codebook.shape).to(like.dtype) if quantised else None
        self.follows = quantised and codebook == "ema"
        if self.follows:
            network.codebook.requires_grad_(False)
        self.losses = self.reconstruct  # may be replaced by a compiled one, which then serves training alone
        self._seen: list[tuple[Pictures, Through]] = []  # of the step so far

    def with_network(self, network: nn.Module) -> "Autoencode":
        """The same task of another network."""
        found = Autoencode(network, **self._settings, critic=self.critic)
        found.perceptual = self.perceptual
        return found

    # Training

    def draw(self, x0: Tensor, label: Tensor, place: Place, *, told: Mapping[str, Tensor]) -> Pictures:
        """What draws the latents, and for a step that puts codes elsewhere, where."""
        step, slot = place.first // place.batch, torch.from_numpy(place.index - place.first)
        height, width = (side // self.network.factor for side in x0.shape[2:])
        noise = x0.new_zeros(len(x0), 0)
        if self.network.gaussian:
            noise = place.normal(place.seed, "codec", place.index, (self.network.latents, height, width), like=x0)
        restarts = torch.zeros((0, 2), dtype=torch.int64)
        if self.follows and self.restart_every and step % self.restart_every == self.restart_every - 1:
            assert self.upkeep is not None
            codes = len(self.upkeep.count)
            u = runtime.uniform(place.seed, "restart", range(step * codes, (step + 1) * codes), 2)
            most = torch.tensor([place.batch, height * width])
            restarts = torch.minimum((u * most).long(), most - 1)
        judged = bool(self.gan_weight) and place.first >= self.gan_start
        level = x0.new_full((len(x0),), float("nan"))
        return Pictures(x0, noise, level, {}, slot.to(x0.device), judged, restarts.to(x0.device))

    def blank(self, images: int, size: tuple[int, int], *, like: Tensor, told: Mapping[str, Tensor]) -> Pictures:
        """A batch of grey, as it is when all that can be is charged for."""
        network = self.network
        shape = (network.latents, size[0] // network.factor, size[1] // network.factor) if network.gaussian else (0,)
        level, slot = like.new_full((images,), float("nan")), torch.arange(images, device=like.device)
        restarts = torch.zeros((0, 2), dtype=torch.int64, device=like.device)
        picture = like.new_zeros(images, network.pictures, *size)
        return Pictures(picture, like.new_zeros(images, *shape), level, {}, slot, bool(self.gan_weight), restarts)

    def forward(self, drawn: Pictures) -> Losses:
        """All that is charged for a picture, and what of it is worth telling."""
        if not drawn.judged:
            way, loss, told = self.losses(drawn.x0, drawn.noise)
            if self.critic is not None:  # its gradients are there from the first step on, for who counts on them
                loss = loss + 0 * sum(parameter.sum() for parameter in self.critic.parameters())
        else:
            way, loss, told = self.reconstruct(drawn.x0, drawn.noise)
            loss, more = self._judged(drawn.x0, way.picture, loss)
            told = {**told, **more}
        if self.upkeep is not None:
            self._seen.append((drawn, Through(*(part.detach() for part in way))))
        return Losses(loss, drawn.level, told)

    def reconstruct(self, x0: Tensor, noise: Tensor) -> tuple[Through, Tensor, dict[str, Tensor]]:
        """Pictures through the network, the loss (N,) without a critic, and means of its parts."""
        way = self.network.through(x0, noise if self.network.gaussian else None)
        picture = way.picture.to(x0.dtype)
        error = picture - x0
        plain = l1(error)
        loss = plain + self.scale * multiscale(error)
        told = {"l1": plain}
        if self.perceptual is not None:
            lpips = self.perceptual(x0, picture)
            loss, told = loss + self.perceptual_weight * lpips, {**told, "lpips": lpips}
        if self.network.gaussian:
            loss = loss + self.kl / x0[0].numel() * way.penalty.to(x0.dtype)
            told |= {"kl_per_dim": way.penalty / way.latent[0].numel(), "posterior_std": way.detail.flatten(1).mean(1)}
        else:
            loss = loss + self.commitment * way.penalty.to(x0.dtype)
            told["codes_loss"] = way.penalty
        told["latent_std"] = way.latent.flatten(1).float().std(1)
        means = {name: value.detach().float().mean() for name, value in told.items()}
        return way._replace(picture=picture), loss, means

    def _judged(self, x0: Tensor, picture: Tensor, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with what the critic says, and with what the critic learns; see the file's first lines."""
        assert self.critic is not None
        real, made = self.critic(x0), self.critic(picture.detach())
        frozen = {name: each.detach() for name, each in self.critic.named_parameters()}
        *maps, verdict = torch.func.functional_call(self.critic, frozen, (picture,))
        fooled = -verdict.flatten(1).mean(1)
        last = self.network.last
        (mine,) = torch.autograd.grad(loss.mean(), last, retain_graph=True)
        (its,) = torch.autograd.grad(fooled.mean(), last, retain_graph=True)
        weight = (mine.norm() / (its.norm() + _TINY)).clamp(0, _MOST).detach() * self.gan_weight
        matched = torch.stack([l1(a - b.detach()) for a, b in zip(maps, real[:-1], strict=True)]).mean(0)
        learnt = hinge(real[-1], made[-1])
        told = {"gan_weight": weight, "critic": learnt.mean(), "fooled": fooled.mean(), "features": matched.mean()}
        total = loss + (weight * (fooled + self.feature_matching * matched)).to(loss.dtype) + learnt.to(loss.dtype)
        return total, {name: value.detach().float() for name, value in told.items()}

    # Beside the gradients

    def beside(self) -> dict[str, Beside]:
        """The critic, which has an optimizer of its own, and the upkeep of a codebook."""
        found = {}
        if self.critic is not None:
            found["critic"] = Beside(self.critic, lr=self.critic_lr, betas=(0.5, 0.9))
        if self.upkeep is not None:
            found["codebook"] = Beside(self.upkeep)
        return found

    @torch.no_grad()
    def after(self, keep: Tensor) -> None:
        """Running statistics and the codebook, of all processes' pictures of a step; nothing moves where `keep` is 0."""
        seen, self._seen = self._seen, []
        if self.upkeep is None:
            return
        for norm in self.network.norms():
            norm.follow(keep)
        indices = torch.cat([way.detail.flatten() for _, way in seen])
        if not self.follows:
            self.upkeep.see(indices, keep=keep, total=runtime.summed)
            return
        codes = self.network.codebook
        z = torch.cat([rearrange(way.latent, "n c h w -> (n h w) c") for _, way in seen])
        self.upkeep.follow(codes, z, indices, decay=self.decay, keep=keep, total=runtime.summed)
        restarts = seen[0][0].restarts
        if len(restarts):
            slots = torch.cat([drawn.slot for drawn, _ in seen])
            places = seen[0][1].detail[0].numel()
            row = (slots[:, None] == restarts[:, 0]).long()  # (N, K): which of this process's images it is, if any
            here = row.sum(0) > 0
            number = torch.where(here, row.argmax(0) * places + restarts[:, 1].clamp(max=places - 1), -1)
            self.upkeep.restart(codes, runtime.summed(one_of_each(z, number)), keep=keep)

    def status(self) -> dict[str, float]:
        """What a line of the log says besides: perplexity of the codes used since the last line, and the share of them."""
        if self.upkeep is None:
            return {}
        perplexity, used = self.upkeep.perplexity()
        self.upkeep.forget()
        return {"perplexity": perplexity, "codes_used": used}

    def once(self, x: Tensor) -> None:
        self.network.through(x, None)

    # Sampling

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError: there is nothing to sample."""
        raise UsageError(
            "this is an autoencoder: it makes no pictures of its own",
            hint="`hdit eval-fid` scores its reconstructions; a network on its latents has it as codec.path",
        )
