"""Where an etcd is, and who we are to it: the URL that names a store.

etcd://HOST[:PORT][,HOST[:PORT]…][/PREFIX][?ca=FILE&cert=FILE&key=FILE]
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from overmesh.errors import ConfigError

CLIENT_PORT = 2379
_FILES = ("ca", "cert", "key")
_FIX = "write etcd://HOST:PORT[,HOST:PORT…]/PREFIX[?ca=FILE&cert=FILE&key=FILE]"
_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]"
_ENDPOINT = re.compile(rf"({_HOST})(?::(\d{{1,5}}))?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")


@dataclass(frozen=True, slots=True)
class EtcdTarget:
    """An etcd and the part of it that is ours.

    endpoints: `host:port` of its members. prefix: what every key starts with; without a slash at its end.
    files: the paths of `ca`, `cert` and `key`, as far as they are set; without `ca` there is no TLS.
    """

    endpoints: tuple[str, ...]
    prefix: str
    files: Mapping[str, Path]

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Read a URL without its scheme.

        Raises:
            ConfigError: it can't be right; says what and how.

        """
        try:
            url = urlsplit(rest)
            options = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
        except ValueError as error:
            raise _wrong(rest, str(error)) from None
        if not url.netloc or url.fragment:
            raise _wrong(rest, "it has a fragment (#…)" if url.fragment else "it names no host")
        prefix = unquote(url.path)
        if not _PREFIX.fullmatch(prefix):
            raise _wrong(rest, f"the prefix {prefix!r} is not of letters, digits and . _ ~ - between slashes")
        endpoints = tuple(_endpoint(rest, text) for text in url.netloc.split(","))
        return cls(endpoints, prefix.rstrip("/"), _files(rest, options))

    @property
    def url(self) -> str:
        """What to call it in messages: the address without the files."""
        return f"etcd://{','.join(self.endpoints)}{self.prefix}"


def _endpoint(rest: str, text: str) -> str:
    match = _ENDPOINT.fullmatch(text)
    port = int(match[2] or CLIENT_PORT) if match else 0
    if not match or not 0 < port < 1 << 16:
        raise _wrong(rest, f"{text!r} is not HOST or HOST:PORT")
    return f"{match[1]}:{port}"


def _files(rest: str, options: list[tuple[str, str]]) -> dict[str, Path]:
    names = [name for name, _ in options]
    for name, value in options:
        if name not in _FILES or not value or names.count(name) > 1:
            raise _wrong(rest, f"{name}={value} is not one of ca=FILE, cert=FILE, key=FILE, each once")
    if options and "ca" not in names:
        raise _wrong(rest, "cert and key need ca, the certificate that etcd's own is signed by")
    if ("cert" in names) != ("key" in names):
        raise _wrong(rest, "cert and key go together")
    return {name: Path(value) for name, value in options}


def _wrong(rest: str, why: str) -> ConfigError:
    return ConfigError(f"the store 'etcd:{rest}' can't be right: {why}", _FIX)
