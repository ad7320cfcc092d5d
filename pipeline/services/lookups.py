"""Asks services for `lookup` steps: HTTP by urllib3, DynamoDB by boto3. Blocks; in the transaction's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import msgspec
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError

from models.attributes import digits, from_client, normal_item, to_client, typed
from pipeline.errors import UsageError
from pipeline.services.aws import ERRORS, explained_aws
from pipeline.settings.enrich import PLACE, LookupSettings
from pipeline.settings.published import REFERENCE, VARIABLE, parameters
from pipeline.steps.enrich import attribute
from pipeline.steps.event import NULL, Event, Step, Value, each
from pipeline.steps.lookup import (
    Answer,
    AnswerCache,
    Breaker,
    LookupFailedError,
    Question,
    RefusedError,
    compile_lookup,
    raw,
)

BATCH = 100
"""Keys that BatchGetItem takes."""
UNPROCESSED_ATTEMPTS = 5
"""Calls for keys that DynamoDB leaves unprocessed."""
NO_SEGMENTS = {"", ".", ".."}
"""Values that would make another path of a URL: they name nothing there."""
TRANSIENT = {401, 403, 408, 425, 429}
"""Of the 4xx, those that another try may change."""
_answer = msgspec.json.Decoder(float_hook=Decimal).decode
_value = msgspec.json.Decoder(dict[str, Any]).decode


def lookup(settings: LookupSettings, environment: Mapping[str, str]) -> Step:
    """Return the step of a lookup; raise UsageError when a variable that its headers name is not there."""
    memory = AnswerCache(settings.cache, settings.ttl, settings.missing_ttl)
    service = Http(settings, environment) if settings.url is not None else ItemBatches(settings)
    return compile_lookup(settings.into, service.question, service, memory, settings.on_failure)


def lookup_headers(settings: LookupSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a lookup; raise UsageError when a variable or a file that they name is not there."""
    return {name: _filled(value, environment) for name, value in settings.headers.items()}


