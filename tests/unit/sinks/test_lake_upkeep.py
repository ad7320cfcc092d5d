"""`headwater lake maintain` and `verify`: which lakes, one run at a time, what is said; and errors of a store."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Headwater
from support.sink_worker import PARTITION
from test_lake import written

from pipeline.errors import FatalError, HeadwaterError, TransientError
from pipeline.sinks.lake.maintain import HELD_FOR_S, LEASE, Lease, Maintained, maintain_lake
from pipeline.sinks.lake.objects import Objects, cause_of
from pipeline.sinks.lake.verify import Carried, verify_lake
from pipeline.transport.committed import Committed
from pipeline.transport.logs import Log

pytestmark = pytest.mark.slow


def run(objects: Objects, carried: Sequence[Carried] = (), **more: bool) -> Maintained:
    return maintain_lake(objects, "lake", carried, size=1 << 20, older_than_us=1 << 60, **more)  # type: ignore[arg-type]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


# -- one run at a time ------------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_and_said_in_words(tmp_path: Path) -> None:
    objects, clock = Objects(f"file://{tmp_path}"), Clock()
    first, second = Lease(objects, clock), Lease(objects, clock)
    first.take()
    with pytest.raises(TransientError, match=f"is being maintained by {first.owner}, until .* UTC"):
        second.take()
    first.release()
    second.take()
    second.require()


def test_a_lease_is_renewed_in_time_and_not_taken_back_once_it_was_lost(tmp_path: Path) -> None:
    objects, clock = Objects(f"file://{tmp_path}"), Clock()
    first, second = Lease(objects, clock), Lease(objects, clock)
    first.take()
    for _ in range(5):
        clock.now += HELD_FOR_S * 0.6
        first.require()
    clock.now += HELD_FOR_S * 0.6
    with pytest.raises(TransientError):
        second.take()
    clock.now += HELD_FOR_S  # the first is frozen
    second.take()
    with pytest.raises(TransientError, match=second.owner):
        first.require()
    second.release()
    with pytest.raises(TransientError, match="it ended"):
        first.require()
    first.release()
    assert json.loads(objects.read(LEASE)) == {"owner": second.owner, "until": 0}


def test_a_run_beside_another_does_nothing_and_a_dry_run_needs_no_lease(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    Lease(objects).take()
    before = objects.paths()
    with pytest.raises(TransientError, match="is being maintained"):
        run(objects, at_rest=True)
    told = run(objects, at_rest=True, dry_run=True)
    assert (told.files_before, told.files_after, told.rows) == (6, 2, 12)
    assert objects.paths() == before


def test_what_a_broker_without_ids_cannot_tell_stays(tmp_path: Path) -> None:
    objects, _ = written(tmp_path)
    log = Log("6LOg2QcVTjaWiUMaXmJpGA")
    report = run(objects, [Carried(*PARTITION, log, 0, Committed(12, log))])
    assert (report.files_before, report.directories) == (0, [])
    assert report.left == [f"{PARTITION.topic}: the broker gives topics no IDs, their files stay as they are"]


# -- the commands -----------------------------------------------------------------------------------------------------


def test_maintain_tells_what_it_does_and_what_it_has_asked_of_the_store(tmp_path: Path, headwater: Headwater) -> None:
    objects, _ = written(tmp_path / "lake")
    command = ("lake", "maintain", "--url", objects.url, "--at-rest", "--json")
    told = json.loads(headwater(*command, "--dry-run").stdout)
    assert (told["dry_run"], told["files_before"], told["files_after"], told["requests"]["put"]) == (True, 6, 2, 0)
    assert len([path for path in objects.paths() if path.endswith(".parquet")]) == 6
    done = headwater(*command)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["files_before"], report["files_after"], report["rows"], report["entries"]) == (6, 2, 12, 6)
    assert report["left"] == []
    assert report["requests"]["bytes_in"] > report["bytes_before"]
    assert report["requests"]["bytes_out"] > report["bytes_after"]
    assert verify_lake(objects).problems == ()
    again = headwater(*command[:-1])
    assert "nothing to do" in again.stdout
    assert "0 small files became 0" in again.stderr


def test_maintain_needs_to_know_what_is_committed(tmp_path: Path, headwater: Headwater) -> None:
    objects, _ = written(tmp_path / "lake")
    for settings in ({}, {"HEADWATER_LAKE__URL": f"file://{tmp_path}/x"}):
        elsewhere = headwater("lake", "maintain", "--url", objects.url, **settings)
        assert elsewhere.returncode == 2
        assert "it is not known what its workers have committed" in elsewhere.stderr
        assert "--at-rest" in elsewhere.stderr
    assert headwater("lake", "maintain", "--at-rest").returncode == 2


def lakes(tmp_path: Path) -> dict[str, str]:
    """Settings with [lake], two of [[lakes]] and one of tables."""
    more: list[dict[str, Any]] = [
        {"name": "second", "url": f"file://{tmp_path}/second"},
        {"name": "gone", "url": f"file://{tmp_path}/gone"},
        {"name": "tables", "url": f"file://{tmp_path}/w", "table": "iceberg", "catalog": {"type": "sql"}},
    ]
    flows = [{"name": "f", "from": ["orders"], "to": "orders"}]
    return {
        "HEADWATER_LAKE__URL": f"file://{tmp_path}/first",
        "HEADWATER_LAKES": json.dumps(more),
        "HEADWATER_FLOWS": json.dumps(flows),
    }


def test_verify_checks_every_lake_each_with_its_lines_and_one_exit_code(tmp_path: Path, headwater: Headwater) -> None:
    for name in ("first", "second"):
        written(tmp_path / name)
    settings = lakes(tmp_path)
    all_of_them = headwater("lake", "verify", "--offline", **settings)
    assert all_of_them.returncode == 1
    for said in (
        "lake: 6 files, 12 rows",
        "second: 6 files, 12 rows",
        "gone: there is no lake at",
        "tables: has Iceberg tables, no files to verify",
    ):
        assert said in all_of_them.stderr
    (tmp_path / "gone").mkdir()
    written(tmp_path / "gone")
    found = headwater("lake", "verify", "--offline", "--json", **settings)
    assert found.returncode == 0, found.stderr
    assert [json.loads(line)["lake"] for line in found.stdout.splitlines()] == ["lake", "second", "gone"]
    damaged = next((tmp_path / "second").rglob("*.parquet"))
    damaged.unlink()
    one_is_damaged = headwater("lake", "verify", "--offline", **settings)
    assert one_is_damaged.returncode == 1
    assert f"second: missing: {damaged.relative_to(tmp_path / 'second')}" in one_is_damaged.stdout
    assert headwater("lake", "verify", "--offline", "--lake", "gone", **settings).returncode == 0
    assert headwater("lake", "verify", "--offline", "--lake", "lake", **settings).returncode == 0
    tables = headwater("lake", "verify", "--offline", "--lake", "tables", **settings)
    assert (tables.returncode, "this lake has Iceberg tables" in tables.stderr) == (2, True)


# -- errors of the store ----------------------------------------------------------------------------------------------


def require_one_line(error: HeadwaterError, *words: str) -> None:
    for word in words:
        assert word in str(error)
    assert "\n" not in str(error)
    assert "Debug source" not in str(error)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 kB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named(small_disk: Path) -> None:
    objects = Objects(f"file://{small_disk}/lake")
    with pytest.raises(TransientError) as raised:
        objects.create("table=T/a.parquet", b"x" * 200_000)
    require_one_line(raised.value, "No space left on device", "table=T/a.parquet")
    with pytest.raises(TransientError) as raised:
        objects.change("table=T/_manifest.json", lambda _old: b"x" * 200_000)
    require_one_line(raised.value, "No space left on device")


def test_a_file_that_is_in_the_way_of_a_directory_is_named(tmp_path: Path) -> None:
    objects = Objects(f"file://{tmp_path}")
    (tmp_path / "table=T").touch()
    with pytest.raises(TransientError) as raised:
        objects.create("table=T/a.parquet", b"x")
    require_one_line(raised.value, "Not a directory")
    with pytest.raises(FatalError) as made:
        Objects(f"file://{tmp_path}/table=T/lake")
    require_one_line(made.value, "cannot be opened")


def test_a_store_that_does_not_answer_is_named_with_the_systems_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(TransientError) as raised:
        Objects("s3://bucket/lake").create("a", b"x")
    require_one_line(raised.value, "error sending request", "Connection refused")


DENIED = """403 Forbidden: <?xml version="1.0"?>
<Error><Code>AccessDenied</Code>
<Message>No, never</Message><RequestId>1</RequestId></Error>"""
LATER = """Generic LocalFileSystem error:
  Unable to copy

Debug source:
X { message: "No space" }"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (LATER, "Generic LocalFileSystem error: Unable to copy: No space"),
        (LATER.replace("to copy", "to copy: No space"), "Generic LocalFileSystem error: Unable to copy: No space"),
        (DENIED, "403 Forbidden: AccessDenied: No, never"),
        ("", "ValueError"),
        ("x" * 5_000, "x" * 1_000 + " ..."),
    ],
)
def test_a_cause_is_one_line_without_noise(text: str, cause: str) -> None:
    assert cause_of(ValueError(text)) == cause
