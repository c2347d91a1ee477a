package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	if got, err := importing(t, "--connect-url", url, "--connect-ca-file", ca, "--connector", "outbox-connector", "--brokers", "kafka:9092"); err != nil || got != want {
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
