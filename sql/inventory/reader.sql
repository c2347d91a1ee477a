-- What another service may read here, and what for; sql.GrantReader takes everything back first and puts the role's quoted name for :service. The page of
-- cdc/identity has a table of it: go test ./cmd/internal/policy -run Generated -update
GRANT SELECT (sku, name, picture_url) ON products TO :service; -- names and pictures for mails
