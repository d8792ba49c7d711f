"""How `--help` of every command looks: one word for one kind of value, choices as a|b, defaults in one form.

N is a whole number, X any number, PATH a file or folder; what says more (DIR, FILE, HxW, NAME) its option says itself.
"""

import re
from typing import Any

from typer.core import TyperCommand

_WORDS = {"int": "N", "integer": "N", "float": "X", "path": "PATH", "file": "FILE", "directory": "DIR"}
_KIND = re.compile(r" [<\[{]([^<>{}]+)[>\]}]$")
_DEFAULT = re.compile(r"\[default: \((.*)\)\]$", re.DOTALL)  # a default that is told in words


class Command(TyperCommand):
    """A command whose help has the words of this page, whatever version of typer writes it."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces = ["[OPTIONS]"]
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                name = _name(parameter) + ("..." if parameter.nargs != 1 else "")
                pieces.append(name if parameter.required else f"[{name}]")
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                left, help_ = record
                is_argument = parameter.param_type_name == "argument"
                name = _name(parameter) if is_argument else _KIND.sub(lambda found: f" {_word(found[1])}", left)
                rows[parameter.param_type_name].append((name, _DEFAULT.sub(r"[default: \1]", help_)))
        for title, found in (("Arguments", rows["argument"]), ("Options", rows["option"])):
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)


def _name(argument: Any) -> str:
    """An argument in capitals."""
    return (argument.metavar or argument.name or "").upper().removesuffix("...")


def _word(kind: str) -> str:
    """The word for the kind of an option's value; choices stay as they are."""
    plain = re.sub(r"^list\[(.*)\]$", r"\1", kind)
    return plain if "|" in plain else _WORDS.get(plain.lower().split()[0], "TEXT")
