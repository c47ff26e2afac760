"""Detects changed files, by comparing fingerprints of their metadata."""

from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

FileFingerprint = tuple[tuple[int, ...] | None, ...]


def file_fingerprint(files: Iterable[str | Path]) -> FileFingerprint:
    """Return a value that changes when a file is written or replaced, or its path leads elsewhere.

    Symlinks are followed, so the swap of a whole folder, as Kubernetes does it, is detected too. Blocks on
    the disk.
    """
    return tuple(_stat_fields(Path(file)) for file in files)


def _stat_fields(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the name
        return None
    if not S_ISREG(found.st_mode):
        return None  # the times of a terminal change with every key that is typed
    # The change time cannot be set back by any tool.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
