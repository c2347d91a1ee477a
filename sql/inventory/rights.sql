-- The rights of the inventory service, with their reasons. sql.Migrate first revokes all rights, and replaces :service
-- with the role's quoted name. A table on the page of cdc/identity is generated from this file: go test
-- ./cmd/internal/policy -run Generated -update
GRANT SELECT, INSERT, UPDATE ON stock, products TO :service; -- keeps the stock, and names and pictures of products
GRANT INSERT ON outbox TO :service; -- writes events
GRANT SELECT, INSERT ON stock_movements, inbox, inbox_decisions TO :service; -- applies each event once; records operators' decisions
GRANT SELECT, INSERT, UPDATE ON inbox_partitions, inbox_parked TO :service; -- records how far the group is, and parks events
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox_parked_keys TO :service; -- keeps the order of a key; a row lock asks for `UPDATE`
GRANT EXECUTE ON FUNCTION inbox_maintain TO :service; -- creates and drops partitions of the inbox
