from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pipeline.files.private import private_directory
from pipeline.state.store import Store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_is_made_for_its_owner_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private_directory(tmp_path / "a" / "state")
    assert mode(tmp_path / "a" / "state") == 0o700
    private_directory(tmp_path / "a" / "state")
    assert caplog.records == []


@pytest.mark.parametrize("wide", [0o755, 0o750, 0o777, 0o711])
def test_a_directory_that_is_wider_is_tightened_and_that_is_said_once(
    tmp_path: Path, wide: int, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "state"
    place.mkdir()
    place.chmod(wide)
    for _ in range(2):
        private_directory(place)
    assert mode(place) == 0o700
    assert len(caplog.records) == 1


def test_one_that_cannot_be_tightened_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    tmp_path.chmod(0o770)
    monkeypatch.setattr(Path, "chmod", refuse)
    private_directory(tmp_path)
    assert "cannot be changed" in caplog.text


def test_the_directory_of_a_store_is_its_owner_s_alone(tmp_path: Path) -> None:
    Store(tmp_path / "tables" / "t-0").close()
    assert mode(tmp_path / "tables") == 0o700
