package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// TestRenamedPipeline gives a pipeline another name, twice: state topic, transactional id and header source follow, slot and dead letters
// stay, nothing is missing and nothing comes twice.
func TestRenamedPipeline(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	first := s.Name
	s.Env["WALPOST_POISON_POLICY"], s.Env["WALPOST_POISON_TOPIC"] = "dead_letter", first+".dead"
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(10)
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'invoice', 'k', 'Sent', '{}')`, event(1))
	s.WaitUntilConfirmed(20 * time.Second)
	for i, delivery := range []string{"at_least_once", "exactly_once"} {
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		s.InsertRows(5) // wait in the slot
		s.Name += "-new"
		s.Env["WALPOST_PIPELINE"], s.Env["WALPOST_DELIVERY"] = s.Name, delivery
		s.MustRefuse("`walpost adopt` continues from its position", "init")
		if _, err := s.Sink().Peek(t.Context()); err != nil {
			t.Errorf("init refused, and has made something: %v", err)
		}
		if out := s.MustRun("adopt"); !strings.Contains(out, "without a state record: every commit before") {
			t.Errorf("adopt:\n%s", out)
		}
		s.MustRun("init")
		r = s.StartRelay()
		s.InsertRows(5)
		s.WaitUntilConfirmed(20 * time.Second)
		records := cdctest.ReadAll(t, s.Brokers, s.Topic)
		if want := 20 + 10*i; len(records) != want || len(s.EventIDs()) != want {
			t.Errorf("%s: %d records of %d events, want each of %d once", s.Name, len(records), len(s.EventIDs()), want)
		}
		named := 0
		for _, r := range records {
			if e2e.Header(r, "source") == s.Name {
				named++
			}
		}
		if named != 10 {
			t.Errorf("%d records have the source %s, want 10", named, s.Name)
		}
		if is := s.countUnresolved(); is != "1" {
			t.Errorf("dead letters: %s", is)
		}
	}
	// Under its first name it does not go on: its record is behind the slot.
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Env["WALPOST_PIPELINE"] = first
	s.StartRelay().WaitForLog(20*time.Second, "has confirmed")
}
