package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// dlqStage publishes one row of each of three keys, and makes three dead letters: 1 and 4 are too large and have the
// same key, 3 has another. With hold_key, 2 is held for 1.
func dlqStage(t *testing.T, env map[string]string) *testbed {
	t.Helper()
	s := newTestbed(t)
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	for k, v := range env {
		s.Env[k] = v
	}
	s.MustRun("init")
	s.LimitTopic("3000")
	s.StartRelay()
	for i, row := range []struct {
		key   string
		large bool
	}{{"k", true}, {"k", false}, {"j", true}, {"k", true}, {"i", false}} {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, headers) VALUES ($1, 'order', $2, 'OrderPaid', jsonb_build_object('text', repeat('y', $3::int)), '{"trace": "t"}')`,
			event(i+1), row.key, map[bool]int{true: 5000}[row.large])
	}
	s.WaitUntilConfirmed(20 * time.Second)
	return s
}

func event(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

// short returns the last digits of the ids on the topic.
func short(ids []string) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(strings.TrimLeft(id[24:], "0") + " ")
	}
	return strings.TrimSpace(b.String())
}

func (s *testbed) countUnresolved() string {
	s.T.Helper()
	var ids []string
	for _, e := range s.DeadLetters() {
		ids = append(ids, string(e.Letter.Row.ID))
	}
	return short(ids)
}

// eventsOfKey returns the ids of a key's events on the topic, in order.
func (s *testbed) eventsOfKey(key string) string {
	s.T.Helper()
	var ids []string
	for _, r := range cdctest.ReadAll(s.T, s.Brokers, s.Topic) {
		if string(r.Key) == key {
			ids = append(ids, e2e.Header(r, "id"))
		}
	}
	return short(ids)
}

// TestDLQRedrive: a redriven record is the one that the row would have had, with its id and key, and one more header. A
// dead letter that is rejected again stays, with a sentence.
func TestDLQRedrive(t *testing.T) {
	t.Parallel()
	s := dlqStage(t, nil)
	if got := s.countUnresolved(); got != "1 3 4" {
		t.Fatalf("unresolved: %s", got)
	}
	list := s.MustRun("dlq", "list")
	for _, want := range []string{event(1), "order/k", "OrderPaid", "topic " + s.Topic + " takes 3000"} {
		if !strings.Contains(list, want) {
			t.Errorf("list lacks %s:\n%s", want, list)
		}
	}
	if lines := strings.Count(s.MustRun("dlq", "list", "--json"), "\n"); lines != 3 {
		t.Errorf("%d lines of JSON", lines)
	}
	var shown struct {
		Key string `json:"key"`
		Row struct {
			Payload string `json:"payload"`
		} `json:"row"`
	}
	if err := json.Unmarshal([]byte(s.MustRun("dlq", "show", event(3))), &shown); err != nil || len(shown.Row.Payload) < 5000 || !strings.HasSuffix(shown.Key, event(3)) {
		t.Errorf("show: %v, key %s, %d bytes of payload", err, shown.Key, len(shown.Row.Payload))
	}
	if out, err := s.Run("dlq", "redrive", event(3)); err == nil || !strings.Contains(out, "still rejected") || !strings.Contains(err.Error(), "fix the cause") {
		t.Errorf("redrive before it is fixed: %v\n%s", err, out)
	}
	s.LimitTopic("1048588")
	if out, err := s.Run("dlq", "redrive", event(4)); err == nil || !strings.Contains(err.Error(), event(1)+" of the same key") {
		t.Errorf("redrive of a later one of a key: %v\n%s", err, out)
	}
	if out := s.MustRun("dlq", "redrive", "--dry-run", "--all"); strings.Count(out, "would be redriven") != 3 || s.countUnresolved() != "1 3 4" {
		t.Errorf("a dry run did something: %s\n%s", s.countUnresolved(), out)
	}
	out := s.MustRun("dlq", "redrive", shown.Key)
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		if want := fmt.Sprintf("redriven %s to %s, partition %d, offset %d\n", shown.Key, s.Topic, r.Partition, r.Offset); e2e.Header(r, "id") == event(3) && out != want {
			t.Errorf("%s, want %s", out, want)
		}
	}
	s.MustRun("dlq", "redrive", "--all")
	if got := s.countUnresolved(); got != "" {
		t.Errorf("left: %s", got)
	}
	if k, j := s.eventsOfKey("k"), s.eventsOfKey("j"); k != "2 1 4" || j != "3" {
		t.Errorf("on the topic: k %s, j %s", k, j)
	}
	for _, r := range cdctest.ReadAll(t, s.Brokers, s.Topic) {
		id := e2e.Header(r, "id")
		if redriven := e2e.Header(r, "redriven") != ""; redriven != strings.Contains(event(1)+event(3)+event(4), id) {
			t.Errorf("%s: redriven %v", id, redriven)
		}
		for _, h := range []string{"type", "lsn", "seq", "source", "created_at", "trace"} {
			if e2e.Header(r, h) == "" {
				t.Errorf("%s lacks the header %s", id, h)
			}
		}
	}
	if out := s.MustRun("dlq", "list"); !strings.Contains(out, "no dead letters") {
		t.Errorf("%s", out)
	}
}

// TestDLQRedriveOfAHeldKey: redrive ends the key hold of a running relay, in order and without a restart.
func TestDLQRedriveOfAHeldKey(t *testing.T) {
	t.Parallel()
	s := dlqStage(t, map[string]string{"WALPOST_POISON_HOLD_KEY": "true"})
	if got := s.countUnresolved(); got != "1 2 3 4" {
		t.Fatalf("unresolved: %s", got)
	}
	s.LimitTopic("1048588")
	if _, err := s.Run("dlq", "redrive", event(2)); err == nil || !strings.Contains(err.Error(), event(1)+" of the same key") {
		t.Errorf("a held row was redriven before what it waits for: %v", err)
	}
	if out := s.MustRun("dlq", "redrive", event(1)); strings.Count(out, "redriven") != 2 {
		t.Errorf("redrive of 1 takes what was held behind it with it, and no more:\n%s", out)
	}
	insert := func(n int) {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', '{}')`, event(n))
		s.WaitUntilConfirmed(20 * time.Second)
	}
	insert(6) // 4 still holds the key
	s.MustRun("dlq", "redrive", event(4))
	insert(7)
	if k, left := s.eventsOfKey("k"), s.countUnresolved(); k != "1 2 4 6 7" || left != "3" {
		t.Errorf("k %s, unresolved %s", k, left)
	}
}

