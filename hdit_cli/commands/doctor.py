"""`hdit doctor`: what this machine has, what will run, and the command that mends what is missing."""

from typing import Annotated, Any

import typer

from hdit_cli.commands.say import say, say_json

_PACKAGES = (
    "torch", "numpy", "pillow", "typer", "pydantic", "accelerate", "webdataset", "safetensors", "tqdm", "einops",
    "tomli-w", "natten", "clean-fid",
)  # fmt: skip


def doctor(
    check: Annotated[
        bool, typer.Option("--check", help="Run it: prove that this machine computes what it should; about a minute.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="The same facts as JSON.")] = False,
) -> None:
    """Say what this machine has, which attention backend will run and why the others will not, and what is missing.

    With --check, prove it: attention, training steps, compiled code, resuming, memory and speed, each held against another way
    to the same answer. Nothing stays on the disk.
    """

    if check:
        _check(json_)
        return
    facts = _facts()
    if json_:
        say_json(facts)
    else:
        say(*_page(facts))


def _check(json_: bool) -> None:
    """Ten lines: the machine, what each check found, the verdict.

    Raises:
        UsageError: this is one of several processes.
        HditError: something is wrong here.
    """
    from hdit_cli import launchers
    from hdit_cli.engine.checking.report import Checked, failure
    from hdit_cli.engine.checking.report import check as run
    from hdit_cli.runtime import environment

    launchers.check_alone("doctor --check")

    def done(checked: Checked) -> None:
        say(f"{checked.name:<14} {checked.state:<7} {checked.text}")

    if not json_:
        here = environment()
        say(f"{'machine':<14} {here['device']} ({here['hardware']}), torch {here['torch']}, hdit {here['hdit']}")
    facts = run(tell=lambda text: say(f"{text} ...", err=True), done=(lambda checked: None) if json_ else done)
    if json_:
        say_json(facts)
    else:
        say(f"{'verdict':<14} {_verdict(facts)}")
    if error := failure(facts):
        raise error


def _verdict(facts: dict[str, Any]) -> str:
    states = [each["state"] for each in facts["checks"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped") if state in states)
    what = "this machine computes what it should" if facts["right"] else "do not train here before it is mended"
    return f"{what}: {counts}, in {facts['seconds']:.0f} s"


def _facts() -> dict[str, Any]:
    from hdit_cli import runtime

    chosen = runtime.device()
    environment = runtime.environment()
    attention, inception = _attention(chosen.type), _inception()
    return {
        "hdit": environment["hdit"],
        "python": environment["python"],
        "system": environment["system"],
        "packages": {name: runtime.version(name) for name in _PACKAGES},
        "device": environment["device"],
        "hardware": environment["hardware"],
        "devices": _devices(),
        "attention": attention,
        "why_not_compiled": runtime.why_not_compiled(chosen),
        "inception": inception,
        "mend": _remedies(chosen.type, attention, inception),
    }


def _devices() -> list[str]:
    """Every device that `runtime.device` accepts, with its memory where it is known."""
    import torch

    out = ["cpu"]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        out.append(f"cuda:{number} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    return out + (["mps"] if torch.backends.mps.is_available() else [])


def _attention(device: str) -> dict[str, Any]:
    """The backend that serves a training step of a published model (heads of 64, kernel 7), and why not the others."""
    import torch

    from hdit_cli.models.attention.dispatch import choose, choose_compiled, explain
    from hdit_cli.models.attention.request import Request

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    request = Request(device=device, dtype=dtype, head_dim=64, kernel=7)
    used = choose(request)
    unused = {name: reason or f"{used} is preferred" for name, reason in explain(request).items() if name != used}
    return {"used": used, "compiled": choose_compiled(request), "not_used": unused}


def _inception() -> dict[str, Any]:
    """Whether the weights behind FID and KID are at hand, and the published ones."""
    from hdit_cli import files
    from hdit_cli.metrics import inception

    found = inception.locate()
    if found is None:
        return {"at_hand": False, "path": str(inception.published_path()), "url": inception.URL, "published": False}
    published = files.sha256(found) == inception.SHA256
    return {"at_hand": True, "path": str(found), "url": inception.URL, "published": published}


def _remedies(device: str, attention: dict[str, Any], inception: dict[str, Any]) -> list[str]:
    """Commands that mend what is missing, each with what it brings."""
    out = []
    fetch = f"curl --create-dirs -o '{inception['path']}' {inception['url']}"
    if not inception["at_hand"]:
        out.append(f"{fetch}  (96 MB: FID and KID; `hdit eval-fid` downloads it by itself where there is a network)")
    elif not inception["published"]:
        out.append(f"{fetch}  (the file there is damaged, or not the published one)")
    if device == "cuda" and attention["used"] != "natten":
        out.append(
            "pip install torch==2.13.0 natten==0.21.7+torch2130cu130 -f https://whl.natten.org  (fused attention for torch 2.13 "
            "and CUDA 13.0; other pairs: https://natten.org/install)"
        )
    return out


def _page(facts: dict[str, Any]) -> list[str]:
    attention, inception, reason = facts["attention"], facts["inception"], facts["why_not_compiled"]
    installed = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    absent = [name for name, version in facts["packages"].items() if not version]
    weights = "at hand" if inception["published"] else "not the published file" if inception["at_hand"] else "missing"
    rows = [
        ("hdit", f"{facts['hdit']}, python {facts['python']}, {facts['system']}"),
        ("packages", ", ".join(installed)),
        ("not installed", ", ".join(absent) or "none"),
        ("device", f"{facts['device']} ({facts['hardware']})"),
        ("devices", "; ".join(facts["devices"])),
        ("attention", f"{attention['used']} will run"),
        *((f"  {name}", f"not used: {reason}") for name, reason in attention["not_used"].items()),
        ("compiled steps", f"not here: {reason}" if reason else f"possible, attention by {attention['compiled']}"),
        ("Inception", f"weights {weights}: {inception['path']}"),
        *(("to mend", remedy) for remedy in facts["mend"] or ["nothing"]),
    ]
    return [f"{name:<14} {text}" for name, text in rows]
