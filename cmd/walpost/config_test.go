package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

const configFile = `
kafka: {brokers: ["kafka.example:9092"], sasl: {mechanism: plain, username: u, password: PASSWORD}}
pipelines:
- {pipeline: orders, source: {url: "postgres://walpost:PASSWORD@127.0.0.1:1/orders", slot: a}, kafka: {aggregate_types: [order], topic: "a.{aggregate_type}"}}
- {pipeline: stock, source: {url: "postgres://walpost@127.0.0.1:1/stock?password=PASSWORD", slot: b}, debezium: {route.by.field: kind, extended.headers.enabled: false}}
`

// inFile runs a config command with a file and an environment.
func inFile(t *testing.T, text string, env map[string]string, args ...string) (out, warned string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "walpost.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "PASSWORD", cdctest.Canary)), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	err = run(t.Context(), append([]string{"-c", file, "config"}, args...), func(key string) string { return env[key] }, &stdout, &stderr)
	said := stdout.String() + stderr.String()
	if err != nil {
		said += err.Error()
	}
	cdctest.NoSecret(t, "config "+strings.Join(args, " "), said)
	return strings.ReplaceAll(stdout.String(), file, "FILE"), stderr.String(), err
}

// TestConfigCheck names the pipelines, warns of what is not safe, and prints every mistake, also those of options of Debezium.
func TestConfigCheck(t *testing.T) {
	t.Parallel()
	out, warned, err := inFile(t, configFile, nil, "check")
	if err != nil || out != "ok: 2 pipelines: orders, stock\n" || !strings.Contains(warned, "warning: pipeline stock: kafka.sasl.mechanism: plain sends the password") {
		t.Errorf("it says %s%s%v", out, warned, err)
	}
	for _, c := range []struct {
		replace, by string
		env         map[string]string
		says        []string
	}{
		{"slot: a", "slt: a", nil, []string{"pipeline orders: source.slt: there is no such key: did you mean source.slot?"}},
		{"slot: a", "slot: A", nil, []string{`pipeline orders: source.slot: "A": write`}},
		{"route.by.field", "route.by.feld", nil, []string{"pipeline stock: route.by.feld"}},
		{"slot: a", "slot: A", map[string]string{"WALPOST_STOCK_DELIVERY": "never"}, []string{"pipeline orders: source.slot", `pipeline stock: delivery: "never": write`}},
		{"", "", map[string]string{"WALPOST_WINDOW_ROWS": "many"}, []string{"environment WALPOST_WINDOW_ROWS: many is not a whole number"}},
	} {
		_, _, err := inFile(t, strings.Replace(configFile, c.replace, c.by, 1), c.env, "check")
		for _, text := range c.says {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: it says %v, want %s", c.by, err, text)
			}
		}
	}
}

// TestConfigShow prints each key with its value and origin, and no secret.
func TestConfigShow(t *testing.T) {
	t.Parallel()
	env := map[string]string{"WALPOST_ORDERS_CLEANUP_URL": "postgres://c:" + cdctest.Canary + "@127.0.0.1/orders"}
	all, _, err := inFile(t, configFile, env, "show")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"pipeline orders", "source.url postgres://walpost:xxxxx@127.0.0.1:1/orders file FILE, pipelines[0]", "source.kind wal default", "kafka.sasl.password *** file FILE",
		"cleanup.url postgres://c:xxxxx@127.0.0.1/orders environment WALPOST_ORDERS_CLEANUP_URL", "source.url postgres://walpost@127.0.0.1:1/stock?password=xxxxx file FILE, pipelines[1]",
		`debezium {extended.headers.enabled: "false", route.by.field: kind} file FILE, pipelines[1]`,
	} {
		if !strings.Contains("\n"+strings.Join(strings.Fields(strings.ReplaceAll(all, "\n", " NEXT ")), " "), line) {
			t.Errorf("it does not say %q:\n%s", line, all)
		}
	}
	changed, _, err := inFile(t, configFile, env, "show", "--changed")
	if err != nil || strings.Contains(changed, "default") || !strings.Contains(changed, "source.slot") || strings.Contains(changed, "source.kind") {
		t.Errorf("what has changed: %v\n%s", err, changed)
	}
	text, _, err := inFile(t, configFile, env, "show", "--json")
	var pipelines []struct {
		Pipeline string
		Settings []config.Setting
	}
	if jerr := json.Unmarshal([]byte(text), &pipelines); err != nil || jerr != nil || len(pipelines) != 2 || pipelines[1].Pipeline != "stock" || len(pipelines[1].Settings) < 50 || pipelines[1].Settings[0].Origin == "" {
		t.Errorf("as JSON: %v, %v:\n%s", err, jerr, text)
	}
}

// TestConfigExample prints a file that can be read.
func TestConfigExample(t *testing.T) {
	t.Parallel()
	example, _, err := inFile(t, "", nil, "example")
	if err != nil || example != config.Example() {
		t.Fatalf("%v:\n%s", err, example)
	}
	if out, _, err := inFile(t, example, nil, "check"); err != nil || out != "ok: 1 pipeline: shop\n" {
		t.Errorf("the example: %s, %v", out, err)
	}
}
