"""Foreign configurations in our terms: k-diffusion's `image_transformer_v2` to the values of a recipe.

Its tensors carry our parameter names already. Keys that a configuration leaves out take k-diffusion's defaults, which
differ from ours in places (sigma_data 1, weighting "karras").
"""

import math
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from torch import Tensor

from hdit_cli.models.foreign import Described, Unknown, Unsupported

TITLE = "k-diffusion's HDiT"
NEEDS_CONFIG = True


def knows(names: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether these are the names of an `image_transformer_v2`, or this is a configuration of k-diffusion."""
    model = (config or {}).get("model")
    return {"patch_in.proj.weight", "time_in_proj.weight"} <= names.keys() or (
        isinstance(model, dict) and "input_size" in model
    )


def tensors(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Its names are ours."""
    return dict(named)


def recipe(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Described:
    """See `kdiffusion_recipe`; the configuration lies in slim checkpoints, or beside."""
    if config is None:
        raise Unknown("carries no configuration")
    return Described(kdiffusion_recipe(dict(config)))


def remarks(named: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Nothing."""
    return ()


def kdiffusion_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """The recipe values that describe a k-diffusion configuration.

    Args:
        config: the JSON object of a k-diffusion configuration, complete or with keys left out.

    Raises:
        Unsupported: another architecture, or a part of it we lack.
        KeyError: a key without which nothing can be built.
    """
    model, data = config["model"], config.get("dataset", {})
    if model.get("type") != "image_transformer_v2":
        raise Unsupported(f"model type {short(model.get('type'))}; only image_transformer_v2 (HDiT) converts")
    for key in ("has_variance", "skip_stages", "augment_wrapper"):
        if model.get(key):
            raise Unsupported(f"model.{key} = {short(model[key])}")
    optimizer, average = config.get("optimizer", {}), config.get("ema_sched", {})
    return {
        "name": "converted",
        "data": {"augment": float(model.get("augment_prob", 0.0)), "flip": False},
        "model": _model(model, classes=int(data.get("num_classes", 0))),
        "diffusion": _diffusion(model, class_dropout=float(data.get("cond_dropout_rate", 0.1))),
        "optimizer": {
            "lr": float(optimizer.get("lr", 5e-4)),
            "betas": [float(b) for b in optimizer.get("betas", (0.9, 0.99))],
            "eps": float(optimizer.get("eps", 1e-8)),
            "weight_decay": float(optimizer.get("weight_decay", 1e-4)),
        },
        "ema": {
            "power": float(average.get("power", 0.6667)),
            "max_decay": float(average.get("max_value", 0.9999)),
        },
    }


def _model(model: dict[str, Any], *, classes: int) -> dict[str, Any]:
    width = int(model.get("mapping_width", 256))
    return {
        "type": "hdit",
        "size": [int(side) for side in model["input_size"]],
        "channels": int(model.get("input_channels", 3)),
        "patch": [int(side) for side in model["patch_size"]],
        "levels": _levels(model),
        "mapping_width": width,
        "mapping_depth": int(model.get("mapping_depth", 2)),
        "mapping_d_ff": int(model.get("mapping_d_ff") or 3 * width),
        "mapping_dropout": float(model.get("mapping_dropout_rate") or 0.0),
        "mapping_inputs": int(model.get("mapping_cond_dim") or 0),
        "classes": classes,
    }


def _levels(model: dict[str, Any]) -> list[dict[str, Any]]:
    depths, widths = model["depths"], model["widths"]
    count = len(widths)
    d_ffs = model.get("d_ffs") or [3 * width for width in widths]
    kinds = model.get("self_attns") or [{"type": "neighborhood"}] * (count - 1) + [{"type": "global"}]
    dropout = model.get("dropout_rate") or 0.0
    dropouts = [dropout] * count if isinstance(dropout, (int, float)) else dropout
    levels = []
    for depth, width, d_ff, kind, rate in zip(depths, widths, d_ffs, kinds, dropouts, strict=True):
        level = {"depth": depth, "width": width, "d_ff": d_ff, "dropout": float(rate), "attention": kind["type"]}
        if kind["type"] != "none":
            level["head_dim"] = kind.get("d_head", 64)
        if kind["type"] == "neighborhood":
            level["kernel"] = kind.get("kernel_size", 7)
        if kind["type"] == "shifted-window":
            level["window"] = kind["window_size"]
        levels.append(level)
    return levels


def _diffusion(model: dict[str, Any], *, class_dropout: float) -> dict[str, Any]:
    loss = model.get("loss_config", "karras")
    if loss not in ("karras", "simple"):
        raise Unsupported(f"model.loss_config = {short(loss)}")
    # the "simple" loss is the error of the predicted noise, which is what the snr weight makes of ours
    weighting = "snr" if loss == "simple" else model.get("loss_weighting", "karras")
    values: dict[str, Any] = {
        "sigma_data": float(model.get("sigma_data", 1.0)),
        "sigma_min": float(model["sigma_min"]),
        "sigma_max": float(model["sigma_max"]),
        "weighting": weighting,
        "class_dropout": class_dropout,
    }
    if "sigma_sample_density" in model:
        values["density"] = _density(model["sigma_sample_density"], sigma_data=values["sigma_data"], model=model)
    return values


def _density(density: dict[str, Any], *, sigma_data: float, model: dict[str, Any]) -> dict[str, Any]:
    kind = "cosine" if density["type"] == "v-diffusion" else density["type"]
    renamed = {
        "mean": "loc",
        "std": "scale",
        "std_1": "scale_1",
        "std_2": "scale_2",
        "min_value": "sigma_min",
        "max_value": "sigma_max",
        "image_d": "image_size",
    }
    options = {renamed.get(key, key): float(value) for key, value in density.items() if key != "type"}
    defaults: dict[str, dict[str, float]] = {
        "lognormal": {},
        "split-lognormal": {},
        "loguniform": {"sigma_min": float(model["sigma_min"]), "sigma_max": float(model["sigma_max"])},
        "loglogistic": {"loc": math.log(sigma_data), "scale": 0.5, "sigma_min": 1e-5, "sigma_max": 1e5},
        "cosine": {"sigma_data": sigma_data, "sigma_min": 1e-3, "sigma_max": 1e3},
        "cosine-interpolated": {},  # ours are the same
    }
    if kind not in defaults:
        raise Unsupported(f"sigma_sample_density.type = {short(kind)}")
    return {"type": kind, **defaults[kind], **options}
