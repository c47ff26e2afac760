"""``sse-gateway diff``: what a reload from one file to another would do."""

import argparse

from gateway.config.diff import ConfigChange, diff_configs
from gateway.config.loader.load import load_file
from gateway.config.model.paths import config_folder
from gateway.core.sanitize import escape_unprintable

EXIT_NEEDS_RESTART = 3
"""The exit status for a change that a reload rejects."""

EPILOG = """exit status:
  0  nothing differs, or a reload would apply all changes
  1  one of the files is invalid, or cannot be read
  2  wrong usage
  3  a change needs a restart: a reload would reject the file"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a command's parser."""
    parser.add_argument("old", metavar="OLD", help="the current file")
    parser.add_argument("new", metavar="NEW", help="the file that would replace it")


def run(options: argparse.Namespace) -> int:
    """Print a line for each difference, and return the exit status. Raises StartupError."""
    # The new file would replace the old one, so relative paths of both start at the same folder.
    new = load_file(options.new, paths_folder=config_folder(options.old))
    changes = diff_configs(load_file(options.old).require_config(), new.require_config())
    for change in changes:
        print(escape_unprintable(str(change)))
    print(escape_unprintable(_summary(options.new, changes)))
    return EXIT_NEEDS_RESTART if any(change.needs_restart for change in changes) else 0


def _summary(file: str, changes: list[ConfigChange]) -> str:
    if not changes:
        return f"{file}: nothing differs"
    count = "1 change" if len(changes) == 1 else f"{len(changes)} changes"
    refused = sum(change.needs_restart for change in changes)
    if not refused:
        return f"{file}: {count}; a reload takes all of it"
    return f"{file}: {count}, {refused} of them for a restart; until then a reload takes none"
