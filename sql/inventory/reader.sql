-- What another service may read here; sql.GrantReader takes everything back first and puts the role's quoted name for :service.
GRANT SELECT (sku, name, picture_url) ON products TO :service;
