"""`python -m hdit_cli` is the command `hdit`."""


def main() -> None:
    """Runs the command. Worker processes import this module too (it is their main module), and no command with it."""
    from hdit_cli.cli import main as run

    run()


if __name__ == "__main__":
    main()
