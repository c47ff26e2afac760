"""What of a URL may be shown: its query, and the user in front of its host, hold keys and passwords. Pure."""

from urllib.parse import urlsplit, urlunsplit

HIDDEN = "…"


def shown(url: str) -> str:
    """Return a URL without the values of its query, without user, password and fragment."""
    parts = urlsplit(url)
    query = "&".join(
        f"{name}={HIDDEN}" if separator else HIDDEN
        for name, separator, _ in (piece.partition("=") for piece in parts.query.split("&") if piece)
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
