"""The object store of the lake: objects under a URL, s3://, gs://, az:// or file://."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import obstore
from botocore.exceptions import BotoCoreError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from pipeline.errors import FatalError, HeadwaterError, TransientError, UsageError

Store = S3Store | GCSStore | AzureStore | LocalStore
FORMS = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory"
ABSENT = (NotFoundError, FileNotFoundError)
"""obstore raises Python's own error where it has one of the name."""
ERRORS = (BaseError, OSError)
ATTEMPTS = 50
"""Tries to change an object that others change at the same time."""


class Objects:
    """Objects, whole or not at all. Raises TransientError when the store may work later, FatalError when it will not."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        """`make`: whether a directory that is not there is made."""
        self.url = url
        if not make and urlsplit(url).scheme == "file" and not Path(urlsplit(url).path).is_dir():
            raise FatalError(f"there is no lake at {url}: there is no such directory", hint="is the URL right?")
        try:
            self._store = _open(url)
        except (BotoCoreError, BaseError, OSError, ValueError) as error:  # ValueError: no credentials
            raise FatalError(f"the lake {url} cannot be opened: {error}", hint="headwater check") from error

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none of that name; False if there is. Never half an object."""
        try:
            obstore.put(self._store, path, content, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return False
        except ERRORS as error:
            raise self._explain(path, error) from error
        return True

    def change(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace an object by what `change` makes of it (None: nothing there yet; None back: leave it), one at a time.

        Nobody's change is lost: the store takes the new content only if the old one is still there.
        """
        if isinstance(self._store, LocalStore):
            self._change_locally(path, change)
            return
        for _ in range(ATTEMPTS):
            try:
                found = obstore.get(self._store, path)
                old = bytes(found.bytes())
                mode: Any = {name: value for name in ("e_tag", "version") if (value := found.meta.get(name))}
            except ABSENT:
                old, mode = None, "create"
            except ERRORS as error:
                raise self._explain(path, error) from error
            if (new := change(old)) is None:
                return
            try:
                obstore.put(self._store, path, new, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                continue
            except ERRORS as error:
                raise self._explain(path, error) from error
            return
        raise TransientError(f"the lake {self.url}, object {path}: others change it all the time")

    def _change_locally(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Change a file under a lock: a directory knows no conditional put."""
        lock = Path(urlsplit(self.url).path) / ".lock"
        try:
            with lock.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                old = self.read(path) if self.exists(path) else None
                if (new := change(old)) is not None:
                    obstore.put(self._store, path, new, mode="overwrite")  # to a temporary file, then renamed
        except ERRORS as error:
            raise self._explain(path, error) from error

    def exists(self, path: str) -> bool:
        """Say whether there is such an object."""
        try:
            obstore.head(self._store, path)
        except ABSENT:
            return False
        except ERRORS as error:
            raise self._explain(path, error) from error
        return True

    def read(self, path: str) -> bytes:
        """Return an object's content."""
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except ERRORS as error:
            raise self._explain(path, error) from error

    def delete(self, path: str) -> None:
        """Remove an object."""
        try:
            obstore.delete(self._store, path)
        except ERRORS as error:
            raise self._explain(path, error) from error

    def directories(self, above: str = "") -> list[str]:
        """Return the paths of the directories right below another one, or at the top."""
        try:
            return sorted(obstore.list_with_delimiter(self._store, above or None)["common_prefixes"])
        except ERRORS as error:
            raise self._explain(above, error) from error

    def tail(self, path: str, size: int) -> bytes:
        """Return the last bytes of an object, all of a smaller one."""
        try:
            end = obstore.head(self._store, path)["size"]
            return bytes(obstore.get_range(self._store, path, start=max(0, end - size), end=end))
        except ERRORS as error:
            raise self._explain(path, error) from error

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths of all objects below a prefix, sorted; none of those of a directory's lock."""
        try:
            chunks = obstore.list(self._store, prefix or None)
            return sorted(entry["path"] for chunk in chunks for entry in chunk if entry["path"] != ".lock")
        except ERRORS as error:
            raise self._explain(prefix, error) from error

    def _explain(self, path: str, error: Exception) -> HeadwaterError:
        first_line = str(error).strip().splitlines()[0]
        what = f"the lake {self.url}, object {path}: {first_line}"
        if isinstance(error, ABSENT):  # a bucket that vanished may come back; what is gathered waits for it
            return TransientError(what, hint=f"does the bucket exist? aws s3 ls {self.url}")
        if isinstance(error, UnauthenticatedError):  # credentials that are not there, or expired, may be renewed
            return TransientError(what, hint="aws sts get-caller-identity; headwater check")
        if isinstance(error, PermissionDeniedError):
            return FatalError(what, hint="headwater check; see README, IAM policy")
        return TransientError(what, hint="headwater check")


def _open(url: str) -> Store:
    parts = urlsplit(url)
    prefix = parts.path.strip("/") or None
    retries: Any = {"max_retries": 3}  # more in the next slice
    if parts.scheme == "file":
        return LocalStore(Path(parts.path), mkdir=True)
    if parts.scheme == "gs" and parts.netloc:
        return GCSStore(parts.netloc, prefix=prefix, retry_config=retries)
    if parts.scheme == "az" and parts.netloc:
        return AzureStore(container_name=parts.netloc, prefix=prefix, retry_config=retries)
    if parts.scheme != "s3" or not parts.netloc:
        raise UsageError(f"lake.url {url!r}: expected {FORMS}", hint="headwater check")
    session = boto3.session.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    options: dict[str, Any] = {"region": client.meta.region_name}
    if "amazonaws.com" not in client.meta.endpoint_url:  # a stand-in, or another S3-compatible store
        options |= {"endpoint": client.meta.endpoint_url, "virtual_hosted_style_request": False}
    return S3Store(
        parts.netloc,
        prefix=prefix,
        credential_provider=Boto3CredentialProvider(session),
        client_options={"allow_http": client.meta.endpoint_url.startswith("http://"), "timeout": "30s"},
        retry_config=retries,
        **options,
    )
