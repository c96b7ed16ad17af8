"""`onexflow run`: start runs, look at them, steer them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import cyclopts
from cyclopts import Parameter

from onexflow.cli.common import Common, connected, find_run, with_nearest
from onexflow.cli.inputs import json_value
from onexflow.cli.output import Output, short, span, when
from onexflow.codec.plain import payload, plain, rfc3339
from onexflow.core.errors import InvalidArgument, RunFailed, UnknownWorkflowType

if TYPE_CHECKING:
    from onexflow.client import RunHandle
    from onexflow.ports.client_link import ControlOutcome, EventView, RunView

app = cyclopts.App(name="run", help="Start runs, look at them, steer them. RUN is TYPE/ID, or ID alone.")

#: Exactly one of these decides a task of unknown outcome.
DECISIONS: Final = "exactly one of --retry, --result and --fail is needed"


@app.command
async def start(
    workflow_type: str,
    /,
    *,
    input: Annotated[str, Parameter(name=["--input", "-i"])] = "null",
    id: str = "",
    version: int = 0,
    correlation_id: str = "",
    request_id: str = "",
    delay: float = 0.0,
    timeout: float = 0.0,
    wait: Annotated[bool, Parameter(name=["--wait", "-w"])] = False,
    common: Common = Common(),
) -> None:
    """Start a run of a registered workflow type. It is durable when this returns.

    Example: onexflow run start order-processing --input @order.json --wait

    Parameters
    ----------
    workflow_type
        Registered type.
    input
        JSON text, or @FILE with JSON in it (@- is standard input).
    id
        UUID of the run, or any text: the same text is always the same run. Empty: a new one.
    version
        Version of the definition; 0 is the newest.
    correlation_id
        Your own name for what the run belongs to; kept with every event.
    request_id
        Repeating a start with the same one has no second effect.
    delay
        Seconds to stay `pending` before it begins.
    timeout
        Seconds until the run times out; 0 is the definition's.
    wait
        Wait for its end and print its result.
    """
    value = json_value(input, "--input")
    async with connected(common) as client:
        try:
            handle = await client.start(
                workflow_type,
                value,
                instance_id=id or None,
                version=version,
                correlation_id=correlation_id,
                request_id=request_id,
                delay=delay,
                timeout=timeout,
            )
        except UnknownWorkflowType as error:
            raise await with_nearest(client, error, workflow_type) from error
        if wait:
            common.out.note(f"run {handle.workflow_type}/{handle.instance_id}")
            await _print_result(handle, common.out, None)
        elif common.out.json:
            common.out.data({**plain(handle.key), "version": handle.version, "created": handle.created})
        else:
            common.out.line(f"{handle.workflow_type}/{handle.instance_id}")
            if not handle.created:
                common.out.note("It had been started before.")


@app.command(name="list")
async def list_(
    *,
    type: Annotated[str, Parameter(name=["--type", "-t"])] = "",
    state: Annotated[tuple[str, ...], Parameter(name=["--state", "-s"])] = (),
    blocked: bool = False,
    limit: int = 50,
    common: Common = Common(),
) -> None:
    """Runs, newest first.

    Example: onexflow run list --type order-processing --state failed --state timeout

    Parameters
    ----------
    type
        Only of this workflow type.
    state
        Only in this state; may be given several times.
    blocked
        Only open ones, with what each waits for.
    limit
        At most this many.
    """
    if blocked:
        if state:
            raise InvalidArgument("--blocked shows open runs of all states: leave --state out", field="blocked")
        await _list_blocked(type, limit, common)
        return
    async with connected(common) as client:
        runs = [run async for run in client.list(type, state, limit=limit)]
    if common.out.json:
        for run in runs:
            common.out.data(run)
        return
    rows = [
        (run.key.workflow_type, str(run.key.instance_id), run.state, when(run.created_at), when(run.updated_at))
        for run in runs
    ]
    common.out.table(("TYPE", "ID", "STATE", "CREATED", "UPDATED"), rows, empty="No runs.")
    if len(runs) == limit:
        common.out.note(f"The newest {limit}; --limit shows more.")


async def _list_blocked(type: str, limit: int, common: Common) -> None:
    from onexflow.core.blocked import sentence

    async with connected(common) as client:
        runs = [run async for run in client.blocked(type, limit=limit)]
    if common.out.json:
        for run in runs:
            common.out.data(run)
        return
    rows = [
        (
            run.key.workflow_type,
            str(run.key.instance_id),
            run.state,
            run.blocked.kind,
            f"{run.blocked.task}: {sentence(run.blocked)}" if run.blocked.task else sentence(run.blocked),
            when(run.blocked.next_wake_at),
        )
        for run in runs
    ]
    common.out.table(("TYPE", "ID", "STATE", "KIND", "WAITS FOR", "LOOKED AT"), rows, empty="No open runs.")


@app.command
async def show(run: str, /, *, common: Common = Common()) -> None:
    """A run as it stands: its tasks, and what it waits for.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    """
    async with connected(common) as client:
        view = await (await find_run(client, run)).state()
    if common.out.json:
        common.out.data(view)
        return
    _show(view, common.out)


@app.command
async def history(
    run: str,
    /,
    *,
    from_sequence: Annotated[int, Parameter(name=["--from"])] = 1,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    common: Common = Common(),
) -> None:
    """Every event of a run, in order.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    from_sequence
        First event to show.
    follow
        Go on with what happens, until the run ends.
    """
    async with connected(common) as client:
        handle = await find_run(client, run)
        if follow:
            async for event in handle.follow(from_sequence):
                _print_event(event, common.out)
            return
        events = await handle.history(from_sequence)
    if common.out.json:
        for event in events:
            common.out.data(event)
        return
    rows = [
        (str(event.sequence), rfc3339(event.timestamp) or "", _name(event), event.task, _told(event))
        for event in events
    ]
    common.out.table(("SEQ", "TIME", "EVENT", "TASK", "DATA"), rows, empty="No events.")


@app.command
async def result(
    run: str,
    /,
    *,
    timeout: float | None = None,
    common: Common = Common(),
) -> None:
    """The result of a run, as JSON; waits for its end.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    timeout
        Seconds to wait at the most; the run goes on. Without: as long as it takes.
    """
    async with connected(common) as client:
        await _print_result(await find_run(client, run), common.out, timeout)


@app.command
async def pause(run: str, /, *, reason: str = "", common: Common = Common()) -> None:
    """Stop dispatching a run's tasks. What runs ends and is recorded.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    reason
        Why; kept with the run.
    """
    async with connected(common) as client:
        _steered(await (await find_run(client, run)).pause(reason), common.out)


@app.command
async def resume(run: str, /, *, reason: str = "", common: Common = Common()) -> None:
    """Let a paused run go on.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    reason
        Why; kept with the run.
    """
    async with connected(common) as client:
        _steered(await (await find_run(client, run)).resume(reason), common.out)


@app.command
async def cancel(run: str, /, *, reason: str = "", common: Common = Common()) -> None:
    """End a run. Its running attempts are told to stop.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    reason
        Why; kept with the run.
    """
    async with connected(common) as client:
        _steered(await (await find_run(client, run)).cancel(reason), common.out)


@app.command
async def assign(run: str, node: str = "", /, *, common: Common = Common()) -> None:
    """Send a run's tasks to one node from now on, while that is connected.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    node
        Id of the worker; none takes the assignment back.
    """
    async with connected(common) as client:
        _steered(await (await find_run(client, run)).assign(node), common.out)


@app.command
async def resolve(
    run: str,
    task: str,
    /,
    *,
    item: int = 0,
    retry: bool = False,
    result: str | None = None,
    fail: str = "",
    reason: str = "",
    common: Common = Common(),
) -> None:
    """Decide a task that waits because nobody knows whether its effect happened.

    Example: onexflow run resolve order-processing/ORD-1 charge --result '{"payment": "L-7"}'

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    task
        Name of the task.
    item
        Index of the item, of a task that is mapped over a list.
    retry
        It did not happen, or happening twice is harmless: run it again.
    result
        It happened, and this is its result: JSON text or @FILE.
    fail
        It did not happen and shall not: fail the task, saying why.
    reason
        Why; kept with the run.
    """
    if retry + (result is not None) + bool(fail) != 1:
        raise InvalidArgument(DECISIONS, field="decision")
    decision: dict[str, Any] = {"retry": True} if retry else {"fail": fail}
    if result is not None:
        decision = {"result": json_value(result, "--result")}
    async with connected(common) as client:
        handle = await find_run(client, run)
        _steered(await handle.resolve(task, item, reason=reason, **decision), common.out)


@app.command
async def watch(run: str, /, *, common: Common = Common()) -> int:
    """Look on while a run does its work, until it ends. Exit code 5 when it fails.

    In a terminal its tasks are shown live; elsewhere, and with -o json, each event is a line.

    Parameters
    ----------
    run
        TYPE/ID, or ID alone.
    """
    from onexflow.app import exits
    from onexflow.cli.live import watch_tasks

    async with connected(common) as client:
        handle = await find_run(client, run)
        if common.out.json or not sys.stdout.isatty():
            async for event in handle.follow():
                _print_event(event, common.out)
        else:
            await watch_tasks(handle, common.out.console)
        state = (await handle.state()).state
    return exits.OK if state == "completed" else exits.RUN_FAILED


# ---- helpers


async def _print_result(handle: RunHandle, out: Output, timeout: float | None) -> None:
    """The result as JSON: on one line for programs, indented for people."""
    from onexflow.cli.live import progress

    async with progress(handle):
        outcome = await handle.outcome(timeout)
    if outcome.result is None:
        error = outcome.error
        if out.json:
            out.data(outcome)
        facts = (error.context or {}) if error is not None else {}
        where = f" in task {facts['task']}" if "task" in facts else ""
        why = f": {error.type}: {error.message}" if error is not None else ""
        raise RunFailed(
            f"run {handle.workflow_type}/{handle.instance_id} ended as {outcome.state}{where}{why}",
            {"hint": f"`onexflow run show {handle.workflow_type}/{handle.instance_id}` has the details."},
        )
    value = payload(outcome.result)
    if out.json:
        out.data({**plain(outcome.key), "state": outcome.state, "result": value})
    else:
        out.line(json.dumps(value, indent=2, ensure_ascii=False))


def _show(view: RunView, out: Output) -> None:
    from onexflow.cli.tables import tasks

    error = view.error
    out.fields(
        (
            ("run", f"{view.key.workflow_type}/{view.key.instance_id}"),
            ("state", view.state),
            ("outcome", view.outcome),
            ("waits for", view.blocked_because),
            ("ended by", view.blocked.ended_by if view.blocked is not None else ""),
            ("looked at", when(view.next_wake_at)),
            ("reason", view.reason),
            ("error", f"{error.type}: {error.message}" if error is not None else ""),
            ("namespace", view.key.namespace if view.key.namespace != "default" else ""),
            ("version", str(view.version)),
            ("correlation", view.correlation_id),
            ("created", when(view.created_at)),
            ("ended", when(view.completed_at)),
            ("took", span(view.started_at, view.completed_at)),
            ("input", short(view.input)),
            ("result", short(view.result) if view.result is not None else ""),
            ("events", str(view.sequence)),
            ("owner", f"{view.owner} (shard {view.shard})" if view.owner else ""),
        )
    )
    out.line("")
    out.show(tasks(view))


def _print_event(event: EventView, out: Output) -> None:
    if out.json:
        out.data(event)
    else:
        parts = (
            f"{event.sequence:>4}",
            rfc3339(event.timestamp) or "",
            f"{_name(event):<20}",
            event.task,
            _told(event),
        )
        out.line("  ".join(part for part in parts if part).rstrip())
    # Whoever reads this through a pipe wants it now.
    sys.stdout.flush()


def _name(event: EventView) -> str:
    return f"{event.type} ({event.kind})" if event.kind else event.type


def _told(event: EventView) -> str:
    """What an event says beside its name, short."""
    left_out = {"kind", "task", "namespace", "workflow_type", "definition", "instance", "semantics"}
    said = {
        name: value for name, value in event.data.items() if name not in left_out and value not in ("", 0, None, [], {})
    }
    return short(said, 120) if said else ""


def _steered(outcome: ControlOutcome, out: Output) -> None:
    if out.json:
        out.data(outcome)
    else:
        out.line(outcome.state)
        if not outcome.changed:
            out.note("Nothing to do: it was so already.")
