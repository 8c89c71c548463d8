"""`sandboxd` and `python -m sandboxd`."""

import sys


def main() -> None:
    """The entry point of the command line."""
    from sandboxd.cli.main import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
