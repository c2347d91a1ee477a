// Package schema is the SQL of the inbox's tables, for migrations, which need no Kafka.
package schema

import _ "embed"

// SQL makes the tables of the inbox, as an administrator. The service needs SELECT and INSERT on all of
// them, UPDATE on inbox_partitions, inbox_parked and inbox_parked_keys, DELETE on the latter, and EXECUTE on
// inbox_maintain (sql/orders/rights.sql in this repository).
//
//go:embed schema.sql
var SQL string

// Drop takes back what SQL made.
const Drop = `DROP TABLE inbox_decisions, inbox_parked_keys, inbox_parked, inbox_partitions, inbox;
DROP FUNCTION inbox_maintain, inbox_day;`
