// Package schema is the SQL of the inbox's tables, for migrations, which need no Kafka.
package schema

import _ "embed"

// Tables is what the first release made, and Gaps what was added since: a migration each, where the tables are there.
var (
	//go:embed schema.sql
	Tables string
	//go:embed gaps.sql
	Gaps string
)

// SQL makes the tables of the inbox, as an administrator. The service needs SELECT and INSERT on all of
// them, UPDATE on inbox_partitions, inbox_parked and inbox_parked_keys, DELETE on the latter, and EXECUTE on
// inbox_maintain (sql/orders/rights.sql in this repository).
var SQL = Tables + Gaps

// Drop takes back what SQL made.
const Drop = `DROP TABLE inbox_decisions, inbox_parked_keys, inbox_parked, inbox_partitions, inbox;
DROP FUNCTION inbox_maintain, inbox_day;`

// DropGaps takes back the columns that Gaps added. The constraint stays as wide as it is.
const DropGaps = `ALTER TABLE inbox_partitions DROP COLUMN topic_id; ALTER TABLE inbox_parked DROP COLUMN end_offset;`
