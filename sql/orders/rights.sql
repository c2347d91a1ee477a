-- What the order service may do; sql.Migrate takes everything back first and puts the role's quoted name for :service.
GRANT SELECT, INSERT ON orders, order_lines, idempotency_keys TO :service;
GRANT UPDATE (status, paid_at, cancelled_at) ON orders TO :service;
GRANT UPDATE (order_id, status, answer) ON idempotency_keys TO :service;
GRANT INSERT ON outbox TO :service;
