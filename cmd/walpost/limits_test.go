package main

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// Every command ends by itself where PostgreSQL or Kafka does not answer, and says where it asked.
func TestEveryCommandEnds(t *testing.T) {
	t.Parallel()
	commands := [][]string{
		{"status"},
		{"doctor"},
		{"init"},
		{"init", "--dry-run"},
		{"init", "--remove", "--yes"},
		{"cleanup"},
		{"where", "x"},
		{"tail", "--no-follow"},
		{"adopt"},
		{"skip", "--to", "0/1"},
		{"dlq", "list"},
		{"replay", "--from", "2026-11-22T00:00:00Z", "--to", "2026-11-23T00:00:00Z"},
	}
	wal := newTestbed(t)
	wal.MustRun("init")
	connector := filepath.Join(t.TempDir(), "connector.properties")
	text := fmt.Sprintf("name=outbox\nplugin.name=pgoutput\ntopic.prefix=shop\nslot.name=%s\npublication.name=walpost\n", wal.Slot())
	if err := os.WriteFile(connector, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	commands = append(commands, []string{"take-over", connector, "--offset-topic", "offsets"})
	polling := newPolledTestbed(t)
	polling.MustRun("init")
	for name, c := range map[string]struct {
		postgres, kafka string
		within          time.Duration
	}{
		"PostgreSQL never accepts": {postgres: cdctest.Unaccepting(t), within: 25 * time.Second},
		"PostgreSQL never answers": {postgres: cdctest.Silent(t), within: 25 * time.Second},
		"Kafka never accepts":      {kafka: cdctest.Unaccepting(t), within: 90 * time.Second},
		"Kafka never answers":      {kafka: cdctest.Silent(t), within: 90 * time.Second},
	} {
		if c.kafka != "" && !cdctest.LongForm() && name != "Kafka never answers" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all sync.WaitGroup
			defer all.Wait()
			for kind, s := range map[string]*testbed{"wal": wal, "polling": polling} {
				at := c.kafka
				env := map[string]string{}
				for k, v := range s.Env {
					env[k] = v
				}
				if c.kafka != "" {
					env["WALPOST_KAFKA_BROKERS"] = c.kafka
				} else {
					at = c.postgres
					for _, key := range []string{"WALPOST_SOURCE_URL", "WALPOST_ADMIN_URL"} {
						u, err := url.Parse(env[key])
						if err != nil {
							t.Fatal(err)
						}
						u.Host, u.RawQuery = c.postgres, "connect_timeout=1"
						env[key] = u.String()
					}
				}
				for _, args := range commands {
					all.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
						defer cancel()
						var out bytes.Buffer
						began := time.Now()
						err := run(ctx, args, func(key string) string { return env[key] }, &out, &out)
						took := time.Since(began)
						said := out.String()
						if err != nil {
							said += err.Error()
						}
						if took > cdctest.Patience(c.within) {
							t.Errorf("%s: %s took %s: %s", kind, args, took, said)
						}
						asks := c.postgres != "" || kind == "wal" && args[0] != "cleanup" || args[0] == "init" || args[0] == "replay"
						if kind == "wal" && c.postgres != "" && args[0] == "dlq" {
							asks = false // its dead letters are in Kafka
						}
						if kind == "polling" && c.postgres != "" && slices.Contains([]string{"adopt", "skip", "take-over"}, args[0]) {
							asks = false // which are not for polling
						}
						if args[0] == "tail" {
							asks = c.kafka != "" // it reads nothing else
						}
						if asks && !strings.Contains(said, at) {
							t.Errorf("%s: %s does not name %s: %s", kind, args, at, said)
						}
					})
				}
			}
		})
	}
}

// Where the server takes a silent relay for gone sooner than status_interval allows, the relay answers more often, and
// says so.
func TestAnImpatientServer(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.MustRun("init")
	s.Env["WALPOST_SOURCE_STATUS_INTERVAL"] = "5s"
	s.Env["WALPOST_SOURCE_URL"] += "&options=-c%20wal_sender_timeout%3D1s"
	r := s.StartRelay()
	r.WaitForLog(30*time.Second, `"streaming"`)
	r.WaitForLog(3*time.Second, "status updates are sent more often")
	s.InsertRows(1)
	s.WaitUntilConfirmed(30 * time.Second)
	time.Sleep(2500 * time.Millisecond) // nothing comes, and nothing ends
	s.InsertRows(1)
	s.WaitUntilConfirmed(30 * time.Second)
	r.MustBeUndisturbed()
}
