"""What of a flow may not be published: secrets in plain text: everybody can read the topic <prefix>.flows. Pure.

Instead of a secret, they say where the worker finds it: `env:NAME`, `file:/path`, or `${NAME}` within a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

REFERENCE = re.compile(r"(?:(?P<scheme>[A-Za-z][\w-]*)\s+)?(?P<place>env:\w+|file:/.+)")
"""A value of a header that names where the secret is, behind a scheme such as Bearer or not."""
PARAMETER = re.compile(r"env:\w+|file:/[^&#]+")
"""The same as a value in the query of a URL."""
VARIABLE = re.compile(r"\$\{(\w+)\}")
PLACEHOLDER = re.compile(r"\{[^{}]+\}")
"""What is filled in with an attribute of the change."""
HARMLESS = re.compile(r"[A-Za-z_-]{0,20}")
"""What is allowed beside variables: a scheme, the name of a cookie."""
HEADERS = re.compile(
    r"(?:^|[-_])auth(?:$|[-_])|authori[sz]ation|authentication|cookie|token|secret|passw|passphrase|credential|signature|"
    r"session|jwt|bearer|csrf|xsrf|key$|^key|sas$",
    re.IGNORECASE,
)
"""Names of headers that carry a secret."""
PARAMETERS = re.compile(
    r"(?:api|access|private|subscription|functions?|app|client|shared|account|auth|secret)[-_.]?key|^key$|token|secret|"
    r"passw|passphrase|^pwd$|^pass$|^sig$|signature|credential|(?:^|[-_])auth(?:$|[-_])|authorization|^session(?:[-_]?id)?$|"
    r"^sid$|jwt|bearer|AWSAccessKeyId|^code$|^apikey$|^appid$",
    re.IGNORECASE,
)
"""Names in the query of a URL that carry a secret."""
SECRETS = re.compile(
    r"^(?:Bearer|Basic|Digest|Token|ApiKey|Negotiate|AWS4-HMAC-SHA256)\s+[^\s$]|eyJ[\w-]{8,}\.[\w-]+|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|"
    r"\bgh[pousr]_\w{16,}|\bgithub_pat_\w+|\bxox[a-z]-\w+|\bsk[-_]\w[\w-]{15,}|\bglpat-[\w-]+|\bAIza[\w-]{20,}|-----BEGIN|"
    r"hooks\.slack\.com/services/\w",
    re.IGNORECASE,
)
"""Values that are a secret, whatever they are called."""
INSTEAD = (
    'flows are published on the topic <prefix>.flows, so write where the worker finds it: "env:NAME" or "file:/path"'
)


def secrets_in_headers(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with headers; never a value."""
    for name, value in headers.items():
        if REFERENCE.fullmatch(value.strip()):
            continue
        if VARIABLE.search(value):
            rest = VARIABLE.sub(" ", value)
            literal = not all(HARMLESS.fullmatch(word) for word in re.split(r"[\s=;:,\"']+", rest))
        else:
            literal = bool(value.strip())
        if literal and (HEADERS.search(name) or SECRETS.search(value.strip())):
            yield f'the header {name} is in plain text: {INSTEAD}, or "Bearer ${{NAME}}"'


def secrets_in_url(url: str) -> Iterator[str]:
    """Yield what is wrong with a URL, or the template of one; never a value."""
    parts = urlsplit(PLACEHOLDER.sub("x", url))
    if "@" in parts.netloc:
        yield (
            f"the URL has a user or password before {parts.netloc.rpartition('@')[2]}: {INSTEAD}, in headers = "
            '{ Authorization = "Basic env:NAME" }, the variable holding base64 of user:password'
        )
    _, _, query = url.partition("?")
    for pair in query.partition("#")[0].split("&"):
        name, _, value = pair.partition("=")
        if not value or PARAMETER.fullmatch(value) or PLACEHOLDER.fullmatch(value):
            continue
        if PARAMETERS.search(unquote(name)):
            yield f"{unquote(name)} in the query of the URL is in plain text: {INSTEAD}, as in {unquote(name)}=env:NAME"
    if SECRETS.search(unquote(PLACEHOLDER.sub("", url))):
        yield f"the URL holds what looks like a secret: {INSTEAD}, in a header or in the query"


def parameters(url: str) -> list[tuple[str, str]]:
    """Return what of a URL's query names a place, each as it is there (`name=env:NAME`) and the place."""
    _, _, query = url.partition("?")
    pairs = (pair.partition("=") for pair in query.partition("#")[0].split("&"))
    return [(f"{name}={value}", value) for name, _, value in pairs if PARAMETER.fullmatch(value)]
