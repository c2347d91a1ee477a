package debezium_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/debezium"
	"github.com/walpost/walpost/cdc/pipeline"
)

// recording is what Debezium made of some rows: testdata/cases/*.json, and others in testdata/more.
type recording struct {
	About   string
	Config  map[string]string // over base.json
	DDL     []string
	Before  []string // after the slot was made
	SQL     []string
	Expect  *int // records that were waited for; nil: one for each statement
	Outcome string
	Records []recordedRecord
}

type recordedRecord struct {
	Topic      string
	Partition  *int32 // nil: the hash of the key
	Key, Value recordedBytes
	Timestamp  any // clock, or milliseconds
	Headers    [][2]recordedBytes
}

// recordedBytes is a key, a value or a header.
type recordedBytes struct {
	any, null bool
	bytes     []byte
	length    int
	sha256    string
}

// UnmarshalJSON reads the forms that a recording has for bytes.
func (b *recordedBytes) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		b.null = true
	case string:
		b.bytes = []byte(v)
	case map[string]any:
		if _, b.any = v["any"]; b.any {
			return nil
		}
		if hash, ok := v["sha256"].(string); ok {
			b.sha256, b.length = hash, int(v["length"].(float64))
			return nil
		}
		var of struct{ Base64 []byte }
		if err := json.Unmarshal(data, &of); err != nil {
			return err
		}
		b.bytes = of.Base64
	}
	return nil
}

// differs returns how bytes differ from what was recorded; empty if they do not.
func (b *recordedBytes) differs(what string, got []byte) string {
	sum := sha256.Sum256(got)
	switch {
	case b.any:
		return ""
	case b.sha256 != "":
		if len(got) == b.length && hex.EncodeToString(sum[:]) == b.sha256 {
			return ""
		}
		return fmt.Sprintf("%s has %d bytes, want %d with another hash; ", what, len(got), b.length)
	case b.null != (got == nil) || string(b.bytes) != string(got):
		return fmt.Sprintf("%s\n     is %q (null: %v)\n   want %q (null: %v); ", what, got, got == nil, b.bytes, b.null)
	}
	return ""
}

// differs returns how a record differs from the recorded one.
func (w *recordedRecord) differs(got *kgo.Record, begin time.Time) (d string) {
	if got.Topic != w.Topic {
		d = fmt.Sprintf("topic %s, want %s; ", got.Topic, w.Topic)
	}
	if w.Partition != nil && !w.Key.null && got.Partition != *w.Partition {
		d += fmt.Sprintf("partition %d, want %d; ", got.Partition, *w.Partition)
	}
	d += w.Key.differs("key", got.Key) + w.Value.differs("value", got.Value)
	switch ms := got.Timestamp.UnixMilli(); at := w.Timestamp.(type) {
	case float64:
		if ms != int64(at) {
			d += fmt.Sprintf("timestamp %d, want %d; ", ms, int64(at))
		}
	default:
		if got.Timestamp.Before(begin.Truncate(time.Millisecond)) || got.Timestamp.After(time.Now()) {
			d += fmt.Sprintf("timestamp %s, want the clock; ", got.Timestamp)
		}
	}
	if len(got.Headers) != len(w.Headers) {
		return d + fmt.Sprintf("%d headers, want %d: %v; ", len(got.Headers), len(w.Headers), got.Headers)
	}
	for i, h := range got.Headers {
		d += w.Headers[i][0].differs("name of a header", []byte(h.Key)) + w.Headers[i][1].differs("header "+h.Key, h.Value)
	}
	return d
}

// different lists the recordings whose records are not equal, each with the reason and what a consumer sees.
// cdc/debezium/README.md has the same list.
var different = map[string]string{
	"route-regex-lookahead": "RE2 has neither lookahead nor possessive quantifiers: the relay does not start and names the construct; no consumer sees anything else",
}

// TestRecordings runs each recording through a relay and compares the records with Debezium's: topic, partition, key,
// value, headers, timestamp. Where Debezium's task failed or stalled, the relay must refuse to start or halt.
func TestRecordings(t *testing.T) {
	if os.Getenv("WALPOST_TEST_KAFKA") != "" {
		t.Skip("every recording has topics of the same names, and needs a Kafka alone")
	}
	files, err := filepath.Glob("testdata/cases/*.json")
	more, _ := filepath.Glob("testdata/more/*.json")
	files = append(files, more...)
	if err != nil || len(files) < 71 {
		t.Fatal(len(files), err)
	}
	base := map[string]string{}
	read(t, "testdata/base.json", &base)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r recording
			read(t, file, &r)
			problem := r.play(t, base)
			if reason, known := different[name]; known {
				if problem == "" {
					t.Errorf("it is equal now, and stands in the list of those that are not: %s", reason)
				}
				return
			}
			if problem != "" {
				t.Error(problem)
			}
		})
	}
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(file, err)
	}
}

