package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// copyOf is a server on a cold copy of another's data.
func copyOf(t *testing.T, p *devenv.Postgres, cfg devenv.CopyConfig) *devenv.Postgres {
	t.Helper()
	c, err := p.Copy(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func stopServer(t *testing.T, p *devenv.Postgres, mode string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Stop(ctx, mode); err != nil {
		t.Fatal(err)
	}
}

func startServer(t *testing.T, p *devenv.Postgres) {
	t.Helper()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ownStage is a stage on a server of this test alone.
func ownStage(t *testing.T) (*stage, *devenv.Postgres) {
	t.Helper()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	return stageOn(t, server.URL("shop"), cdctest.Kafka(t)), server
}

// at looks at another server from here on.
func (s *stage) at(server *devenv.Postgres) {
	s.admin = server.URL("shop")
	u, _ := url.Parse(s.env["WALPOST_SOURCE_URL"])
	here, _ := url.Parse(s.admin)
	u.Host = here.Host
	s.env["WALPOST_SOURCE_URL"], s.env["WALPOST_ADMIN_URL"] = u.String(), s.admin
}

func host(t *testing.T, p *devenv.Postgres) string {
	t.Helper()
	u, err := url.Parse(p.URL("shop"))
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// TestFailover promotes a standby that lacks the end of what was delivered, under a relay whose URL names both servers. It
// follows by itself; the lost rows are counted and told; new commits that use their LSNs again are delivered; and the old
// primary, back and first in the URL, is refused. From 17 on PostgreSQL keeps the slot on the standby; before, the copy holds it,
// as tools that copy slots do.
func TestFailover(t *testing.T) {
	t.Parallel()
	s, primary := ownStage(t)
	s.env["WALPOST_KAFKA_HEADERS"] = "cloudevents" // fault 23 counts phantoms by the usual ones
	synced := primary.Major() >= 17
	s.exec("SELECT pg_create_physical_replication_slot('standby', true)")
	s.must("init")
	stopServer(t, primary, "fast")
	addr, port, _ := strings.Cut(host(t, primary), ":")
	settings := map[string]string{
		"primary_conninfo": fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres", addr, port), "primary_slot_name": "standby", "hot_standby_feedback": "on",
	}
	if synced {
		settings["sync_replication_slots"] = "on"
	}
	standby := copyOf(t, primary, devenv.CopyConfig{Settings: settings, Standby: true, NoSlots: synced})
	startServer(t, primary)

	alone := s.env["WALPOST_SOURCE_URL"]
	u, _ := url.Parse(alone)
	s.env["WALPOST_SOURCE_URL"] = fmt.Sprintf("postgres://%s@%s,%s/shop?target_session_attrs=read-write&sslmode=disable", u.User, host(t, primary), host(t, standby))
	r := s.start()
	s.insert(10)
	s.confirmed(20 * time.Second)
	other := *s
	other.admin = standby.URL("shop")
	if synced {
		cdctest.Eventually(t, time.Minute, func() error {
			s.exec("SELECT pg_log_standby_snapshot()")
			s.insert(1)
			if is := other.query("SELECT coalesce((SELECT (synced AND NOT temporary)::text FROM pg_replication_slots WHERE slot_name = $1), 'none')", slot(s)); is != "true" {
				return fmt.Errorf("the slot on the standby: %s", is)
			}
			return nil
		})
	}
	end := s.query("SELECT pg_current_wal_lsn()::text")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if is := other.query("SELECT (pg_last_wal_replay_lsn() >= '" + end + "')::text"); is != "true" {
			return fmt.Errorf("the standby has not replayed up to %s", end)
		}
		return nil
	})
	kept := len(s.kept())
	stopServer(t, standby, "fast")
	s.insert(7) // delivered, and then lost with the primary
	s.confirmed(20 * time.Second)
	stopServer(t, primary, "immediate")
	startServer(t, standby)
	s.admin = standby.URL("shop")
	s.exec("SELECT pg_promote()")
	ids := []string{s.one(), s.one()}
	s.insert(200) // well past the LSNs of the lost rows
	ids = append(ids, s.one())
	r.says(40*time.Second, "a failover from timeline 1 took back")
	for _, id := range ids {
		s.arrives(id)
	}
	s.confirmed(20 * time.Second)
	if n := len(s.kept()); n != kept+203 || len(s.ids()) != n+7 {
		t.Errorf("%d rows in the table, want %d; %d events in the topic, want these and 7 phantoms", n, kept+203, len(s.ids()))
	}
	if records := cdctest.ReadAll(t, s.brokers, s.topic); len(records) != len(s.ids()) {
		t.Errorf("%d records of %d events: rows came twice", len(records), len(s.ids()))
	}
	var status pipeline.Status
	_, body, _ := strings.Cut(r.get(t, "/status"), " ")
	if err := json.Unmarshal([]byte(body), &status); err != nil || status.State.Phantoms == nil || status.State.Phantoms.Rows != 7 {
		t.Errorf("/status: %v %q", err, body)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	startServer(t, primary)
	before := s.state()
	r = s.start()
	r.says(20*time.Second, `"halted"`)
	r.says(time.Second, "a stale primary")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if after := s.state(); after.Epoch != before.Epoch {
		t.Error("a relay at a stale primary has written a state record: the right one would be stopped by it")
	}
}

// kept are the ids in the table.
func (s *stage) kept() []string {
	s.t.Helper()
	return strings.Fields(s.query("SELECT coalesce(string_agg(id::text, ' '), '') FROM outbox"))
}

// TestPromotedStandbyWithoutTheSlot halts, and goes on with a new slot when an operator says so, naming what lies between.
func TestPromotedStandbyWithoutTheSlot(t *testing.T) {
	t.Parallel()
	s, primary := ownStage(t)
	s.must("init")
	r := s.start()
	s.insert(10)
	s.confirmed(20 * time.Second)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.insert(5) // not delivered
	stopServer(t, primary, "fast")
	standby := copyOf(t, primary, devenv.CopyConfig{Standby: true, NoSlots: true})
	s.at(standby)
	r = s.start()
	r.says(20*time.Second, "waiting for its promotion")
	s.exec("SELECT pg_promote()")
	r.says(40*time.Second, `"halted"`)
	r.says(time.Second, "walpost adopt --create-slot")
	out := s.must("adopt", "--create-slot")
	if !strings.Contains(out, "timeline 2, which left timeline 1 at") || !strings.Contains(out, "may be missing in Kafka; `walpost replay --from") {
		t.Errorf("adopt:\n%s", out)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.arrives(s.one())
	if n := len(s.ids()); n != 11 {
		t.Errorf("%d events, want 11", n)
	}
	_, command, _ := strings.Cut(out, "`walpost replay ")
	command, _, _ = strings.Cut(command, "`")
	s.must(append([]string{"replay"}, strings.Fields(command)...)...)
	if n := len(s.ids()); n != 16 {
		t.Errorf("%d events after the replay, want 16", n)
	}
}

// TestRestoredSnapshot goes back to a copy of the disk: same system id, same timeline. While it is behind, its WAL end gives it
// away; once it has written past what was delivered, its transactions do, and nothing was confirmed to its slot until then.
func TestRestoredSnapshot(t *testing.T) {
	t.Parallel()
	s, primary := ownStage(t)
	s.must("init")
	r := s.start()
	s.insert(10)
	s.confirmed(20 * time.Second)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	stopServer(t, primary, "fast")
	restored := copyOf(t, primary, devenv.CopyConfig{})
	startServer(t, primary)
	r = s.start()
	s.insert(10)
	s.confirmed(20 * time.Second)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	s.at(restored)
	confirmed := func() string {
		return s.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", slot(s))
	}
	before := confirmed()
	r = s.start()
	r.says(20*time.Second, "a restored backup, a clone or the wrong server")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.insert(50)
	last := s.one()
	r = s.start()
	r.says(20*time.Second, "this server has another history")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if after := confirmed(); after != before {
		t.Errorf("the slot of another history was moved from %s to %s", before, after)
	}
	if n := len(s.ids()); n != 20 {
		t.Errorf("%d events, want the 20 of the history that was", n)
	}
	s.refuses("another history", "skip", "--to", s.query("SELECT pg_current_wal_flush_lsn()::text"))
	if out := s.must("adopt"); !strings.Contains(out, "a server with another history") {
		t.Errorf("adopt:\n%s", out)
	}
	s.start()
	s.arrives(last)
	if n := len(s.ids()); n != 20+51 {
		t.Errorf("%d events, want all 51 of the new history too", n)
	}
}
