-- +goose Up

-- One row for each notification of a customer, or of a partner's endpoint, about an order. The consumers insert it in
-- their inbox transaction; the senders send it. The natural key and the trigger below prevent a second send after a
-- success.
CREATE TABLE notifications (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id        uuid NOT NULL REFERENCES orders,
    channel         text NOT NULL CHECK (channel IN ('mail', 'webhook')),
    kind            text NOT NULL CHECK (kind IN ('confirmed', 'rejected', 'shipped')),
    event_id        uuid NOT NULL,
    event           text NOT NULL,
    recipient       text NOT NULL,
    language        text NOT NULL CHECK (language IN ('en', 'de')),
    format          text NOT NULL CHECK (format IN ('html', 'text', 'json')),
    status          text NOT NULL CHECK (status IN ('PENDING', 'SENT', 'FAILED', 'SUPPRESSED')),
    reason          text,
    final           boolean NOT NULL DEFAULT false,
    subject         text,
    html            text,
    plain           text,
    attempts        integer NOT NULL DEFAULT 0,
    republished     integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_owner     text,
    lease_until     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at        timestamptz,
    CONSTRAINT notifications_once UNIQUE (order_id, channel, kind),
    CONSTRAINT notifications_reason CHECK (reason IS NOT NULL OR status NOT IN ('FAILED', 'SUPPRESSED')),
    CONSTRAINT notifications_end CHECK ((status = 'PENDING') = (ended_at IS NULL)),
    CONSTRAINT notifications_lease CHECK ((lease_owner IS NULL) = (lease_until IS NULL) AND (lease_owner IS NULL OR status = 'PENDING'))
);
CREATE INDEX notifications_due ON notifications (channel, next_attempt_at) WHERE status = 'PENDING';
CREATE INDEX notifications_failed ON notifications (channel, id) WHERE status = 'FAILED';
COMMENT ON COLUMN notifications.event IS 'The event as it came: what is rendered, and the body of a webhook.';
COMMENT ON COLUMN notifications.reason IS 'Why it FAILED, is SUPPRESSED, or is PENDING and waits.';
COMMENT ON COLUMN notifications.final IS 'FAILED by something that trying again is unlikely to mend: it is re-published by itself at doubling intervals only.';
COMMENT ON COLUMN notifications.attempts IS 'Since it was last re-published; notification_attempts has all.';

-- +goose StatementBegin
CREATE FUNCTION notification_is_sent() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'notification % is sent and stays so', OLD.id USING ERRCODE = 'restrict_violation';
END $$;
-- +goose StatementEnd
CREATE TRIGGER notification_is_sent BEFORE UPDATE ON notifications FOR EACH ROW WHEN (OLD.status = 'SENT') EXECUTE FUNCTION notification_is_sent();

CREATE TABLE notification_attempts (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    notification_id bigint NOT NULL REFERENCES notifications,
    recipient       text NOT NULL,
    began_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at        timestamptz,
    outcome         text CHECK (outcome IN ('sent', 'deferred', 'refused')),
    answer          text,
    CONSTRAINT notification_attempts_end CHECK ((outcome IS NULL) = (ended_at IS NULL))
);
CREATE INDEX notification_attempts_of ON notification_attempts (notification_id);
COMMENT ON COLUMN notification_attempts.outcome IS 'NULL: under way, or the sender ended before it could say what became of it.';
COMMENT ON COLUMN notification_attempts.answer IS 'The server''s, or what kept us from getting one.';

CREATE TABLE customer_notifications (
    customer_id text PRIMARY KEY CHECK (customer_id ~ '^[!-~]{1,100}$'),
    confirmed   boolean NOT NULL,
    rejected    boolean NOT NULL,
    shipped     boolean NOT NULL,
    format      text NOT NULL CHECK (format IN ('html', 'text')),
    language    text NOT NULL CHECK (language IN ('en', 'de')),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE customer_notifications IS 'What a customer wants to be told, and how; without a row everything, as HTML, in English.';

-- +goose Down

DROP TABLE customer_notifications, notification_attempts, notifications;
DROP FUNCTION notification_is_sent;
