package cdctest_test

import (
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// stored reads the outbox itself: the rows that a relay would have to deliver.
func stored(t *testing.T, url, table string) map[string]string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	rows, err := conn.Query(t.Context(), "SELECT id::text, aggregate_id || ' ' || encode(sha256(convert_to(payload::text, 'UTF8')), 'hex') FROM "+table)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	var id, text string
	if _, err := pgx.ForEachRow(rows, []any{&id, &text}, func() error { found[id] = text; return nil }); err != nil {
		t.Fatal(err)
	}
	return found
}

// verify compares ledger and outbox: they must agree on every row, and the numbers of each key must have no gap.
func verify(t *testing.T, url, table string, ledger cdctest.Ledger) {
	t.Helper()
	found := stored(t, url, table)
	if len(found) != len(ledger.Events) {
		t.Errorf("%d events in the outbox, %d in the ledger", len(found), len(ledger.Events))
	}
	seqs := map[string][]int64{}
	for _, e := range ledger.Events {
		if want := fmt.Sprintf("%s %x", e.Key, e.Sum); found[e.ID.String()] != want {
			t.Fatalf("event %s: the outbox has %q, the ledger %q", e.ID, found[e.ID.String()], want)
		}
		if ledger.RolledBack[e.ID] {
			t.Fatalf("event %s is both committed and rolled back", e.ID)
		}
		seqs[e.Key] = append(seqs[e.Key], e.Seq)
	}
	for key, got := range seqs {
		slices.Sort(got)
		for i, seq := range got {
			if seq != int64(i+1) {
				t.Fatalf("key %s: number %d is at place %d", key, seq, i+1)
			}
		}
	}
}

func TestWriterCommitsAndRollsBackAsItsLedgerSays(t *testing.T) {
	url := cdctest.Database(t)
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: url, Table: "public.events", Events: 3000, Seed: 1})
	ledger := w.Wait()
	if w.Committed() < 3000 || w.Committed() != len(ledger.Events) {
		t.Errorf("committed %d, the ledger has %d", w.Committed(), len(ledger.Events))
	}
	if len(ledger.RolledBack)*6 < len(ledger.Events) {
		t.Errorf("only %d events were rolled back, of %d committed", len(ledger.RolledBack), len(ledger.Events))
	}
	verify(t, url, "events", ledger)
}

func TestWriterKeepsItsRate(t *testing.T) {
	cdctest.Long(t, "waits for a rate")
	const rate, goroutines = 100, 2
	url := cdctest.Database(t)
	start := time.Now()
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: url, Rate: rate, Goroutines: goroutines, Events: 200})
	transactions := map[int64]bool{}
	for _, e := range w.Wait().Events {
		transactions[e.Tx] = true
	}
	if most := int(rate*time.Since(start).Seconds()) + goroutines; len(transactions) > most {
		t.Errorf("%d transactions where there was time for %d", len(transactions), most)
	}
}

func TestWriterOutlivesItsServer(t *testing.T) {
	cdctest.Long(t, "starts and stops a server")
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	url := server.URL("postgres")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: url})
	for range 5 {
		before := w.Committed()
		cdctest.Eventually(t, 20*time.Second, func() error {
			if w.Committed() < before+200 {
				return fmt.Errorf("%d committed, %d before the restart", w.Committed(), before)
			}
			return nil
		})
		if err := server.Stop(t.Context(), "immediate"); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, url, "outbox", w.Stop())
}

func TestWriterLearnsTheFateOfACommitWhoseConnectionIsCut(t *testing.T) {
	direct := cdctest.Database(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	var frames, unanswered, cut atomic.Int64
	var calm atomic.Bool
	proxy := cdctest.StartProxy(t, u.Host, func(f cdctest.Frame) cdctest.Verdict {
		n := frames.Add(1)
		switch {
		case calm.Load():
		case f.FromServer && f.Type == 'C' && string(f.Bytes[5:]) == "COMMIT\x00" && n%7 == 0: // it was committed, but the client gets no answer
			unanswered.Add(1)
			return cdctest.Lose
		case n%1009 == 0:
			cut.Add(1)
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: proxy.URL(t, direct)})
	cdctest.Eventually(t, time.Minute, func() error {
		if w.Committed() < 3000 {
			return fmt.Errorf("%d committed", w.Committed())
		}
		return nil
	})
	calm.Store(true) // the ledger is also read through the proxy
	ledger := w.Stop()
	if unanswered.Load() == 0 || cut.Load() == 0 {
		t.Errorf("%d commits unanswered, %d connections cut elsewhere: both must happen", unanswered.Load(), cut.Load())
	}
	verify(t, direct, "outbox", ledger)
}
