"""Faust's credentials as librdkafka's properties."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from faust.auth import GSSAPICredentials, OAuthCredentials, SASLCredentials, SSLCredentials
from faust.exceptions import ImproperlyConfigured

TOKEN_S = 300.0
"""Seconds after which a token is asked for again: Faust's providers do not say how long it holds."""


def properties_of(credentials: Any, context: ssl.SSLContext | None) -> dict[str, Any]:
    """Return the properties for `broker_credentials` and `ssl_context`; raises ImproperlyConfigured for another kind."""
    if credentials is None:
        return {} if context is None else {"security.protocol": "SSL", **_tls(context)}
    if isinstance(credentials, SSLCredentials):
        return {"security.protocol": "SSL", **_tls(credentials.context)}
    own = getattr(credentials, "ssl_context", None) or context
    protocol = (
        {"security.protocol": "SASL_PLAINTEXT"} if own is None else {"security.protocol": "SASL_SSL", **_tls(own)}
    )
    if isinstance(credentials, SASLCredentials):
        return {
            **protocol,
            "sasl.mechanism": credentials.mechanism.value,
            "sasl.username": credentials.username,
            "sasl.password": credentials.password,
        }
    if isinstance(credentials, GSSAPICredentials):
        if credentials.kerberos_domain_name:
            raise ImproperlyConfigured(
                "broker_credentials: kerberos_domain_name: librdkafka takes the broker's name; leave it out"
            )
        return {
            **protocol,
            "sasl.mechanism": "GSSAPI",
            "sasl.kerberos.service.name": credentials.kerberos_service_name,
        }
    if isinstance(credentials, OAuthCredentials):
        return {**protocol, "sasl.mechanism": "OAUTHBEARER", "oauth_cb": _token_from(credentials.oauth_cb)}
    raise ImproperlyConfigured(
        f"broker_credentials: {type(credentials).__name__} is none of faust.SASLCredentials, GSSAPICredentials, "
        "OAuthCredentials, SSLCredentials"
    )


def _token_from(provider: Any) -> Callable[[str], tuple[str, float]]:
    def token(_config: str) -> tuple[str, float]:
        # librdkafka calls it in the threads that poll: there is no event loop in them.
        return asyncio.run(provider.token()), time.time() + TOKEN_S

    return token


def _tls(context: ssl.SSLContext) -> dict[str, Any]:
    """Return what can be read out of a context: certificates of authorities and what is checked. A key cannot be read out."""
    authorities = "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True)))
    return {
        **({"ssl.ca.pem": authorities} if authorities else {}),
        "enable.ssl.certificate.verification": context.verify_mode != ssl.CERT_NONE,
        "ssl.endpoint.identification.algorithm": "https" if context.check_hostname else "none",
    }
