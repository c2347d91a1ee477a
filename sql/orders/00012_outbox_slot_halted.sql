-- +goose Up

-- A running relay can be halted, a slot can have disappeared, and a table can be polled.
CREATE OR REPLACE VIEW outbox_slot AS
SELECT slot_name AS slot,
    active,
    lag_bytes,
    pg_size_pretty(lag_bytes) AS lag,
    retained_wal_bytes,
    pg_size_pretty(retained_wal_bytes) AS retained_wal,
    wal_status,
    CASE
        WHEN slot_name IS NULL THEN 'No replication slot in this database: no WAL is kept for the outbox, and nothing relays it unless walpost polls it. If it was relayed before, run: walpost status; the first time: walpost init'
        WHEN wal_status = 'lost' THEN 'Lost: the server has removed WAL that was not delivered, so events may be missing in Kafka. Run: walpost status'
        WHEN wal_status = 'unreserved' THEN 'About to be lost at the next checkpoint: raise max_slot_wal_keep_size and reload'
            || CASE WHEN active THEN '; then see what holds the relay up: walpost status' ELSE ', and start the relay' END
        WHEN NOT active THEN format('Nobody reads it, and the server keeps %s of WAL for it. Start the relay, or see why the one that is up does not read: walpost status; if it is gone for good: walpost init --remove',
            pg_size_pretty(retained_wal_bytes))
        WHEN lag_bytes > 64 * 1024 * 1024 THEN 'It is read, but is behind. See what holds the relay up: walpost status'
        WHEN lag_bytes > 0 THEN format('It is read, and %s of WAL is not delivered yet. If that stays so: walpost status', pg_size_pretty(lag_bytes))
        ELSE 'Nothing: it is read and up to date'
    END AS what_to_do
FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END AS wal_end) AS server
LEFT JOIN (
    SELECT slot_name, active, wal_status, confirmed_flush_lsn, restart_lsn
    FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database() AND NOT temporary
) AS slots ON true
CROSS JOIN LATERAL (SELECT
    pg_wal_lsn_diff(greatest(wal_end, confirmed_flush_lsn), confirmed_flush_lsn)::bigint AS lag_bytes,
    pg_wal_lsn_diff(greatest(wal_end, restart_lsn), restart_lsn)::bigint AS retained_wal_bytes) AS behind;

-- +goose Down

CREATE OR REPLACE VIEW outbox_slot AS
SELECT slot_name AS slot,
    active,
    lag_bytes,
    pg_size_pretty(lag_bytes) AS lag,
    retained_wal_bytes,
    pg_size_pretty(retained_wal_bytes) AS retained_wal,
    wal_status,
    CASE
        WHEN slot_name IS NULL THEN 'No replication slot in this database: nothing relays the outbox and no WAL is kept for it. Run: walpost init'
        WHEN wal_status = 'lost' THEN 'Lost: the server has removed WAL that was not delivered, so events may be missing in Kafka. Run: walpost status'
        WHEN wal_status = 'unreserved' THEN 'About to be lost at the next checkpoint: raise max_slot_wal_keep_size and reload'
            || CASE WHEN active THEN '; then see what holds the relay up: walpost status' ELSE ', and start the relay' END
        WHEN NOT active THEN format('Nobody reads it, and the server keeps %s of WAL for it. Start the relay; if it is gone for good: walpost init --remove',
            pg_size_pretty(retained_wal_bytes))
        WHEN lag_bytes > 64 * 1024 * 1024 THEN 'It is read, but is behind. See what holds the relay up: walpost status'
        WHEN lag_bytes > 0 THEN format('It is read, and %s of WAL is not delivered yet. If that stays so: walpost status', pg_size_pretty(lag_bytes))
        ELSE 'Nothing: it is read and up to date'
    END AS what_to_do
FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END AS wal_end) AS server
LEFT JOIN (
    SELECT slot_name, active, wal_status, confirmed_flush_lsn, restart_lsn
    FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database() AND NOT temporary
) AS slots ON true
CROSS JOIN LATERAL (SELECT
    pg_wal_lsn_diff(greatest(wal_end, confirmed_flush_lsn), confirmed_flush_lsn)::bigint AS lag_bytes,
    pg_wal_lsn_diff(greatest(wal_end, restart_lsn), restart_lsn)::bigint AS retained_wal_bytes) AS behind;
