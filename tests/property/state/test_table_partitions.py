"""A table's partition against a dict: whatever is written, committed, aborted and lost, it says what was committed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.state.table_partitions import TablePartition, Writes

pytestmark = pytest.mark.slow

keys = st.sampled_from([b"a", b"b", b"c", b"d", b"\x00\x00head"])
values = st.one_of(st.none(), st.binary(max_size=3))


class TableMachine(RuleBasedStateMachine):
    """Slices of writes; each is committed or aborted; the worker ends and comes back, with its state or without."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.partition = TablePartition(self.directory / "t-0.db")
        self.changelog: list[tuple[bytes, bytes | None]] = []
        self.committed: dict[bytes, bytes] = {}
        self.slice: Writes = {}
        self.next: Writes = {}
        self.ending = False

    def expected(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes | None] = {**self.committed, **self.slice, **self.next}
        return {key: value for key, value in found.items() if value is not None}

    @rule(writes=st.dictionaries(keys, values, max_size=3))
    def write(self, writes: Writes) -> None:
        self.partition.write(writes)
        (self.next if self.ending else self.slice).update(writes)

    @precondition(lambda self: not self.ending)
    @rule()
    def freeze(self) -> None:
        assert self.partition.freeze() == self.slice
        self.ending = True

    @precondition(lambda self: self.ending)
    @rule()
    def commit(self) -> None:
        self.changelog += self.slice.items()
        self.partition.committed(len(self.changelog))
        for key, value in self.slice.items():
            self.committed.pop(key, None)
            if value is not None:
                self.committed[key] = value
        self.slice, self.next, self.ending = self.next, {}, False

    @rule()
    def abort(self) -> None:
        self.partition.aborted()
        self.slice, self.next, self.ending = self.next, {}, False

    @rule(lost=st.booleans(), at_once=st.integers(1, 4))
    def restart(self, lost: bool, at_once: int) -> None:
        self.partition.close()
        self.slice, self.next, self.ending = {}, {}, False
        if lost:
            shutil.rmtree(self.directory)
        self.partition = TablePartition(self.directory / "t-0.db")
        assert self.partition.reached == (0 if lost else len(self.changelog))
        for start in range(self.partition.reached, len(self.changelog), at_once):
            records = self.changelog[start : start + at_once]
            self.partition.apply(dict(records), start + len(records))

    @invariant()
    def agrees(self) -> None:
        expected = self.expected()
        assert dict(self.partition.items()) == expected
        assert sorted(self.partition) == sorted(expected)
        wanted = [b"a", b"nothing", b"b", b"a", b"c", b"\x00\x00head"]
        assert self.partition.get_many(wanted) == [expected.get(key) for key in wanted]
        assert [self.partition.get(key) for key in wanted] == [expected.get(key) for key in wanted]

    def teardown(self) -> None:
        self.partition.close()
        shutil.rmtree(self.directory)


TestTablePartition = TableMachine.TestCase
TestTablePartition.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
