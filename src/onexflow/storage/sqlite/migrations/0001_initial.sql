-- The tables of release 0.1.
--
-- `place` is shard << 48 | offset of the row's first event, `run` is shard << 48 | iid: one integer key, so that what
-- belongs to a shard lies together and in order. Hot tables hold integers and bytes only: no value can fail a statement.

CREATE TABLE shards (
  shard INTEGER PRIMARY KEY,
  epoch INTEGER NOT NULL,
  owner BLOB NOT NULL,
  head INTEGER NOT NULL,        -- next free offset
  head_before INTEGER NOT NULL, -- head before the last append
  next_iid INTEGER NOT NULL,    -- above every run number that was ever stored
  now INTEGER NOT NULL          -- store clock at the last append
) STRICT;

-- In the order of writing, whatever the shard: inserting at the end of the one table, instead of at one place a shard,
-- writes a third fewer pages a commit.
CREATE TABLE event_rows (
  number INTEGER PRIMARY KEY,
  place INTEGER NOT NULL,
  count INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  run INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  data BLOB NOT NULL
) STRICT;
CREATE INDEX event_rows_by_run ON event_rows (run, seq);

-- What one append wrote to one shard: the rows `number` … `number + count - 1`, the first of them at `place`.
CREATE TABLE parts (
  place INTEGER PRIMARY KEY,
  number INTEGER NOT NULL,
  count INTEGER NOT NULL
) STRICT;

-- Namespace and type of a run, once each. Never deleted.
CREATE TABLE kinds (
  kind INTEGER PRIMARY KEY,
  namespace BLOB NOT NULL,
  workflow_type BLOB NOT NULL,
  UNIQUE (namespace, workflow_type)
) STRICT;

CREATE TABLE runs (
  run INTEGER PRIMARY KEY,
  instance BLOB NOT NULL,       -- the first 16 bytes of the run's key
  kind INTEGER NOT NULL,
  state INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  start_hash BLOB NOT NULL,
  head INTEGER NOT NULL,
  version INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX runs_by_key ON runs (instance, kind);
CREATE INDEX runs_by_state ON runs (kind, state, created_at);

CREATE TABLE requests (
  number INTEGER PRIMARY KEY,
  shard INTEGER NOT NULL,
  namespace BLOB NOT NULL,
  request_id BLOB NOT NULL,
  body_hash BLOB NOT NULL,
  response BLOB NOT NULL,
  at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX requests_by_id ON requests (request_id, namespace, shard);
CREATE INDEX requests_by_age ON requests (at);

CREATE TABLE parked (
  run INTEGER PRIMARY KEY,
  shard INTEGER NOT NULL,
  wake_at INTEGER NOT NULL,
  reason BLOB NOT NULL
) STRICT;
CREATE INDEX parked_by_wake ON parked (shard, wake_at) WHERE wake_at > 0;

CREATE TABLE snapshots (
  run INTEGER PRIMARY KEY,
  seq INTEGER NOT NULL,
  data BLOB NOT NULL
) STRICT;

CREATE TABLE checkpoints (
  shard INTEGER PRIMARY KEY,
  place INTEGER NOT NULL,
  data BLOB NOT NULL
) STRICT;

CREATE TABLE definitions (
  namespace BLOB NOT NULL,
  workflow_type BLOB NOT NULL,
  version INTEGER NOT NULL,
  hash BLOB NOT NULL,
  data BLOB NOT NULL,
  registered_at INTEGER NOT NULL,
  PRIMARY KEY (namespace, workflow_type, version)
) STRICT;
