-- +goose Up

REVOKE CREATE ON SCHEMA public FROM PUBLIC; -- PostgreSQL 14 still grants it

CREATE TABLE stock (
    sku        text PRIMARY KEY CHECK (octet_length(sku) BETWEEN 1 AND 64),
    available  bigint NOT NULL CHECK (available >= 0),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE stock IS 'What can be sold now. Never below zero: what could not be served is a shortage in stock_movements.';

-- No foreign key to stock: a shortage may be of a sku that was never in stock.
CREATE TABLE stock_movements (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku        text NOT NULL CHECK (octet_length(sku) BETWEEN 1 AND 64),
    event_id   uuid,
    order_id   uuid,
    change     bigint NOT NULL,
    reason     text NOT NULL CHECK (reason IN ('sold', 'returned', 'set', 'shortage')),
    requested  bigint CHECK (requested > 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT stock_movements_change CHECK (
        CASE reason WHEN 'sold' THEN change < 0 WHEN 'returned' THEN change > 0 WHEN 'shortage' THEN change = 0 ELSE true END),
    CONSTRAINT stock_movements_requested CHECK ((reason = 'shortage') = (requested IS NOT NULL)),
    CONSTRAINT stock_movements_event CHECK ((reason = 'set') = (event_id IS NULL)),
    CONSTRAINT stock_movements_once UNIQUE (event_id, sku, reason)
);
CREATE INDEX stock_movements_by_sku ON stock_movements (sku, id);
CREATE INDEX stock_movements_by_order ON stock_movements (order_id) WHERE order_id IS NOT NULL;
COMMENT ON TABLE stock_movements IS 'Why stock is what it is: one row per change, and one per shortage.';
COMMENT ON COLUMN stock_movements.change IS 'What was added to stock.available; 0 for a shortage, which took nothing.';
COMMENT ON COLUMN stock_movements.requested IS 'For a shortage: how many were asked for.';

CREATE TABLE inbox (
    consumer     text NOT NULL CHECK (octet_length(consumer) BETWEEN 1 AND 255),
    event_id     text NOT NULL CHECK (octet_length(event_id) BETWEEN 1 AND 255),
    topic        text NOT NULL,
    partition    integer NOT NULL,
    kafka_offset bigint NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, event_id)
);
COMMENT ON TABLE inbox IS 'Events whose effect is in this database, one row in the transaction of the effect. Place is of the copy that was applied.';

CREATE TABLE malformed_events (
    topic        text NOT NULL,
    partition    integer NOT NULL,
    kafka_offset bigint NOT NULL,
    consumer     text NOT NULL CHECK (octet_length(consumer) BETWEEN 1 AND 255),
    event_id     text,
    reason       text NOT NULL CHECK (reason <> ''),
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, partition, kafka_offset)
);
COMMENT ON TABLE malformed_events IS 'Records no consumer could read, by place and reason. The record itself stays in Kafka alone.';

-- +goose Down

DROP TABLE malformed_events, inbox, stock_movements, stock;
