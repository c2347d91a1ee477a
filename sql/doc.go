// Package sql holds the schema of both services' databases, embedded, and brings a database to it.
//
// Each folder is one database: numbered migrations for goose, and rights.sql, the whole of what the service's role may do there.
// The migrations name no role and no password: these come with the service's own URL.
package sql
