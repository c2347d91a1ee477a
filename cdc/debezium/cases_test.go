package debezium_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/debezium"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// recording is what Debezium made of some rows: testdata/cases, testdata/relay and testdata/rows.
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
	if w.Partition != nil && got.Partition >= 0 && !w.Key.null && got.Partition != *w.Partition {
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
	"route-regex-lookahead":     "RE2 has neither lookahead nor possessive quantifiers: the relay does not start and names the construct; no consumer sees anything else",
	"route-regex-lookbehind":    "the same for a lookbehind",
	"route-regex-backreference": "the same for a backreference",
	"route-regex-possessive":    "the same for an atomic group and possessive quantifiers",
}

// elsewhere lists the recordings that depend on the connector's own options, which a pipeline does not have; import
// reports them. Each has what a consumer sees.
var elsewhere = map[string]string{
	"op-skip-create":          "skipped.operations=c: Debezium publishes nothing, and the relay publishes every row",
	"op-truncate-delivered":   "skipped.operations=none: Debezium's task fails at a TRUNCATE, and the relay ignores it",
	"tables-several":          "several tables: one pipeline for each",
	"tables-several-envelope": "the same; then the schema of an envelope names the row's table, and not the first one",
	"snapshot-initial-update": "snapshot.mode=initial: Debezium publishes the rows of the table as they are then, and the relay each insert since the slot was made",
}

