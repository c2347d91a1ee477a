package cdctest_test

import (
	"hash/fnv"
	"strconv"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

// decode makes records of all a slot has to give, as a relay would: PostgreSQL's own word on commits and their order.
func decode(t *testing.T, conn *pgx.Conn, slot string) []*kgo.Record {
	t.Helper()
	rows, err := conn.Query(t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', $2)`, slot, cdctest.Publication)
	if err != nil {
		t.Fatal(err)
	}
	var records []*kgo.Record
	var offsets [partitions]int64
	var commit pglogrepl.LSN
	var seq int
	columns := map[string]int{}
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&data}, func() error {
		message, err := pglogrepl.Parse(data)
		if err != nil {
			return err
		}
		switch m := message.(type) {
		case *pglogrepl.BeginMessage:
			commit, seq = m.FinalLSN, 0
		case *pglogrepl.RelationMessage:
			for i, column := range m.Columns {
				columns[column.Name] = i
			}
		case *pglogrepl.InsertMessage:
			column := func(name string) []byte { return m.Tuple.Columns[columns[name]].Data }
			key := column("aggregate_id")
			hash := fnv.New32a()
			_, _ = hash.Write(key)
			p := hash.Sum32() % partitions
			records = append(records, &kgo.Record{
				Topic: "t", Partition: int32(p), Offset: offsets[p], Key: key, Value: column("payload"),
				Headers: []kgo.RecordHeader{
					{Key: "id", Value: column("id")},
					{Key: "lsn", Value: []byte(commit.String())},
					{Key: "seq", Value: strconv.AppendInt(nil, int64(seq), 10)},
				},
			})
			offsets[p]++
			seq++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestLedgerAgreesWithWhatPostgreSQLDecodes(t *testing.T) {
	url := cdctest.Database(t)
	cdctest.CreateOutbox(t, url, "outbox")
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	slot := cdctest.SlotName(t, "oracle")
	if _, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot); err != nil {
		t.Fatal(err)
	}
	ledger := cdctest.StartWriter(t, cdctest.WriterConfig{URL: url, Events: 5000}).Wait()
	records := decode(t, conn, slot)
	report := cdctest.Check(ledger, records)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Events != len(ledger.Events) || report.Duplicates != 0 {
		t.Errorf("%d events and %d duplicates, the ledger has %d", report.Events, report.Duplicates, len(ledger.Events))
	}
	if lost := cdctest.Check(ledger, records[:len(records)-1]); lost.Missing.Count != 1 {
		t.Errorf("with the last record lost: %d missing", lost.Missing.Count)
	}
}
