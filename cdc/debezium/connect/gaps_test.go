//go:build debezium

package connect_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

// gap is something that hides rows from the reader of a slot.
type gap struct {
	name string
	// do hides rows whose keys begin with hidden. The side runs before and afterwards.
	do func(r *rig, s side)
	// hidden is the number of those rows.
	hidden int
	// debezium is the number of them that Debezium delivers.
	debezium int
}

var gaps = []gap{
	{"slot_advanced", func(r *rig, s side) {
		s.end()
		r.insert("hidden", 5)
		r.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.slot())
		s.begin()
	}, 5, 0},
	{"table_out_of_the_publication_and_in_again", func(r *rig, _ side) {
		r.exec("ALTER PUBLICATION dbz_pub DROP TABLE outbox")
		r.insert("hidden", 5)
		r.exec("ALTER PUBLICATION dbz_pub ADD TABLE outbox")
	}, 5, 0},
	{"table_swapped_by_rename", func(r *rig, _ side) {
		r.exec("BEGIN; ALTER TABLE outbox RENAME TO outbox_old; CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL); COMMIT")
		r.insert("hidden", 5)
	}, 5, 0},
	{"copy_over_a_restart", func(r *rig, s side) { r.overARestart(s, func() { r.copy("hidden", rowsOverARestart) }) }, rowsOverARestart, -1},
	{"inserts_over_a_restart", func(r *rig, s side) {
		r.overARestart(s, func() {
			r.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'hidden-' || i, 'T', '{}' FROM generate_series(1, $1) i`, rowsOverARestart)
		})
	}, rowsOverARestart, -1},
}

const rowsOverARestart = 40_000

// TestSilentGaps hides rows from Debezium and from walpost, and prints what each of them says, and what is missing in Kafka
// afterwards. walpost must deliver the rows, or halt and name the cause.
//
//	go test -tags debezium ./cdc/debezium/connect -run TestSilentGaps -v
func TestSilentGaps(t *testing.T) {
	binary, brokers := buildWalpost(t), connect.FakeKafka(t)
	for _, g := range gaps {
		t.Run(g.name, func(t *testing.T) {
			t.Run("Debezium", func(t *testing.T) {
				t.Parallel()
				r := newRig(t, brokers, binary)
				d := r.newDebezium(nil, map[string]string{"offset.flush.interval.ms": "1000"}, nil)
				if err := d.worker.Put("outbox", d.config); err != nil {
					t.Fatal(err)
				}
				r.hide(d, g)
			})
			t.Run("walpost", func(t *testing.T) {
				t.Parallel()
				r := newRig(t, brokers, binary)
				w := r.newWalpost("walpost", "at_least_once")
				w.begin()
				r.hide(w, g)
			})
		})
	}
}

// hide lets a gap happen to a side, and prints what it says and delivers.
func (r *rig) hide(s side, g gap) {
	r.Helper()
	s.up()
	r.insert("before", 5)
	cdctest.Eventually(r, time.Minute, func() error { return r.has(s, "before", 5) })
	log := len(s.said())
	g.do(r, s)
	r.insert("after", 5)
	halted := false
	end := time.Now().Add(cdctest.Patience(30 * time.Second))
	for err := errors.New(""); err != nil && !halted && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		err = errors.Join(r.has(s, "after", 5), r.has(s, "hidden", g.hidden))
		if r.has(s, "after", 5) == nil && err != nil && time.Until(end) > 5*time.Second {
			end = time.Now().Add(5 * time.Second) // rows behind the hidden ones are there, so they hardly come
		}
		_, isWalpost := s.(*walpost)
		halted = isWalpost && strings.Contains(s.said()[log:], `"message":"halted`)
	}
	hidden, after := r.keys(s, "hidden"), r.keys(s, "after")
	r.Logf("%s: %d of %d hidden rows and %d of 5 later rows are in Kafka; halted: %v", s.label(), hidden, g.hidden, after, halted)
	r.Logf("%s says:\n%s", s.label(), complaints(s.said()[log:]))
	if d, ok := s.(*debezium); ok {
		status, err := d.worker.Status("outbox")
		r.Logf("its state: %+v %v", status, err)
		if g.debezium >= 0 && hidden != g.debezium {
			r.Errorf("Debezium delivered %d of the hidden rows, and %d before: the page says something else", hidden, g.debezium)
		}
		return
	}
	if !halted && hidden < g.hidden {
		r.Error("walpost lost rows without a word")
	}
	if halted {
		out, _ := s.(*walpost).run("status")
		r.Logf("walpost status:\n%s", out)
	}
}

// insert inserts n rows with keys NAME-1 and so on, one a transaction.
func (r *rig) insert(name string, n int) {
	r.Helper()
	for i := range n {
		r.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', $1, 'T', '{}')`, fmt.Sprintf("%s-%d", name, i+1))
	}
}

// copy inserts n rows by COPY. They come with ids, because a table whose default is called for each row takes one row at a
// time: only without that are many rows in one record of the WAL.
func (r *rig) copy(name string, n int) {
	r.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s\torder\t%s-%d\tT\t{}\n", uuid.New(), name, i+1)
	}
	if _, err := r.conn.PgConn().CopyFrom(r.Context(), strings.NewReader(b.String()), "COPY outbox (id, aggregatetype, aggregateid, type, payload) FROM STDIN"); err != nil {
		r.Fatal(err)
	}
}

// overARestart ends a side in order while it delivers the rows that write commits, and starts it again.
func (r *rig) overARestart(s side, write func()) {
	r.Helper()
	before := r.ends(s.topic())
	write()
	cdctest.Eventually(r, time.Minute, func() error {
		if n := r.ends(s.topic()) - before; n < 500 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	s.end()
	r.Logf("%s was ended after %d of %d rows", s.label(), r.ends(s.topic())-before, rowsOverARestart)
	s.begin()
}

// keys returns how many different keys in a side's topic begin with name.
func (r *rig) keys(s side, name string) int {
	r.Helper()
	if r.ends(s.topic()) == 0 {
		return 0
	}
	seen := map[string]bool{}
	for _, record := range cdctest.ReadAll(r, r.brokers, s.topic(), kgo.FetchMaxBytes(16<<20)) {
		if strings.HasPrefix(string(record.Key), name+"-") {
			seen[string(record.Key)] = true
		}
	}
	return len(seen)
}

// has returns nil if n keys in a side's topic begin with name.
func (r *rig) has(s side, name string, n int) error {
	r.Helper()
	if found := r.keys(s, name); found < n {
		return fmt.Errorf("%s: %d of %d %s rows", s.label(), found, n, name)
	}
	return nil
}

var severe = regexp.MustCompile(`^[0-9:.]+ ((?:WARN|ERROR) .*)`)

// complaints returns the warnings and errors of a log, and walpost's line about a halt, each once.
func complaints(log string) string {
	var said []string
	times := map[string]int{}
	for line := range strings.Lines(log) {
		var entry struct{ Level, Message string }
		text := strings.TrimSpace(line)
		if m := severe.FindStringSubmatch(text); m != nil {
			text = m[1]
		} else if json.Unmarshal([]byte(line), &entry) != nil || entry.Level != "warn" && entry.Level != "error" && !strings.HasPrefix(entry.Message, "halted") {
			continue
		}
		if times[text]++; times[text] == 1 {
			said = append(said, text)
		}
	}
	if len(said) == 0 {
		return "nothing"
	}
	for i, text := range said {
		if n := times[text]; n > 1 {
			said[i] = fmt.Sprintf("%s (%d times)", text, n)
		}
	}
	return strings.Join(said, "\n")
}
