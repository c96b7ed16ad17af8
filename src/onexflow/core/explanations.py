"""What each error code means to the person who meets it: usual causes, and what to do.

`onexflow explain CODE` prints this; docs/errors.md is made from it (`scripts/gen-docs`). The meaning and the hint are
with the class (`onexflow.core.errors`); a test keeps the two in step.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Explanation(NamedTuple):
    """Two short paragraphs."""

    causes: str
    action: str


EXPLANATIONS: Final[dict[str, Explanation]] = {
    "OXF-1001": Explanation(
        "A call carried a value of the wrong type, size or form. Nothing was changed.",
        "Read `field` in the context: it is the path of the value. Correct it and call again.",
    ),
    "OXF-1002": Explanation(
        "The definition has a cycle, an unknown name or role, an unreachable task, a bad expression or an unknown key. "
        "It was not registered.",
        "The context's `problems` lists every problem with its place. `onexflow definition check FILE` shows the same "
        "without a server.",
    ),
    "OXF-1101": Explanation(
        "The orchestrator could not be reached, or could not answer yet: it starts, recovers, or its connection broke. "
        "What was asked may have happened.",
        "Call again with the same request_id; the client does so by itself. If it lasts, look whether the orchestrator "
        "runs and serves (`onexflow node list`).",
    ),
    "OXF-1102": Explanation(
        "The store did not say that the write is durable: the disk failed or is slow, the PostgreSQL server is away, or "
        "another process took the shard. The orchestrator finds out which before it goes on; nothing is acknowledged "
        "twice. When the server has lost what it had acknowledged (`store.lost_events`), the orchestrator ends.",
        "Repeat the call with the same request_id. If it lasts, the orchestrator's health answer names the store's "
        "error.",
    ),
    "OXF-1103": Explanation(
        "The run's shard has moved to another orchestrator since the caller last asked.",
        "Repeat the call; the client follows the move by itself.",
    ),
    "OXF-1104": Explanation(
        "The process was told to stop (SIGTERM) and finishes what it has.",
        "Repeat the call: another orchestrator, or this one after its restart, will answer.",
    ),
    "OXF-1105": Explanation(
        "The TLS handshake failed: one end speaks TLS and the other does not, a certificate has expired, is not signed by "
        "the authority that the other end was given, is for another name, or the client has none where one is demanded. "
        "Nothing was sent.",
        "The message says which. The setting `tls.ca` is what the orchestrator's certificate is checked by, "
        "`tls.certificate` and `tls.key` are what this end shows, `tls.server_name` is the name that must be in the "
        "orchestrator's. Files that are replaced are used from the next connection on.",
    ),
    "OXF-1106": Explanation(
        "None of the NATS servers answered, or JetStream is off there or has no leader. A bridge that runs waits for it, "
        "and loses nothing meanwhile; one that starts ends with this.",
        "Check `nats.url`, and that the server runs with JetStream. Start the bridge again, or let its supervisor do it.",
    ),
    "OXF-1201": Explanation(
        "More was asked at once than a limit allows: calls in flight, open waits, the size of a queue, or runs under way "
        "while the orchestrator cannot keep up.",
        "Wait as long as the error's retry delay says, then repeat, with the same request_id; send less at once. The client "
        "library does so by itself with starts.",
    ),
    "OXF-1202": Explanation(
        "The disk of the event log is full, or the database has reached its size limit. New work is refused; what was "
        "acknowledged is safe.",
        "Free space. The orchestrator goes on by itself, without a restart.",
    ),
    "OXF-1301": Explanation(
        "The answer took longer than the caller allowed. Runs are not bound to the caller's deadline and go on.",
        "Ask for the run's state, wait again with `result()`, or repeat the call with the same request_id.",
    ),
    "OXF-1401": Explanation(
        "A message on a stream was malformed, too large, out of order or of an unknown protocol version. The stream "
        "was closed with the reason; other streams are not affected.",
        "If you speak the protocol from generated stubs, compare with the comments in proto/onexflow/v1. If both ends "
        "are onexflow, compare their versions.",
    ),
    "OXF-1501": Explanation(
        "The caller is known, and its roles do not allow this call; or a worker wants to register a role or a handler that "
        "its identity may not; or somebody who is no orchestrator said for whom it asks. Nothing was done.",
        "Use credentials with a role that the call needs (`needed` in the context), or widen the identity in the access "
        "policy: it is read again when it is changed. docs/security.md has the roles of every call.",
    ),
    "OXF-1502": Explanation(
        "The orchestrators have an access policy, and the call came without a token and without a certificate, or with one "
        "that the policy does not know: it was never in it, or was taken out. Nothing was done.",
        "Give the program its token (`token_file`, ONEXFLOW_TOKEN_FILE) or its certificate (`tls.certificate`, `tls.key`). "
        "The orchestrator's log names the method and where the call came from. `onexflow token` makes a new token.",
    ),
    "OXF-2001": Explanation(
        "No definition of this type (or of this version) is registered in this namespace.",
        "`onexflow definition list` shows what is registered; `onexflow definition register FILE` registers one.",
    ),
    "OXF-2002": Explanation(
        "No run has this namespace, type and id. Ids are unique within a namespace and type.",
        "`onexflow run list` shows the runs. Check the namespace and the type.",
    ),
    "OXF-2003": Explanation(
        "The run exists, but its definition has no task of this name, or the task has no item of this number.",
        "`onexflow run show ID` lists the run's tasks.",
    ),
    "OXF-2004": Explanation(
        "No worker or orchestrator of this id is connected or registered.",
        "`onexflow node list` shows the nodes.",
    ),
    "OXF-2005": Explanation(
        "No topic of this name exists on the event bus, or it was deleted while it was read.",
        "A topic comes into being with `create_workflow_topic` or with the first event that is published to it.",
    ),
    "OXF-2006": Explanation(
        "No consumer group of this name exists in the namespace.",
        "A group comes into being with its first consumer, and stays until it is deleted.",
    ),
    "OXF-2007": Explanation(
        "No projection of this name was ever registered in the namespace.",
        "Register it (`register_projection`); it is then caught up from the log.",
    ),
    "OXF-3001": Explanation(
        "A run of this id was started before with another input, correlation id or definition. Repeating the very same "
        "start is not an error and returns the run.",
        "Choose another instance_id, or none: then a new one is made.",
    ),
    "OXF-3002": Explanation(
        "The run or task is in a state that this action does not lead out of, for example resuming a cancelled run. "
        "The context has `current_state` and `required_state`.",
        "`onexflow run show ID` shows the state. The table of transitions is in docs/states.md.",
    ),
    "OXF-3003": Explanation(
        "The same type and version were registered before with other content. Registered versions never change, "
        "because runs depend on them.",
        "Raise the definition's version and register it again. New runs take the newest version.",
    ),
    "OXF-3004": Explanation(
        "An orchestration was run again (its worker was lost, or a retry is due) and made another call than before: of "
        "another node or workflow, or with another contract. The clock, chance, a set's order, a file or a changed "
        "program decided about it. The calls that were made before stay as they are.",
        "Let an effect or a compute bring what the code decides by, and give its result on. Code that runs through a "
        "change of its program needs the old one to end: start it under another name.",
    ),
    "OXF-3005": Explanation(
        "The node has a life cycle, and no worker serves it that has initialised it and takes work: its `initialize()` "
        "has not finished or has failed, or its workers are stopping or were shut down.",
        "`current_state` in the context says which. `onexflow node list` shows the workers, and their log a failed "
        "`initialize()`. Call again when a worker serves the node.",
    ),
    "OXF-4001": Explanation(
        "The run ended as failed, cancelled or timed out. The context says which, and carries the failure of the task.",
        "`onexflow run show ID` names the task, `onexflow run history ID` tells the story. Start a new run when the "
        "cause is mended.",
    ),
    "OXF-4002": Explanation(
        "The handler raised an exception, and no attempt is left by its retry policy.",
        "The context carries type, message and traceback of the last attempt.",
    ),
    "OXF-4003": Explanation(
        "The worker process died or vanished while it ran the task, and so did the ones that tried it after. An "
        "attempt that is lost with its worker counts; after three the task fails.",
        "The context's `workers` names them. Look in their logs for the signal or the exit: a crash in native code, "
        "out of memory, or `os._exit` in the handler.",
    ),
    "OXF-4004": Explanation(
        "The task was not started, finished or heard of within one of its four timeouts (schedule_to_start, "
        "start_to_close, schedule_to_close, heartbeat).",
        "The context names the timeout. For schedule_to_start, look whether a worker with the handler is connected and "
        "has free slots.",
    ),
    "OXF-4005": Explanation(
        "The events that were asked for, or that a reader had still to read, were cut out of the history "
        "(`cleanup_old_events`). They are gone on purpose; a tombstone in the store says which.",
        "Go on from the event that the context names as `earliest`. What the cut events led to is in the snapshot.",
    ),
    "OXF-5001": Explanation(
        "Another orchestrator process holds the lock of this SQLite store.",
        "Stop the other process (the message has its process id where it is known), or give this one a store of its "
        "own. The lock goes with its process: there is nothing to delete.",
    ),
    "OXF-5002": Explanation(
        "The store is no database of ours, was written by a newer release, lies on a file system that cannot lock, or "
        "cannot be written. A PostgreSQL server is also refused when it is older than 14, refuses the password, or has a "
        "setting that can lose what was acknowledged (docs/operations.md).",
        "The message names what is wrong. A store is never changed when it is refused.",
    ),
    "OXF-5003": Explanation(
        "None of the etcd endpoints answered within the start deadline, TLS failed with all of them, or etcd did not "
        "accept the user, the password or the right to the cluster's keys.",
        "The message says what each endpoint did, and the hint what to set (docs/etcd.md). `--registry-url memory:` runs "
        "one orchestrator without etcd.",
    ),
    "OXF-5004": Explanation(
        "Another process listens on this address.",
        "Stop it, or give another address (`--listen 127.0.0.1:0` takes any free port).",
    ),
    "OXF-5005": Explanation(
        "Python cannot find or run the module that holds the handlers. The message has the module's own error.",
        "Not found: run from the folder that holds the module, install it, or set PYTHONPATH. Found, and failed: the "
        "message names the line to mend.",
    ),
    "OXF-5006": Explanation(
        "A setting has an unknown name, a value of the wrong type, or a value that makes no sense.",
        "The message names the setting and where it came from: a file, an environment variable or a flag. "
        "`--show-config` prints all settings with their origin.",
    ),
    "OXF-5007": Explanation(
        "The process runs on a Python older than 3.11.",
        "Use CPython 3.11, 3.12 or 3.13; `./scripts/setup` finds one on PATH.",
    ),
    "OXF-5008": Explanation(
        "A node of role orchestrator was registered whose handler is not async. Orchestrations wait for their calls, by "
        "the thousand: a thread each is no way to do that.",
        "Write it with `async def`, and await its calls. What computes or blocks belongs into a node of its own.",
    ),
    "OXF-5009": Explanation(
        "NATS refuses the credentials, the user may not do what the bridge needs, there is no stream of that name, the "
        "stream does not take the cluster's subjects, or the package nats-py is not installed.",
        "The message names which, and the hint what to do. docs/nats.md lists the permissions and shows how to make a "
        "stream; `--nats-create-stream` makes one.",
    ),
    "OXF-9001": Explanation(
        "onexflow has met a state that it takes for impossible. It stopped the run or shard concerned, not the rest.",
        "Please report it, with the context's story and the log lines around it.",
    ),
}
