package main

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// TestReplayFillsAGap loses rows the way an advanced slot does, and brings them back from the table: whole, in created
// order, marked, and as the stream would have rendered them.
func TestReplayFillsAGap(t *testing.T) {
	t.Parallel()
	for _, delivery := range []string{"at_least_once", "exactly_once"} {
		t.Run(delivery, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.Env["WALPOST_DELIVERY"] = delivery
			s.MustRun("init")
			r := s.StartRelay()
			s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{"ü": 1.50}', '{"h": "v", "replay": "no"}')`)
			s.WaitUntilConfirmed(20 * time.Second)
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
				SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', jsonb_build_object('n', i), clock_timestamp() + (i / 3) * interval '1 microsecond' FROM generate_series(1, 2500) i`)
			s.Exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot())
			s.MustRun("adopt")
			args := []string{"replay", "--from", time.Now().Add(-time.Hour).Format(time.RFC3339), "--to", time.Now().Add(time.Hour).Format(time.RFC3339)}
			out := s.DryRun(args...)
			if !strings.Contains(out, "2501 rows were created") || len(s.EventIDs()) != 1 {
				t.Errorf("dry run:\n%s", out)
			}
			if out := s.MustRun(args...); !strings.Contains(out, "2501 rows were published again") {
				t.Errorf("replay:\n%s", out)
			}
			records := cdctest.ReadAll(t, s.Brokers, s.Topic)
			if len(records) != 2502 || len(s.EventIDs()) != 2501 {
				t.Fatalf("%d records of %d events, want 2502 of 2501: only the first comes twice", len(records), len(s.EventIDs()))
			}
			last := map[int32]string{}
			first := map[string]string{}
			for _, r := range records {
				replayed := e2e.Header(r, "replay") != "" && e2e.Header(r, "replay") != "no"
				if replayed == (e2e.Header(r, "lsn") != "") || replayed == (e2e.Header(r, "seq") != "") {
					t.Fatalf("headers of a record: %v", r.Headers)
				}
				id, content := e2e.Header(r, "id"), string(r.Key)+string(r.Value)+e2e.Header(r, "type")+e2e.Header(r, "source")+e2e.Header(r, "created_at")+e2e.Header(r, "h")
				if before, ok := first[id]; ok && before != content {
					t.Errorf("replayed as %s, streamed as %s", content, before)
				}
				first[id] = content
				if at := e2e.Header(r, "created_at"); replayed && len(at) == len(last[r.Partition]) {
					if at < last[r.Partition] {
						t.Errorf("partition %d: %s after %s", r.Partition, at, last[r.Partition])
					}
				}
				if replayed {
					last[r.Partition] = e2e.Header(r, "created_at")
				}
			}
			if status := s.Status(); !strings.Contains(status, "replay by") {
				t.Errorf("status:\n%s", status)
			}
		})
	}
}

// TestReplaySaysWhatItRefuses: replay names the rows that it rejects, and publishes the others.
func TestReplaySaysWhatItRefuses(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) SELECT gen_random_uuid(), t, 'k', 'OrderPaid', '{}' FROM unnest('{order,invoice,order}'::text[]) t`)
	hour := time.Now().Add(-time.Hour).Format(time.RFC3339)
	later := time.Now().Add(time.Hour).Format(time.RFC3339)
	if out := s.DryRun("replay", "--from", hour, "--to", later); !strings.Contains(out, `its aggregate type "invoice" is not in kafka.aggregate_types`) ||
		!strings.HasSuffix(out, "\nnothing was published (--dry-run): 2 rows would be published, and 1 rejected\n") {
		t.Errorf("dry run:\n%s", out)
	}
	if n := len(s.EventIDs()); n != 0 {
		t.Errorf("a dry run published %d rows", n)
	}
	s.MustRefuse("1 rows were rejected", "replay", "--from", hour, "--to", later)
	if n := len(s.EventIDs()); n != 2 {
		t.Errorf("%d rows published, want the two that can be", n)
	}
	if out := s.MustRun("replay", "--from", "2001-01-01T00:00:00Z", "--to", "2001-01-02T00:00:00Z"); !strings.Contains(out, "nothing was published") || strings.Contains(out, "created at \n") {
		t.Errorf("a replay that finds nothing:\n%s", out)
	}
	s.MustRefuse("RFC 3339", "replay", "--from", "yesterday", "--to", later)
	s.MustRefuse("is not before", "replay", "--from", later, "--to", hour)
	s.Env["WALPOST_ADMIN_URL"] = ""
	s.MustRefuse("--admin-url", "replay", "--from", hour, "--to", later)
}

// TestGapStaysUntilItIsReplayed: a relay streams after an adoption that left rows behind, and status needs an operator
// until a replay has covered their time, or the operator has written down that none is missing.
func TestGapStaysUntilItIsReplayed(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	gap := regexp.MustCompile("\ngap        rows committed in (\\(.*?\\]) may be missing in Kafka: run `walpost (replay --from \\S+ --to \\S+)`.*\nblocked    by nothing\n$")
	var r *e2e.Relay
	for i, end := range []string{"", "--none-missing"} {
		if r != nil {
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		s.InsertRows(5)
		s.Exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot())
		adopted := s.MustRun("adopt")
		if last := regexp.MustCompile("\nnext: run `walpost replay --from \\S+ --to \\S+`; the relay may stream meanwhile\n$"); !last.MatchString(adopted) {
			t.Errorf("adopt does not end with the next command:\n%s", adopted)
		}
		r = s.StartRelay()
		r.WaitForLog(20*time.Second, `"streaming"`)
		out, err := s.Run("status")
		m := gap.FindStringSubmatch(out)
		if m == nil || !errors.Is(err, app.ExitError(1)) || !strings.Contains(adopted, "rows committed in "+m[1]) || !strings.Contains(adopted, m[2]) {
			t.Fatalf("%v: status shows\n%s\nafter\n%s", err, out, adopted)
		}
		s.MustRefuse("nothing was deleted, because rows committed in "+m[1]+" may be missing in Kafka", "cleanup", "--retention", "0s")
		var st pipeline.Status
		out, _ = s.Run("status", "--json")
		if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Gaps) != 1 || st.Gaps[0].Range.String() != m[1] || st.Verdict != pipeline.NeedsSomeone {
			t.Errorf("%v: status shows %+v, %s", err, st.Gaps, st.Verdict)
		}
		args := strings.Fields(m[2])
		if end != "" {
			args = append(args, end)
		}
		s.MustRun(slices.Concat(args, []string{"--dry-run"})...) // the relay streams, so more changes than a dry run may
		if _, err := s.Run("status"); err == nil {
			t.Error("a dry run ends the gap")
		}
		s.MustRun(args...)
		if out, err := s.Run("status"); err != nil || strings.Contains(out, "\ngap ") || !strings.Contains(out, "("+strings.TrimPrefix(m[2], "replay ")+")\n") {
			t.Errorf("after %v: %v\n%s", args, err, out)
		}
		if n := len(s.EventIDs()); n != 5 {
			t.Errorf("%d: %d events, want the 5 of the first gap", i, n)
		}
	}
}
