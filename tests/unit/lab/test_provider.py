"""The provider of credentials that fails on purpose: what botocore makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.exceptions import CredentialRetrievalError
from botocore.session import Session

from headwater.lab.provider import Provider


def test_credentials_that_must_be_renewed_are_asked_for_and_a_failure_is_felt_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(tmp_path / "with a space")
    for name, value in provider.environment.items():
        monkeypatch.setenv(name, value)
    credentials = Session().get_credentials()
    assert credentials is not None
    credentials.get_frozen_credentials()
    provider.fail()
    provider.renew()
    credentials.get_frozen_credentials()  # they last
    with pytest.raises(CredentialRetrievalError):
        Session().get_credentials()
    provider.work()
    assert Session().get_credentials() is not None


def test_what_lasts_no_longer_than_urgent_is_renewed_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]  # long ago: what it gives must be renewed at once
    provider = Provider(tmp_path, clock=lambda: now[0])
    for name, value in provider.environment.items():
        monkeypatch.setenv(name, value)
    provider.hurry()
    assert "1970-01-01T00:10:01" in (tmp_path / "credentials.json").read_text()
    provider.work()
    assert "1970-01-01T00:15:03" in (tmp_path / "credentials.json").read_text()
