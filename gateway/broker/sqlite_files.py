"""Who may read the files of ``sqlite://``: their owner alone, unless the file has wider permissions."""

import os
import stat
from contextlib import suppress
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def make_file(path: Path) -> None:
    """Make the file for its owner alone, whatever the umask says; one that exists keeps its permissions.

    SQLite gives those of the file to ``-wal`` and ``-shm``. What cannot be made is left for SQLite to report.
    """
    # Only where there is none: closing a file drops the locks that the process holds on it (fcntl(2)).
    with suppress(OSError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))


def is_open_to_all(file: Path) -> bool:
    """Tell whether every user of the machine may read the file."""
    return bool(file.stat().st_mode & stat.S_IROTH)
