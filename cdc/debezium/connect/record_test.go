//go:build debezium

package connect_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

var (
	casesGlob = flag.String("cases", "../testdata/cases/*.json,../testdata/more/*.json,../testdata/rows/*.json,../testdata/relay/*.json", "patterns of the case files that TestCases plays to the real Debezium")
	realKafka = flag.Bool("real", false, "TestCases uses a real Kafka, and plays one case after another")
	record    = flag.Bool("record", false, "TestCases writes what Debezium did into the case files")
)

// checked are the cases whose outcome comes from a check that kfake does not make.
var checked = []string{"route-by-char", "route-by-empty", "route-invalid-topic", "route-regex-newline", "route-replacement-empty", "route-topic-long", "timestamp-infinity"}

// TestCases plays case files to the real Debezium, and compares its records with the recorded ones. With -record it writes
// them instead:
//
//	go test -tags debezium ./cdc/debezium/connect -run TestCases/all/header -record
func TestCases(t *testing.T) {
	var files []string
	for _, pattern := range strings.Split(*casesGlob, ",") {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		t.Skip("no case files: " + *casesGlob)
	}
	// A worker plays one case at a time: two connectors with the same topic.prefix would wait a minute for each other's
	// metrics.
	kafka, parallel := connect.FakeKafka, 3
	if *realKafka {
		brokers := connect.Kafka(t)
		kafka, parallel = func(t testing.TB) []string { return emptied(t, brokers) }, 1
	}
	workers := make(chan *connect.Worker, parallel)
	for range parallel {
		workers <- connect.Start(t, connect.Config{Brokers: kafka(t)})
	}
	t.Run("all", func(t *testing.T) {
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".json")
			t.Run(name, func(t *testing.T) {
				if slices.Contains(checked, name) && !*realKafka {
					t.Skip("with -real only: kfake does not reject the record")
				}
				t.Parallel()
				worker := <-workers
				defer func() { workers <- worker }()
				playFile(t, worker, kafka(t), file)
			})
		}
	})
}

func playFile(t *testing.T, worker *connect.Worker, brokers []string, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c caseFile
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	got := play(t, worker, brokers, strings.TrimSuffix(filepath.Base(file), ".json"), c)
	if *record {
		if err := os.WriteFile(file, got.text(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, want := got.contract(), c.contract(); got != want {
		t.Errorf("Debezium made\n%sand the file says\n%s", got, want)
	}
	for _, said := range [][2]string{{got.Error, c.Error}, {got.Cause, c.Cause}, {strings.Join(got.Log, "\n"), strings.Join(c.Log, "\n")}} {
		if said[0] != said[1] {
			t.Logf("Debezium says\n%s\nand the file says\n%s", said[0], said[1])
		}
	}
}

// play runs a case in a new database and with an empty Kafka, and returns it with the outcome.
func play(t *testing.T, worker *connect.Worker, brokers []string, name string, c caseFile) caseFile {
	t.Helper()
	c.Outcome, c.Error, c.Cause, c.Log, c.Records = "ok", "", "", nil, nil
	url := cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	slot := cdctest.SlotName(t, "dbz")
	exec(strings.Join(c.DDL, ""))
	exec("CREATE PUBLICATION dbz_pub FOR TABLE outbox")
	exec("SELECT pg_create_logical_replication_slot('" + slot + "', 'pgoutput')")
	for _, sql := range c.Before {
		exec(sql)
	}
	from := time.Now().Add(-time.Second)
	config := connect.Connector(url, c.Config)
	config["slot.name"] = slot
	config["producer.override.bootstrap.servers"] = strings.Join(brokers, ",")
	// The producer's Kafka creates the topics.
	delete(config, "topic.creation.default.partitions")
	delete(config, "topic.creation.default.replication.factor")
	var rejected *connect.RESTError
	if err := worker.Put(name, config); errors.As(err, &rejected) {
		c.Outcome, c.Error = "rejected", rejected.Message
		return c
	} else if err != nil {
		t.Fatal(err)
	}
	defer worker.Delete(name)
	failure := ""
	failed := func() bool {
		var e *connect.TaskError
		if errors.As(worker.Streaming(name), &e) {
			failure = e.Trace
		}
		return failure != ""
	}
	cdctest.Eventually(t, time.Minute, func() error {
		err := worker.Streaming(name)
		if err != nil && failed() {
			return nil
		}
		return err
	})
	for _, sql := range c.SQL {
		exec(sql)
	}
	expect := len(c.SQL)
	if c.Expect != nil {
		expect = *c.Expect
	}
	records := await(t, brokers, expect, failed)
	switch {
	case failure != "":
		c.Outcome = "task failed"
		c.Error, c.Cause = reasons(failure)
	case len(records) < expect:
		c.Outcome = "stalled: fewer records than rows and the task says RUNNING"
	}
	sorted(records)
	for _, r := range records {
		c.Records = append(c.Records, newCaseRecord(r, from, time.Now().Add(time.Second)))
	}
	c.Log = logOf(worker.Log(), name)
	return c
}

// await reads all topics until there are as many records as expected and no further one comes, until failed reports true,
// or until nothing has come for 8 seconds.
func await(t *testing.T, brokers []string, expect int, failed func() bool) (records []*kgo.Record) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeRegex(), kgo.ConsumeTopics(".*"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(200*time.Millisecond),
		kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	last := time.Now()
	quiet := func() time.Duration {
		if len(records) >= expect || failed() {
			return time.Second
		}
		return 8 * time.Second
	}
	for time.Since(last) < quiet() {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			records = append(records, r)
			last = time.Now()
		})
		cancel()
	}
	failed()
	return records
}

// reasons returns the first line of a Java trace, and its last cause.
func reasons(trace string) (first, cause string) {
	lines := strings.Split(trace, "\n")
	for _, line := range lines {
		if rest, found := strings.CutPrefix(line, "Caused by: "); found {
			cause = rest
		}
	}
	return lines[0], cause
}

var logLine = regexp.MustCompile(`^[0-9:.]+ (WARN |ERROR) +(?:\[([^|\]]*)[^\]]*\] )?(\w+): (.*)$`)

// logOf returns the warnings and errors of a connector, of the classes that handle rows.
func logOf(log, name string) (lines []string) {
	for line := range strings.Lines(log) {
		m := logLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || m[2] != name && !strings.Contains(m[4], "connector-producer-"+name+"-0]") {
			continue
		}
		if slices.Contains([]string{"EventRouterDelegate", "PgOutputMessageDecoder", "NetworkClient", "Metadata", "AbstractWorkerSourceTask", "JsonSchemaData"}, m[3]) {
			lines = append(lines, fmt.Sprintf("%s %s: %s", m[1], m[3], m[4]))
		}
	}
	return lines
}

// emptied deletes all topics, and returns the brokers.
func emptied(t testing.TB, brokers []string) []string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	cdctest.Eventually(t, time.Minute, func() error {
		topics, err := admin.ListTopics(t.Context())
		if err != nil || len(topics) == 0 {
			return err
		}
		_, err = admin.DeleteTopics(t.Context(), topics.Names()...)
		return errors.Join(err, fmt.Errorf("topics are left: %v", topics.Names()))
	})
	return brokers
}
