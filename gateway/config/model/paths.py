"""Resolves file paths in a configuration, which are relative to its folder. Pure.

The loader passes the folder as pydantic's context; without one, paths stay unchanged.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema

FOLDER_CONTEXT_KEY = "folder"
"""The key of pydantic's context that holds the folder."""

SQLITE_URL = r"sqlite:///(.+)"
REDIS_FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
"""Options of a Redis URL that name files; the last one a folder."""

_REDIS_FILE_OPTION = re.compile(rf"(?<=[?&])({'|'.join(REDIS_FILE_OPTIONS)})=([^&#]+)")
_PIPE_PREFIXES = ("/dev/", "/proc/")


def config_folder(file: str | Path) -> Path:
    """Return the folder where relative paths of a configuration start: that of the file.

    For a pipe or standard input it is the working folder.
    """
    if str(file) == "-" or str(file).startswith(_PIPE_PREFIXES):
        return Path.cwd()
    return Path(absolute_path(str(Path(file).parent)))


def absolute_path(path: str, folder: str | Path | None = None) -> str:
    """Return an absolute path; a relative one starts at ``folder``, by default the working folder."""
    return os.path.abspath(Path(folder or "", path))  # noqa: PTH100 -- resolve() would follow links


def _resolve_path(value: Any, info: ValidationInfo) -> Any:
    folder = (info.context or {}).get(FOLDER_CONTEXT_KEY)
    return absolute_path(value, folder) if isinstance(value, str) and folder is not None else value


File = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_resolve_path),
    WithJsonSchema({"title": "file", "type": "string", "minLength": 1, "examples": ["tls/file.pem"]}),
]
"""The path of a file; `resolve_url_files` resolves paths in URLs."""


def resolve_url_files(value: Any, info: ValidationInfo) -> Any:
    """Return a log's or Redis's URL with the file paths in it resolved; a pydantic validator."""
    folder = (info.context or {}).get(FOLDER_CONTEXT_KEY)
    if folder is None or not isinstance(value, str):
        return value
    if (sqlite := re.fullmatch(SQLITE_URL, value, re.DOTALL)) is not None:
        return f"sqlite:///{absolute_path(sqlite[1], folder)}"
    return _REDIS_FILE_OPTION.sub(
        lambda found: f"{found[1]}={quote(absolute_path(unquote(found[2]), folder))}", value
    )


def folder_of_misread_sqlite_url(url: str) -> str | None:
    """Return ``/tmp`` for the relative path in ``sqlite:///tmp/x.db``; None if it cannot be misread."""
    sqlite = re.fullmatch(SQLITE_URL, url, re.DOTALL)
    if sqlite is None or sqlite[1].startswith("/"):
        return None
    first, slash, _ = sqlite[1].partition("/")
    return f"/{first}" if slash and first not in (".", "..") else None
