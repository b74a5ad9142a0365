"""Addresses of ComfyUI servers as people have them: host and port, https behind a proxy, a path, a token."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import requests

from ..errors import InputError

TOKEN_VARIABLE = "ANOMALYDIFFUSION_TOKEN"
"""Environment variable with a token that is sent as ``Authorization: Bearer``, so that no command line shows it."""
_SCHEMES = {"http": "ws", "https": "wss"}
_EXAMPLE = "Give HOST:PORT, or http(s)://HOST[:PORT][/PATH][?token=TOKEN]."


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, and what every request to it carries.

    base: scheme, host, port and path, without a slash at the end. query, headers: sent with every request; they may
    hold secrets, so they are in no message.
    """

    base: str
    query: dict[str, str] = field(default_factory=dict, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.base.removeprefix("http://")

    def url(self, path: str) -> str:
        """The URL of ``path``, which begins with a slash, without the query."""
        return self.base + path

    def socket_url(self, client: str) -> str:
        """The URL of the websocket that tells ``client`` how its prompts go."""
        scheme, rest = self.base.split("://", 1)
        return f"{_SCHEMES[scheme]}://{rest}/ws?{urlencode({**self.query, 'clientId': client})}"

    def session(self) -> requests.Session:
        """An HTTP session for this server."""
        made = session()
        made.params = dict(self.query)
        made.headers.update(self.headers)
        return made


def session() -> requests.Session:
    """An HTTP session that never goes through a proxy: the server is on this machine or named by the user."""
    made = requests.Session()
    made.trust_env = False
    made.verify = certificates() or True
    return made


def certificates() -> str | None:
    """File of certificates of the environment, for servers whose certificate a company signed itself."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None


def server_address(text: str | ServerAddress) -> ServerAddress:
    """Read an address: ``HOST:PORT`` or a URL with https, a path, a query such as ``?token=``, ``user:password@``.

    A token in the environment variable TOKEN_VARIABLE joins it. Raises InputError, without any secret, for another
    form, another scheme, or a port that is none.
    """
    if isinstance(text, ServerAddress):
        return text
    cleaned = text.strip()
    full = cleaned if "://" in cleaned else f"http://{cleaned}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        shown = cleaned.partition("?")[0].rpartition("@")[2]
        raise InputError(f"address: '{shown}' cannot be read ({error}). {_EXAMPLE}") from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in _SCHEMES or not host or any(ord(c) < 33 for c in cleaned) or port == 0:
        raise InputError(f"address: '{shown}' is not the address of a server. {_EXAMPLE}")
    headers: dict[str, str] = {}
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    elif token := os.environ.get(TOKEN_VARIABLE, "").strip():
        headers["Authorization"] = f"Bearer {token}"
    return ServerAddress(shown.rstrip("/"), dict(parse_qsl(parts.query)), headers)
