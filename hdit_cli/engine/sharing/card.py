"""What a model card says (Mitchell et al. 2019 for the idea): facts, scores, recipe, use. `card_file` writes it beside an export.

Every name in it is anybody's text: it goes through `markdown`.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from hdit_cli import __version__, files
from hdit_cli.data.shards import HELD_OUT
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import step_name
from hdit_cli.engine.sampling.classes import class_name
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.generate import check, choose_labels, stream
from hdit_cli.engine.sampling.grid import grid_png
from hdit_cli.engine.scoring.scores import net_words
from hdit_cli.engine.sharing.export import Exported, for_others
from hdit_cli.engine.sharing.markdown import code, file_name, literal, plain, scalar, toml
from hdit_cli.engine.training.init import class_names
from hdit_cli.errors import UsageError
from hdit_cli.models.codecs.latents import file_name as codec_name
from hdit_cli.recipe import Recipe, named
from hdit_cli.tasks.sampling import in_words

GENERATES, RECONSTRUCTS = "unconditional-image-generation", "image-to-image"  # tasks, as model hubs call them
_INSTALL = (  # `pip install hdit` would fetch a stranger's package
    "It needs `hdit-cli`, which brings the command `hdit`. There is no release on the package index yet (`hdit` there is another "
    "project): `pip install .` in a clone of its repository."
)
_IMAGES = 9  # of a grid drawn for the card
_CLASSES = 100  # named in the card; the file's header has all
_SCORES = 10  # newest lines shown


# Scores


@dataclass(frozen=True)
class Scored:
    """One evaluation of a run. `sampling` says how the pictures were made; `part` that they were not of all classes."""

    step: int
    weights: str
    n: int | None
    scores: dict[str, float]
    sampling: str = ""
    reference: str = ""
    part: bool = False


def read_scores(run: Path | None) -> list[Scored]:
    """The evaluations of a run's `scores.jsonl`, oldest first; lines that cannot be read are passed over."""
    path = run / "scores.jsonl" if run else None
    if path is None or not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            scores = {str(k): float(v) for k, v in values["scores"].items() if math.isfinite(float(v))}
            n = values.get("n")
            step, count = int(values["step"]), None if n is None else int(n)
            found.append(Scored(step, str(values["weights"]), count, scores, **_conditions(values)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return [scored for scored in found if scored.scores]


def _conditions(values: dict[str, Any]) -> dict[str, Any]:
    """How the pictures of a line of `scores.jsonl` were made, and what they were compared with."""
    how, reference = values.get("sampling") or {}, values.get("reference") or {}
    words = [str(how["sampler"]) if "sampler" in how else "", f"{how['steps']} steps" if "steps" in how else ""]
    words += [f"cfg {in_words(how['cfg'])}"] if how.get("cfg", 1) != 1 else []
    words += [f"class {how['label']}"] if (part := how.get("label") not in (None, "all")) else []
    words.append(net_words(values.get("features")))
    path = reference.get("path") if isinstance(reference, dict) else reference
    return {"sampling": ", ".join(filter(None, words)), "reference": _reference(str(path or "")), "part": part}


def best_known(scored: list[Scored], model: Model) -> dict[str, Scored]:
    """For each metric the evaluation of these very weights that counts: the most pictures, then the newest.

    An evaluation of a single class against a whole data set says nothing of the model, and is passed over.
    """
    chosen: dict[str, Scored] = {}
    for each in scored:
        if (each.step, each.weights) != (model.step, model.weights) or each.part:
            continue
        for name in each.scores:
            if name not in chosen or (each.n or 0) >= (chosen[name].n or 0):
                chosen[name] = each
    return chosen


# The grid


def own_grid(model: Model, run: Path | None) -> bytes | None:
    """The grid that the run drew of these very weights, as PNG bytes; None where it has none."""
    path = run / "samples" / f"{step_name(model.step)}-{model.weights}.png" if run else None
    return path.read_bytes() if path is not None and path.is_file() else None


def drawn_grid(model: Model) -> bytes | None:
    """A small grid drawn now, as the recipe samples; None for a model that cannot be sampled without more conditions."""
    sampling = sampling_of(model, batch_size=_IMAGES)
    try:
        check(model, sampling)
    except UsageError:
        return None
    labels = choose_labels(model, n=_IMAGES, wanted="all" if model.network.classes else None, seed=sampling.seed)
    pictures = []
    for _, images in stream(model, indices=range(_IMAGES), labels=labels, sampling=sampling):
        pictures.append(images.numpy())
    names = None if labels is None else [class_name(model, int(label)) for label in labels]
    return grid_png(np.concatenate(pictures), labels=names)


# The text


def key_of(model: Model) -> str:
    """What tells the model of one card from another's: recipe, steps, weights and data, in 12 hexadecimal digits."""
    told = for_others(model)
    facts = [told.recipe, told.classes, told.step, told.weights, told.data]
    return files.sha256_of(json.dumps(facts, sort_keys=True).encode())[:12]


def index_entry(model: Model, *, scores: dict[str, Scored]) -> str:
    """The scores of a model as an entry of a model-index; "" where there are none."""
    lines = [f"- name: {scalar(str(model.recipe['name']))}", "  results:"] if scores else []
    trained = named(model.data_path) or "training data"
    for data in dict.fromkeys(each.reference for each in scores.values()):
        lines += [
            "  - task:",
            f"      type: {RECONSTRUCTS if model.reconstructs else GENERATES}",
            "    dataset:",
            f"      type: {scalar(data or trained)}",
            f"      name: {scalar(data or trained)}",
            "    metrics:",
        ]
        for metric, each in scores.items():
            if each.reference == data:
                shown = f"{metric.upper()}, {each.n:,} pictures" if each.n else metric.upper()
                lines += [f"    - type: {scalar(metric)}", f"      value: {each.scores[metric]!r}"]
                lines += [f"      name: {scalar(shown)}"]
    return "\n".join(lines)


def about(model: Model, *, grid_name: str | None) -> str:
    """The head: what the model is, and what it makes."""
    height, width = model.image_size
    classes, title, paper = model.network.classes, model.network.title, model.network.paper
    does = f"makes pictures of {height}×{width} pixels{f' in {classes} classes' if classes else ''}"
    if model.reconstructs:
        factor = model.network.factor
        small = f"{height // factor}×{width // factor} of {height}×{width} pixels"
        does = f"makes small maps of pictures, such as {small}, and pictures of them"
    parts = [
        f"# {plain(str(model.recipe['name']))}",
        f"{'An' if title[0] in 'AEIOU' else 'A'} {title} ([arXiv {paper}](https://arxiv.org/abs/{paper})) that {does}. "
        f"Trained with `hdit` {__version__}.",
        f"![samples]({quote(grid_name)})" if grid_name else "",
    ]
    return "\n\n".join(part for part in parts if part)


def of_file(model: Model, done: Exported) -> str:
    """One exported file: its facts, and how it is used."""
    return f"## {code(done.path.name)}\n\n{_facts(model, done)}\n\n### Use\n\n{_use(model, done)}"


def more(model: Model, *, scored: list[Scored]) -> str:
    """What is true of every file of the model: classes, scores, recipe.

    Args:
        scored: evaluations of the run.
    """
    recipe = Recipe.from_dict(for_others(model).recipe)
    parts = [
        "## Classes\n\n" + _class_list(model) if model.network.classes else "",
        "## Scores\n\n" + _score_table(scored) if scored else "",
        "## Recipe\n\n```toml\n" + toml(recipe.to_toml().strip()) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(model: Model, done: Exported) -> str:
    data, params = model.data, sum(p.numel() for p in model.network.parameters())
    counts = data.get("class_counts")
    fingerprint = f", fingerprint {code(str(data['fingerprint'])[:12])}" if data.get("fingerprint") else ""
    rows = {
        "file": f"{code(done.path.name)}, {done.bytes:,} bytes, SHA-256 `{done.sha256}`",
        "parameters": f"{params:,}",
        "weights": {"ema": "averaged (EMA)", "raw": "as trained, not averaged"}.get(
            model.weights, plain(model.weights)
        ),
        "trained": f"{model.step:,} steps, {model.images_seen:,} images seen",
        "data": f"{code(named(model.data_path))}{fingerprint}"
        + (f", {sum(counts):,} pictures with a class" if counts else "")
        if data.get("path")
        else "not recorded",
        "codec": _codec(model),
        "started from": _origin(data["init"]) if data.get("init") else "",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join(["| | |", "|---|---|", *lines])


def _codec(model: Model) -> str:
    """Of a network of latents, the file without which it makes no pictures; "" of one of pixels."""
    if model.latents is None:
        return ""
    kind, sha256 = model.latents.kind, model.latents.fingerprint()
    return (
        f"{code(codec_name(kind, sha256))}, SHA-256 `{sha256}`: needed beside the file, since the network makes latents"
    )


def _origin(init: dict[str, Any]) -> str:
    told = f"step {init['step']:,}, {plain(str(init['weights']))} weights, SHA-256 {code(str(init['sha256']))}"
    return f"{code(named(str(init['path'])))}, {told}"


def _reference(path: str) -> str:
    """The name of what a score was made against; of held-out pictures that of their data set too."""
    name = named(path)
    return f"{named(path.rstrip('/')[: -len(HELD_OUT)])}/{HELD_OUT}".lstrip("/") if name == HELD_OUT else name


def _class_list(model: Model) -> str:
    names, counts = class_names(model), model.data.get("class_counts")
    told = [
        f"- {code(name)}" + (f" ({counts[i]:,} pictures)" if counts and i < len(counts) else "")
        for i, name in enumerate(names[:_CLASSES])
    ]
    rest = [f"- … {len(names):,} in all; the header of the file names them"] if len(names) > _CLASSES else []
    return "\n".join([*told, *rest])


def _score_table(scored: list[Scored]) -> str:
    shown = scored[-_SCORES:]
    metrics = list(dict.fromkeys(name for each in shown for name in each.scores))
    lines = [
        "| step | weights | pictures | sampling | reference | " + " | ".join(plain(m.upper()) for m in metrics) + " |",
        "|---|---|---|---|---|" + "---|" * len(metrics),
    ]
    for each in shown:
        cells = [f"{each.scores[name]:.4g}" if name in each.scores else "" for name in metrics]
        words = [plain(word) for word in (each.weights, f"{each.n:,}" if each.n else "", each.sampling, each.reference)]
        lines.append("| " + " | ".join([f"{each.step:,}", *words, *cells]) + " |")
    return "\n".join(lines)


_PROGRAM = "it needs PyTorch alone. Such a file is a program: load it only from where you trust it."


def _use(model: Model, done: Exported) -> str:
    file, classes = file_name(done.path.name), class_names(model)
    label = f", label={literal(classes[0])}" if classes else ""
    if done.path.suffix != ".pt2":
        option = " --weights raw" if model.weights == "raw" else ""
        weights = ', weights="raw"' if model.weights == "raw" else ""
        if model.reconstructs:
            return (
                f"{_INSTALL}\n\n```bash\nhdit encode DATA --codec {file}\n```\n\n"
                f'```python\nimport hdit_cli\n\ncodec = hdit_cli.load_codec("{file}")\n'
                "pixels = codec.decode(codec.encode(pixels))  # (N, 3, H, W) in [-1, 1]\n```"
            )
        return (
            f"{_INSTALL}\n\n```bash\nhdit sample {file}{option} -n 16\n```\n\n"
            f'```python\nimport hdit_cli\n\nmodel = hdit_cli.load("{file}"{weights})\n'
            f"images = hdit_cli.generate(model, n=4, seed=0{label})  # uint8 (4, H, W, C)\n```"
        )
    label = ", label" if classes else ""
    meaning = (
        ""
        if not classes
        else f'; label: int64 (N,), 0 ... {len(classes) - 1} in the order of the classes, {len(classes)} "no class"'
    )
    if model.network.told == "share":
        return (
            f"A `torch.export` program of the network; {_PROGRAM}\n\n"
            f'```python\nimport torch\n\nnetwork = torch.export.load("{file}").module()\n'
            f"logits = network(x, t{label})  # x: int64 (N, h, w), tokens; t: (N,), share of them that is noise{meaning}\n```"
        )
    return (
        f"A `torch.export` program of the denoiser; {_PROGRAM}\n\n"
        f'```python\nimport torch\n\ndenoiser = torch.export.load("{file}").module()\n'
        f"x0 = denoiser(x, sigma{label})  # x: (N, C, H, W) = x0 + sigma * noise; sigma: (N,){meaning}\n```"
    )
