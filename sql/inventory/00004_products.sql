-- +goose Up

CREATE TABLE products (
    sku         text PRIMARY KEY CHECK (octet_length(sku) BETWEEN 1 AND 64),
    name        text NOT NULL CHECK (name <> '' AND octet_length(name) <= 200 AND name !~ '[[:cntrl:]]'),
    picture_url text CHECK (octet_length(picture_url) <= 2000 AND picture_url ~ '^https?://[^[:space:][:cntrl:]]+$'),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE products IS 'What a SKU is called and looks like, for people. The mails of the order service show it.';

-- +goose Down

DROP TABLE products;
