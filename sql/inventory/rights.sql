-- What the inventory service may do, and what for; sql.Migrate takes everything back first and puts the role's quoted name for :service. The page of
-- cdc/identity has a table of it: go test ./cmd/internal/policy -run Generated -update
GRANT SELECT, INSERT, UPDATE ON stock, products TO :service; -- keeps the stock, and what products are called
GRANT INSERT ON outbox TO :service; -- writes events
GRANT SELECT, INSERT ON stock_movements, inbox, inbox_decisions TO :service; -- applies each event once; notes what operators decide
GRANT SELECT, INSERT, UPDATE ON inbox_partitions, inbox_parked TO :service; -- notes how far the group is, and puts events aside
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox_parked_keys TO :service; -- keeps the order of a key; a row lock asks for `UPDATE`
GRANT EXECUTE ON FUNCTION inbox_maintain TO :service; -- makes and drops partitions of the inbox
