"""The cryptography of masks and of sealed dead letters, by the library `cryptography`. Pure.

One 32-byte key a flow; what hashes, tokenises and seals is derived from it by HKDF, so that no use of one says anything of
another. Nothing here shows a key.
"""

from __future__ import annotations

import base64
import hmac
import os
from dataclasses import replace

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from models.dead_letter import DeadLetter

KEY_BYTES = 32
NONCE_BYTES = 12
MARK = b"HWS1"
"""What a sealed dead letter begins with; then the key's fingerprint, the nonce, the ciphertext."""
FINGERPRINT_BYTES = 8


class WrongKeyError(ValueError):
    """The text was sealed with another key, or is none of ours."""


class MaskKey:
    """The key of a flow's masks: what is derived from it, never shown."""

    __slots__ = ("_gcm", "_hash", "_siv", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        """`secret` is 32 random bytes; raise ValueError when it is not 32."""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a mask key has {KEY_BYTES} bytes, this has {len(secret)}")
        self._hash = hmac.new(_derive(secret, b"hash", 32), digestmod="sha256")
        self._siv = AESSIV(_derive(secret, b"tokenise", 64))
        self._gcm = AESGCM(_derive(secret, b"seal", 32))
        self.fingerprint = _derive(secret, b"fingerprint", FINGERPRINT_BYTES)
        """Tells keys apart, and nothing else."""

    def __repr__(self) -> str:
        return f"<MaskKey {self.fingerprint.hex()}>"

    def hash(self, value: bytes) -> str:
        """Return HMAC-SHA-256 as 64 hex digits: equal values give equal hashes."""
        keyed = self._hash.copy()
        keyed.update(value)
        return keyed.hexdigest()

    def tokenise(self, value: bytes) -> str:
        """Return a token, by AES-SIV: equal values give equal tokens, and the key gives the value back."""
        return base64.urlsafe_b64encode(self._siv.encrypt(value, None)).decode()

    def detokenise(self, token: str) -> bytes:
        """Return the value of a token; raise WrongKeyError when the key is another, or the token was changed."""
        try:
            return self._siv.decrypt(base64.urlsafe_b64decode(token), None)
        except (InvalidTag, ValueError) as error:
            raise WrongKeyError("the token was made with another key, or changed") from error

    def seal(self, text: bytes) -> bytes:
        """Return a text sealed by AES-GCM, with a random nonce."""
        nonce = os.urandom(NONCE_BYTES)
        head = MARK + self.fingerprint
        return head + nonce + self._gcm.encrypt(nonce, text, head)

    def unseal(self, sealed: bytes) -> bytes:
        """Return what was sealed; raise WrongKeyError when it was with another key, or changed."""
        head, rest = sealed[: len(MARK) + FINGERPRINT_BYTES], sealed[len(MARK) + FINGERPRINT_BYTES :]
        if not is_sealed(sealed):
            raise WrongKeyError("this is not a sealed text")
        if head[len(MARK) :] != self.fingerprint:
            other = fingerprint_of(sealed)
            raise WrongKeyError(f"it was sealed with the key {other}, this is the key {self.fingerprint.hex()}")
        try:
            return self._gcm.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], head)
        except (InvalidTag, ValueError) as error:
            raise WrongKeyError("the sealed text was changed") from error


class Secret(msgspec.Struct, array_like=True, frozen=True):
    """What a sealed dead letter hides."""

    key: bytes | None
    value: bytes | None
    reason: str


class HiddenError(ValueError):
    """Stands for an error whose words might show a masked attribute."""


def seal_letter(key: MaskKey, letter: DeadLetter) -> DeadLetter:
    """Return a dead letter that shows nothing of the change: its key is hashed, the rest is sealed in its value."""
    secret = Secret(letter.key, letter.value, f"{type(letter.error).__name__}: {letter.error}")
    return replace(
        letter,
        error=HiddenError("the flow masks attributes: headwater dlq show, where its key is"),
        key=None if letter.key is None else key.hash(letter.key).encode(),
        value=key.seal(msgspec.msgpack.encode(secret)),
        sealed=key.fingerprint.hex(),
    )


def open_letter(key: MaskKey, sealed: bytes) -> Secret:
    """Return what a sealed dead letter hides; raise WrongKeyError when the key is another."""
    return msgspec.msgpack.decode(key.unseal(sealed), type=Secret)


def is_sealed(text: bytes) -> bool:
    """Say whether a text was sealed here."""
    return text.startswith(MARK)


def fingerprint_of(sealed: bytes) -> str:
    """Return the fingerprint of the key that a text was sealed with, as hex digits; of what is not sealed ''."""
    return sealed[len(MARK) : len(MARK) + FINGERPRINT_BYTES].hex() if is_sealed(sealed) else ""


def with_value(key: MaskKey, sealed: bytes, value: bytes) -> bytes:
    """Return a sealed dead letter with another value; raise WrongKeyError when the key is another."""
    secret = msgspec.structs.replace(open_letter(key, sealed), value=value)
    return key.seal(msgspec.msgpack.encode(secret))


def _derive(secret: bytes, use: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt=None, info=b"headwater/" + use).derive(secret)
