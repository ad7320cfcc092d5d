"""The object store of the lake: write-once objects under a URL, s3:// or file://."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import obstore
from botocore.exceptions import BotoCoreError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from pipeline.errors import FatalError, HeadwaterError, TransientError, UsageError


class Objects:
    """Write-once objects. Raises TransientError when the store may work later, FatalError when it will not."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._store = _open(url)
        except (BotoCoreError, BaseError, OSError, ValueError) as error:  # ValueError: no credentials
            raise FatalError(f"the lake {url} cannot be opened: {error}", hint="headwater check") from error

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none of that name; False if there is. Never half an object."""
        try:
            obstore.put(self._store, path, content, mode="create")
        except AlreadyExistsError:
            return False
        except BaseError as error:
            raise self._explain(path, error) from error
        return True

    def read(self, path: str) -> bytes:
        """Return an object's content."""
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except BaseError as error:
            raise self._explain(path, error) from error

    def delete(self, path: str) -> None:
        """Remove an object."""
        try:
            obstore.delete(self._store, path)
        except BaseError as error:
            raise self._explain(path, error) from error

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths of all objects below a prefix, sorted."""
        try:
            chunks = obstore.list(self._store, prefix or None)
            return sorted(entry["path"] for chunk in chunks for entry in chunk)
        except BaseError as error:
            raise self._explain(prefix, error) from error

    def _explain(self, path: str, error: BaseError) -> HeadwaterError:
        first_line = str(error).strip().splitlines()[0]
        what = f"the lake {self.url}, object {path}: {first_line}"
        if isinstance(error, NotFoundError):
            return FatalError(what, hint=f"does the bucket exist? aws s3 ls {self.url}")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return FatalError(what, hint="headwater check; see README, IAM policy")
        return TransientError(what, hint="headwater check")


def _open(url: str) -> S3Store | LocalStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(Path(parts.path), mkdir=True)
    if parts.scheme != "s3" or not parts.netloc:
        raise UsageError(f"lake.url {url!r}: expected s3://bucket/prefix or file:///directory", hint="headwater check")
    session = boto3.session.Session()
    client = session.client("s3", region_name=session.region_name or "us-east-1")
    options: dict[str, Any] = {"region": client.meta.region_name}
    if "amazonaws.com" not in client.meta.endpoint_url:  # a stand-in, or another S3-compatible store
        options |= {"endpoint": client.meta.endpoint_url, "virtual_hosted_style_request": False}
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        credential_provider=Boto3CredentialProvider(session),
        client_options={"allow_http": client.meta.endpoint_url.startswith("http://"), "timeout": "30s"},
        retry_config={"max_retries": 3},  # more in the next slice
        **options,
    )
