CREATE FUNCTION inbox_day(event_id text) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN event_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
        THEN (('x' || substr(event_id, 1, 8) || substr(event_id, 10, 4))::bit(48)::bigint / 86400000)::integer ELSE 0 END
$$;
COMMENT ON FUNCTION inbox_day IS 'The day, from 1970-01-01 on, of the time that a UUIDv7 carries; 0 for every other id.';

CREATE TABLE inbox (
    consumer     text NOT NULL CHECK (octet_length(consumer) BETWEEN 1 AND 255),
    event_id     text NOT NULL CHECK (octet_length(event_id) BETWEEN 1 AND 255),
    event_day    integer NOT NULL,
    topic        text NOT NULL,
    partition    integer NOT NULL,
    kafka_offset bigint NOT NULL,
    key_hash     integer,
    processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, event_id, event_day),
    CONSTRAINT inbox_event_day CHECK (event_day = inbox_day(event_id))
) PARTITION BY RANGE (event_day);
COMMENT ON TABLE inbox IS 'Events whose effect is in this database, one row in the transaction of the effect. Place is of the copy that was applied.';
COMMENT ON COLUMN inbox.event_day IS 'Follows from event_id alone: copies of an event meet in one partition, whenever they come, and the primary key holds across all.';
COMMENT ON COLUMN inbox.key_hash IS 'Of the record''s key; says whether later events of a key were applied.';

-- Ids without a time are in inbox_undated and are deleted row by row. inbox_before has every day up to today, and is
-- dropped as a whole.
CREATE TABLE inbox_undated PARTITION OF inbox FOR VALUES FROM (MINVALUE) TO (1);
CREATE INDEX inbox_undated_by_time ON inbox_undated (processed_at);

-- One row for each partition of a topic that a group has read. Each transaction of its owner updates the row if the
-- epoch is still the owner's.
CREATE TABLE inbox_partitions (
    consumer_group text NOT NULL,
    topic          text NOT NULL,
    partition      integer NOT NULL,
    epoch          bigint NOT NULL DEFAULT 1,
    owner          text NOT NULL,
    claimed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_offset    bigint,
    blocked_offset bigint,
    blocked_event  text,
    blocked_reason text,
    blocked_since  timestamptz,
    decision       text CHECK (decision IN ('park_key', 'skip')),
    PRIMARY KEY (consumer_group, topic, partition)
);
COMMENT ON COLUMN inbox_partitions.next_offset IS 'Behind the last event that is in the database. The group''s own offset, in Kafka, follows.';
COMMENT ON COLUMN inbox_partitions.decision IS 'What an operator wants done with the record at blocked_offset.';

-- Records that could not be applied, kept whole, and events that wait for an earlier parked event of their key.
CREATE TABLE inbox_parked (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer     text NOT NULL CHECK (octet_length(consumer) BETWEEN 1 AND 255),
    topic        text NOT NULL,
    partition    integer NOT NULL,
    kafka_offset bigint NOT NULL,
    produced_at  timestamptz,
    event_id     text,
    event_type   text,
    key          bytea,
    value        bytea,
    headers      json,
    holds_key    boolean NOT NULL,
    reason       text NOT NULL CHECK (reason <> ''),
    parked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    status       text NOT NULL DEFAULT 'parked' CHECK (status IN ('parked', 'redriven', 'dropped')),
    resolved_at  timestamptz,
    CONSTRAINT inbox_parked_resolved CHECK ((status = 'parked') = (resolved_at IS NULL))
);
CREATE UNIQUE INDEX inbox_parked_place ON inbox_parked (consumer, topic, partition, kafka_offset, produced_at, coalesce(event_id, ''));
CREATE INDEX inbox_parked_open ON inbox_parked (consumer, topic, key, id) WHERE status = 'parked';
COMMENT ON COLUMN inbox_parked.holds_key IS 'Later events of the key wait behind it (park_key). Otherwise they were applied before it (skip).';

-- Keys whose next events must wait. A transaction that parks or applies an event of the key locks the key's row.
CREATE TABLE inbox_parked_keys (
    consumer text NOT NULL,
    topic    text NOT NULL,
    key      bytea NOT NULL,
    PRIMARY KEY (consumer, topic, key)
);

-- Changes that operators made to an inbox.
CREATE TABLE inbox_decisions (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    consumer text NOT NULL,
    command  text NOT NULL,
    by_whom  text NOT NULL,
    what     text NOT NULL
);

-- It runs with its owner's rights, because a service may not create or drop tables. keep is in days; NULL drops
-- nothing.
CREATE FUNCTION inbox_maintain(ahead integer, keep integer) RETURNS TABLE (first_day integer, last_day integer, dropped integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    today integer := (now() AT TIME ZONE 'UTC')::date - date '1970-01-01';
    old regclass;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('inbox_maintain'));
    dropped := 0;
    IF keep IS NOT NULL THEN
        FOR old IN SELECT p.oid::regclass FROM pg_class p JOIN pg_inherits i ON i.inhrelid = p.oid
            WHERE i.inhparent = 'public.inbox'::regclass AND substring(pg_get_expr(p.relpartbound, p.oid) FROM 'TO \(''?(\d+)')::integer BETWEEN 2 AND today - keep
        LOOP
            EXECUTE format('DROP TABLE %s', old);
            dropped := dropped + 1;
        END LOOP;
        DELETE FROM public.inbox_undated WHERE ctid IN (
            SELECT ctid FROM public.inbox_undated WHERE processed_at < now() - make_interval(days => keep) LIMIT 10000);
    END IF;
    -- Where the highest partition ends; below the first one there is nothing to tell a duplicate by.
    SELECT max(substring(pg_get_expr(p.relpartbound, p.oid) FROM 'TO \(''?(\d+)')::integer)
        INTO last_day FROM pg_class p JOIN pg_inherits i ON i.inhrelid = p.oid WHERE i.inhparent = 'public.inbox'::regclass;
    IF last_day = 1 THEN
        EXECUTE format('CREATE TABLE public.inbox_before PARTITION OF public.inbox FOR VALUES FROM (1) TO (%s)', today + 1);
        last_day := today + 1;
    END IF;
    WHILE last_day <= today + ahead LOOP
        EXECUTE format('CREATE TABLE public.%I PARTITION OF public.inbox FOR VALUES FROM (%s) TO (%s)',
            'inbox_' || to_char(date '1970-01-01' + last_day, 'YYYYMMDD'), last_day, last_day + 1);
        last_day := last_day + 1;
    END LOOP;
    last_day := last_day - 1;
    SELECT min(substring(pg_get_expr(p.relpartbound, p.oid) FROM 'FROM \(''?(\d+)')::integer)
        INTO first_day FROM pg_class p JOIN pg_inherits i ON i.inhrelid = p.oid
        WHERE i.inhparent = 'public.inbox'::regclass AND pg_get_expr(p.relpartbound, p.oid) !~ 'MINVALUE';
    RETURN NEXT;
END
$$;
REVOKE ALL ON FUNCTION inbox_maintain FROM PUBLIC;

SELECT inbox_maintain(7, NULL);
