"""`python -m hdit_cli` is the command `hdit`."""

import gc
import sys

_OBJECTS = 100_000  # between two looks for garbage: of what `prepare` imports and holds hardly any is


def main() -> None:
    """Runs the command. Worker processes import this module too (it is their main module), and no command with it."""
    if sys.argv[1:2] == ["prepare"]:  # its processes start while the command line is read
        from hdit_cli.data.prepare.start import start_early

        start_early()
        gc.set_threshold(_OBJECTS)
    from hdit_cli.cli import main as run

    try:
        run()
    finally:
        gc.freeze()  # else Python looks at every object once more before it ends, which takes a tenth of a second


if __name__ == "__main__":
    main()
