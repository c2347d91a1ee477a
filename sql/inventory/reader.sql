-- The rights of another service that reads names and pictures, with their reasons. sql.GrantReader first revokes all
-- rights, and replaces :service with the role's quoted name. A table on the page of cdc/identity is generated from this
-- file: go test ./cmd/internal/policy -run Generated -update
GRANT SELECT (sku, name, picture_url) ON products TO :service; -- names and pictures for mails