def secrets_of(settings: LookupSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what names secrets in the URL of a lookup, and what they are, as a part of its query.

    Raises UsageError when a variable or a file that it names is not there.
    """
    found: dict[str, str] = {}
    for text, place in parameters(settings.url or ""):
        name, secret = text.partition("=")[0], _looked_up(place, environment, "the url")
        found[text] = f"{name}={quote(secret, safe='')}"
    return found


def canned(settings: LookupSettings, answer: Any) -> Step:
    """Return the step of a lookup that is always answered the same: null when there is none.

    Of a `url` that is plain JSON, of a `table` an item in typed JSON. A change that lacks what is asked by gets null.
    """
    names = PLACE.findall(settings.url or "") + list(settings.key.values())
    added = NULL if answer is None else raw({"M": answer} if settings.url is None else typed(answer))

    def add(event: Event) -> None:
        asked = all(attribute(event, name) is not None for name in names)
        event.added[settings.into] = added if asked else NULL

    return each(add)


@cache
def threads(count: int) -> ThreadPoolExecutor:
    """Return threads to ask in: the same for all flows, also for those that are applied later."""
    return ThreadPoolExecutor(count, "lookup")


class Http:
    """GET, as many at once as the settings say."""

    def __init__(self, settings: LookupSettings, environment: Mapping[str, str]) -> None:
        self._template = settings.url or ""
        self._names = PLACE.findall(self._template)
        self._segments = [n for n, segment in enumerate(_segments(PLACE.sub("{}", self._template))) if "{}" in segment]
        """Those of the path that values are part of."""
        self._headers, self._secrets = lookup_headers(settings, environment), secrets_of(settings, environment)
        self._timeout = urllib3.Timeout(total=settings.timeout)
        self._pool = urllib3.PoolManager(maxsize=settings.concurrency, retries=False)
        self._threads, self._breaker = threads(settings.concurrency), Breaker()

    def question(self, event: Event) -> Question | None:
        """Return the URL, None when the change lacks an attribute that it names, or would name another place by it."""
        values = {}
        for name in self._names:
            if (text := _text(event, name)) is None:
                return None
            values[name] = quote(text, safe="")
        url = PLACE.sub(lambda match: values[match[1]], self._template)
        segments = _segments(url)
        return None if any(segments[n] in NO_SEGMENTS for n in self._segments) else url.encode()

    def __call__(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        """Ask for each URL."""
        return dict(zip(questions, self._threads.map(self._guarded, questions), strict=True))

    def _guarded(self, question: Question) -> Answer:
        if self._breaker.open:
            return self._breaker.left_alone()
        answer = self._ask(question)
        self._breaker.count(isinstance(answer, LookupFailedError))
        return answer

    def _get(self, url: str) -> urllib3.BaseHTTPResponse:
        if self._secrets:  # they are in no question, so in nothing that is remembered or shown
            before, _, query = url.partition("#")[0].partition("?")
            url = f"{before}?{'&'.join(self._secrets.get(pair, pair) for pair in query.split('&'))}"
        try:
            return self._pool.request("GET", url, headers=self._headers, timeout=self._timeout, redirect=False)
        except urllib3.exceptions.ProtocolError:
            # A connection that was kept, and that the service closed meanwhile: that is not a failure of the service.
            return self._pool.request("GET", url, headers=self._headers, timeout=self._timeout, redirect=False)

    def _ask(self, question: Question) -> Answer:
        # Errors name the host alone: a URL holds values of the change.
        try:
            response = self._get(question.decode())
        except urllib3.exceptions.HTTPError as error:
            return LookupFailedError(f"{self._host}: {type(error).__name__}")
        status = response.status
        if status in {404, 204, 410}:
            return None
        if status == 200:
            try:
                return raw(typed(_answer(response.data)))
            except (msgspec.DecodeError, ValueError) as error:
                return RefusedError(f"{self._host} answered what is not JSON: {type(error).__name__}")
        if 400 <= status < 500 and status not in TRANSIENT:
            return RefusedError(f"{self._host} answered {status}")
        return LookupFailedError(f"{self._host} answered {status}")

    @property
    def _host(self) -> str:
        return urllib3.util.parse_url(PLACE.sub("x", self._template)).netloc or "the service"


class ItemBatches:
    """BatchGetItem, 100 keys a call."""

    def __init__(self, settings: LookupSettings) -> None:
        self._table, self._key = settings.table or "", settings.key
        config = Config(
            connect_timeout=settings.timeout,
            read_timeout=settings.timeout,
            retries={"total_max_attempts": 2},
            max_pool_connections=settings.concurrency,
        )
        try:
            self._client = boto3.client("dynamodb", region_name=settings.region, config=config)
        except ERRORS as error:
            found = explained_aws(error, f"lookup in table {self._table}")
            raise UsageError(found.message, hint=found.hint) from error
        self._threads, self._breaker = threads(settings.concurrency), Breaker()

    def question(self, event: Event) -> Question | None:
        """Return the key, None when the change lacks an attribute of it, or has one that no key can be: empty, or a list."""
        values = {name: _key_value(attribute(event, own)) for name, own in sorted(self._key.items())}
        return None if None in values.values() else msgspec.json.encode(values)

    def __call__(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        """Ask for all keys."""
        chunks = [questions[n : n + BATCH] for n in range(0, len(questions), BATCH)]
        found: dict[Question, Answer] = {}
        for some in self._threads.map(self._guarded, chunks):
            found |= some
        return found

    def _guarded(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        if self._breaker.open:
            return dict.fromkeys(questions, self._breaker.left_alone())
        answers = self._ask(questions)
        self._breaker.count(any(isinstance(answer, LookupFailedError) for answer in answers.values()))
        return answers

    def _ask(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        found: dict[Question, Answer] = dict.fromkeys(questions)
        keys = [_item(_value(question), to_client) for question in questions]
        by_key = {_known(key): question for key, question in zip(keys, questions, strict=True)}
        try:
            for attempt in range(UNPROCESSED_ATTEMPTS):
                answer: Any = self._client.batch_get_item(RequestItems={self._table: {"Keys": keys}})
                for item in answer["Responses"].get(self._table, []):
                    question = by_key[_known({name: item[name] for name in self._key})]
                    found[question] = raw({"M": _item(item, from_client)})
                rest = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys")
                if not rest:
                    return found
                keys = list(rest)
                time.sleep(0.05 * 2**attempt)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            failure: Exception = LookupFailedError(f"table {self._table}: {code}")
            if code == "ValidationException":
                if (half := len(questions) // 2) > 0:  # one key is enough to have all refused: find it
                    return self._ask(questions[:half]) | self._ask(questions[half:])
                failure = RefusedError(f"table {self._table}: the key has other types")
            return dict.fromkeys(questions, failure)
        except ERRORS as error:
            return dict.fromkeys(questions, LookupFailedError(f"table {self._table}: {type(error).__name__}"))
        left = {by_key[_known(key)] for key in keys}
        throttled = LookupFailedError(f"table {self._table}: keys were left unprocessed {UNPROCESSED_ATTEMPTS} times")
        return {question: throttled if question in left else answer for question, answer in found.items()}


def _known(key: Mapping[str, Any]) -> frozenset[Any]:
    return normal_item(key)  # DynamoDB says 1 where it was asked for 1.0


def _item(item: Mapping[str, Any], convert: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    return {name: convert(value) for name, value in item.items()}


def _key_value(value: Value | None) -> dict[str, str] | None:
    """Return a value as it is in a key: equal ones are one key, so that none is asked for twice in a call."""
    if value is None:
        return None
    ((tag, inner),) = _value(value).items()
    if tag not in {"S", "N", "B"} or not inner:
        return None
    return {tag: digits(inner) if tag == "N" else inner}


def _segments(url: str) -> list[str]:
    return url.partition("?")[0].split("/")


def _text(event: Event, name: str) -> str | None:
    """Return an attribute as it is in a URL; None when it is not there, or is neither text nor a number."""
    if (value := attribute(event, name)) is None:
        return None
    found = _value(value)
    return next((found[tag] for tag in ("S", "N") if tag in found), None)


def _filled(value: str, environment: Mapping[str, str]) -> str:
    if found := REFERENCE.fullmatch(value.strip()):
        secret = _looked_up(found["place"], environment, "a header")
        return f"{found['scheme']} {secret}" if found["scheme"] else secret
    return VARIABLE.sub(lambda match: _looked_up(f"env:{match[1]}", environment, "a header"), value)


def _looked_up(place: str, environment: Mapping[str, str], of: str) -> str:
    """Return the secret at `env:NAME` or `file:/path`; raise UsageError when there is none. It is never shown."""
    kind, _, name = place.partition(":")
    if kind == "env":
        if name not in environment:
            raise UsageError(f"lookup: the variable {name} of {of} is not set", hint=f"export {name}=...")
        secret = environment[name]
    else:
        try:
            secret = Path(name).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "it is not text"
            raise UsageError(f"lookup: the file {name} of {of}: {said}", hint=f"ls -l {name}") from error
    if not secret or any(ord(one) < 32 for one in secret):
        raise UsageError(
            f"lookup: {place} is empty, or holds more than one line", hint="one line, without a line break"
        )
    return secret
