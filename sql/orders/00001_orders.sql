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

-- +goose Down

DROP TABLE idempotency_keys, order_lines, orders;
