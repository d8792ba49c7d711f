"""`hdit verify PATH`: whether a run's checkpoints, or a data set's shards, are what was written."""

from pathlib import Path
from typing import Annotated

import typer

from hdit_cli.commands.say import say_json


def verify(
    path: Annotated[Path, typer.Argument(help="A run folder, or a prepared data set.")],
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Read every checkpoint, snapshot, codec or shard and compare it with its hash; changes nothing.

    Exits 4 (data: 3) if one differs.
    """
    from dataclasses import asdict

    from hdit_cli.commands.progress import bar
    from hdit_cli.data.encoded import is_encoded
    from hdit_cli.engine.run.verify import shards_of, verify_data, verify_run
    from hdit_cli.errors import CheckpointError, DataError

    # a checkpoint's folder has a manifest too, and an encoded set has its codec
    is_data = (path / "manifest.json").is_file() and (is_encoded(path) or not any(path.glob("*.safetensors")))
    found = []
    with bar(total=shards_of(path) if is_data else 0, unit=" shards", quiet=not is_data) as progress:
        for checked in verify_data(path) if is_data else verify_run(path):
            found.append(checked)
            if not json_:
                told = f"{checked.name:<20} {checked.bytes / 1e6:>10,.1f} MB  {checked.problem or 'whole'}"
                progress.write_line(told, err=False)
            progress.advance(1)
    bad = [checked for checked in found if checked.problem]
    if json_:
        facts = {"kind": "data set" if is_data else "run", "whole": bool(found) and not bad}
        say_json({**facts, "checked": [asdict(checked) for checked in found]})
    if not found:
        raise CheckpointError(
            f"{path} holds neither checkpoints nor shards", hint="give a whole run folder or a data set"
        )
    if bad and is_data:
        raise DataError(
            f"{len(bad)} of {len(found)} are damaged: {bad[0].name} {bad[0].problem}",
            hint="copy what is named from where it came from, or make the data set again with "
            f"{'`hdit encode`' if is_encoded(path) else '`hdit prepare`'}",
        )
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(found)} are damaged: {bad[0].name} {bad[0].problem}",
            hint="`hdit train` sets a damaged checkpoint aside and goes on from the newest whole one; a damaged folder "
            "in ema/ can be removed, and a codec (kl-vae-*, vq-vae-*, dc-ae-*) copied there again",
        )
