-- +goose Up

-- OrderPaid, version 2, has the payment instead of totalAmount and currency. Otherwise the functions are those of
-- 00005.

ALTER TABLE payments ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE;
COMMENT ON COLUMN payments.id IS 'For others to name it by; what makes it one is (order_id, kind).';

DROP FUNCTION append_order_event(orders, text, timestamptz, jsonb);
-- +goose StatementBegin
CREATE FUNCTION append_order_event(changed orders, event_type text, occurred_at timestamptz, detail jsonb DEFAULT '{}', charge uuid DEFAULT NULL) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
    WITH event AS (SELECT uuid_v7() AS id), history AS (
        INSERT INTO order_history (order_id, at, what, event_id, detail) SELECT changed.id, occurred_at, event_type, event.id, detail FROM event
    ), told AS (
    INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
    SELECT event.id, 'order', changed.id::text, event_type, jsonb_build_object(
        'eventId', event.id,
        'eventType', event_type,
        'occurredAt', to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'orderId', changed.id,
        'orderNumber', changed.number::text,
        'buyerId', changed.buyer_id,
        'buyerEmail', changed.buyer_email,
        'items', (SELECT jsonb_agg(jsonb_build_object('sku', sku, 'quantity', quantity, 'unitPrice', unit_price::text) ORDER BY line_no)
                  FROM order_lines WHERE order_id = changed.id))
        || CASE event_type
            WHEN 'OrderPaid' THEN jsonb_build_object('schemaVersion', 2,
                'payment', jsonb_build_object('id', charge, 'amount', changed.total::text, 'currency', changed.currency))
            ELSE jsonb_build_object('schemaVersion', 1, 'totalAmount', changed.total::text, 'currency', changed.currency)
        END || detail
    FROM event
    )
    SELECT id FROM event
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION change_order(order_id uuid, becomes text, tracking_code text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    changed  orders := lock_order(order_id);
    required text[] := CASE becomes WHEN 'paid' THEN '{created}' WHEN 'cancelled' THEN '{created,paid,confirmed}' WHEN 'shipped' THEN '{confirmed}' ELSE '{shipped}' END;
    now_at   timestamptz := clock_timestamp();
    event    uuid;
    payment  text;
    paid_by  uuid := uuid_v7();
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
        ELSE '{}' END, paid_by);
    payment := CASE WHEN becomes = 'paid' THEN 'charge' WHEN becomes = 'cancelled' AND changed.paid_at IS NOT NULL THEN 'refund' END;
    IF payment IS NOT NULL THEN
        INSERT INTO payments (id, order_id, kind, amount, currency, event_id, at) VALUES (paid_by, changed.id, payment, changed.total, changed.currency, event, now_at);
    END IF;
    RETURN changed.id;
END $$;
-- +goose StatementEnd
