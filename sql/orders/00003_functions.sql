-- +goose Up

-- The order service's three changes, for psql and for programs without HTTP. Each function is one statement and
-- therefore one transaction: it writes both state and event, or neither. They run with the caller's rights.
-- TestHTTPAndSQLWriteTheSameEvents keeps them equal to the Go service.

-- +goose StatementBegin
CREATE FUNCTION uuid_v7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    -- RFC 9562: 48 bits of Unix milliseconds, then random bits but for version (0111) and variant, which a v4 has
    -- already. Servers have a function for it from 18 on only.
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION append_order_event(changed orders, event_type text, occurred_at timestamptz) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
    WITH event AS (SELECT uuid_v7() AS id)
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
        'currency', changed.currency)
        || CASE event_type WHEN 'OrderCancelled' THEN jsonb_build_object('wasPaid', changed.paid_at IS NOT NULL) ELSE '{}' END
    FROM event
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION create_order(buyer_id text, buyer_email text, items jsonb, currency text DEFAULT 'EUR') RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    wrong  text;
    placed orders;
BEGIN
    wrong := CASE
        WHEN create_order.buyer_id !~ '^[!-~]{1,100}$' IS NOT FALSE THEN 'buyer_id must be 1 to 100 printable ASCII characters without space'
        WHEN octet_length(create_order.buyer_email) > 254 OR create_order.buyer_email !~
            '^[A-Za-z0-9.!#$%&''*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$' IS NOT FALSE THEN 'buyer_email must be one plain e-mail address'
        WHEN create_order.currency !~ '^[A-Z]{3}$' IS NOT FALSE THEN 'currency must be three capital letters, as in EUR'
        WHEN jsonb_typeof(create_order.items) IS DISTINCT FROM 'array' THEN 'items must be a JSON array'
        WHEN jsonb_array_length(create_order.items) NOT BETWEEN 1 AND 100 THEN 'items must be 1 to 100 lines'
    END;
    IF wrong IS NULL THEN
        SELECT format('items[%s]', n - 1) || fault INTO wrong FROM (
            SELECT n, CASE
                WHEN jsonb_typeof(item) <> 'object' THEN ' must be an object'
                WHEN item - '{sku,quantity,unitPrice}'::text[] <> '{}' THEN ' has a field that is none of sku, quantity, unitPrice'
                WHEN jsonb_typeof(item->'sku') IS DISTINCT FROM 'string' OR item->>'sku' !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'
                    THEN '.sku must be 1 to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit'
                WHEN jsonb_typeof(item->'quantity') IS DISTINCT FROM 'number' OR item->>'quantity' !~ '^[0-9]{1,5}$'
                    OR item->>'quantity' = '0' OR (item->>'quantity')::numeric > 10000
                    THEN '.quantity must be a whole number from 1 to 10000'
                WHEN jsonb_typeof(item->'unitPrice') IS DISTINCT FROM 'string' OR item->>'unitPrice' !~ '^(0|[1-9][0-9]{0,9})(\.[0-9]{1,2})?$'
                    THEN '.unitPrice must be a decimal string with at most two places, as in "19.90"'
                WHEN count(*) OVER (PARTITION BY item->>'sku') > 1 THEN '.sku is in another line, too: make it one line with the sum'
            END AS fault
            FROM jsonb_array_elements(create_order.items) WITH ORDINALITY AS line (item, n)) AS lines
        WHERE fault IS NOT NULL ORDER BY n LIMIT 1;
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%', wrong USING ERRCODE = 'invalid_parameter_value',
            HINT = 'For instance: SELECT create_order(''buyer-1'', ''ada@shop.example'', ''[{"sku": "TEA-100", "quantity": 2, "unitPrice": "19.90"}]'')';
    END IF;

    INSERT INTO orders (id, buyer_id, buyer_email, total, currency)
    SELECT uuid_v7(), create_order.buyer_id, create_order.buyer_email,
        sum((item->>'quantity')::integer * (item->>'unitPrice')::numeric), create_order.currency
    FROM jsonb_array_elements(create_order.items) AS item
    RETURNING * INTO placed;
    INSERT INTO order_lines (order_id, line_no, sku, quantity, unit_price)
    SELECT placed.id, n, item->>'sku', (item->>'quantity')::integer, (item->>'unitPrice')::numeric
    FROM jsonb_array_elements(create_order.items) WITH ORDINALITY AS line (item, n);
    PERFORM append_order_event(placed, 'OrderCreated', placed.created_at);
    RETURN placed.id;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION lock_order(order_id uuid) RETURNS orders LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    found_order orders;
BEGIN
    SELECT * INTO found_order FROM orders WHERE id = lock_order.order_id FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no order %', coalesce(lock_order.order_id::text, 'NULL')
            USING ERRCODE = 'no_data_found', HINT = 'SELECT id, number, status FROM orders ORDER BY number DESC LIMIT 10;';
    END IF;
    RETURN found_order;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pay_order(order_id uuid) RETURNS uuid LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    changed orders := lock_order(order_id);
BEGIN
    IF changed.status <> 'created' THEN
        RAISE EXCEPTION 'order % is %', changed.number, changed.status
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only a created order can be paid.';
    END IF;
    UPDATE orders SET status = 'paid', paid_at = clock_timestamp() WHERE id = changed.id RETURNING * INTO changed;
    PERFORM append_order_event(changed, 'OrderPaid', changed.paid_at);
    RETURN changed.id;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION cancel_order(order_id uuid) RETURNS uuid LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    changed orders := lock_order(order_id);
BEGIN
    IF changed.status = 'cancelled' THEN
        RAISE EXCEPTION 'order % is cancelled', changed.number
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'A created or a paid order can be cancelled, and only once.';
    END IF;
    UPDATE orders SET status = 'cancelled', cancelled_at = clock_timestamp() WHERE id = changed.id RETURNING * INTO changed;
    PERFORM append_order_event(changed, 'OrderCancelled', changed.cancelled_at);
    RETURN changed.id;
END $$;
-- +goose StatementEnd

COMMENT ON FUNCTION create_order IS 'Places an order and writes its OrderCreated event. Returns the order''s id.';
COMMENT ON FUNCTION pay_order IS 'Pays a created order and writes its OrderPaid event. Returns the order''s id.';
COMMENT ON FUNCTION cancel_order IS 'Cancels a created or paid order and writes its OrderCancelled event. Returns the order''s id.';

-- +goose Down

DROP FUNCTION cancel_order, pay_order, lock_order, create_order, append_order_event, uuid_v7;
