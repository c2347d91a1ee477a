-- The rights of the order service, with their reasons. sql.Migrate first revokes all rights, and replaces :service with
-- the role's quoted name. A table on the page of cdc/identity is generated from this file: go test
-- ./cmd/internal/policy -run Generated -update
GRANT SELECT, INSERT ON orders, order_lines, idempotency_keys TO :service; -- takes orders, each request once
GRANT UPDATE (status, paid_at, confirmed_at, rejected_at, shipped_at, completed_at, cancelled_at, tracking_code) ON orders TO :service; -- changes them
GRANT UPDATE (order_id, status, answer) ON idempotency_keys TO :service; -- stores the answer to a request
GRANT INSERT ON outbox TO :service; -- writes events
GRANT SELECT, INSERT ON payments, order_history TO :service; -- writes money and history, and shows them
GRANT SELECT ON order_balances TO :service; -- a trigger compares payments with the order
GRANT SELECT, INSERT ON inbox, inbox_decisions TO :service; -- applies each event once; records operators' decisions
GRANT SELECT, INSERT, UPDATE ON inbox_partitions, inbox_parked TO :service; -- records how far each group is, and parks events
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox_parked_keys TO :service; -- keeps the order of a key; a row lock asks for `UPDATE`
GRANT EXECUTE ON FUNCTION inbox_maintain TO :service; -- creates and drops partitions of the inbox
GRANT SELECT, INSERT, UPDATE ON notifications, notification_attempts, customer_notifications TO :service; -- sends mails and webhooks
GRANT SELECT, INSERT, UPDATE, DELETE ON statistics, statistics_orders, statistics_since TO :service; -- counts sales; a rebuild empties these tables