// TestRecordings runs recordings through a relay and compares the records with Debezium's: topic, partition, key, value,
// headers, timestamp. Where Debezium's task failed or stalled, the relay must refuse to start or halt.
func TestRecordings(t *testing.T) {
	files := recordings(t, func(r *recording, given bool) bool { return given || !r.rowsOnly() })
	base := map[string]string{}
	read(t, "testdata/base.json", &base)
	places := make(chan place, 3)
	for range cap(places) {
		kafka, err := devenv.StartKafka(devenv.KafkaConfig{}) // alone, because all recordings have topics of the same names
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(kafka.Close)
		places <- place{cdctest.Database(t), kafka.Brokers()}
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := <-places
			defer func() { places <- at }()
			defer at.clear(t)
			var r recording
			read(t, file, &r)
			problem := r.play(t, base, at)
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

// recordings returns the files of the recordings that a test takes. given: it is one of testdata/cases.
func recordings(t *testing.T, take func(r *recording, given bool) bool) (files []string) {
	t.Helper()
	for folder, least := range map[string]int{"cases": 71, "more": 270, "relay": 1, "rows": 100} {
		all, err := filepath.Glob("testdata/" + folder + "/*.json")
		if err != nil || len(all) < least {
			t.Fatal(folder, len(all), err)
		}
		for _, file := range all {
			var r recording
			read(t, file, &r)
			if elsewhere[strings.TrimSuffix(filepath.Base(file), ".json")] == "" && take(&r, folder == "cases") {
				files = append(files, file)
			}
		}
	}
	return files
}

// place is a database and a Kafka that recordings use one after another.
type place struct {
	url     string
	brokers []string
}

// clear removes what a recording has made.
func (p *place) clear(t *testing.T) {
	conn, err := pgx.Connect(context.Background(), p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`); err != nil {
		t.Error(err)
	}
	empty(t, conn)
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	topics, err := admin.ListTopics(context.Background())
	if err == nil {
		_, err = admin.DeleteTopics(context.Background(), topics.Names()...)
	}
	if err != nil {
		t.Error(err)
	}
}

// empty drops everything in the database.
func empty(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	if _, err := conn.PgConn().Exec(context.Background(), "DROP PUBLICATION IF EXISTS dbz_pub; DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP SCHEMA IF EXISTS app CASCADE").ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// TestMoreRecordings routes the rows of further recordings, which PostgreSQL prints and describes, without a relay. Their
// statements are inserts.
func TestMoreRecordings(t *testing.T) {
	files := recordings(t, func(r *recording, given bool) bool { return !given && r.rowsOnly() })
	base := map[string]string{}
	read(t, "testdata/base.json", &base)
	url, err := pgx.ParseConfig(cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	url.DefaultQueryExecMode = pgx.QueryExecModeExec // the table is another one each time
	conn, err := pgx.ConnectConfig(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			var r recording
			read(t, file, &r)
			empty(t, conn)
			problem := r.route(t, base, conn)
			if reason, known := different[name]; known != (problem != "") {
				t.Errorf("in the list of those that are not equal: %v (%s); %s", known, reason, problem)
			}
		})
	}
}

// rowsOnly reports whether the recording has inserts into public.outbox and nothing else, so that it needs no relay.
func (r *recording) rowsOnly() bool {
	for _, sql := range r.SQL {
		if sql = strings.ToLower(sql); !strings.HasPrefix(sql, "insert") && !strings.HasPrefix(sql, "alter table outbox add") {
			return false
		}
	}
	return r.Before == nil && r.Config["table.include.list"] == "" && !strings.Contains(strings.Join(r.DDL, ""), "generated always")
}

// route routes the recording's rows, and returns what was different; empty: nothing.
func (r *recording) route(t *testing.T, base map[string]string, conn *pgx.Conn) string {
	exec := func(sql string) {
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	failed := func(err error) string {
		if r.Outcome != "ok" {
			t.Logf("refused, as Debezium fails: %v", err)
			return ""
		}
		return fmt.Sprintf("refused: %v", err)
	}
	options, err := debezium.Parse(r.options(base))
	if err != nil {
		return failed(err)
	}
	var cfg config.Config
	options.Configure(&cfg)
	router := debezium.New(options)
	exec("SET TimeZone = 'UTC'; SET DateStyle = ISO")
	exec(strings.Join(r.DDL, "\n"))
	var got []*kgo.Record
	begin := time.Now()
	n := 0
	for _, sql := range r.SQL {
		exec(sql)
		for _, row := range rowsAfter(t, conn, n, &cfg.Source.Columns) {
			n++
			row.Position = cdc.Position{Commit: cdc.LSN(n), Ordinal: 1}
			var rec cdc.Record
			if err := router.Route(row, &rec); err != nil {
				if errors.As(err, new(*cdc.RejectedError)) {
					return failed(err)
				}
				return err.Error()
			}
			one := &kgo.Record{Topic: rec.Topic, Key: rec.Key, Value: rec.Value, Timestamp: rec.Timestamp, Partition: -1}
			if rec.Placed {
				one.Partition = rec.Partition
			}
			if one.Timestamp.IsZero() {
				one.Timestamp = begin
			}
			for _, h := range rec.Headers {
				one.Headers = append(one.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
			}
			got = append(got, one)
		}
	}
	if r.Outcome != "ok" {
		return "no row is rejected, and Debezium's task fails"
	}
	return r.compare(got, begin)
}

// rowsAfter returns the rows after the first n, with the description of their columns.
func rowsAfter(t *testing.T, conn *pgx.Conn, n int, names *config.Columns) []*cdc.Row {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		WITH RECURSIVE kind AS (
			SELECT a.attnum, t.oid, t.typtype, t.typbasetype, a.atttypmod AS modifier, t.typtypmod FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = 'outbox'::regclass AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL
			SELECT k.attnum, t.oid, t.typtype, t.typbasetype, k.typtypmod, t.typtypmod FROM kind k JOIN pg_type t ON t.oid = k.typbasetype WHERE k.typtype = 'd'
		)
		SELECT a.attname::text, CASE WHEN k.oid < 16384 THEN k.oid ELSE 0 END, k.oid <> a.atttypid, format_type(k.oid, k.modifier), k.modifier, a.attnotnull,
			coalesce(pg_get_expr(d.adbin, d.adrelid), ''), (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = k.oid)
		FROM pg_attribute a JOIN kind k ON k.attnum = a.attnum AND k.typtype <> 'd' LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		WHERE a.attrelid = 'outbox'::regclass ORDER BY a.attnum`)
	if err != nil {
		t.Fatal(err)
	}
	columns, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (c cdc.Column, err error) {
		err = r.Scan(&c.Name, &c.Type, &c.Domain, &c.TypeName, &c.Modifier, &c.NotNull, &c.Default, &c.Labels)
		return c, err
	})
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string) (*cdc.Column, []*string) {
		i := slices.IndexFunc(columns, func(c cdc.Column) bool { return c.Name == name })
		if i < 0 {
			return nil, nil
		}
		column := pgx.Identifier{name}.Sanitize()
		rows, err := conn.Query(t.Context(), "SELECT CASE WHEN "+column+" IS NOT NULL THEN format('%s', "+column+") END FROM outbox ORDER BY ctid OFFSET $1", n)
		if err != nil {
			t.Fatal(err)
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[*string])
		if err != nil {
			t.Fatal(err)
		}
		return &columns[i], texts
	}
	shape := &cdc.Shape{Table: "public.outbox"}
	var all []*cdc.Row
	set := func(in **cdc.Column, name string, at func(*cdc.Row) *[]byte) {
		column, texts := of(name)
		if in != nil {
			*in = column
		}
		for i, text := range texts {
			if i == len(all) {
				all = append(all, &cdc.Row{Shape: shape, Further: make([][]byte, len(names.Verbatim.Further))})
			}
			if text != nil {
				*at(all[i]) = append([]byte{}, *text...)
			}
		}
	}
	set(&shape.ID, names.ID, func(r *cdc.Row) *[]byte { return &r.ID })
	set(&shape.AggregateType, names.AggregateType, func(r *cdc.Row) *[]byte { return &r.AggregateType })
	set(&shape.AggregateID, names.AggregateID, func(r *cdc.Row) *[]byte { return &r.AggregateID })
	set(&shape.Payload, names.Payload, func(r *cdc.Row) *[]byte { return &r.Payload })
	set(&shape.CreatedAt, names.CreatedAt, func(r *cdc.Row) *[]byte { return &r.CreatedAt })
	shape.Further = make([]*cdc.Column, len(names.Verbatim.Further))
	for i, name := range names.Verbatim.Further {
		set(&shape.Further[i], name, func(r *cdc.Row) *[]byte { return &r.Further[i] })
	}
	return all
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
			if name == "field.name.adjustment.mode" { // the connector's, which changes no usual name of a column
				continue
			}
			name = strings.TrimPrefix(name, "transforms.outbox.")
			if slices.Contains(names, name) {
				options[name] = value
			}
		}
	}
	return options
}

// play runs the recording, and returns what was different; empty: nothing.
func (r *recording) play(t *testing.T, base map[string]string, at place) string {
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.URL, cfg.Source.Slot, cfg.Source.Publication = cdctest.Name(t, "recorded"), at.url, cdctest.SlotName(t, "recorded"), "dbz_pub"
	cfg.Kafka.Brokers, cfg.Kafka.Replication, cfg.Debezium = at.brokers, 1, r.options(base)
	if table := r.Config["table.include.list"]; table != "" {
		cfg.Source.Table = table
	}
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
