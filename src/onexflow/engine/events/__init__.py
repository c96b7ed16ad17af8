"""The event bus of one orchestrator: external streams, consumers and their groups, topics, projections."""
