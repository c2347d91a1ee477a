package postgres

import (
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/config"
)

// Ident returns a name as SQL, with its schema before it if there are two.
func Ident(name ...string) string { return pgx.Identifier(name).Sanitize() }

// Literal returns a text as SQL.
func Literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// TableName returns the outbox table's name as SQL.
func TableName(cfg config.Source) string {
	schema, table := cfg.SchemaTable()
	return Ident(schema, table)
}
