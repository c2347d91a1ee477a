-- +goose Up

-- Events, append only. The relay reads them from the WAL, so no row is ever marked as sent, and the primary key is the
-- only index.
CREATE TABLE outbox (
    id             uuid PRIMARY KEY,
    aggregate_type text NOT NULL CONSTRAINT outbox_aggregate_type CHECK (aggregate_type ~ '^[A-Za-z0-9._-]{1,100}$'),
    aggregate_id   text NOT NULL CONSTRAINT outbox_aggregate_id CHECK (octet_length(aggregate_id) BETWEEN 1 AND 1024),
    event_type     text NOT NULL CONSTRAINT outbox_event_type CHECK (octet_length(event_type) BETWEEN 1 AND 255),
    payload        jsonb NOT NULL
        CONSTRAINT outbox_payload_object CHECK (jsonb_typeof(payload) = 'object')
        CONSTRAINT outbox_payload_size CHECK (octet_length(payload::text) <= 900000),
    headers        jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT outbox_headers_object CHECK (jsonb_typeof(headers) = 'object')
        CONSTRAINT outbox_headers_size CHECK (octet_length(headers::text) <= 16384),
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE outbox IS 'Events as they happened: INSERT in the transaction of the change, never UPDATE. See the view outbox_slot for their way out.';

-- +goose StatementBegin
CREATE FUNCTION outbox_is_immutable() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% on outbox refused: an event is a fact and cannot be changed', TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Write a new event that corrects the old one.';
END $$;
-- +goose StatementEnd
CREATE TRIGGER outbox_is_immutable BEFORE UPDATE OR TRUNCATE ON outbox FOR EACH STATEMENT EXECUTE FUNCTION outbox_is_immutable();

CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert');

-- +goose Down

DROP PUBLICATION walpost;
DROP TABLE outbox;
DROP FUNCTION outbox_is_immutable;
