// Package sql brings the database of a service to its schema and its roles to their rights.
//
// Each folder is one database: numbered migrations for goose, and rights.sql, the whole of what the service's role may do there.
// The migrations name no role and no password: these come with the service's own URL.
package sql
