"""What is done with both trees: cases, each a list of commands with paths relative to the tree's working folder."""

import tomllib
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path

SMALL = ("flowers64-cpu", "cifar10")  # beside smoke/*: trained as they are, at batch 4
LONGEST = "cifar10"  # comes last
STEPS = 30
AVERAGES = ("ema.stds=[0.05,0.1]", f"ema.snapshot_every={STEPS // 2}")
TINY = "smoke/tiny"
DENSITIES = (
    ("lognormal", "karras"),
    ("loglogistic", "snr"),
    ("loguniform", "min-snr"),
    ("cosine", "soft-min-snr"),
)


@dataclass(frozen=True)
class Command:
    """Arguments of `python -m hdit_cli`; `facts` where stdout is JSON; `alone` where it wants a process of its own."""

    label: str
    arguments: tuple[str, ...]
    facts: bool = True
    alone: bool = False
    may_refuse: bool = False


@dataclass(frozen=True)
class Case:
    """One recipe in one precision.

    Attributes:
        name: as told and as `--only` takes it.
        recipe: name of the recipe, whose file is recipes/<recipe>.toml of the tree before.
        data: folder of the prepared set.
        sets: what `--set` is given.
        steps: of the unbroken run; the broken one stops at half of them, where `halves`.
        after: commands for what the run has made, in order.
        large: its files are removed once they were found equal.
    """

    name: str
    recipe: str
    data: str
    sets: tuple[str, ...]
    steps: int = STEPS
    halves: bool = True
    train: tuple[str, ...] = ()
    after: tuple[Command, ...] = ()
    large: bool = False
    alone: bool = False

    @property
    def folder(self) -> str:
        return self.name.replace("/", "-")

    def training(self, *, place: str, steps: int) -> Command:
        sets = [word for entry in (*self.sets, f"train.steps={steps}") for word in ("--set", entry)]
        path = f"recipes/{self.recipe}.toml"
        words = ("train", path, "--data", f"data/{self.data}", "--run", f"{place}/{self.folder}", *sets, *self.train)
        return Command(f"train into {place}", (*words, "--json"), alone=self.alone)


