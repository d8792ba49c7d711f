"""Who says the words of one backbone alone: its classes, its parts, its settings."""

import ast
import re
from fnmatch import fnmatch
from functools import cache

from source_tree import dotted, named_imports

# the files of the backbones themselves, and of what they are built from
BACKBONES = (
    "models/hdit*.py", "models/dit*.py", "models/grow.py", "models/layers.py", "models/attention/*.py",
    "recipe/hdit.py", "recipe/dit.py", "models/paella*.py", "recipe/paella.py",
)  # fmt: skip
# what only these files say: their classes, and names of parts that nothing else has
BACKBONE_WORDS = {
    "HDiT", "DiT", "Paella", "down_levels", "mid_level", "up_levels", "merges", "patch_in", "patch_out", "class_emb", "time_emb",
    "time_in_proj", "aug_emb", "aug_in_proj", "mapping_cond_in_proj", "mapping_inputs", "mapping_width", "mapping_depth",
    "x_embedder", "t_embedder", "y_embedder", "embedding_table", "pos_embed", "final_layer", "adaLN_modulation",
    "in_mapper", "out_mapper", "seq_norm", "byt5_mapper", "clip_mapper", "clip_image_mapper", "class_embedding", "condition_mapper",
}  # fmt: skip
# words of theirs that others have too, who are excused where they use their own: `self.patch`, `task.levels(n)`, and these
BACKBONE_ATTRIBUTES = {"levels", "patch"}
OTHERS_ATTRIBUTES = {
    ("engine/training/validate.py", "section.levels"): "levels of noise, of the section [validate]",
    ("engine/scoring/request.py", "request.patch"): "the patch of a metric, as a user gave it",
}


def is_of_backbone(path: str) -> bool:
    return any(fnmatch(path, own) for own in BACKBONES)


def _documentation(syntax: ast.Module) -> set[int]:
    """Ids of the strings that stand by themselves: docstrings."""
    return {
        id(node.value)
        for node in ast.walk(syntax)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _backbone_attribute(node: ast.Attribute, path: str, called: set[int]) -> str:
    """The word of a backbone that an attribute is, or ""."""
    if node.attr in BACKBONE_WORDS:
        return node.attr
    owner = dotted(node.value)
    is_others = owner == "self" or id(node) in called or (path, f"{owner}.{node.attr}") in OTHERS_ATTRIBUTES
    return node.attr if node.attr in BACKBONE_ATTRIBUTES and not is_others else ""


def _backbone_text(text: str) -> str:
    """The word of a backbone in a string that names its parts ("mid_level.0") or its settings ("model.levels.0"), or ""."""
    is_name = re.fullmatch(r"[\w.]+", text)  # of a parameter, a module, a class; a sentence may say what it likes
    named = [word for word in text.split(".") if is_name and word in BACKBONE_WORDS]
    settings = re.findall(r"\bmodel\\?\.(\w+)", text)
    named += [word for word in settings if word in BACKBONE_WORDS | BACKBONE_ATTRIBUTES]
    return named[0] if named else ""


def _backbone_subscript(node: ast.Subscript) -> str:
    """`...["model"]["levels"]` => "levels"; else ""."""
    inner = node.value
    if isinstance(inner, ast.Subscript) and isinstance(inner.slice, ast.Constant) and inner.slice.value == "model":
        key = node.slice.value if isinstance(node.slice, ast.Constant) else ""
        return key if key in BACKBONE_ATTRIBUTES else ""
    return ""


@cache
def backbone_words(path: str, syntax: ast.Module) -> list[tuple[str, int]]:
    """The words of backbones that a file says, with lines: names, attributes, imports, names of parts in strings."""
    called = {id(node.func) for node in ast.walk(syntax) if isinstance(node, ast.Call)}
    documentation = _documentation(syntax)
    found = []
    for node in ast.walk(syntax):
        word = ""
        if isinstance(node, ast.Name):
            word = node.id if node.id in BACKBONE_WORDS else ""
        elif isinstance(node, ast.Attribute):
            word = _backbone_attribute(node, path, called)
        elif isinstance(node, ast.Subscript):
            word = _backbone_subscript(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            word = _backbone_text(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            paths = [name.removeprefix("hdit_cli.").replace(".", "/") for name in named_imports(path, node)]
            of_backbones = [p for p in paths if re.match(r"(models/(h?dit|paella)\w*|recipe/(h?dit|paella))(/|$)", p)]
            word = of_backbones[0].split("/")[1] if of_backbones else ""
        if word:
            found.append((word, node.lineno))  # pyright: ignore
    return found
