-- +goose Up

-- The same as cdc/inbox/schema/gaps.sql; TestMigrationIsTheSchema compares them.
ALTER TABLE inbox_partitions ADD COLUMN topic_id uuid;
COMMENT ON COLUMN inbox_partitions.topic_id IS 'The topic that next_offset counts in. Kafka gives a topic that is made again another one.';
ALTER TABLE inbox_parked ADD COLUMN end_offset bigint;
COMMENT ON COLUMN inbox_parked.end_offset IS 'Of a gap, behind its last record; kafka_offset is its first. NULL for a record.';

-- A key may be too long for an index.
DROP INDEX inbox_parked_open;
CREATE INDEX inbox_parked_open ON inbox_parked (consumer, topic, sha256(key), id) WHERE status = 'parked';
COMMENT ON COLUMN inbox_parked_keys.key IS 'The record''s key, or its SHA-256 where it has more than 1024 bytes.';

-- Ids with an impossible time, before 2020 or later than tomorrow, are undated.
ALTER TABLE inbox DROP CONSTRAINT inbox_event_day;
ALTER TABLE inbox ADD CONSTRAINT inbox_event_day CHECK (event_day IN (0, inbox_day(event_id)));
UPDATE inbox SET event_day = 0 WHERE event_day BETWEEN 1 AND 18261 OR event_day > (now() AT TIME ZONE 'UTC')::date - date '1970-01-01' + 1;
COMMENT ON COLUMN inbox.event_day IS 'Follows from event_id, or is 0 while the time in it cannot be: copies of an event meet in one partition, or in the undated one.';

-- +goose Down

ALTER TABLE inbox_partitions DROP COLUMN topic_id;
ALTER TABLE inbox_parked DROP COLUMN end_offset;
