-- What the inventory service may do; sql.Migrate takes everything back first and puts the role's quoted name for :service.
GRANT SELECT, INSERT, UPDATE ON stock TO :service;
GRANT SELECT, INSERT ON stock_movements, inbox, malformed_events TO :service;
