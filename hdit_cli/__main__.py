"""`python -m hdit_cli` is the command `hdit`."""

from hdit_cli.cli import main

if __name__ == "__main__":
    main()
