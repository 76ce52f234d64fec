"""TLS by certificate files, read once when the server starts."""

from __future__ import annotations

import ssl

from perilune.errors import ConfigError
from perilune.settings import Settings


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """None without a certificate. Raises ConfigError for files that cannot serve."""
    if not settings.tls_cert and not settings.tls_key:
        return None
    if not settings.tls_cert:
        raise ConfigError("is missing", field="tls_cert", mend="name the certificate of tls_key too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key = settings.tls_key or settings.tls_cert
    try:
        # Without a password of our own, OpenSSL would ask for one at the terminal and wait.
        context.load_cert_chain(settings.tls_cert, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"{settings.tls_cert} and {key} cannot be used: {error.strerror or error}",
            field="tls_cert",
            mend="name PEM files: the certificate with its chain, and its key without a password",
        ) from error
    return context
