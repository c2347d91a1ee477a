package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/walpost/walpost/cdc/kafka"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// connectors is the folder with examples of connectors.
var connectors = filepath.Join("..", "..", "cdc", "debezium", "testdata", "connectors")

// importing runs walpost import, and returns what it printed and its error.
func importing(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, said bytes.Buffer
	err := run(t.Context(), append([]string{"import"}, args...), func(string) string { return "" }, &out, &said)
	cdctest.NoSecret(t, "import", out.String()+said.String())
	if err != nil {
		cdctest.NoSecret(t, "the error of import", err.Error())
	}
	return out.String(), err
}

// TestImportedConfigurationLoads imports each example, and loads what is printed: the file is complete apart from
// passwords and the files that it names, and a pipeline takes it.
func TestImportedConfigurationLoads(t *testing.T) {
	t.Parallel()
	worker := filepath.Join(connectors, "worker.properties")
	for file, args := range map[string][]string{
		"docs.json":             {"--brokers", "kafka:9092"},
		"example-outbox.json":   {"--brokers", "kafka:9092,kafka-2:9092"},
		"bare.json":             {"--brokers", "kafka:9092"},
		"answer.json":           {"--worker", worker},
		"standalone.properties": {"--worker", worker},
		"strimzi.yaml":          {"--brokers", "kafka:9092"},
		"aiven.json":            {"--brokers", "kafka:9092"},
		"everything.json":       {"--brokers", "kafka:9092"},
		"server.properties":     nil,
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			printed, err := importing(t, append(args, filepath.Join(connectors, file))...)
			var code app.ExitError
			if unsupported := strings.Contains(printed, "NOT SUPPORTED"); err != nil && !errors.As(err, &code) || unsupported != (code == 1) {
				t.Fatalf("%v, exit code %d:\n%s", err, code, printed)
			}
			dir := t.TempDir()
			authority := cdctest.NewAuthority(t, "ca", time.Now().Add(time.Hour))
			if err := os.WriteFile(filepath.Join(dir, "password"), []byte(cdctest.Canary), 0o600); err != nil {
				t.Fatal(err)
			}
			printed = strings.NewReplacer("/opt/kafka/external-configuration/ca/ca.crt", authority.File, "/opt/kafka/external-configuration/db/", dir+"/").Replace(printed)
			path := filepath.Join(dir, "walpost.yaml")
			if err := os.WriteFile(path, []byte(printed), 0o600); err != nil {
				t.Fatal(err)
			}
			cfgs, err := config.Load(path, func(name string) string {
				if name == "WALPOST_KAFKA_SASL_PASSWORD" && strings.Contains(printed, "sasl:") {
					return cdctest.Canary
				}
				return ""
			})
			if err != nil || len(cfgs) != 1 {
				t.Fatalf("%v:\n%s", err, printed)
			}
			if _, err := pipeline.New(cfgs[0], pipeline.Options{}); err != nil {
				t.Errorf("%v:\n%s", err, printed)
			}
		})
	}
}

// sorted returns the lines of a text in the order of letters.
func sorted(text string) string {
	return strings.Join(slices.Sorted(strings.Lines(text)), "")
}

