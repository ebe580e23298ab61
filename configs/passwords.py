"""Passwords in the addresses of servers: masked wherever anything is written, and asked of the environment.

An address such as postgresql://user:secret@host/db is used as it was given, and written as postgresql://user:***@host/db.
Where a mask stands in an address that is to be used, the password comes from a variable of the environment.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from spaces.errors import ConfigError

MASK = "***"
VARIABLES = {"storage": "SLIMFRONT_STORAGE_PASSWORD", "tracking_uri": "SLIMFRONT_TRACKING_PASSWORD"}  # by setting

# The user's part of an address ends at its last @; a password may hold slashes and quotes, but no white space.
_USER = re.compile(r"(?<=://)([^:/@\s]*):([^\s]*)@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:pass|pwd|token|secret|key)[^=&\s]*=)([^&\s'\"]+)", re.IGNORECASE)


def masked(text: str) -> str:
    """Return a text, such as an address or an error message, with a mask in place of the passwords of addresses."""
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(rf"\1:{MASK}@", text))


def masked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a search with masked addresses."""
    return {**settings, **{name: masked(settings[name]) for name in VARIABLES if name in settings}}


def with_password(setting: str, address: str) -> str:
    """Return an address in which the password of the environment stands in place of the mask.

    Args:
        setting: "storage" or "tracking_uri".

    Raises:
        ConfigError: the address has a mask, and the environment no password.
    """
    if not _is_masked(address):
        return address
    variable = VARIABLES[setting]
    password = os.environ.get(variable)
    if not password:
        flag = "--" + setting.replace("_", "-")
        raise ConfigError(
            f"{flag} is {masked(address)!r} without its password, which is never written; set it in the environment "
            f"as {variable}"
        )
    return address.replace(MASK, quote(password, safe=""))


def _is_masked(address: str) -> bool:
    found = [*_USER.findall(address), *_QUERY.findall(address)]
    return any(password == MASK for _, password in found)
