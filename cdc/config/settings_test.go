package config_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

const settingsFile = `
http: ":80"
window: {rows: 10}
kafka: {brokers: ["a:1", "b:2"], compression: lz4, sasl: {mechanism: plain, username: u, password: PASSWORD}}
pipelines:
- pipeline: orders
  source: {url: "postgres://walpost:PASSWORD@h/orders?sslmode=disable", slot: orders}
  kafka: {aggregate_types: [order], rename: {order: orders}}
- pipeline: stock-room
  source: {url: "postgres://walpost@h/stock?sslmode=disable", slot: stock}
  kafka: {compression: zstd}
  debezium: {route.topic.replacement: "a.b", database.password: PASSWORD, "database.url": "jdbc:postgresql://a:PASSWORD@h/x", sasl.jaas.config: "x password=PASSWORD"}
`

// TestSettingsSayWhereEachValueIsFrom names the default, the file with the pipeline in it, the variable, or the program,
// in the order in which they override each other, and shows no secret.
func TestSettingsSayWhereEachValueIsFrom(t *testing.T) {
	file := filepath.Join(t.TempDir(), "orders.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(settingsFile, "PASSWORD", cdctest.Canary)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"WALPOST_QUEUE_TIMEOUT": "5s", "WALPOST_STOCK_ROOM_QUEUE_TIMEOUT": "6s", "WALPOST_KAFKA_COMPRESSION": "gzip",
		"WALPOST_ORDERS_CLEANUP_URL":       "postgres://cleaner:" + cdctest.Canary + "@h/orders?sslmode=disable",
		"WALPOST_KAFKA_SASL_CLIENT_SECRET": "", "WALPOST_STOCK_ROOM_DEBEZIUM": "",
	}
	cfgs, err := config.Load(file, func(name string) string { return env[name] })
	if len(cfgs) != 2 {
		t.Fatal(cfgs, err)
	}
	cfgs[0].Window.Pace = 0
	top, list := "file "+file, "file "+file+", pipelines[%d]"
	for i, want := range []map[string][2]string{
		{
			"pipeline":              {"orders", fmt.Sprintf(list, 0)},
			"source.url":            {"postgres://walpost:xxxxx@h/orders?sslmode=disable", fmt.Sprintf(list, 0)},
			"source.table":          {"public.outbox", "default"},
			"window.rows":           {"10", top},
			"window.pace":           {"0s", "program"},
			"http":                  {`:80`, top},
			"kafka.brokers":         {`["a:1", "b:2"]`, top},
			"kafka.compression":     {"gzip", "environment WALPOST_KAFKA_COMPRESSION"},
			"kafka.rename":          {"{order: orders}", fmt.Sprintf(list, 0)},
			"kafka.sasl.password":   {"***", top},
			"kafka.sasl.username":   {"u", top},
			"kafka.sasl.token_file": {`""`, "default"},
			"queue_timeout":         {"5s", "environment WALPOST_QUEUE_TIMEOUT"},
			"cleanup.url":           {"postgres://cleaner:xxxxx@h/orders?sslmode=disable", "environment WALPOST_ORDERS_CLEANUP_URL"},
		},
		{
			"source.url":        {"postgres://walpost@h/stock?sslmode=disable", fmt.Sprintf(list, 1)},
			"kafka.compression": {"zstd", fmt.Sprintf(list, 1)},
			"queue_timeout":     {"6s", "environment WALPOST_STOCK_ROOM_QUEUE_TIMEOUT"},
			"debezium": {
				`{database.password: "***", database.url: "jdbc:postgresql://xxxxx@h/x", route.topic.replacement: a.b, sasl.jaas.config: "***"}`,
				fmt.Sprintf(list, 1),
			},
			"window.pace": {"2ms", "default"},
		},
	} {
		settings := cfgs[i].Settings()
		for _, s := range settings {
			var value any
			if s.Doc == "" || s.Value != "***" && yaml.Unmarshal([]byte(s.Value), &value) != nil {
				t.Errorf("%s: no doc, or no YAML: %+v", s.Key, s)
			}
			if w, ok := want[s.Key]; ok {
				delete(want, s.Key)
				if unquoted := strings.Trim(s.Value, `"`); s.Origin != w[1] || s.Value != w[0] && unquoted != w[0] {
					t.Errorf("%d: %s: %s from %q, want %s from %q", i, s.Key, s.Value, s.Origin, w[0], w[1])
				}
			}
		}
		for key := range want {
			t.Errorf("%d: no key %s", i, key)
		}
		text, _ := json.Marshal(settings)
		cdctest.NoSecret(t, "the settings", fmt.Sprintf("%+v", settings)+string(text))
		cdctest.NoSecret(t, "the configuration", fmt.Sprintf("%v %+v %#v", cfgs[i], cfgs[i], &cfgs[i]))
	}
}

// TestSettingsOfAProgram: a Config that no file made has defaults and what the program has set.
func TestSettingsOfAProgram(t *testing.T) {
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.URL = "orders", "postgres://walpost:"+cdctest.Canary+"@h/orders"
	for _, s := range cfg.Settings() {
		program := s.Key == "pipeline" || s.Key == "source.url"
		if s.Changed() != program || (s.Origin == config.FromProgram) != program || !program && s.Origin != config.FromDefault {
			t.Errorf("%+v", s)
		}
		cdctest.NoSecret(t, s.Key, s.Value)
	}
	for i, cfg := range secretive(t) {
		cdctest.NoSecret(t, fmt.Sprintf("the settings of %d", i), fmt.Sprintf("%+v", cfg.Settings()))
	}
}
