"""Ray's token, looked for where Ray 2.60 looks: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

RAY_AUTH_MODE says whether one is used: `token`, `disabled`, or nothing: then one that is there is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from zerofleet.trainer.errors import UserError

_PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH (a file) or ~/.ray/auth_token"


@dataclass(frozen=True)
class Token:
    """A secret, and where it came from. Its text form does not hold it."""

    value: str = field(repr=False)
    """Empty: there is none."""
    source: str

    def refused(self, status: int) -> str:
        """Half a sentence about a cluster that answered 401 (no token) or 403 (a wrong one), with the remedy."""
        if not self.value:
            return f"wants a token and {self.source}: put it in {_PLACES}, with RAY_AUTH_MODE=token"
        reason = "refuses the token" if status == 403 else "does not see the token"
        return (
            f"{reason} from {self.source} (HTTP {status}): ask whoever runs the cluster for the one it was started with"
        )


def find_token() -> Token:
    """Raises UserError for a file that cannot be read."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return Token("", "RAY_AUTH_MODE=disabled keeps it back")
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _checked(value, "RAY_AUTH_TOKEN")
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read(Path(named).expanduser(), "RAY_AUTH_TOKEN_PATH")
    default = Path("~/.ray/auth_token").expanduser()
    return _read(default, "~/.ray/auth_token") if default.exists() else Token("", "none was found")


def _read(path: Path, source: str) -> Token:
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"Ray's token cannot be read from {source} ({path}: {reason}): put it in {_PLACES}") from error
    return _checked(value, f"{source} ({path})") if value else Token("", f"{path} is empty")


def _checked(value: str, source: str) -> Token:
    """What no header can hold would come back in an error of the HTTP library, secret and all."""
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise UserError(f"what {source} holds is no token of Ray's: it has characters that no HTTP header can hold")
    return Token(value, source)