@dataclass
class Builder:
    """Cases of the recipes in a folder."""

    recipes: Path
    samplers: list[str]
    dtypes: tuple[str, ...] = ("fp32", "fp64")
    skipped: list[str] = field(default_factory=list)

    def all(self) -> list[Case]:
        names = [path.relative_to(self.recipes).with_suffix("").as_posix() for path in self.recipes.rglob("*.toml")]
        found = []
        for name in sorted(names, key=lambda name: (not name.startswith("smoke/"), name)):
            recipe = self._read(name)
            if "codec" in recipe:
                self.skipped.append(f"{name}: needs a codec")
                continue
            small = name.startswith("smoke/") or name in SMALL
            found += [(self.small if small else self.large)(name, recipe, dtype) for dtype in self.dtypes]
        found += self.variants() if "fp32" in self.dtypes and TINY in names else ()
        return sorted(found, key=lambda case: (case.recipe == LONGEST, case.large))

    def _read(self, name: str) -> dict:
        recipe = tomllib.loads((self.recipes / f"{name}.toml").read_text())
        if "extends" not in recipe:
            return recipe
        below = self._read(recipe["extends"])
        return {**below, **recipe, "model": {**below.get("model", {}), **recipe.get("model", {})}}

    def small(self, name: str, recipe: dict, dtype: str) -> Case:
        size = recipe["model"]["size"]
        classes = recipe["model"].get("classes", 0)
        sets = [*_common(dtype, every=STEPS // 2, pictures=3), "train.batch_size=4", "optimizer.warmup=5"]
        sets += ["model.classes=data"] if classes else []
        sets += AVERAGES if name != LONGEST else ["train.keep=1"]
        folder = f"{name}-{dtype}".replace("/", "-")
        after = _told(name, folder, sets, size, dry=dtype == "fp32")
        every = self.samplers if name.startswith("smoke/") and dtype == "fp32" else ["dpmpp-3m-sde"]
        after += [_sample(folder, sampler, guided=bool(classes)) for sampler in every]
        if name == TINY:
            after += _more(folder)
        long = name == LONGEST
        halves = not (long and dtype == "fp64")
        return Case(f"{name}-{dtype}", name, _data(size), tuple(sets), STEPS, halves, after=tuple(after), large=long)

    def large(self, name: str, recipe: dict, dtype: str) -> Case:
        """2 steps at batch 1, with one layer a level and pictures as small as its attention allows."""
        model = recipe["model"]
        size = [_smallest(model)] * 2
        levels = range(len(model.get("levels", ())))
        halves = dtype == "fp32"  # a second time in float64 would write gigabytes to say nothing new
        sets = [
            *_common(dtype, every=1 if halves else 2, pictures=1),
            "train.batch_size=1",
            "train.keep=1",
            f"model.size={size}",
        ]
        sets += [f"model.levels.{level}.depth=1" for level in levels] or ["model.depth=1"]
        sets += ["model.classes=data"] if model.get("classes") else []
        folder = f"{name}-{dtype}"
        after = [*_told(name, folder, sets, size, dry=dtype == "fp32"), _sample(folder, "dpmpp-3m-sde", guided=False)]
        return Case(folder, name, _data(size), tuple(sets), 2, halves, after=tuple(after), large=True)

    def variants(self) -> list[Case]:
        """Switches that no recipe has on, each on the smallest network."""
        base = [*_common("fp32", every=STEPS // 2, pictures=3), "train.batch_size=4"]
        bf16 = [entry.replace("fp32", "bf16") for entry in base]
        levels = [f"model.levels.{level}.{key}" for level in (0, 1) for key in ("checkpoint=true", "dropout=0.1")]
        falls = ["optimizer.schedule=inverse-sqrt", "optimizer.hold=5", "optimizer.warmup=3", "train.grad_clip=0"]
        scores = ["eval.every=60", "eval.during_n=4", "eval.batch_size=4"]
        short = [entry.replace(f"={STEPS // 2}", "=6") for entry in base]
        cosine = ["optimizer.schedule=cosine", "optimizer.final_lr=0.1", "optimizer.warmup=2"]
        several = [
            Case("bf16", TINY, "32x32", tuple(bf16)),
            Case("accumulated", TINY, "32x32", (*base, *levels, "train.accumulate=2", "train.log_every=5")),
            Case("augmented", TINY, "32x32", (*base, "data.augment=0.3", "data.workers=1", *falls)),
            Case("buckets", TINY, "buckets", tuple(base)),
            Case("cropped", TINY, "64x64", (*base, "data.crop=random", "ema.max_decay=0.9")),
            Case("scored", TINY, "32x32", (*base, *scores)),
            Case("mapped", TINY, "32x32", (*base, "model.mapping_dropout=0.1", "model.mapping_depth=3")),
            Case("processes", TINY, "32x32", tuple(base), train=("--processes", "2", "--oversubscribe"), alone=True),
            Case("cosine-lr", TINY, "32x32", (*short, *cosine), 6, halves=False),
            Case("begun-from", "smoke/unconditional", "32x32", tuple(short), 6, False, ("--init", "given/smoke-tiny-fp32")),
        ]  # fmt: skip
        for density, weighting in DENSITIES:
            sets = (*short, f"diffusion.density.type={density}", f"diffusion.weighting={weighting}")
            several.append(Case(density, TINY, "32x32", sets, 6, halves=False))
        return several


def preparations(source: str, cases: list[Case]) -> dict[str, Command]:
    """Name of a data set => what makes it."""
    made = {}
    for name in sorted({case.data for case in cases}):
        words = ["prepare", source, "--out", f"data/{name}", "--workers", "1", "--hold-out", "0.25", "--json"]
        if name == "buckets":
            words += ["--size", "32", "--buckets", "--bucket-step", "8"]
        else:
            words += ["--size", name, "--format", "png" if name == "32x32" else "jpeg"]
        made[name] = Command(f"prepare {name}", tuple(words), alone=True)
    return made


def _common(dtype: str, *, every: int, pictures: int) -> list[str]:
    return [
        f"train.precision={dtype}",
        "train.deterministic=true",
        f"train.save_every={every}",
        f"train.sample_every={every}",
        "train.log_every=1",
        "data.workers=0",
        f"validation.every={every}",
        f"validation.images={2 * pictures}",
        "validation.levels=3",
        f"sample.n={pictures}",
        f"sample.batch_size={pictures}",
        "sample.steps=3",
    ]


def _data(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _told(name: str, folder: str, sets: list[str], size: list[int], *, dry: bool) -> list[Command]:
    """What info, a dry run and export say and write."""
    run, out = f"given/{folder}", f"out/{folder}"
    words = [word for entry in sets for word in ("--set", entry)]
    path = f"recipes/{name}.toml"
    plan = ("train", path, "--data", f"data/{_data(size)}", "--run", f"none/{folder}", *words, "--dry-run", "--json")
    found = [
        Command("info of the recipe", ("info", path, "--json")),
        Command("info of the run", ("info", run, "--json")),
        Command("export", ("export", run, "--to", "safetensors", "--out", f"{out}/export/one.safetensors", "--json")),
    ]
    return found + [Command("dry run", plan)] * dry


def _sample(folder: str, sampler: str, *, guided: bool) -> Command:
    words = ["sample", f"given/{folder}", "-n", "2", "--steps", "4", "--sampler", sampler, "--batch-size", "2"]
    words += ["--cfg", "2"] if guided else []
    out = f"out/{folder}/{sampler}"
    return Command(f"sample {sampler}", (*words, "--out", out, "--json"), may_refuse=sampler != "dpmpp-3m-sde")


def _more(folder: str) -> list[Command]:
    """Everything else that the other commands make of a run."""
    run, out = f"given/{folder}", f"out/{folder}"

    def sample(name: str, *words: str) -> Command:
        steps = () if "--from" in words else ("--steps", "3")
        given = ("sample", run, *steps, *words, "--out", f"{out}/{name}", "--json")
        return Command(f"sample, {name}", given)

    words = ("--metrics", "swd,patch-grid", "-n", "8", "--steps", "3", "--allow-small", "--batch-size", "4", "--json")
    return [
        sample("exponential", "-n", "2", "--schedule", "exponential", "--cfg", "3", "--cfg-interval", "0.1:5"),
        sample("raw", "-n", "2", "--weights", "raw", "--eta", "0.5", "--rho", "5", "--seed", "7"),
        sample("width", "-n", "2", "--weights", "0.05"),
        sample("larger", "-n", "2", "--size", "48x32"),
        sample("from-picture", "-n", "2", "--init-image", f"{out}/dpmpp-3m-sde/00000.png", "--strength", "0.5"),
        sample("seeds", "-n", "3", "--interpolate-seeds", "1:2"),
        sample("classes", "-n", "3", "--interpolate-classes", "0:1"),
        sample("again", "--from", f"{out}/raw/samples.json"),
        Command("eval-fid", ("eval-fid", run, *words)),
        Command("ema", ("ema", run, "--std", "0.08", "--out", f"{out}/ema", "--json")),
        Command("export bf16", ("export", run, "--dtype", "bf16", "--out", f"{out}/bf16/one.safetensors", "--json")),
        Command("verify", ("verify", run, "--json")),
    ]  # fmt: skip


def _smallest(model: dict) -> int:
    """The smallest of a few sides that the levels and their neighborhoods fit."""
    patch = model["patch"] if isinstance(model["patch"], int) else lcm(*model["patch"])
    levels = model.get("levels", ())
    unit = patch * 2 ** max(0, len(levels) - 1)
    for side in (32, 64, 128, 256):
        maps = [(level, side // (patch * 2**number)) for number, level in enumerate(levels)]
        fits = all(level.get("attention") != "neighborhood" or tokens >= level["kernel"] for level, tokens in maps)
        if side % unit == 0 and fits:
            return side
    return max(model["size"])
