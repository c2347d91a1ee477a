package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

// command runs one of the program's commands and returns what it wrote.
func (s *service) command(args ...string) (string, error) {
	var out bytes.Buffer
	err := watched(s.Context(), args, s.getenv, &out, io.Discard)
	return out.String(), err
}

// TestParkedAndReplayedByCommand plays the story of an order whose payment cannot be read: its cancellation waits,
// other orders continue, and an operator finds it, fixes it and replays.
func TestParkedAndReplayedByCommand(t *testing.T) {
	cdctest.Long(t, "is a story of many commands")
	t.Parallel()
	s := newService(t)
	if _, err := s.conn.Exec(t.Context(), `INSERT INTO stock VALUES ('tea', 10)`); err != nil {
		t.Fatal(err)
	}
	// A CHECK that a release has forgotten rejects the row; it is fixed later.
	if _, err := s.conn.Exec(t.Context(), `ALTER TABLE stock_movements ADD CONSTRAINT never_3 CHECK (change <> -3)`); err != nil {
		t.Fatal(err)
	}
	order := uuid.NewString()
	begun := time.Now().UTC().Format(time.RFC3339Nano)
	poisoned := s.event("OrderPaid", uuid.NewString(), map[string]int{"tea": 1})
	poisoned.Value = []byte(`{"eventId":`)
	for _, r := range []*kgo.Record{
		s.event("OrderPaid", order, map[string]int{"tea": 3}), s.event("OrderCancelled", order, map[string]int{"tea": 3}),
		s.event("OrderPaid", uuid.NewString(), map[string]int{"tea": 4}), s.event("OrderGiftWrapped", uuid.NewString(), nil), poisoned,
	} {
		if err := s.client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	p := s.start()
	s.ready()
	cdctest.Eventually(t, 30*time.Second, func() error {
		if at := s.committedSum(); at != 5 {
			return errors.New("not consumed yet")
		}
		return nil
	})
	if n := s.number(`SELECT available FROM stock`); n != 6 {
		t.Errorf("%d in stock: no event is before the third", n)
	}

	list, err := s.command("parked", "list")
	for _, want := range []string{
		`OrderPaid +` + order + ` .*PostgreSQL refuses it: SQLSTATE 23514 never_3`, `OrderCancelled +` + order + ` .*an earlier event of its key is parked`,
		`unknown type OrderGiftWrapped`, `not JSON, at byte 11`,
	} {
		if err != nil || !regexp.MustCompile(want).MatchString(list) {
			t.Errorf("no %q in the list (%v):\n%s", want, err, list)
		}
	}
	status, body, err := s.ask("GET", "/parked?limit=1", "")
	if err != nil || status != 200 || !strings.Contains(body, `"status":"parked"`) || !strings.Contains(body, `"next":"1"`) || strings.Contains(body, "value") {
		t.Errorf("GET /parked: %d %s (%v)", status, body, err)
	}
	if status, body, err := s.ask("GET", "/blocked", ""); err != nil || status != 200 || body != "{\"items\":[]}\n" {
		t.Errorf("GET /blocked: %d %s (%v)", status, body, err)
	}
	if status, _, err := s.ask("GET", "/parked?after=x", ""); err != nil || status != 400 {
		t.Errorf("a wrong page: %d (%v)", status, err)
	}
	id := regexp.MustCompile(`(?m)^(\d+) .* ` + order + ` .*never_3$`).FindStringSubmatch(list)[1]
	var shown struct{ Value []byte }
	if out, err := s.command("parked", "show", id); err != nil || json.Unmarshal([]byte(out), &shown) != nil || !strings.Contains(string(shown.Value), order) {
		t.Errorf("show: %s (%v)", out, err)
	}

	if _, err := s.conn.Exec(t.Context(), `ALTER TABLE stock_movements DROP CONSTRAINT never_3`); err != nil {
		t.Fatal(err)
	}
	if out, err := s.command("parked", "redrive", "--dry-run", id); err != nil || strings.Count(out, "applied ") != 2 || !strings.Contains(out, "dry run") {
		t.Errorf("dry run: %s (%v)", out, err)
	}
	if out, err := s.command("parked", "redrive", id); err != nil || strings.Count(out, "applied ") != 2 {
		t.Errorf("redrive: %s (%v)", out, err)
	}
	if n := s.number(`SELECT count(*) FROM stock_movements WHERE order_id = $1 AND reason IN ('sold', 'returned')`, order); n != 2 {
		t.Errorf("%d movements of the order", n)
	}
	if out, err := s.command("parked", "redrive", "--all"); err == nil || !strings.Contains(err.Error(), "2 parked events stay") || strings.Count(out, "stays ") != 2 {
		t.Errorf("the others: %s (%v)", out, err)
	}
	if _, err := s.command("parked", "drop"); err == nil || !strings.Contains(err.Error(), "--all") {
		t.Errorf("drop of nothing: %v", err)
	}
	if out, err := s.command("parked", "drop", "--all"); err != nil || strings.Count(out, "dropped ") != 2 {
		t.Errorf("drop: %s (%v)", out, err)
	}
	if _, err := s.command("parked", "pass", "0", "5"); err == nil || !strings.Contains(err.Error(), "inventory parked list") {
		t.Errorf("pass of a partition that is not blocked: %v", err)
	}
	if out, err := s.command("parked", "decisions"); err != nil || strings.Count(out, "\n") != 4 || strings.Count(out, "redrive: ") != 2 {
		t.Errorf("decisions: %s (%v)", out, err)
	}

	out, err := s.command("replay", "--from", begun, "--dry-run")
	if err != nil || !strings.Contains(out, "0 events would be new, 4 the inbox will skip") && !strings.Contains(out, "0 events would be new, 3 the inbox will skip") {
		t.Errorf("replay: %s (%v)", out, err)
	}
	if _, err := s.command("replay", "--from", begun); err == nil || !strings.Contains(err.Error(), "stop the consumers") {
		t.Errorf("replay under a running consumer: %v", err)
	}
	s.terminate(p)
	if out, err := s.command("replay", "--from", begun); err != nil || s.committedSum() != 0 {
		t.Errorf("replay: %s (%v), offsets %v", out, err, s.committed())
	}
	for _, wrong := range [][]string{{"replay"}, {"replay", "--from", "yesterday"}, {"replay", "--from", begun, "--offset", "1"}} {
		if _, err := s.command(wrong...); err == nil || !strings.Contains(err.Error(), "2026-11-01T00:00Z") {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}
