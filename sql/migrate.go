package sql

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/walpost/walpost/cdc/inbox/schema"
)

//go:embed orders/*.sql inventory/*.sql
var files embed.FS

// Database names one of the two schemas. It is also the name of the schema's folder.
type Database string

// The databases of the two services.
const (
	Orders    Database = "orders"
	Inventory Database = "inventory"
)

// inGo are the migrations whose SQL is in another folder; a .txt note in this folder has their number.
var inGo = map[Database][]*goose.Migration{
	Orders: {
		goose.NewGoMigration(6, exec(schema.Tables), exec(schema.Drop)),
		goose.NewGoMigration(11, exec(schema.Gaps), exec(schema.DropGaps)),
	},
}

func exec(statements string) *goose.GoFunc {
	return &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, statements)
		return err
	}}
}

// Migrate migrates the database at adminURL to the newest schema, and gives the role of serviceURL exactly the rights
// that its service needs there. It creates the role if it is missing, and sets its password to the one in serviceURL.
// If serviceURL has no password, or gets a token instead, the role keeps its password. Migrate may run any number of
// times, also at once, and writes a line to out for each thing it did. Neither URL's password appears in an error, in
// out or in the server's log.
func Migrate(ctx context.Context, which Database, adminURL, serviceURL string, out io.Writer) error {
	admin, err := administrator(ctx, adminURL)
	if err != nil {
		return err
	}
	service, err := newRole(ctx, "service", serviceURL)
	if err != nil {
		return err
	}
	if service.name == admin.User {
		return fmt.Errorf("the service's database URL has the administrator's role %q: give the service another role, as in postgres://%s_service:password@host/%s", service.name, which, admin.Database)
	}
	return withRole(ctx, admin, service, out, func(conn *pgx.Conn) error {
		if err := migrateSchema(ctx, which, admin, out); err != nil {
			return err
		}
		return grantRights(ctx, conn, string(which)+"/rights.sql", service.name, out)
	})
}

func migrateSchema(ctx context.Context, which Database, admin *pgx.ConnConfig, out io.Writer) error {
	folder, err := fs.Sub(files, string(which))
	if err != nil {
		return fmt.Errorf("open the migrations of %s: %w", which, err)
	}
	db := stdlib.OpenDB(*admin)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, folder,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()), goose.WithGoMigrations(inGo[which]...))
	if err != nil {
		return fmt.Errorf("read the migrations of %s: %w", which, err)
	}
	done, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", which, err)
	}
	for _, m := range done {
		fmt.Fprintf(out, "schema: applied %s\n", cmp.Or(m.Source.Path, fmt.Sprintf("%05d, the inbox", m.Source.Version)))
	}
	version, err := provider.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	fmt.Fprintf(out, "schema: database %q is at version %d of %s\n", admin.Database, version, which)
	return nil
}
