-- What the order service may do; sql.Migrate takes everything back first and puts the role's quoted name for :service.
GRANT SELECT, INSERT ON orders, order_lines, idempotency_keys TO :service;
GRANT UPDATE (status, paid_at, confirmed_at, rejected_at, shipped_at, completed_at, cancelled_at, tracking_code) ON orders TO :service;
GRANT UPDATE (order_id, status, answer) ON idempotency_keys TO :service;
GRANT INSERT ON outbox TO :service;
GRANT SELECT, INSERT ON payments, order_history TO :service;
GRANT SELECT ON order_balances TO :service;
GRANT SELECT, INSERT ON inbox, inbox_decisions TO :service;
GRANT SELECT, INSERT, UPDATE ON inbox_partitions, inbox_parked TO :service;
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox_parked_keys TO :service; -- UPDATE is what a row lock asks for
GRANT EXECUTE ON FUNCTION inbox_maintain TO :service;
GRANT SELECT, INSERT, UPDATE ON notifications, notification_attempts, customer_notifications TO :service;
GRANT SELECT, INSERT, UPDATE, DELETE ON statistics, statistics_orders, statistics_since TO :service;
