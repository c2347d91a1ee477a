package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/polling"
)

// NewPolled returns a pipeline whose source is polled.
func NewPolled(t testing.TB, program Program) *Pipeline {
	t.Helper()
	return NewPolledOn(t, program, cdctest.Kafka(t))
}

// NewPolledOn does the same as NewPolled, on given brokers.
func NewPolledOn(t testing.TB, program Program, brokers []string) *Pipeline {
	t.Helper()
	s := NewOn(t, program, cdctest.Database(t), brokers)
	s.Env["WALPOST_SOURCE_KIND"] = "polling"
	s.Env["WALPOST_SOURCE_POLLING_INTERVAL"] = "50ms"
	s.Env["WALPOST_SOURCE_POLLING_BACKOFF"] = "20ms"
	return s
}

// Backlog returns the waiting rows that `walpost status` reports.
func (s *Pipeline) Backlog() polling.Backlog {
	s.T.Helper()
	var st struct {
		Backlog *polling.Backlog `json:"backlog"`
	}
	out := s.Status("--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		s.T.Fatal(err)
	}
	if st.Backlog == nil {
		s.T.Fatalf("status knows nothing of the table:\n%s", out)
	}
	return *st.Backlog
}

// WaitUntilPolled waits until no row of the polled table is pending.
func (s *Pipeline) WaitUntilPolled() {
	s.T.Helper()
	cdctest.Eventually(s.T, time.Minute, func() error {
		if n := s.Query(`SELECT count(*)::text FROM outbox WHERE status = 'PENDING'`); n != "0" {
			return fmt.Errorf("%s rows are pending", n)
		}
		return nil
	})
}

// CheckPolled does the same as CheckDelivered, for a polled table.
func (s *Pipeline) CheckPolled(ledger cdctest.Ledger) cdctest.Report {
	s.T.Helper()
	s.WaitUntilPolled()
	ledger.Polled = true
	report := cdctest.Check(ledger, cdctest.ReadAll(s.T, s.Brokers, s.Topic))
	if err := report.Err(); err != nil {
		s.T.Errorf("%d events committed: %v", len(ledger.Events), err)
	}
	s.T.Logf("%d events, %d records, %d duplicates in %d replays", report.Events, report.Records, report.Duplicates, report.Replays)
	return report
}

// RefusedRow returns SQL that inserts a row with more headers than a record may have.
func RefusedRow(key, event string) string {
	return `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'order', '` + key + `', '` + event +
		`', '{}', (SELECT jsonb_object_agg('h' || i, '') FROM generate_series(1, 1100) i))`
}