// options returns the connector's properties that are options of a pipeline.
func (r *recording) options(base map[string]string) config.Debezium {
	options, names := config.Debezium{}, debezium.Names()
	for _, properties := range []map[string]string{base, r.Config} {
		for name, value := range properties {
			name = strings.TrimPrefix(name, "transforms.outbox.")
			if slices.Contains(names, name) {
				options[name] = value
			}
		}
	}
	return options
}

// play runs the recording, and returns what was different; empty: nothing.
func (r *recording) play(t *testing.T, base map[string]string) string {
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.URL, cfg.Source.Slot, cfg.Source.Publication = cdctest.Name(t, "recorded"), cdctest.Database(t), cdctest.SlotName(t, "recorded"), "dbz_pub"
	cfg.Kafka.Brokers, cfg.Kafka.Replication, cfg.Debezium = cdctest.Kafka(t), 1, r.options(base)
	conn, err := pgx.Connect(t.Context(), cfg.Source.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	exec := func(sql string) {
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(strings.Join(r.DDL, "\n"))
	exec("CREATE PUBLICATION dbz_pub FOR TABLE outbox")
	refused := func(err error) string {
		if r.Outcome != "ok" {
			t.Logf("refused, as Debezium fails: %v", err)
			return ""
		}
		return fmt.Sprintf("refused: %v", err)
	}
	p, err := pipeline.New(cfg, pipeline.Options{})
	if err != nil {
		return refused(err)
	}
	topics := []string{"outbox.event.User"}
	for _, record := range r.Records {
		if !slices.Contains(topics, record.Topic) {
			topics = append(topics, record.Topic)
		}
	}
	for _, topic := range topics {
		cdctest.CreateTopic(t, cfg.Kafka.Brokers, topic, 3)
	}
	of := func(publication bool) { // the slot is made after what changes the publication, and before rows
		for _, sql := range r.Before {
			if strings.Contains(sql, "publication") == publication {
				exec(sql)
			}
		}
	}
	of(true)
	if _, err := p.Init(t.Context(), pipeline.InitOptions{AdminURL: cfg.Source.URL}); err != nil {
		return refused(err)
	}
	of(false)
	begin := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-ended; err != nil && r.Outcome == "ok" {
			t.Errorf("the relay ended: %v", err)
		}
	}
	for _, sql := range r.SQL {
		exec(sql)
	}
	var why error
	cdctest.Eventually(t, 30*time.Second, func() error {
		var role cdc.Role
		if role, why = p.Role(); role == cdc.Halted {
			return nil
		}
		if why = nil; r.Outcome != "ok" {
			return fmt.Errorf("it is %s, and must halt", role)
		}
		if n := p.Status(t.Context()).Published; int(n) < len(r.Records) {
			return fmt.Errorf("%d records, want %d", n, len(r.Records))
		}
		return nil
	})
	stop()
	if r.Outcome != "ok" {
		t.Logf("halted, as Debezium fails: %v", why)
	} else if why != nil {
		return fmt.Sprintf("halted: %v", why)
	}
	var got []*kgo.Record
	for _, topic := range topics {
		got = append(got, cdctest.ReadAll(t, cfg.Kafka.Brokers, topic)...)
	}
	return r.compare(got, begin)
}

// compare returns how the records differ. Order counts within a partition.
func (r *recording) compare(got []*kgo.Record, begin time.Time) string {
	slices.SortStableFunc(got, func(a, b *kgo.Record) int {
		if c := strings.Compare(a.Topic, b.Topic); c != 0 {
			return c
		}
		return int(a.Partition - b.Partition)
	})
	if len(got) != len(r.Records) && r.Outcome == "ok" {
		return fmt.Sprintf("%d records, want %d", len(got), len(r.Records))
	}
	var problems []string
	left := slices.Clone(r.Records)
	for _, record := range got {
		var closest string
		found := slices.IndexFunc(left, func(w recordedRecord) bool {
			d := w.differs(record, begin)
			if closest == "" || len(d) < len(closest) {
				closest = d
			}
			return d == ""
		})
		switch {
		case found >= 0:
			left = slices.Delete(left, found, found+1)
		case r.Outcome == "ok" || closest != "":
			problems = append(problems, fmt.Sprintf("a record of %s differs: %s", record.Topic, closest))
		}
	}
	return strings.Join(problems, "\n")
}
