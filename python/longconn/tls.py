"""TLS: what a program says about it, and what both sides agreed on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _longconn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._longconn import ClientSettings, ServerSettings

__all__ = ["TLS", "Identity", "TLSInfo"]

_Source = str | os.PathLike[str] | bytes | None


@dataclass(frozen=True, kw_only=True, repr=False)
class TLS:
    """How a connection is encrypted, and who is to be trusted; for `longconn.connect` and `LongServer`.

    TLS 1.3 and 1.2 (RFC 8446, RFC 5246), by rustls. Certificates are always verified: for a test have a CA of its own,
    and say so with *ca*. Files are read when the connection is made or the server begins; a client that comes back
    goes on with what it read.

    Args:
        ca: Whose certificates a client trusts; None: the system's. Like *certificate*, *key* and *client_ca*: the path
            of a PEM file, or PEM itself as bytes.
        certificate: This side's, with those in between up to the CA's behind it. A server needs one, a client if the
            server asks.
        key: The private key for it. None: it is in the same file. One with a password is refused; have cryptography's
            ``load_pem_private_key`` decrypt it, and give that as bytes.
        client_ca: A server lets in only clients that show a certificate of one of these. None: it asks for none.
        server_name: What a client expects the server's certificate to be for; None: the host that it connects to, a
            name or an IP address.
        alpn: Application protocols (RFC 7301), the best first. The server chooses; one without any takes all clients.

    Raises:
        TypeError: An argument is of the wrong kind. What is in the files is checked when they are read.
    """

    ca: str | os.PathLike[str] | bytes | None = None
    certificate: str | os.PathLike[str] | bytes | None = None
    key: str | os.PathLike[str] | bytes | None = None
    client_ca: str | os.PathLike[str] | bytes | None = None
    server_name: str | None = None
    alpn: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key", "client_ca"):
            _source(getattr(self, name), name)
        if self.server_name is not None and not isinstance(self.server_name, str):
            raise TypeError(f"server_name: a str, not {type(self.server_name).__name__}")
        if isinstance(self.alpn, str) or not all(isinstance(each, str) for each in self.alpn):
            raise TypeError("alpn: a list of str")
        object.__setattr__(self, "alpn", tuple(self.alpn))

    def __repr__(self) -> str:
        # PEM may be a private key
        told = (
            f"{name}={'PEM' if isinstance(value, bytes) else repr(value)}"
            for name in self.__dataclass_fields__
            if (value := getattr(self, name))
        )
        return f"TLS({', '.join(told)})"


class Identity(NamedTuple):
    """Who a verified certificate is for."""

    common_name: str | None
    """The subject's."""
    dns_names: tuple[str, ...]
    """Subject alternative names (RFC 5280, section 4.2.1.6), as are the next three."""
    uris: tuple[str, ...]
    emails: tuple[str, ...]
    addresses: tuple[str, ...]
    """IP addresses."""
    fingerprint: str
    """SHA-256 of the certificate, 64 hexadecimal digits."""
    der: bytes
    """The certificate itself."""


class TLSInfo(NamedTuple):
    """What both sides of a connection agreed on."""

    version: str
    """``TLSv1.3`` or ``TLSv1.2``."""
    cipher: str
    alpn: str | None
    resumed: bool
    """By a ticket of an earlier connection: no certificate was sent again."""
    peer: Identity | None
    """Of the peer's certificate; None of a client that wasn't asked for one."""


def _source(source: _Source, name: str) -> str | bytes | None:
    if source is None or isinstance(source, str | bytes):
        return source
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    raise TypeError(f"{name}: a path, PEM as bytes, or None, not {type(source).__name__}")


def _settings(tls: TLS) -> tuple[Any, ...]:
    return (
        _source(tls.ca, "ca"),
        _source(tls.certificate, "certificate"),
        _source(tls.key, "key"),
        _source(tls.client_ca, "client_ca"),
        tls.server_name,
        [each.encode() for each in tls.alpn],
    )


def client_settings(tls: object) -> ClientSettings | None:
    """What `connect` was told, ready for use."""
    if tls is None or tls is False:
        return None
    if tls is True:
        tls = TLS()
    if not isinstance(tls, TLS):
        raise TypeError(f"tls: a TLS, True, or None, not {type(tls).__name__}")
    return _longconn.client_tls(_settings(tls))


def server_settings(tls: object) -> ServerSettings | None:
    """What a server was told, ready for use."""
    if tls is None or tls is False:
        return None
    if not isinstance(tls, TLS):
        raise TypeError(f"tls: a TLS with the server's certificate and key, or None, not {type(tls).__name__}")
    return _longconn.server_tls(_settings(tls))


for _value in (TLS, Identity, TLSInfo):
    _value.__module__ = "longconn"
