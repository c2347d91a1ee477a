package cdctest_test

import (
	"hash/fnv"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

// decode makes records of all changes in a slot, as a relay would: PostgreSQL itself gives the commits and their order.
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
	oracle := cdctest.StartOracle(t, url, "public.outbox")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: url, Events: 5000, Prepared: true, Long: 20 * time.Millisecond})
	early, err := oracle.Commits(t.Context()) // a call during the load loses nothing
	if err != nil {
		t.Fatal(err)
	}
	ledger := oracle.Complete(t, w.Wait())
	if len(ledger.Commits) <= len(early) {
		t.Errorf("the oracle knew %d commits, and %d at the end", len(early), len(ledger.Commits))
	}
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

// TestCheckReportsWhatTheOracleDenies changes the oracle's commits of a faultless log.
func TestCheckReportsWhatTheOracleDenies(t *testing.T) {
	for name, mutate := range map[string]func(*cdctest.Ledger, []*kgo.Record){
		"commits in another order":            func(l *cdctest.Ledger, _ []*kgo.Record) { l.Commits[3], l.Commits[4] = l.Commits[4], l.Commits[3] },
		"rows of a commit in another order":   func(l *cdctest.Ledger, _ []*kgo.Record) { slices.Reverse(many(l.Commits).IDs) },
		"a commit the oracle does not know":   func(l *cdctest.Ledger, _ []*kgo.Record) { l.Commits = slices.Delete(l.Commits, 5, 6) },
		"an event that was never in a ledger": func(l *cdctest.Ledger, _ []*kgo.Record) { l.Commits[5].IDs[0] = uuid.New() },
		"an LSN after the commit's end": func(l *cdctest.Ledger, r []*kgo.Record) {
			r[len(r)-1].Headers[2].Value = []byte(l.Commits[len(l.Commits)-1].End.String())
		},
	} {
		ledger, records := deliver(300)
		for _, e := range ledger.Events { // transaction n is at 1000n
			if n := len(ledger.Commits); n == 0 || ledger.Commits[n-1].XID != e.Tx {
				ledger.Commits = append(ledger.Commits, cdctest.Commit{XID: e.Tx, End: pglogrepl.LSN(1000*e.Tx + 1000)})
			}
			last := &ledger.Commits[len(ledger.Commits)-1]
			last.IDs = append(last.IDs, e.ID)
		}
		if err := cdctest.Check(ledger, records).Err(); err != nil {
			t.Fatalf("without a mutation: %v", err)
		}
		mutate(&ledger, records)
		if cdctest.Check(ledger, records).Disagreed.Count == 0 {
			t.Errorf("%s: passed", name)
		}
	}
}

// many returns the first commit with several rows.
func many(commits []cdctest.Commit) cdctest.Commit {
	return commits[slices.IndexFunc(commits, func(c cdctest.Commit) bool { return len(c.IDs) > 2 })]
}
