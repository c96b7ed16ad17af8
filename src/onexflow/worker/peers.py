"""What a worker hears from its orchestrators, and which of them owns which shard *now*.

One `OrchestratorPeer` a link: it knows what each message means. `Peers` is what is known of all of them together: the
highest epoch of each shard, and who has said it last. What came of an attempt goes to whoever owns its shard then, on
whichever link. `attempts.py` keeps what was asked for, `credits.py` says who may send more.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from onexflow.core.ids import Token
from onexflow.ports.worker_link import (
    PROTOCOL_VERSION,
    Ack,
    Assignments,
    Cancel,
    Demand,
    Drain,
    Feed,
    FromWorker,
    Held,
    OrchestratorLink,
    Ping,
    Pong,
    Recall,
    Reclaimed,
    ShardEpoch,
    ToWorker,
    Welcome,
    WorkerDraining,
)
from onexflow.worker.attempts import Attempts

_log = structlog.get_logger("onexflow.worker")


class Peers:
    """The sessions that are open, and what their orchestrators have said of shards and of each other."""

    def __init__(self) -> None:
        self.linked: list[OrchestratorPeer] = []
        self.owners: dict[int, OrchestratorPeer] = {}
        #: The highest that was heard of each shard, whoever has said it and wherever that one is now.
        self.epochs: dict[int, int] = {}
        #: Addresses of orchestrators, as the last Welcome gave them.
        self.addresses: tuple[str, ...] = ()
        self.closed = False  #: the worker closes: that a link ends is no news

    def broadcast(self, message: FromWorker) -> None:
        """Send it to all."""
        for peer in list(self.linked):
            peer.link.send(message)

    def own(self, peer: OrchestratorPeer, epochs: dict[int, int]) -> tuple[set[int], set[int]]:
        """It says that it owns these shards. Returns those that are its own, as nobody has said a higher epoch; and of
        them those that were another's, or its own in an earlier epoch or on another link."""
        owned = set()
        anew = set()
        for shard, epoch in epochs.items():
            if epoch < self.epochs.get(shard, 0):
                continue
            if epoch > self.epochs.get(shard, 0):
                for other in self.linked:
                    other.epochs.pop(shard, None)
                anew.add(shard)
            elif self.owners.get(shard) is not peer:
                anew.add(shard)
            self.epochs[shard] = peer.epochs[shard] = epoch
            self.owners[shard] = peer
            owned.add(shard)
        return owned, anew

    def leave(self, peer: OrchestratorPeer) -> None:
        """Its link has ended: its shards have no owner until one says that it is it."""
        self.linked.remove(peer)
        for shard in [shard for shard, owner in self.owners.items() if owner is peer]:
            del self.owners[shard]


class OrchestratorPeer:
    """One session. The link calls `on_message` in order and `on_close` once, both on the runtime's loop."""

    def __init__(self, link: OrchestratorLink, peers: Peers, attempts: Attempts) -> None:
        self.link = link
        #: Of the shards that it owns, as far as we have heard: each the highest that any orchestrator has said, or it is taken
        #: away here (`Peers.own`). So a token that is not above it is the owner's word.
        self.epochs: dict[int, int] = {}
        self.orchestrator_id = ""  #: empty until Welcome
        self.open = True
        self._peers = peers
        self._attempts = attempts

    def on_message(self, message: ToWorker) -> None:
        """Do what a message asks. What is stale or out of turn is refused and counted; nothing is raised."""
        if not self.open:
            return
        attempts = self._attempts
        match message:
            case Assignments():
                if message.ack is not None:  # it was said first, and what was given back may come again under its token
                    self._acknowledge(message.ack)
                attempts.assign(self, message.assignments)
            case Feed():
                if self._current([message.token]):
                    attempts.feed(self, message)
            case Ack():
                self._acknowledge(message)
            case Demand():
                for role, lane in attempts.lanes.items():
                    lane.ledger.demand(self, message.waiting.get(role, 0))
                attempts.outbox.schedule()
            case Ping():
                self.link.send(Pong(message.nonce))
            case Cancel():
                attempts.cancel(self._current(message.tokens), message.reason)
            case ShardEpoch():
                self._own({message.shard: message.epoch})
            case Welcome():
                self._welcome(message)
            case Recall():
                attempts.recall(self, message)
            case Reclaimed():
                for role, lane in attempts.lanes.items():
                    lane.ledger.give_back(self, message.returned.get(role, 0))
                attempts.outbox.schedule()
            case Drain():
                self._void_credits()

    def on_close(self, reason: str = "") -> None:
        """The link has ended. Attempts go on; their results wait for the shard's owner of then."""
        if not self.open:
            return
        self.open = False
        self._peers.leave(self)
        self._void_credits()
        self._attempts.drop_fed(lambda attempt: attempt.fed_by is self)
        if not self._peers.closed:
            _log.info("link.closed", orchestrator=self.orchestrator_id, reason=reason)
            self._attempts.outbox.schedule()

    def _welcome(self, message: Welcome) -> None:
        if message.protocol_version != PROTOCOL_VERSION:
            _log.error("protocol.refused", ours=PROTOCOL_VERSION, theirs=message.protocol_version,
                       orchestrator=message.orchestrator_id)  # fmt: skip
            self.link.close()
            return
        self.orchestrator_id = message.orchestrator_id
        self._peers.addresses = message.orchestrators or self._peers.addresses
        self._own(message.epochs)
        if not self._attempts.draining:
            for lane in self._attempts.lanes.values():
                lane.ledger.attach(self)
            self._attempts.tell_credits()
        else:
            self.link.send(WorkerDraining())

    def _own(self, epochs: dict[int, int]) -> None:
        """Epoch barrier: keep the highest epoch, send what is unacknowledged, then say what runs here."""
        attempts = self._attempts
        owned, anew = self._peers.own(self, epochs)
        attempts.refused_stale += len(epochs) - len(owned)
        if anew:
            attempts.drop_fed(lambda attempt: attempt.fed_by is not None and attempt.assignment.token.shard in anew)
        # Results first: the owner takes what is in neither of the two for something that never began here.
        attempts.outbox.send_again(owned)
        for shard, tokens in attempts.held(owned).items():
            self.link.send(Held(shard, self._peers.epochs[shard], tokens))
        attempts.ask_for_items()

    def _current(self, tokens: Sequence[Token]) -> list[Token]:
        """Of these attempts those that it may speak about: it owns their shards, as far as we have heard."""
        epochs = self.epochs
        current = [token for token in tokens if token.epoch <= epochs.get(token.shard, -1)]
        self._attempts.refused_stale += len(tokens) - len(current)
        return current

    def _void_credits(self) -> None:
        for lane in self._attempts.lanes.values():
            lane.ledger.detach(self)

    def _acknowledge(self, message: Ack) -> None:
        self._attempts.outbox.forget(self._current(message.tokens))
        if message.discarded:
            self._attempts.discard(self._current(message.discarded))
