-- What the inventory service may do; sql.Migrate takes everything back first and puts the role's quoted name for :service.
GRANT SELECT, INSERT, UPDATE ON stock, products TO :service;
GRANT INSERT ON outbox TO :service;
GRANT SELECT, INSERT ON stock_movements, inbox, inbox_decisions TO :service;
GRANT SELECT, INSERT, UPDATE ON inbox_partitions, inbox_parked TO :service;
GRANT SELECT, INSERT, UPDATE, DELETE ON inbox_parked_keys TO :service; -- UPDATE is what a row lock asks for
GRANT EXECUTE ON FUNCTION inbox_maintain TO :service;
