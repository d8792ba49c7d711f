"""`hdit info PATH`: what a recipe, data set, run or checkpoint is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hdit_cli.commands import sampling as shared
from hdit_cli.commands.recipe import complete_recipe, tell_stand_in
from hdit_cli.commands.say import say, say_json

if TYPE_CHECKING:
    from hdit_cli.data.reader import ShardReader
    from hdit_cli.recipe import Recipe


def info(
    path: Annotated[
        str,
        typer.Argument(
            help="A recipe (file or shipped name), data set, run folder or checkpoint.", autocompletion=complete_recipe
        ),
    ],
    json_: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
) -> None:
    """Say what a recipe, data set, run or checkpoint is."""

    facts = _facts(path)
    if json_:
        say_json(facts)
    else:
        say(*_page(facts))


def _facts(name: str) -> dict[str, Any]:
    from hdit_cli import files
    from hdit_cli.data.encoded import is_encoded
    from hdit_cli.errors import UsageError
    from hdit_cli.recipe import load_recipe, shipped

    path = shared.located(Path(name)) if name.endswith(".safetensors") else Path(name)
    if name in shipped() or path.suffix == ".toml":
        tell_stand_in(name)
        return {"kind": "recipe", **_recipe_facts(load_recipe(name), classes=None)}
    found = sorted(file for file in path.glob("*.safetensors") if not files.left_by_others(file.name))
    inside = [file for file in found if file.name != "optimizer.safetensors"]
    if (
        inside and (path / "manifest.json").is_file() and not is_encoded(path)
    ):  # a step's folder in checkpoints/ or ema/
        text = f"{path} is a folder of weights: {', '.join(file.name for file in inside)}"
        raise UsageError(text, hint=f"name one of them, {inside[0]}, or the run")
    if (path / "manifest.json").is_file():
        return _data_facts(path)
    if (path / "recipe.toml").is_file() or (path / "ckpt.safetensors").is_file():
        return _run_facts(path)
    if (path.exists() or path.suffix == ".safetensors") and not path.is_dir():  # whatever it is: the reader says so
        return _checkpoint_facts(path)
    if path.is_dir():
        text = f"{path} is neither a data set (no manifest.json) nor a run (no recipe.toml)"
        raise UsageError(text, hint="a folder of pictures becomes a data set by `hdit prepare`")
    return {"kind": "recipe", **_recipe_facts(load_recipe(name), classes=None)}  # refuses it, with the nearest name


def _recipe_facts(recipe: "Recipe", *, classes: list[str] | None) -> dict[str, Any]:
    """Size and shape of the model; `classes` as a checkpoint knows them, None where only the recipe speaks."""
    from hdit_cli.engine.model import count

    model = recipe.model
    known = _class_names(recipe) if classes is None else classes
    wanted = "data" if model.classes == "data" and known is None else len(known or ()) or model.classes
    counted = count(recipe, classes=len(known or ()))
    return {
        "name": recipe.name,
        "params": counted["params"],
        "gmacs": round(counted["gmacs"], 9),
        "network": model.type,
        "image_size": list(model.size),
        "channels": model.channels,
        "classes": wanted,
        **model.facts(),
        **recipe.task.facts(recipe.diffusion),
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
        "ema_stds": list(recipe.ema.stds),
    }


def _class_names(recipe: "Recipe") -> list[str] | None:
    """The classes of the data that the recipe names; None where it leaves them to data that is not there."""
    from hdit_cli.data import shards

    if recipe.model.classes != "data":
        return []
    path = Path(recipe.data.path)
    return shards.load_manifest(path).classes if recipe.data.path and (path / shards.MANIFEST).is_file() else None


def _data_facts(path: Path) -> dict[str, Any]:
    from collections import Counter
    from dataclasses import asdict

    from hdit_cli.data import shards
    from hdit_cli.data.reader import ShardReader

    reader = ShardReader(path)
    manifest, labels = reader.manifest, Counter(reader.labels.tolist())
    inside = path / shards.HELD_OUT
    held_out = {"held_out": ShardReader(inside).manifest.count} if (inside / shards.MANIFEST).is_file() else {}
    return {
        "kind": "data set",
        "count": manifest.count,
        "classes": {name: labels.get(number, 0) for number, name in enumerate(manifest.classes)},
        "without_class": labels.get(-1, 0),
        "image_size": manifest.image_size,
        **({"buckets": [asdict(bucket) for bucket in manifest.buckets]} if manifest.buckets else {}),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "fingerprint": reader.fingerprint,
        **held_out,
        **_encoded_facts(reader),
        **_account(path),
        "source": manifest.source,
        "options": manifest.options,
    }


def _encoded_facts(reader: "ShardReader") -> dict[str, Any]:
    """What a codec made of the pictures; nothing where none did."""
    from hdit_cli.data.encoded import VIEWS

    if reader.encoded is None:
        return {}
    facts = reader.encoded.codec
    told = {"kind": facts.kind, "sha256": facts.sha256, "factor": facts.factor, "channels": facts.channels}
    told |= {"vocabulary": facts.vocabulary} if facts.vocabulary else {}
    told |= {"dtype": facts.dtype, "views": len(VIEWS), "bytes": sum(shard.bytes for shard in facts.shards)}
    return {"pictures": reader.has_pictures, "encoded": {**told, **facts.statistics}}


def _account(path: Path) -> dict[str, Any]:
    """What the report beside a data set tells; nothing where it was lost, since the data set does without it."""
    from hdit_cli.commands.account import facts_of
    from hdit_cli.data.prepare.finishing.report import REPORT, read_report

    return facts_of(read_report(path)) if (path / REPORT).is_file() else {}


def _run_facts(path: Path) -> dict[str, Any]:
    from hdit_cli.engine.run import snapshots
    from hdit_cli.engine.run.checkpoint import list_steps
    from hdit_cli.recipe import load_recipe

    newest = path / "ckpt.safetensors"
    if newest.is_file():
        facts = _checkpoint_facts(newest)
    else:
        facts = _recipe_facts(load_recipe(str(path / "recipe.toml")), classes=None)
    return {**facts, "kind": "run", "checkpoints": list_steps(path), "snapshots": snapshots.list_steps(path)}


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    from hdit_cli.engine.run.assemble import check_announced, check_is_ours
    from hdit_cli.engine.run.checkpoint import read_announced
    from hdit_cli.engine.run.codec_file import is_codec
    from hdit_cli.engine.run.lpips_file import is_lpips

    tensors, metadata = read_announced(path)
    if is_codec(metadata):
        return _codec_facts(path)
    if is_lpips(metadata):
        return _lpips_facts(path)
    check_is_ours(tensors, metadata, where=str(path))
    facts = check_announced(tensors, metadata, where=str(path))
    data = dict(facts.data)
    if facts.classes and data.get("class_counts"):
        data["class_counts"] = dict(zip(facts.classes, data["class_counts"], strict=True))
    return {
        "kind": "checkpoint",
        **_recipe_facts(facts.recipe, classes=facts.classes),
        "step": facts.step,
        "images_seen": facts.images_seen,
        "weights": facts.weights,
        "class_names": facts.classes,
        "data": data,
        **({"codec": facts.codec} if facts.codec else {}),
        "version": facts.version,
        "bytes": path.stat().st_size,
        **({"score": facts.score} if facts.score is not None else {}),
    }


def _codec_facts(path: Path) -> dict[str, Any]:
    from hdit_cli import files
    from hdit_cli.engine.run.codec_file import blank, codec_section

    section = codec_section(path)
    network = blank(section)
    factor = network.factor
    encode, decode = network.macs_each(32 * factor, 32 * factor)
    return {
        "kind": "codec",
        "codec": section.type,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "factor": factor,
        **({"vocabulary": section.vocabulary} if section.vocabulary else {}),
        **section.model_dump(mode="json", exclude={"type"}),
        f"gmacs_at_{32 * factor}": {"encode": round(encode / 1e9, 9), "decode": round(decode / 1e9, 9)},
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
    }


def _lpips_facts(path: Path) -> dict[str, Any]:
    from math import prod

    from hdit_cli import files
    from hdit_cli.engine.run.lpips_file import announced, wanted

    heads, sources = announced(path)
    return {
        "kind": "perceptual loss",
        "network": "vgg16",
        "heads": "lpips" if heads else "none: every channel counts the same",
        "params": sum(map(prod, wanted(heads=heads).values())),
        "sources": sources,
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
    }


# Printing


def _page(facts: dict[str, Any]) -> list[str]:
    """One fact a line; lists of tables as tables."""
    lines = []
    for name, value in facts.items():
        label = f"{name.replace('_', ' '):<14}"
        if name == "classes" and isinstance(value, dict):
            lines += [f"{label} {len(value)}", *(f"  {count:>10}   {each}" for each, count in value.items())]
        elif name == "buckets":
            lines += [
                f"{label} {len(value)}",
                *("  {:>10}   {}x{}".format(each["count"], *each["size"]) for each in value),
            ]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            numbers = ["", *map(str, range(len(value)))]
            lines += [
                f"{name.removesuffix('s'):<10} {n:>3}  {row}" for n, row in zip(numbers, _table(value), strict=True)
            ]
        else:
            lines.append(f"{label} {value:,.3f}" if name == "gmacs" else f"{label} {_text(value)}")
    return lines


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows with the same keys as columns, a line each, under a line of the keys."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells]


def _cell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, dict, list)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items()) or "none"
    return ", ".join(map(str, value)) or "none"
