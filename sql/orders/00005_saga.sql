-- +goose Up

-- The states of a paid order (confirmed, shipped, completed, or rejected), its payments and its history.
-- TestHTTPAndSQLWriteTheSameEvents keeps the functions equal to the Go service. There is no down migration: payments
-- and history would be lost.

ALTER TABLE orders
    DROP CONSTRAINT orders_status_check,
    DROP CONSTRAINT orders_times,
    ADD COLUMN confirmed_at timestamptz,
    ADD COLUMN rejected_at timestamptz,
    ADD COLUMN shipped_at timestamptz,
    ADD COLUMN completed_at timestamptz,
    ADD COLUMN tracking_code text CHECK (tracking_code ~ '^[ -~]{1,100}$'),
    ADD CONSTRAINT orders_status_check CHECK (status IN ('created', 'paid', 'confirmed', 'rejected', 'shipped', 'completed', 'cancelled')),
    ADD CONSTRAINT orders_times CHECK (
        CASE status WHEN 'created' THEN paid_at IS NULL WHEN 'cancelled' THEN true ELSE paid_at IS NOT NULL END
        AND CASE WHEN status IN ('confirmed', 'shipped', 'completed') THEN confirmed_at IS NOT NULL
            WHEN status = 'cancelled' THEN confirmed_at IS NULL OR paid_at IS NOT NULL ELSE confirmed_at IS NULL END
        AND (rejected_at IS NOT NULL) = (status = 'rejected')
        AND (shipped_at IS NOT NULL) = (status IN ('shipped', 'completed'))
        AND (completed_at IS NOT NULL) = (status = 'completed')
        AND (cancelled_at IS NOT NULL) = (status = 'cancelled')),
    ADD CONSTRAINT orders_tracking_code CHECK (tracking_code IS NULL OR shipped_at IS NOT NULL),
    ADD CONSTRAINT orders_price UNIQUE (id, total, currency); -- for payments to refer to
COMMENT ON COLUMN orders.paid_at IS 'Kept when a paid order is rejected or cancelled: it tells that money, and stock, go back.';

CREATE TABLE payments (
    order_id uuid NOT NULL,
    kind     text NOT NULL CHECK (kind IN ('charge', 'refund')),
    amount   numeric(18,2) NOT NULL,
    currency char(3) NOT NULL,
    event_id uuid,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    undoes   text GENERATED ALWAYS AS (CASE kind WHEN 'refund' THEN 'charge' END) STORED,
    PRIMARY KEY (order_id, kind),
    CONSTRAINT payments_amount FOREIGN KEY (order_id, amount, currency) REFERENCES orders (id, total, currency),
    CONSTRAINT payments_refund FOREIGN KEY (order_id, undoes) REFERENCES payments (order_id, kind)
);
COMMENT ON TABLE payments IS 'What was charged and what was given back: at most once each, the order''s own total, and nothing back that was not charged.';
COMMENT ON COLUMN payments.event_id IS 'The order''s event that tells of it. NULL: from before payments were kept, and the outbox no longer had it.';

CREATE TABLE order_history (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES orders,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    what     text NOT NULL CHECK (what <> ''),
    event_id uuid,
    detail   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object'),
    CONSTRAINT order_history_once UNIQUE (order_id, event_id)
);
COMMENT ON TABLE order_history IS 'What happened to an order: its own events, written with each, and those of others that it heard of, when it did.';
COMMENT ON COLUMN order_history.event_id IS 'NULL: from before the history was kept, and the outbox no longer had it.';

WITH told AS (
    SELECT aggregate_id, event_type, min(id::text)::uuid AS id FROM outbox WHERE aggregate_type = 'order' GROUP BY aggregate_id, event_type
), changes AS (
    SELECT o.id AS order_id, change.at, change.what, told.id AS event_id, change.detail, o.total, o.currency, o.paid_at
    FROM orders o CROSS JOIN LATERAL (VALUES
        (o.created_at, 'OrderCreated', jsonb '{}'), (o.paid_at, 'OrderPaid', '{}'),
        (o.cancelled_at, 'OrderCancelled', jsonb_build_object('wasPaid', o.paid_at IS NOT NULL))) AS change (at, what, detail)
    LEFT JOIN told ON told.aggregate_id = o.id::text AND told.event_type = change.what
    WHERE change.at IS NOT NULL
), history AS (
    INSERT INTO order_history (order_id, at, what, event_id, detail) SELECT order_id, at, what, event_id, detail FROM changes ORDER BY at
)
INSERT INTO payments (order_id, kind, amount, currency, event_id, at)
SELECT order_id, CASE what WHEN 'OrderPaid' THEN 'charge' ELSE 'refund' END, total, currency, event_id, at
FROM changes WHERE what = 'OrderPaid' OR what = 'OrderCancelled' AND paid_at IS NOT NULL;

CREATE VIEW order_balances AS
SELECT id AS order_id, number, status, currency, charged, refunded, charged - refunded AS balance,
    CASE WHEN status IN ('created', 'rejected', 'cancelled') THEN 0.00 ELSE total END AS due
FROM orders CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount) FILTER (WHERE kind = 'charge'), 0) AS charged, coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0) AS refunded
    FROM payments WHERE order_id = orders.id) AS paid;
COMMENT ON VIEW order_balances IS 'What each order''s payments add up to, and what they must: balance = due, at the end of every transaction.';

-- +goose StatementBegin
CREATE FUNCTION order_is_balanced() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    changed uuid;
    found_balance order_balances;
