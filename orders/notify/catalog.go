package notify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walpost/walpost/cdc/pglimit"
)

// errWaits marks an error that is not a failed attempt: the notification waits until the catalog answers.
var errWaits = errors.New("waits")

// catalogTimeout is the limit for one query of the inventory database.
const catalogTimeout = 5 * time.Second

// Catalog reads the names and pictures of products from the inventory database, with a role that has no other rights.
type Catalog struct{ pool *pgxpool.Pool }

// OpenCatalog prepares the pool's connections to the inventory database without connecting.
func OpenCatalog(ctx context.Context, config *pgxpool.Config) (*Catalog, error) {
	config.ConnConfig.RuntimeParams["application_name"] = "orders mail"
	config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	config.ConnConfig.ConnectTimeout = catalogTimeout
	pglimit.Set(&config.ConnConfig.Config)
	config.ConnConfig.Tracer = pglimit.Queries{Within: 30 * time.Second}
	config.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Catalog{pool}, nil
}

// Close closes all connections.
func (c *Catalog) Close() { c.pool.Close() }

type product struct{ name, picture string }

// products returns the products with these SKUs that have a description. An error is errWaits: the database does not
// answer, or its tables are not as expected.
func (c *Catalog) products(ctx context.Context, skus []string) (map[string]product, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	rows, _ := c.pool.Query(ctx, `SELECT sku, name, coalesce(picture_url, '') FROM products WHERE sku = ANY($1)`, skus)
	found := map[string]product{}
	var sku string
	var p product
	if _, err := pgx.ForEachRow(rows, []any{&sku, &p.name, &p.picture}, func() error {
		found[sku] = p
		return nil
	}); err != nil {
		return nil, fmt.Errorf("%w for the names of products: the inventory database cannot be read (ORDERS_CATALOG_URL): %w", errWaits, err)
	}
	return found, nil
}
