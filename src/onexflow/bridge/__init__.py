"""The way of events out of the cluster: a durable consumer group of the event bus whose member publishes to NATS JetStream.

`bridge.Bridge` reads and acknowledges, `publisher.Publisher` decides what is sent when, `jetstream` is the library's one
place. An event is acknowledged to the group only after JetStream has acknowledged it, so whatever dies, nothing is missing;
what comes twice has the same `Nats-Msg-Id`. Why it is a process of its own: docs/decisions/0005-nats-bridge.md.
"""