BEGIN
    IF TG_TABLE_NAME = 'orders' THEN
        changed := NEW.id;
    ELSE
        changed := coalesce(NEW.order_id, OLD.order_id);
    END IF;
    SELECT * INTO found_balance FROM order_balances WHERE order_id = changed;
    IF found_balance.balance <> found_balance.due THEN
        RAISE EXCEPTION 'order % is % and its payments add up to %, not to %', found_balance.number, found_balance.status, found_balance.balance, found_balance.due
            USING ERRCODE = 'check_violation', CONSTRAINT = 'order_is_balanced', HINT = 'Write the charge or the refund in the transaction of the change.';
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE CONSTRAINT TRIGGER order_is_balanced AFTER INSERT OR UPDATE OF status ON orders
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION order_is_balanced();
CREATE CONSTRAINT TRIGGER order_is_balanced AFTER INSERT OR UPDATE OR DELETE ON payments
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION order_is_balanced();

DROP FUNCTION append_order_event(orders, text, timestamptz);
-- +goose StatementBegin
CREATE FUNCTION append_order_event(changed orders, event_type text, occurred_at timestamptz, detail jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
    WITH event AS (SELECT uuid_v7() AS id), history AS (
        INSERT INTO order_history (order_id, at, what, event_id, detail) SELECT changed.id, occurred_at, event_type, event.id, detail FROM event
    ), told AS (
    INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
    SELECT event.id, 'order', changed.id::text, event_type, jsonb_build_object(
        'eventId', event.id,
        'eventType', event_type,
        'schemaVersion', 1,
        'occurredAt', to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'orderId', changed.id,
        'orderNumber', changed.number::text,
        'buyerId', changed.buyer_id,
        'buyerEmail', changed.buyer_email,
        'items', (SELECT jsonb_agg(jsonb_build_object('sku', sku, 'quantity', quantity, 'unitPrice', unit_price::text) ORDER BY line_no)
                  FROM order_lines WHERE order_id = changed.id),
        'totalAmount', changed.total::text,
        'currency', changed.currency) || detail
    FROM event
    )
    SELECT id FROM event
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION lock_order(order_id uuid) RETURNS orders LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    found_order orders;
BEGIN
    SELECT * INTO found_order FROM orders WHERE id = lock_order.order_id FOR NO KEY UPDATE; -- what refers to it is written meanwhile
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no order %', coalesce(lock_order.order_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT id, number, status FROM orders ORDER BY number DESC LIMIT 10;';
    END IF;
    RETURN found_order;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION change_order(order_id uuid, becomes text, tracking_code text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    changed  orders := lock_order(order_id);
    required text[] := CASE becomes WHEN 'paid' THEN '{created}' WHEN 'cancelled' THEN '{created,paid,confirmed}' WHEN 'shipped' THEN '{confirmed}' ELSE '{shipped}' END;
    now_at   timestamptz := clock_timestamp();
    event    uuid;
    payment  text;
BEGIN
    IF changed.status <> ALL (required) THEN
        RAISE EXCEPTION 'order % is %', changed.number, changed.status
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = format('Only a %s order can become %s.', array_to_string(required, ' or '), becomes);
    END IF;
    UPDATE orders SET status = becomes,
        paid_at = CASE becomes WHEN 'paid' THEN now_at ELSE paid_at END,
        shipped_at = CASE becomes WHEN 'shipped' THEN now_at ELSE shipped_at END,
        completed_at = CASE becomes WHEN 'completed' THEN now_at ELSE completed_at END,
        cancelled_at = CASE becomes WHEN 'cancelled' THEN now_at ELSE cancelled_at END,
        tracking_code = coalesce(change_order.tracking_code, orders.tracking_code)
    WHERE id = changed.id RETURNING * INTO changed;
    event := append_order_event(changed, 'Order' || initcap(becomes), now_at, CASE
        WHEN becomes = 'cancelled' THEN jsonb_build_object('wasPaid', changed.paid_at IS NOT NULL)
        WHEN change_order.tracking_code IS NOT NULL THEN jsonb_build_object('trackingCode', change_order.tracking_code)
        ELSE '{}' END);
    payment := CASE WHEN becomes = 'paid' THEN 'charge' WHEN becomes = 'cancelled' AND changed.paid_at IS NOT NULL THEN 'refund' END;
    IF payment IS NOT NULL THEN
        INSERT INTO payments (order_id, kind, amount, currency, event_id, at) VALUES (changed.id, payment, changed.total, changed.currency, event, now_at);
    END IF;
    RETURN changed.id;
END $$;
-- +goose StatementEnd

CREATE OR REPLACE FUNCTION pay_order(order_id uuid) RETURNS uuid LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp
    AS $$ SELECT change_order(order_id, 'paid') $$;
CREATE OR REPLACE FUNCTION cancel_order(order_id uuid) RETURNS uuid LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp
    AS $$ SELECT change_order(order_id, 'cancelled') $$;
-- +goose StatementBegin
CREATE FUNCTION ship_order(order_id uuid, tracking_code text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF ship_order.tracking_code !~ '^[ -~]{1,100}$' THEN
        RAISE EXCEPTION 'tracking_code must be 1 to 100 printable ASCII characters' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'For instance: SELECT ship_order(''…'', ''JD 0146 0000 1234'')';
    END IF;
    RETURN change_order(ship_order.order_id, 'shipped', ship_order.tracking_code);
END $$;
-- +goose StatementEnd
CREATE FUNCTION complete_order(order_id uuid) RETURNS uuid LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp
    AS $$ SELECT change_order(order_id, 'completed') $$;

COMMENT ON FUNCTION cancel_order IS 'Cancels a created, paid or confirmed order, gives the money back, and writes its OrderCancelled event. Returns the order''s id.';
COMMENT ON FUNCTION ship_order IS 'Ships a confirmed order and writes its OrderShipped event. Returns the order''s id.';
COMMENT ON FUNCTION complete_order IS 'Completes a shipped order and writes its OrderCompleted event. Returns the order''s id.';
