"""The object store of the lake: objects under a URL, s3://, gs://, az:// or file://."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
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
CHANGE_ATTEMPTS = 50
"""Tries to change an object that others change at the same time."""
AT_ONCE = 16
"""Requests at the same time, where many objects are asked for."""
PAGE = 1_000
"""Objects of one LIST request, and of one request of S3 that deletes several."""
LOCK = ".lock"
"""The file that replaces conditional puts in a directory."""
XML = re.compile(r"<\?xml.*?<Error>.*?</Error>|<Error>.*?</Error>", re.DOTALL)
LONGEST = 1_000
"""Characters of an error's cause at most."""


class StoredObject(NamedTuple):
    """An object as a listing tells of it."""

    path: str
    size: int
    modified: datetime


@dataclass
class Requests:
    """What a store was asked, as its bill counts it; what is tried again after an error is not counted once more."""

    get: int = 0
    put: int = 0
    list: int = 0
    head: int = 0
    delete: int = 0
    bytes_in: int = 0
    """Read from the store."""
    bytes_out: int = 0
    """Written to it."""
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def count(self, kind: str, times: int = 1, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Count requests of a kind; from any thread."""
        with self._lock:
            setattr(self, kind, getattr(self, kind) + times)
            self.bytes_in += bytes_in
            self.bytes_out += bytes_out

    def json(self) -> dict[str, int]:
        """Return it as plain data."""
        return {name: getattr(self, name) for name in ("get", "put", "list", "head", "delete", "bytes_in", "bytes_out")}


class Objects:
    """Objects, whole or not at all. Raises TransientError when the store may work later, FatalError when it will not."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        """`make`: whether a directory that is not there is made."""
        self.url = url
        self.requests = Requests()
        if not make and urlsplit(url).scheme == "file" and not Path(urlsplit(url).path).is_dir():
            raise FatalError(f"there is no lake at {url}: there is no such directory", hint="is the URL right?")
        try:
            self._store = _open(url)
        except (BotoCoreError, BaseError, OSError, ValueError) as error:  # ValueError: no credentials
            raise FatalError(f"the lake {url} cannot be opened: {cause_of(error)}", hint="headwater check") from error

    def create(self, path: str, content: bytes) -> bool:
        """Write an object if there is none of that name; False if there is. Never half an object."""
        try:
            self._put(path, content, "create")
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
        for _ in range(CHANGE_ATTEMPTS):
            try:
                self.requests.count("get")
                found = obstore.get(self._store, path)
                old = bytes(found.bytes())
                self.requests.count("get", 0, bytes_in=len(old))
                mode: Any = {name: value for name in ("e_tag", "version") if (value := found.meta.get(name))}
            except ABSENT:
                old, mode = None, "create"
            except ERRORS as error:
                raise self._explain(path, error) from error
            if (new := change(old)) is None:
                return
            try:
                self._put(path, new, mode)
            except (AlreadyExistsError, PreconditionError):
                continue
            except ERRORS as error:
                raise self._explain(path, error) from error
            return
        raise TransientError(f"the lake {self.url}, object {path}: others keep changing it")

    def _change_locally(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Change a file under a lock: a directory knows no conditional put."""
        lock = Path(urlsplit(self.url).path) / LOCK
        try:
            with lock.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                if (new := change(self.find(path))) is not None:
                    self._put(path, new, "overwrite")  # to a temporary file, then renamed
        except ERRORS as error:
            raise self._explain(path, error) from error

    def _put(self, path: str, content: bytes, mode: Any) -> None:
        self.requests.count("put", bytes_out=len(content))
        obstore.put(self._store, path, content, mode=mode, use_multipart=False)

    def exists(self, path: str) -> bool:
        """Say whether there is such an object."""
        self.requests.count("head")
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
            return self._get(path)
        except ERRORS as error:
            raise self._explain(path, error) from error

    def find(self, path: str) -> bytes | None:
        """Return an object's content; None when there is none."""
        try:
            return self._get(path)
        except ABSENT:
            return None
        except ERRORS as error:
            raise self._explain(path, error) from error

    def find_all(self, paths: Iterable[str]) -> dict[str, bytes | None]:
        """Return the content of objects by path, many asked for at once; None for those that are not there."""
        wanted = list(paths)
        if len(wanted) < 2:
            return {path: self.find(path) for path in wanted}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(wanted, pool.map(self.find, wanted), strict=True))

    def _get(self, path: str) -> bytes:
        self.requests.count("get")
        content = bytes(obstore.get(self._store, path).bytes())
        self.requests.count("get", 0, bytes_in=len(content))
        return content

    def delete(self, path: str) -> None:
        """Remove an object; it may be gone already."""
        self.requests.count("delete")
        try:
            obstore.delete(self._store, path)
        except ABSENT:
            return
        except ERRORS as error:
            raise self._explain(path, error) from error

    def directories(self, above: str = "") -> list[str]:
        """Return the paths of the directories right below another one, or at the top."""
        self.requests.count("list")
        try:
            return sorted(obstore.list_with_delimiter(self._store, above or None)["common_prefixes"])
        except ERRORS as error:
            raise self._explain(above, error) from error

    def tail(self, path: str, size: int) -> bytes:
        """Return the last bytes of an object, all of a smaller one."""
        self.requests.count("head")
        try:
            end = obstore.head(self._store, path)["size"]
            found = bytes(obstore.get_range(self._store, path, start=max(0, end - size), end=end))
        except ERRORS as error:
            raise self._explain(path, error) from error
        self.requests.count("get", bytes_in=len(found))
        return found

    def delete_all(self, paths: Sequence[str]) -> None:
        """Remove objects, with as few requests as the store allows; they may be gone already."""
        if not isinstance(self._store, S3Store):
            for path in paths:
                self.delete(path)
            return
        for begin in range(0, len(paths), PAGE):
            some = paths[begin : begin + PAGE]
            self.requests.count("delete")
            try:
                obstore.delete(self._store, some)
            except ERRORS as error:
                raise self._explain(some[0], error) from error

    def listed(self, prefix: str = "") -> list[StoredObject]:
        """Return all objects below a prefix, sorted by path; not the lock of a directory."""
        try:
            chunks = obstore.list(self._store, prefix or None, chunk_size=PAGE)
            found = [
                StoredObject(entry["path"], entry["size"], entry["last_modified"])
                for chunk in chunks
                for entry in chunk
            ]
        except ERRORS as error:
            raise self._explain(prefix, error) from error
        self.requests.count("list", max(1, -(-len(found) // PAGE)))
        return sorted(one for one in found if one.path != LOCK)

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths of all objects below a prefix, sorted; not that of a directory's lock."""
        return [name.path for name in self.listed(prefix)]

    def _explain(self, path: str, error: Exception) -> HeadwaterError:
        what = f"the lake {self.url}, object {path}: {cause_of(error)}"
        if isinstance(error, ABSENT):  # a bucket that vanished may come back; what is gathered waits for it
            return TransientError(what, hint=f"does the bucket exist? aws s3 ls {self.url}")
        if isinstance(error, UnauthenticatedError):  # credentials that are not there, or expired, may be renewed
            return TransientError(what, hint="aws sts get-caller-identity; headwater check")
        if isinstance(error, PermissionDeniedError):
            return FatalError(what, hint="headwater check; see README, IAM policy")
        return TransientError(what, hint="headwater check")


def cause_of(error: Exception) -> str:
    """Return an error of a store in one line: all that it says for people, and the system's words, which it may hide.

    The text of obstore has several lines, then `Debug source:` and the error's structure. Of S3's XML code and message stay.
    """
    said, _, debug = str(error).strip().partition("Debug source:")
    words = " ".join(XML.sub(_of_xml, said).split()) or type(error).__name__
    hidden = re.findall(r'message: "((?:[^"\\]|\\.)*)"', debug)
    found = ": ".join([words, *dict.fromkeys(hiding for hiding in hidden if hiding not in words)])
    return found if len(found) <= LONGEST else f"{found[:LONGEST]} ..."


def _of_xml(found: re.Match[str]) -> str:
    parts = [re.search(f"<{name}>(.*?)</{name}>", found[0], re.DOTALL) for name in ("Code", "Message")]
    return ": ".join(part[1] for part in parts if part is not None)


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
