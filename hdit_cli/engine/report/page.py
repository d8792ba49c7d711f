"""The HTML file: assets put together, facts embedded, and a policy that lets nothing in from outside.

Names of runs and classes are anybody's text. They reach the page as JSON in a script element that is not run, with every
character that could end it escaped; the page's script puts them in as text only; and the policy allows no script but that
one, by its hash.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hdit_cli import files

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("style.css", "print.css")
_SCRIPTS = ("format.js", "scale.js", "chart.js", "curves.js", "grids.js", "tables.js", "main.js")
_MARK = b'<meta name="generator" content="hdit report">'
_HEAD = 2048  # bytes within which the mark stands


def build(facts: dict[str, Any]) -> bytes:
    """The page with its facts inside, UTF-8."""
    style = "\n".join(_asset(name) for name in _STYLES)
    script = '(function () {\n"use strict";\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "\n})();\n"
    parts = {"policy": _policy(script=script, style=style), "style": style, "script": script}
    size = len(_filled({**parts, "data": _json({**facts, "bytes": 10**7})}))
    return _filled({**parts, "data": _json({**facts, "bytes": size})})


def is_report(path: Path) -> bool:
    """Whether a file is a page that `build` made."""
    try:
        with files.open_regular(path) as handle:
            return _MARK in handle.read(_HEAD)
    except OSError:
        return False


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _filled(parts: dict[str, str]) -> bytes:
    """The template, every `{{name}}` replaced in one pass: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html")).encode("utf-8")


def _json(value: Any) -> str:
    """JSON that neither ends a script element nor opens a comment in it; all ASCII, so no line separators either."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(*, script: str, style: str) -> str:
    """Content-Security-Policy: pictures from inside the file, this script, this style, and nothing else."""
    rules = {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
