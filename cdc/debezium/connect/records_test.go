//go:build debezium

package connect_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

// TestRecordsSideBySide writes with several writers to one table, which Debezium and walpost read at the same time, and
// compares the records of each partition one by one: key, value and headers. A run's id and the time of reading differ.
func TestRecordsSideBySide(t *testing.T) {
	json := "org.apache.kafka.connect.json.JsonConverter"
	binary, brokers := buildWalpost(t), connect.FakeKafka(t)
	for name, both := range map[string]map[string]string{
		"strings": {},
		"envelope with schemas": {
			"key.converter": json, "value.converter": json,
			"transforms.outbox.table.fields.additional.placement": "type:header:eventType,aggregatetype:envelope,aggregateid:envelope:key",
		},
		"expanded": {
			"value.converter": json, "value.converter.schemas.enable": "false", "transforms.outbox.table.expand.json.payload": "true",
			"transforms.outbox.route.tombstone.on.empty.payload": "true",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, brokers, binary)
			r.both = both
			d := r.newDebezium(nil, nil, nil)
			if err := d.worker.Put("outbox", d.config); err != nil {
				t.Fatal(err)
			}
			sides := []side{d}
			for _, delivery := range []string{"at_least_once", "exactly_once"} {
				w := r.newWalpost(delivery, delivery)
				w.begin()
				sides = append(sides, w)
			}
			for _, s := range sides {
				s.up()
			}
			n := r.write(4, 150)
			for _, s := range sides {
				cdctest.Eventually(t, time.Minute, func() error {
					if found := len(r.records(s)); found != n {
						return fmt.Errorf("%s: %d of %d records", s.label(), found, n)
					}
					return nil
				})
			}
			want := r.records(d)
			for _, s := range sides[1:] {
				compare(t, s.label(), r.records(s), want)
			}
			t.Logf("%d records are equal, apart from the run's id and the timestamp", n)
		})
	}
}

// write runs writers that commit transactions of 1 to 20 rows, update and delete some of them, and roll every tenth
// transaction back. It returns the number of rows that were inserted and committed.
func (r *rig) write(writers, transactions int) (rows int) {
	r.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	payloads := []string{`{"a": 1, "b": {"c": "é😀"}, "d": [1, 2]}`, `{}`, `{"n": null, "x": 1.50}`, `{"deep": {"er": {"list": ["x", "y"]}}}`, `"text"`, `[]`}
	for w := range writers {
		conn := e2e.ConnectTo(r, r.url)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range transactions {
				tx, err := conn.Begin(r.Context())
				if err != nil {
					r.Error(err)
					return
				}
				n := 1 + (i*7+w)%20
				for row := range n {
					var payload any = payloads[(i+row)%len(payloads)]
					if (i+row)%11 == 0 {
						payload = nil
					}
					if _, err := tx.Exec(r.Context(), `INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', $1, $2, $3)`,
						fmt.Sprintf("ключ-%d-%d", w, (i+row)%37), fmt.Sprintf("Type%d", row), payload); err != nil {
						r.Error(err)
						return
					}
				}
				switch {
				case i%10 == 9:
					err = tx.Rollback(r.Context())
					n = 0
				case i%10 == 5:
					_, err = tx.Exec(r.Context(), "UPDATE outbox SET type = 'x' WHERE aggregateid = $1", fmt.Sprintf("ключ-%d-1", w))
					if err == nil {
						err = tx.Commit(r.Context())
					}
				case i%10 == 7:
					_, err = tx.Exec(r.Context(), "DELETE FROM outbox WHERE aggregateid = $1", fmt.Sprintf("ключ-%d-2", w))
					if err == nil {
						err = tx.Commit(r.Context())
					}
				default:
					err = tx.Commit(r.Context())
				}
				if err != nil {
					r.Error(err)
					return
				}
				mu.Lock()
				rows += n
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return rows
}

// records returns the records of a side's topic in the order of partitions and offsets.
func (r *rig) records(s side) []*kgo.Record {
	r.Helper()
	records := cdctest.ReadAll(r, r.brokers, s.topic())
	sorted(records)
	return records
}

// compare fails the test unless both have equal records.
func compare(t *testing.T, label string, got, want []*kgo.Record) {
	t.Helper()
	extra, bad := map[string]int{}, 0
	text := func(r *kgo.Record, all bool) string {
		c := newCaseRecord(r, time.Time{}, time.Now().Add(time.Hour))
		c.Topic = ""
		c.Headers = slices.DeleteFunc(c.Headers, func(h [2]jsonText) bool {
			if all {
				return false
			}
			name := string(h[0])
			if strings.HasPrefix(name, `"__debezium.`) || slices.Contains([]string{`"id"`, `"eventType"`}, name) {
				return false
			}
			extra[name]++
			return true
		})
		return string(compact(c))
	}
	for i := range min(len(got), len(want)) {
		if g, w := text(got[i], false), text(want[i], true); g != w {
			if bad++; bad <= 3 {
				t.Errorf("%s, record %d:\n%s\nDebezium:\n%s", label, i, g, w)
			}
		}
	}
	if len(got) != len(want) || bad > 0 {
		t.Errorf("%s: %d records, Debezium %d; %d of them differ", label, len(got), len(want), bad)
	}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		t.Logf("%s: %d records have the further header %s", label, extra[name], name)
	}
}
