"""`headwater replay`: run past changes through the flows again, compare the result with the live topics, promote it."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer

from headwater.console import Json, err, print_json, print_table, print_text, say
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from pipeline.replay.diff import TopicDiff
    from pipeline.replay.plan import Replay
    from pipeline.settings.root import Settings

app = typer.Typer(
    help="Run past changes through the flows again, compare the result with the live topics, promote it.",
    invoke_without_command=True,
)
ReplayId = Annotated[str, typer.Argument(metavar="ID", help="The ID of the replay.")]
MAX_LAG = 50_000


@app.callback()
def replay(
    context: typer.Context,
    begin: Annotated[
        str,
        typer.Option(
            "--from", help="From this time of raw on: 2026-11-01T00:00Z, or earliest. Needed for a new replay."
        ),
    ] = "",
    end: Annotated[str, typer.Option("--to", help="Up to this time. Default: up to now.")] = "",
    table: Annotated[
        list[str] | None, typer.Option("--table", help="Only changes of this table. May be repeated.")
    ] = None,
    key: Annotated[
        str, typer.Option("--key", help='Only changes of this key, in all tables: {"order_id":{"S":"o-1"}}.')
    ] = "",
    flow: Annotated[list[str] | None, typer.Option("--flow", help="Only this flow. May be repeated.")] = None,
    into: Annotated[str, typer.Option("--into", help="Suffix of the topics of the replay. Default: replay-ID.")] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Write into the live topics directly.")] = False,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Most records per second. 0: no limit.")] = 0.0,
    max_lag: Annotated[
        int,
        typer.Option(
            "--max-lag", min=0, help="Pause while the live workers are more records behind than this. 0: never pause."
        ),
    ] = MAX_LAG,
    source: Annotated[
        Literal["raw", "lake"],
        typer.Option("--source", help="Read the changes from the topic raw, or from the files of the lake."),
    ] = "raw",
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Drop every repeated event ID in the range, however long ago it came.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="If part of the range is deleted, replay what is left.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    resume: Annotated[str, typer.Option("--resume", help="Continue this replay where it stopped.")] = "",
    as_json: Json = False,
) -> None:
    """Run past changes through the flows again, into topics of their own. Exactly once, also when killed and resumed."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.replay import manage, plan
    from pipeline.replay.plan import Replay
    from pipeline.settings.load import load

    settings = load()
    if resume:
        if begin or end or table or key or flow or into or publish or dry_run or partial:
            raise UsageError(
                "--resume continues a replay as it was started: only --rate and --max-lag may be given with it"
            )
        _run(settings, manage.replay_of(settings, resume), rate, max_lag, as_json)
        return
    if not begin:
        raise UsageError("--from is required", hint="headwater replay --from 2026-11-01T00:00Z, or --from earliest")
    now = time.time()
    replay_id = plan.new_id(now)
    wanted = Replay(
        replay_id,
        now,
        None if begin == "earliest" else plan.time_of(begin, "--from"),
        plan.time_of(end, "--to") if end else now + 1,
        {},
        tables=table or [],
        key=plan.key_of(key) if key else "",
        flows=flow or [],
        suffix=plan.suffix_of(into, publish, replay_id),
        source=source,
        rate=rate,
        dedup=dedup,
    )
    if wanted.suffix:
        manage.require_free(settings, wanted.suffix)
    planned = manage.plan_replay(settings, wanted, now, partial=partial)
    if planned.gone:
        say(f"left out of the replay: {plan.described(planned.gone)}")
    if dry_run:
        _say_plan(settings, planned, as_json)
        return
    manage.make_topics(settings)
    _run(settings, planned, rate, max_lag, as_json)


def _say_plan(settings: Settings, planned: Replay, as_json: bool) -> None:
    from pipeline.replay import manage, plan
    from pipeline.replay.flows import measured

    records = manage.sample(settings, planned)
    size = sum(len(value) for _, value, _ in records) / max(1, len(records))
    rate = measured(settings, planned, records)
    rate = min(rate, planned.rate) if planned.rate else rate
    found = {
        **manage.as_data(planned),
        "records_at_most": planned.total,
        "bytes_about": round(planned.total * size),
        "seconds_about": round(planned.total / rate, 3) if rate else None,
    }
    if as_json:
        print_json(found)
        return
    print_text(
        f"{planned.total:,} records at most, about {found['bytes_about']:,} bytes, about {found['seconds_about']} s"
    )
    print_text(f"into {found['into']}")
    rows = []
    for name, (begin, end) in planned.ranges.items():
        topic, partition = plan.placed(name)
        rows.append((topic, f"{partition}", f"{begin:,}", f"{end:,}"))
    print_table(("topic", "partition", "from offset", "before offset"), rows)


