-- Named values beside the events, and what was cut out of histories.

-- `name` is UTF-8.
CREATE TABLE registers (
  shard INTEGER NOT NULL,
  name BLOB NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (shard, name)
) STRICT, WITHOUT ROWID;

-- One a cut, never deleted. `last_place` is shard << 48 | offset of the last event that was cut.
CREATE TABLE tombstones (
  run INTEGER NOT NULL,
  first_seq INTEGER NOT NULL,
  last_seq INTEGER NOT NULL,
  first_offset INTEGER NOT NULL,
  last_place INTEGER NOT NULL,
  count INTEGER NOT NULL,
  hash BLOB NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (run, first_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstones_by_place ON tombstones (last_place);
