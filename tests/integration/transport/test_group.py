"""The consumer group in other forms: KIP-848, static members. Workers come, die and go under load; the output is exact."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package says so, not its types
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from support.fleet import PROTOCOL, Fleet, log_of, ready
from support.waiting import until

from headwater.lab.stack import Endpoints
from headwater.lab.workers import WorkerProcess, Workers
from pipeline.topics.admin import admin

pytestmark = pytest.mark.kafka


def shares(worker: WorkerProcess) -> list[tuple[int, int, int]]:
    """Return the changes of a worker's share of the partitions: new, gone, in all."""
    found = re.findall(r"Partitions: (\d+) new, (\d+) gone.*?, (\d+) in all", log_of(worker))
    return [(int(new), int(gone), int(every)) for new, gone, every in found]


def started_again(workers: Workers, worker: WorkerProcess) -> WorkerProcess:
    workers.watch()
    return worker


def let_sessions_last(fleet: Fleet, seconds: int) -> None:
    """Have the broker wait so long for a silent member of a group with KIP-848."""
    entry = ConfigEntry(
        "consumer.session.timeout.ms", str(seconds * 1_000), incremental_operation=AlterConfigOpType.SET
    )
    group = ConfigResource(ResourceType.GROUP, fleet.prefix, incremental_configs=[entry])
    for done in admin(fleet.conf).incremental_alter_configs([group]).values():
        done.result(20)


def share(worker: WorkerProcess) -> int:
    return shares(worker)[-1][2] if shares(worker) else 0


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_workers_come_die_and_go_under_load_and_nothing_is_lost_or_doubled(
    stack: Endpoints, tmp_path: Path, protocol: str
) -> None:
    fleet = Fleet(stack, tmp_path, {PROTOCOL: protocol})
    with fleet.running(2) as workers, fleet.under_load(workers):
        one, other = workers.all
        workers.add()
        until(lambda: share(workers.all[2]) > 0, "partitions for the third worker")
        other.signal(signal.SIGKILL)
        until(lambda: share(one) + share(workers.all[2]) == 4, "the partitions of the dead worker at the others")
        workers.watch()  # starts it again
        until(lambda: ready(other) and share(other) > 0, "partitions for it")
        workers.all.remove(one)
        one.signal(signal.SIGTERM)
        until(lambda: share(other) + share(workers.all[1]) == 4, "the partitions of the one that has left")
        until(lambda: not one.alive(), "its end")
    assert "Traceback" not in "".join(map(log_of, [one, other]))


def test_with_kip_848_the_partitions_that_stay_are_not_taken_away(stack: Endpoints, tmp_path: Path) -> None:
    fleet = Fleet(stack, tmp_path, {PROTOCOL: "consumer"})
    with fleet.running(1) as workers, fleet.under_load(workers):
        workers.add()
        until(lambda: share(workers.all[1]) == 2, "two partitions for the second worker")
        until(lambda: share(workers.all[0]) == 2, "two left at the first")
        assert sum(gone for _, gone, _ in shares(workers.all[0])) == 2


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_static_member_that_restarts_moves_nobody_elses_partitions(
    stack: Endpoints, tmp_path: Path, protocol: str
) -> None:
    patient = {"HEADWATER_KAFKA__SESSION_TIMEOUT": "40"} if protocol == "classic" else {}
    fleet = Fleet(stack, tmp_path, {PROTOCOL: protocol, **patient}, static=True)
    if protocol == "consumer":
        let_sessions_last(fleet, 40)
    with fleet.running(2) as workers, fleet.under_load(workers):
        one, other = workers.all
        before = shares(other)
        one.signal(signal.SIGTERM)
        until(lambda: not one.alive(), "its end")
        workers.watch()  # starts it again
        until(lambda: len(re.findall("Worker ready", log_of(one))) == 2, "the worker again")
        assert shares(other) == before


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_of_two_workers_with_one_name_in_the_group_the_first_is_put_out(
    stack: Endpoints, tmp_path: Path, protocol: str
) -> None:
    """A frozen worker is replaced elsewhere under its name: when it wakes, its slice is refused and it ends."""
    fleet = Fleet(stack, tmp_path, {PROTOCOL: protocol}, static=True)
    with fleet.running(1) as workers, fleet.under_load(workers, watched=False):
        zombie = workers.all[0]
        zombie.signal(signal.SIGSTOP)
        workers.add()
        twin = workers.all[1]
        if twin.process is not None:
            twin.process.kill()
        twin.environment = zombie.environment
        twin.start()
        # With KIP-848 the name is free when the session is over; so long the twin ends and is started again.
        until(lambda: share(started_again(workers, twin)) == 4, "its partitions at the other")
        zombie.signal(signal.SIGCONT)
        until(lambda: not zombie.alive(), "its end")
        assert "kafka.instance_id" in log_of(zombie)
