// Package schema has the SQL of the inbox's tables, for migrations. It does not import Kafka.
package schema

import _ "embed"

// Tables is the schema of the first release, and Gaps what a later release added. A service that has the tables runs
// each as a migration.
var (
	//go:embed schema.sql
	Tables string
	//go:embed gaps.sql
	Gaps string
)

// SQL creates the tables of the inbox; an administrator runs it. The service needs SELECT and INSERT on all of them,
// UPDATE on inbox_partitions, inbox_parked and inbox_parked_keys, DELETE on inbox_parked_keys, and EXECUTE on
// inbox_maintain (sql/orders/rights.sql in this repository).
var SQL = Tables + Gaps

// Drop removes the objects that SQL created.
const Drop = `DROP TABLE inbox_decisions, inbox_parked_keys, inbox_parked, inbox_partitions, inbox;
DROP FUNCTION inbox_maintain, inbox_day;`

// DropGaps removes the columns that Gaps added. It leaves the constraint as wide as Gaps made it.
const DropGaps = `ALTER TABLE inbox_partitions DROP COLUMN topic_id; ALTER TABLE inbox_parked DROP COLUMN end_offset;`
