-- +goose Up

REVOKE CREATE ON SCHEMA public FROM PUBLIC; -- PostgreSQL 14 still grants it

CREATE TABLE orders (
    id           uuid PRIMARY KEY,
    number       bigint GENERATED ALWAYS AS IDENTITY (START WITH 100001) UNIQUE,
    buyer_id     text NOT NULL CHECK (buyer_id ~ '^[!-~]{1,100}$'),
    buyer_email  text NOT NULL CHECK (octet_length(buyer_email) <= 254
        AND buyer_email ~ '^[A-Za-z0-9.!#$%&''*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$'),
    status       text NOT NULL DEFAULT 'created' CHECK (status IN ('created', 'paid', 'cancelled')),
    total        numeric(18,2) NOT NULL CHECK (total >= 0),
    currency     char(3) NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    paid_at      timestamptz,
    cancelled_at timestamptz,
    CONSTRAINT orders_times CHECK (CASE status
        WHEN 'created' THEN paid_at IS NULL AND cancelled_at IS NULL
        WHEN 'paid' THEN paid_at IS NOT NULL AND cancelled_at IS NULL
        ELSE cancelled_at IS NOT NULL END)
);
COMMENT ON COLUMN orders.paid_at IS 'Kept when a paid order is cancelled: it tells that money, and stock, go back.';

CREATE TABLE order_lines (
    order_id   uuid NOT NULL REFERENCES orders,
    line_no    integer NOT NULL CHECK (line_no BETWEEN 1 AND 100),
    sku        text NOT NULL CHECK (sku ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    quantity   integer NOT NULL CHECK (quantity BETWEEN 1 AND 10000),
    unit_price numeric(12,2) NOT NULL CHECK (unit_price >= 0),
    PRIMARY KEY (order_id, line_no),
    CONSTRAINT order_lines_sku_once UNIQUE (order_id, sku)
);

CREATE TABLE idempotency_keys (
    key        text PRIMARY KEY CHECK (key ~ '^[!-~]{1,255}$'),
    request    bytea NOT NULL CHECK (octet_length(request) = 32),
    order_id   uuid REFERENCES orders,
    status     integer,
    answer     text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE idempotency_keys IS 'The first answer to each POST that carried an Idempotency-Key, written in the transaction of its effect.';
COMMENT ON COLUMN idempotency_keys.request IS 'SHA-256 of method, path and body: the same key must mean the same request.';

-- Events, append only. The relay reads them from the WAL, so nothing here is ever marked as sent, and no index but the key is kept.
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
DROP TABLE outbox, idempotency_keys, order_lines, orders;
DROP FUNCTION outbox_is_immutable;
