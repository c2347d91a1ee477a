// Package sql migrates the database of a service to its newest schema and gives its roles their rights.
//
// Each folder is one database: numbered migrations for goose, and rights.sql with all rights of the service's role. The
// migrations name no role and no password: both come from the service's URL.
package sql
