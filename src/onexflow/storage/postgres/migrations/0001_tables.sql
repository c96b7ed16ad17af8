-- The tables of the first release with PostgreSQL.
--
-- Integers and bytes only, in hot tables: no value can fail a statement. What is unique by a text is unique by its
-- digest (16 bytes), because an index entry has a limit and a text has none.

-- One row: what this store is.
CREATE TABLE store (
  identity text NOT NULL,        -- made once; two stores never have the same
  made_at bigint NOT NULL
);

-- Updated by each append, in place: the free space is for that (HOT).
CREATE TABLE shards (
  shard int PRIMARY KEY,
  epoch bigint NOT NULL,
  owner bytea NOT NULL,
  session text NOT NULL,         -- in the application_name of the owner's connections
  head bigint NOT NULL,          -- next free offset
  next_iid bigint NOT NULL,      -- above every run number that was ever stored
  now bigint NOT NULL            -- store clock at the last append
) WITH (fillfactor = 20);

-- `off` is the offset of a row's first event, `n` the number of its events.
CREATE TABLE event_rows (
  shard int NOT NULL,
  off bigint NOT NULL,
  epoch bigint NOT NULL,
  iid bigint NOT NULL,
  seq bigint NOT NULL,
  n int NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (shard, off)
);
CREATE INDEX event_rows_by_run ON event_rows (shard, iid, seq);
ALTER TABLE event_rows ALTER COLUMN data SET STORAGE EXTERNAL; -- compressing it costs more than it saves

-- Namespace and type of a run, once each. Never deleted.
CREATE TABLE kinds (
  kind int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  digest bytea NOT NULL UNIQUE,
  namespace bytea NOT NULL,
  workflow_type bytea NOT NULL
);

CREATE TABLE runs (
  shard int NOT NULL,
  iid bigint NOT NULL,
  instance bytea NOT NULL,       -- the first 16 bytes of the run's key
  kind int NOT NULL,
  state int NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  start_hash bytea NOT NULL,
  head bigint NOT NULL,
  version bigint NOT NULL,
  PRIMARY KEY (shard, iid)
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX runs_by_key ON runs (instance, kind, shard);
CREATE INDEX runs_by_state ON runs (kind, state, created_at, shard, iid);

CREATE TABLE requests (
  shard int NOT NULL,
  digest bytea NOT NULL,         -- of namespace and request_id
  namespace bytea NOT NULL,
  request_id bytea NOT NULL,
  body_hash bytea NOT NULL,
  response bytea NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (shard, digest)
);
CREATE INDEX requests_by_age ON requests (at);

CREATE TABLE parked (
  shard int NOT NULL,
  iid bigint NOT NULL,
  wake_at bigint NOT NULL,
  reason bytea NOT NULL,
  PRIMARY KEY (shard, iid)
);
CREATE INDEX parked_by_wake ON parked (shard, wake_at, iid) WHERE wake_at > 0;

CREATE TABLE snapshots (
  shard int NOT NULL,
  iid bigint NOT NULL,
  seq bigint NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (shard, iid)
);

CREATE TABLE checkpoints (
  shard int PRIMARY KEY,
  off bigint NOT NULL,
  data bytea NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE registers (
  shard int NOT NULL,
  digest bytea NOT NULL,         -- of the name
  begins bytea NOT NULL,         -- the name's first 256 bytes
  name bytea NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (digest, shard)
) WITH (fillfactor = 80);
CREATE INDEX registers_by_name ON registers (shard, begins);

-- One a cut, never deleted.
CREATE TABLE tombstones (
  shard int NOT NULL,
  iid bigint NOT NULL,
  first_seq bigint NOT NULL,
  last_seq bigint NOT NULL,
  first_off bigint NOT NULL,
  last_off bigint NOT NULL,
  n bigint NOT NULL,
  hash bytea NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (shard, iid, first_seq)
);
CREATE INDEX tombstones_by_offset ON tombstones (shard, last_off);

CREATE TABLE definitions (
  digest bytea PRIMARY KEY,      -- of namespace, type and version
  namespace bytea NOT NULL,
  workflow_type bytea NOT NULL,
  version bigint NOT NULL,
  hash bytea NOT NULL,
  data bytea NOT NULL,
  registered_at bigint NOT NULL
);

-- The store's clock: UTC nanoseconds.
CREATE FUNCTION store_clock() RETURNS bigint LANGUAGE sql VOLATILE AS
  $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint $$;
