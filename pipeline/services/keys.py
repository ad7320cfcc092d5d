"""Where keys come from: a file, a variable, or a data key that AWS KMS decrypts. They are never shown."""

from __future__ import annotations

import base64
import binascii
import os
from functools import lru_cache
from pathlib import Path

import boto3

from pipeline.errors import FatalError, TransientError, UsageError
from pipeline.services.aws import ERRORS, explained_aws
from pipeline.steps.secrecy import KEY_BYTES, MaskKey


@lru_cache
def mask_key(uri: str) -> MaskKey:
    """Return the key of `file:PATH`, `env:NAME` (32 random bytes, base64) or `kms:PATH` (a data key that KMS has encrypted).

    Raise UsageError when it is not there or no key, FatalError or TransientError when KMS does not decrypt it.
    """
    kind, _, place = uri.partition(":")
    content = _decoded(_variable(place) if kind == "env" else _content(Path(place)), uri)
    if kind == "kms":
        content = _decrypt(content, place)
    try:
        return MaskKey(content)
    except ValueError as error:
        raise UsageError(f"mask_key: {uri}: {error}", hint="headwater flows new-key mask.key") from error


def new_key(path: Path) -> None:
    """Write a new key that only its owner may read; raise UsageError when the file is there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{path} already exists: a key is never overwritten", hint="another name") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint=f"ls -ld {path.parent}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"mask_key: {path}: {error.strerror}", hint=f"headwater flows new-key {path}") from error


def _variable(name: str) -> bytes:
    if name not in os.environ:
        raise UsageError(f"mask_key: the variable {name} is not set", hint=f"export {name}=$(cat mask.key)")
    return os.environ[name].encode()


def _decoded(text: bytes, uri: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise UsageError(f"mask_key: {uri} is not base64", hint="headwater flows new-key mask.key") from error


def _decrypt(content: bytes, path: str) -> bytes:
    try:
        return boto3.client("kms").decrypt(CiphertextBlob=content)["Plaintext"]
    except ERRORS as error:
        found = explained_aws(error, f"the data key {path}")
        kind = TransientError if isinstance(found, TransientError) else FatalError
        raise kind(f"mask_key: {found.message}", hint=found.hint) from error