def _run(settings: Settings, replay: Replay, rate: float, max_lag: int, as_json: bool) -> None:
    """Run it with a bar for each range; Ctrl-C stops it after the transaction under way."""
    import msgspec

    from pipeline.limits import spare_the_collector
    from pipeline.replay import manage
    from pipeline.replay.flows import compiled
    from pipeline.replay.range import require_left, require_logs
    from pipeline.replay.run import Run

    if replay.state in {"done", "promoting", "promoted"}:
        raise UsageError(f"the replay {replay.id} is {replay.state}", hint=f"headwater replay diff {replay.id}")
    require_logs(settings, replay)
    positions = manage.positions_of(settings, replay, replay.group(settings.prefix))
    if replay.source == "raw":
        require_left(settings, replay, positions)
    replay = msgspec.structs.replace(replay, rate=rate or replay.rate)
    stop = _Stop()
    source = manage.source_of(settings, replay, positions)
    started, progress = time.monotonic(), _Progress(replay)
    spare_the_collector()
    try:
        with progress:
            run = Run(
                settings,
                replay,
                compiled(settings, replay.flows),
                source,
                on_progress=progress.show,
                stopping=lambda: stop.wanted,
                live_lag=manage.LiveLag(settings),
                max_lag=max_lag,
                positions=positions,
                seen=manage.seen_before(settings, replay, positions),
            )
            done = run.go()
    finally:
        source.close()
    seconds = time.monotonic() - started
    if as_json:
        pace = round(progress.pace)
        print_json({**manage.as_data(done), "seconds": round(seconds, 2), "records_per_second": pace})
    counts = done.progress
    say(
        f"{done.id}: {done.state}; {counts.read:,} records read, {counts.taken:,} wanted, {counts.sent:,} messages sent, "
        f"{counts.rejected:,} rejected, into {done.suffix or 'the live topics'}; {seconds:.1f} s"
    )
    if done.state == "stopped":
        say(f"continue with: headwater replay --resume {done.id}")
        raise typer.Exit(130)
    if done.suffix:
        say(f"next: headwater replay diff {done.id}; headwater replay promote {done.id}")


class _Stop:
    """Ctrl-C, or SIGTERM: the transaction under way is finished first."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, *_: object) -> None:
        self.wanted = True


class _Progress:
    """Bars on stderr: one for all of it, one a range."""

    def __init__(self, replay: Replay) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._replay = replay
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._started = time.monotonic()
        self._read = replay.progress.read
        self._tasks: dict[str, TaskID] = {}
        self._first: tuple[float, int] | None = None
        self._last = 0
        self.pace = 0.0
        """Records a second since the first transaction: what goes before is start-up."""

    def __enter__(self) -> Self:
        self._all = self._bars.add_task("replay", total=self._replay.total, rate="")
        for name, (begin, end) in self._replay.ranges.items():
            self._tasks[name] = self._bars.add_task(name.replace("|", " "), total=end - begin, rate="")
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, replay: Replay, positions: Mapping[str, int], note: str) -> None:
        """Show how far it is."""
        now, read = time.monotonic(), replay.progress.read
        self._first = self._first or (now, read)
        if read > self._last:  # the last one only says that it is done
            self._last = read
            self.pace = (read - self._first[1]) / (now - self._first[0]) if now > self._first[0] else 0.0
        for name, (begin, end) in replay.ranges.items():
            at = positions.get(name, begin)
            self._bars.update(self._tasks[name], completed=min(at, end) - begin)
        whole = sum(min(positions.get(name, b), e) - b for name, (b, e) in replay.ranges.items())
        rate = (replay.progress.read - self._read) / max(0.001, time.monotonic() - self._started)
        self._bars.update(self._all, completed=whole, rate=note or f"{rate:,.0f}/s")


@app.command(name="list")
def list_replays(as_json: Json = False) -> None:
    """List the replays, oldest first."""
    from pipeline.replay import manage
    from pipeline.settings.load import load

    found = manage.replays(load())
    if as_json:
        print_json([manage.as_data(one) for one in found])
        return
    _print_replays(found)


def _print_replays(found: Sequence[Replay]) -> None:
    rows = []
    for one in found:
        begin = "earliest" if one.begin is None else f"{datetime.fromtimestamp(one.begin, UTC):%Y-%m-%d %H:%M}Z"
        to, counts = f"{datetime.fromtimestamp(one.end, UTC):%Y-%m-%d %H:%M}Z", one.progress
        numbers = (f"{n:,}" for n in (counts.read, counts.sent, counts.rejected))
        rows.append((one.id, one.state, begin, to, one.suffix or "live", *numbers))
    print_table(("id", "state", "from", "to", "into", "read", "sent", "rejected"), rows)


@app.command()
def diff(replay_id: ReplayId, as_json: Json = False) -> None:
    """Compare the messages of a replay with the live topics. Exit 1 when they differ."""
    from pipeline.replay import manage
    from pipeline.replay.diff import diff as compare
    from pipeline.settings.load import load

    settings = load()
    replay = manage.replay_of(settings, replay_id)
    if not replay.suffix:
        raise UsageError(f"the replay {replay_id} has no topics of its own", hint="headwater replay list")
    found = compare(settings, replay)
    if as_json:
        print_json([one.json() for one in found])
    else:
        _print_diff(found)
    if not all(one.is_empty for one in found):
        raise typer.Exit(1)


def _print_diff(found: list[TopicDiff]) -> None:
    rows = [(one.topic, *(f"{n:,}" for n in (one.same, one.added, one.missing, one.different))) for one in found]
    print_table(("topic", "same", "added", "missing", "different"), rows)
    for one in found:
        for example in one.examples:
            print_text(f"{example.what}: {example.topic} {example.key} event {example.event_id}")
            print_text(f"  live:   {example.live}")
            print_text(f"  shadow: {example.shadow}")


@app.command()
def promote(replay_id: ReplayId, as_json: Json = False) -> None:
    """Copy the messages of a replay into the live topics: each once, with the header `replay`."""
    from pipeline.replay import manage
    from pipeline.replay.promote import promote as make_live
    from pipeline.settings.load import load

    settings = load()
    done = make_live(settings, manage.replay_of(settings, replay_id))
    if as_json:
        print_json(manage.as_data(done))
    say(f"{done.id}: {done.state}")
