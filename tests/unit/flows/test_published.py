from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.http_service import Service

from pipeline.errors import UsageError
from pipeline.flows.versions import dump, parse_flows
from pipeline.services.lookups import Http, lookup_headers
from pipeline.settings.enrich import LookupSettings
from pipeline.settings.flows import FlowSettings

SECRET = "s3cr3t-Zq8"


def flow(**lookup: Any) -> dict[str, Any]:
    step = {"kind": "lookup", "into": "profile", "url": "https://profiles.example.com/{id}", **lookup}
    return {"name": "orders", "to": ["orders"], "enrich": [step]}


def refusal(**lookup: Any) -> str:
    with pytest.raises(ValidationError) as told:
        FlowSettings.model_validate(flow(**lookup))
    (error,) = told.value.errors(include_input=False)
    return str(error["msg"])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Authorization",
            "authorization",
            "Proxy-Authorization",
            "Cookie",
            "X-Api-Key",
            "x-api-key",
            "X-Auth",
            "Auth",
        ),
        *("X-Access-Token", "My-Secret", "X-Vault-Token", "X-Amz-Security-Token", "api_key", "apikey", "X-Password"),
        *(
            "Ocp-Apim-Subscription-Key",
            "X-Functions-Key",
            "X-Signature",
            "X-JWT-Assertion",
            "X-Auth-Key",
            "PRIVATE-TOKEN",
        ),
    ],
)
@pytest.mark.parametrize("value", [SECRET, f"Bearer {SECRET}", f"{SECRET}${{X}}", f"Bearer ${{X}} {SECRET}"])
def test_a_secret_that_is_written_out_in_a_header_is_refused(name: str, value: str) -> None:
    said = refusal(headers={name: value})
    assert "the flow orders, lookup profile" in said
    assert name in said
    assert "env:NAME" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "value",
    [
        *(f"Bearer {SECRET}", "Basic dXNlcjpwYXNz", "AKIAIOSFODNN7EXAMPLE", "ghp_0123456789abcdefghij"),
        *("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x", "xoxb-1234-abcd", "sk_live_0123456789abcdef"),
    ],
)
def test_a_value_that_is_a_secret_is_refused_whatever_its_header_is_called(value: str) -> None:
    assert "X-Custom" in refusal(headers={"X-Custom": value})


@pytest.mark.parametrize(
    "url",
    [
        *("https://user:pass@host/{id}", "https://user@host/{id}", "https://{id}:pass@host/", "http://:p@host/x"),
        *("https://host/{id}?api_key=abc", "https://host/x?a=1&token=abc", "https://host/x?X-Amz-Signature=ab12"),
        *("https://host/x?access_token=abc", "https://host/x?sig=abc", "https://host/x?client_secret=abc"),
        *("https://host/x?X-Amz-Credential=AKIA", "https://host/x?password=p", "https://host/x?key=abc&id={id}"),
        *("https://host/x?api%5Fkey=abc", "https://host/x?token=a{id}", "https://hooks.slack.com/services/T0/B0/x"),
        *(
            "https://host/x?t=ghp_0123456789abcdefghij",
            "https://host/x?subscription-key=abc",
            "https://host/?apikey=x#f",
        ),
    ],
)
def test_a_secret_in_a_url_is_refused(url: str) -> None:
    said = refusal(url=url)
    assert "the flow orders" in said
    assert "env:NAME" in said
    assert "abc" not in said


@pytest.mark.parametrize(
    "lookup",
    [
        {"headers": {"Authorization": "env:TOKEN"}},
        {"headers": {"Authorization": "Bearer env:TOKEN"}},
        {"headers": {"Authorization": "file:/run/secrets/token"}},
        {"headers": {"Authorization": "Bearer ${TOKEN}", "Cookie": "session=${S}; theme=${T}"}},
        {"headers": {"Accept": "application/json", "X-Tenant": "eu-1", "User-Agent": "headwater", "X-Author": "ada"}},
        {"url": "https://host/{id}?token=env:TOKEN&v=2"},
        {"url": "https://host/x?api_key=file:/run/secrets/key"},
        {"url": "https://host/x?key={id}&sort_key=price&code_of={sku}&monkey=1"},
        {"url": "https://host:8443/a@b/{id}"},
    ],
)
def test_what_is_not_a_secret_or_says_where_it_is_is_taken(lookup: dict[str, Any]) -> None:
    assert FlowSettings.model_validate(flow(**lookup)).name == "orders"


def test_a_secret_that_is_on_the_topic_already_is_said_and_stops_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    (found,) = parse_flows([flow(headers={"Authorization": SECRET})])
    assert found.name == "orders"
    (record,) = caplog.records
    assert "the flow orders" in record.getMessage()
    assert SECRET not in caplog.text


def test_what_a_secret_is_is_found_out_at_the_worker_and_never_published(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    values = {"A": "env:TOKEN", "B": f"Bearer file:{tmp_path / 'token'}", "C": "Bearer ${TOKEN}"}
    made = FlowSettings.model_validate(flow(headers=values))
    step = made.enrich[0]
    assert isinstance(step, LookupSettings)
    assert lookup_headers(step, {"TOKEN": SECRET}) == {"A": SECRET, "B": f"Bearer {SECRET}", "C": f"Bearer {SECRET}"}
    assert SECRET not in json.dumps(dump([made]))
    assert SECRET not in repr(made)


@pytest.mark.parametrize("value", ["env:NO_SUCH", "file:/no/such/file", "Bearer ${NO_SUCH}"])
def test_a_secret_that_is_not_there_is_named(value: str) -> None:
    with pytest.raises(UsageError, match=r"NO_SUCH|/no/such/file"):
        lookup_headers(LookupSettings(kind="lookup", into="x", url="http://h/x", headers={"A": value}), {})


def test_a_secret_of_the_query_is_sent_and_in_no_question(tmp_path: Path) -> None:
    service = Service()
    (tmp_path / "key").write_text("a&b")
    with service.running() as url:
        settings = LookupSettings(
            kind="lookup", into="x", url=f"{url}/c?token=env:T&key=file:{tmp_path / 'key'}&t=env:TT"
        )
        http = Http(settings, {"T": SECRET, "TT": "two"})
        question = http.question(None)  # type: ignore[arg-type]  # it names no attribute
        assert question is not None
        assert SECRET.encode() not in question
        http([question])
        assert [path for path, _ in service.asked] == [f"/c?token={SECRET}&key=a%26b&t=two"]