// TestDLQDrop: drop asks for confirmation, and reports the dead letters that were held.
func TestDLQDrop(t *testing.T) {
	t.Parallel()
	s := dlqStage(t, map[string]string{"WALPOST_POISON_HOLD_KEY": "true"})
	if out, err := s.Run("dlq", "drop", event(1)); err == nil || !strings.Contains(out, "never be published") || s.countUnresolved() != "1 2 3 4" {
		t.Errorf("drop did not ask: %v\n%s", err, out)
	}
	if out := s.MustRun("dlq", "drop", "--dry-run", event(1)); !strings.Contains(out, "would be dropped") || s.countUnresolved() != "1 2 3 4" {
		t.Errorf("%s", out)
	}
	if out := s.MustRun("dlq", "drop", "--yes", event(1)); !strings.Contains(out, "dlq redrive") {
		t.Errorf("drop does not say that a row waits:\n%s", out)
	}
	s.MustRun("dlq", "redrive", event(2))
	s.MustRun("dlq", "drop", "--yes", "--all")
	if k, left := s.eventsOfKey("k"), s.countUnresolved(); k != "2" || left != "" {
		t.Errorf("k %s, unresolved %s", k, left)
	}
	for _, args := range [][]string{{"dlq", "drop"}, {"dlq", "redrive", event(1)}, {"dlq", "redrive", "--all", event(1)}, {"dlq", "show", "nonsense"}} {
		if _, err := s.Run(args...); err == nil || !strings.Contains(err.Error(), "dlq list") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestDLQOfAPipelineWithoutOne: no topic, no dead letters, no error.
func TestDLQOfAPipelineWithoutOne(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	if out := s.MustRun("dlq", "list"); !strings.Contains(out, "no dead letters") {
		t.Errorf("%s", out)
	}
}

// TestDLQInExactlyOnce: a dead letter and the state record are one transaction, and redrive is not in the relay's way.
func TestDLQInExactlyOnce(t *testing.T) {
	t.Parallel()
	s := dlqStage(t, map[string]string{"WALPOST_DELIVERY": "exactly_once", "WALPOST_POISON_HOLD_KEY": "true"})
	s.LimitTopic("1048588")
	s.MustRun("dlq", "redrive", "--all")
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', '{}')`, event(6))
	s.WaitUntilConfirmed(20 * time.Second)
	if k, j, left := s.eventsOfKey("k"), s.eventsOfKey("j"), s.countUnresolved(); k != "1 2 4 6" || j != "3" || left != "" {
		t.Errorf("k %s, j %s, unresolved %s", k, j, left)
	}
}
