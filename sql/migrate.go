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

// Database names one of the two schemas; it is also the folder it is kept in.
type Database string

const (
	Orders    Database = "orders"
	Inventory Database = "inventory"
)

// inGo are the migrations whose text is kept elsewhere; a note stands in their place in the folder.
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

// Migrate brings the database at adminURL to the newest schema and gives the role of serviceURL the rights its service needs there
// and no others. The role is created when missing, and its password becomes the one of serviceURL; without one there, or where
// that is a token, the role's password stays. It may run any number of times and at once, and writes a line to out for each thing it did. Neither URL's password appears
// in an error, in out or in the server's log.
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
