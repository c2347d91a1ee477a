package debezium

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestPeekCountsRowsOfPartitions reads a slot with a publication that sends rows as those of the partitions.
func TestPeekCountsRowsOfPartitions(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	slot := cdctest.SlotName(t, "peek")
	for _, sql := range []string{
		`CREATE TABLE outbox (id int, n text) PARTITION BY RANGE (id)`,
		`CREATE TABLE low (n text, id int NOT NULL)`, // its columns have another order
		`ALTER TABLE outbox ATTACH PARTITION low FOR VALUES FROM (0) TO (10)`,
		`CREATE TABLE high PARTITION OF outbox DEFAULT`,
		`CREATE TABLE other (id int)`,
		`CREATE PUBLICATION p FOR TABLE outbox, other`,
		`SELECT pg_create_logical_replication_slot('` + slot + `', 'pgoutput')`,
		`INSERT INTO outbox VALUES (1, 'a'), (20, 'b'); INSERT INTO other VALUES (7); INSERT INTO outbox VALUES (2, NULL)`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	var table uint32
	if err := conn.QueryRow(t.Context(), "SELECT 'outbox'::regclass::oid").Scan(&table); err != nil {
		t.Fatal(err)
	}
	of, err := readOutbox(t.Context(), conn, table, "id")
	if err != nil {
		t.Fatal(err)
	}
	b, err := peekCopy(t.Context(), conn, slot, "p", of, nil)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, row := range b.waiting {
		ids = append(ids, row.id)
	}
	if b.rows != 3 || !slices.Equal(ids, []string{"1", "20", "2"}) {
		t.Errorf("it counts %d rows, with the ids %v", b.rows, ids)
	}
	if b.waiting[0].end != 0 || b.waiting[2].end == 0 || b.waiting[2].end != b.last {
		t.Errorf("the end of the transaction is not at its last row: %+v", b.waiting)
	}
	var slots int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").Scan(&slots); err != nil || slots != 1 {
		t.Errorf("%d slots are left, %v", slots, err)
	}
}
