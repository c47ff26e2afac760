"""Whether files are still what they were, whatever way they are changed."""

from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

FileFingerprint = tuple[tuple[int, ...] | None, ...]


def file_fingerprint(files: Iterable[str | Path]) -> FileFingerprint:
    """Return what differs once a file was written, replaced, or its path leads elsewhere.

    Paths are followed through symlinks, so the swap of a whole folder, as Kubernetes does it, shows on every
    file system. Blocks on the disk.
    """
    return tuple(_stat_fields(Path(file)) for file in files)


def _stat_fields(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name, or what no name can be written with
        return None
    if not S_ISREG(found.st_mode):
        return None  # a terminal's times change whenever somebody types
    # The time of change is there too: no tool can set it back.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