// TestImportReadsEachSource imports from standard input and from a running Connect, and names flags that contradict each
// other.
func TestImportReadsEachSource(t *testing.T) {
	t.Parallel()
	file := filepath.Join(connectors, "docs.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := importing(t, file, "--brokers", "kafka:9092")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p := process{ctx: t.Context(), stdin: bytes.NewReader(text), stdout: &out}
	if err := (&importCmd{File: "-", Brokers: []string{"kafka:9092"}}).Run(&p); err != nil || out.String() != want {
		t.Errorf("from standard input: %v, %s", err, out.String())
	}

	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password == cdctest.Canary && r.URL.Path == "/connectors/outbox-connector" {
			_, _ = w.Write(text)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	url := strings.Replace(server.URL, "https://", "https://me:"+cdctest.Canary+"@", 1)
	if got, err := importing(t, "--connect-url", url, "--connect-ca-file", ca, "--connector", "outbox-connector", "--brokers", "kafka:9092"); err != nil || sorted(got) != sorted(want) {
		t.Errorf("from Connect: %v, %s", err, got)
	}

	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"import: there is no input: name the connector's JSON":                  nil,
		"import: a file and --connect-url are both there":                       {file, "--connect-url", url},
		"import: --connector and --connect-ca-file are for --connect-url":       {file, "--connector", "x"},
		"no such file or directory: name the connector's JSON":                  {filepath.Join(connectors, "none.json")},
		"import: the input is empty":                                            {empty},
		"import: kafka.brokers: missing":                                        {file},
		"--worker: open":                                                        {file, "--worker", "none"},
		"--worker: it has neither bootstrap.servers nor key.converter":          {file, "--worker", empty},
		"--connect-ca-file: the file holds no certificate":                      {"--connect-url", url, "--connect-ca-file", empty},
		"import: read Connect at " + strings.TrimPrefix(server.URL, "https://"): {"--connect-url", url},
	} {
		if got, err := importing(t, args...); err == nil || !strings.Contains(err.Error(), want) || got != "" {
			t.Errorf("%v: %v, want %q; printed %q", args, err, want, got)
		}
	}
}

// TestImportCheckComparesRecords writes the records that Debezium writes for rows, some of them changed, and lets --check
// compare them with the rows.
func TestImportCheckComparesRecords(t *testing.T) {
	t.Parallel()
	brokers, url := cdctest.Kafka(t), cdctest.Database(t)
	prefix := cdctest.Name(t, "checked")
	topic := prefix + ".order"
	cdctest.CreateTopic(t, brokers, topic, 3)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), `CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
		type varchar(255) NOT NULL, payload jsonb, at timestamp)`); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "walpost.yaml")
	text := fmt.Sprintf("pipeline: %s\nsource: {url: %q}\nkafka: {brokers: ['%s']}\ndebezium:\n  topic.prefix: shop\n  table.fields.additional.placement: type:header\n  table.field.event.timestamp: at\n  route.topic.replacement: \"%s.${routedByValue}\"\n",
		prefix, url, strings.Join(brokers, "', '"), prefix)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"-c", path, "import", "--check"}, args...), func(string) string { return "" }, &out, &out)
		cdctest.NoSecret(t, "import --check", out.String())
		return out.String(), err
	}
	if got, err := check(); err == nil || !strings.Contains(err.Error(), "no record was compared") {
		t.Errorf("of an empty topic: %v, %s", err, got)
	}

	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	// write inserts a row, and produces the record of it after a change.
	write := func(i int, change func(*kgo.Record)) string {
		id, key, payload := fmt.Sprintf("00000000-0000-4000-8000-%012d", i), fmt.Sprintf("key-%d", i), fmt.Sprintf(`{"n": %d, "word": "secret-%d"}`, i, i)
		if i == 38 {
			payload = "none"
		}
		if _, err := conn.Exec(t.Context(), "INSERT INTO outbox VALUES ($1, 'order', $2, 'OrderPlaced', nullif($3, 'none')::jsonb, '2026-11-30 12:00')", id, key, payload); err != nil {
			t.Fatal(err)
		}
		r := &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(payload), Timestamp: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)}
		r.Partition = int32(kafka.PartitionOf(topic, r.Key, 3))
		for _, h := range [][2]string{
			{"__debezium.context.connectorLogicalName", "shop"},
			{"__debezium.context.taskId", "0"},
			{"__debezium.context.connectorName", "postgresql"},
			{"__debezium.context.runId", "another"},
			{"id", id},
			{"type", "OrderPlaced"},
		} {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
		}
		change(r)
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		return id
	}
	for i := range 20 {
		write(i, func(*kgo.Record) {})
	}
	if got, err := check(); err != nil || got != "compared 20 records, the newest of each partition of "+topic+": 20 are equal, 0 differ\n" {
		t.Errorf("of equal records: %v, %s", err, got)
	}
	gone := write(20, func(*kgo.Record) {})
	if _, err := conn.Exec(t.Context(), "DELETE FROM outbox WHERE id = $1", gone); err != nil {
		t.Fatal(err)
	}
	write(21, func(r *kgo.Record) { r.Headers = nil })
	write(22, func(r *kgo.Record) { r.Headers[4].Value = []byte("no uuid") })
	write(23, func(r *kgo.Record) { r.Value = []byte(`{"n": 23, "word": "changed"}`) })
	write(24, func(r *kgo.Record) { r.Key = []byte("other") })
	write(25, func(r *kgo.Record) { r.Headers[5].Value = nil })
	write(26, func(r *kgo.Record) { r.Headers = r.Headers[4:] })
	write(27, func(r *kgo.Record) { r.Partition = (r.Partition + 1) % 3 })
	write(29, func(r *kgo.Record) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "origin", Value: []byte("shop")})
	})
	write(30, func(r *kgo.Record) { r.Headers[4], r.Headers[5] = r.Headers[5], r.Headers[4] })
	for i := range 6 {
		write(31+i, func(r *kgo.Record) { r.Headers[5].Value = []byte("Other") })
	}
	write(37, func(r *kgo.Record) { r.Timestamp = r.Timestamp.Add(time.Millisecond) })
	write(38, func(r *kgo.Record) { r.Value = []byte{} })
	write(28, func(r *kgo.Record) { r.Value = nil })
	got, err := check()
	var code app.ExitError
	if !errors.As(err, &code) || code != 1 {
		t.Errorf("exit code %d, %v", code, err)
	}
	for _, want := range []string{
		"compared 39 records, the newest of each partition of " + topic + ": 20 are equal, 16 differ\n",
		"not compared: 2 records, because the table no longer has their rows\n", "not compared: 1 records without a header id",
		`000023: value: 28 bytes, different from byte 20 on in Kafka, 30 bytes, different from byte 20 on by walpost`,
		`000024: key: "other" in Kafka, "key-24" by walpost`,
		`000025: header type: null in Kafka, "OrderPlaced" by walpost`,
		`000026: header __debezium.context.connectorLogicalName: no such header in Kafka, "shop" by walpost`,
		`000029: header origin: "shop" in Kafka, no such header by walpost`, `000030: order of headers: __debezium.context.connectorLogicalName, `,
		`000037: timestamp: 1796040000001 in Kafka, 1796040000000 by walpost`, `000038: value: 0 bytes, different from byte 1 on in Kafka, null by walpost`,
		"and 2 more such differences: header type\n",
		`000027: partition: `, `000028: value: null in Kafka, 30 bytes`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "secret") {
		t.Errorf("it shows payloads:\n%s", got)
	}
	if got, _ = check("--show-values", "--records", "1000"); !strings.Contains(got, `000023: value: "{\"n\": 23, \"word\": \"changed\"}" in Kafka, "{\"n\": 23, \"word\": \"secret-23\"}" by walpost`) {
		t.Errorf("with values:\n%s", got)
	}
	others := prefix + ".configs" // as Connect's
	cdctest.CreateTopic(t, brokers, others, 1)
	cdctest.CreateTopic(t, brokers, prefix+".empty", 1)
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: others, Key: []byte("connector"), Value: []byte("{}")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if got, _ = check(); !strings.Contains(got, "compared 39 records, the newest of each partition of "+topic+": 20") || !strings.Contains(got, "not compared: topics whose newest records have no header id, which the router writes: 1") {
		t.Errorf("beside a topic of another program:\n%s", got)
	}
	if got, _ = check("--records", "3"); !strings.Contains(got, "compared 3 records, the newest") {
		t.Errorf("of three records:\n%s", got)
	}
	for want, args := range map[string][]string{
		"--check reads the configuration that import has printed": {filepath.Join(connectors, "docs.json")},
		"--records: compare at least 1 record":                    {"--records", "0"},
	} {
		if got, err := check(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, %s, want %q", args, err, got, want)
		}
	}
}

// TestPageShowsWhatImportPrints runs the imports of the page about Debezium, and compares what they print with the page.
func TestPageShowsWhatImportPrints(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(root, "cdc", "debezium", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, block := range strings.Split(string(page), "```console\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		command, want, _ := strings.Cut(block, "\n")
		args, shell, _ := strings.Cut(strings.TrimPrefix(command, "$ walpost import "), ";")
		words := strings.Fields(args)
		if !strings.HasPrefix(command, "$ walpost import ") || !strings.HasPrefix(words[0], "cdc/") {
			continue
		}
		words[0] = filepath.Join(root, words[0])
		got, err := importing(t, words...)
		var code app.ExitError
		switch {
		case errors.As(err, &code):
		case err != nil:
			got = "walpost: " + strings.ReplaceAll(err.Error(), "\n", "\nwalpost: ") + "\n"
		}
		if shell != "" {
			got += fmt.Sprintf("exit code %d\n", code)
		}
		if ran++; got != want {
			t.Errorf("%s prints\n%s\nand the page has\n%s", command, got, want)
		}
	}
	if ran != 2 {
		t.Errorf("%d imports of the page ran, want 2", ran)
	}
}
