package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestFailover promotes a standby server that lacks the last delivered rows, while a relay runs whose URL names both
// servers. The relay follows by itself, and reports the number of lost rows. It delivers new commits that have the same
// LSNs, and refuses the old primary when that is back and first in the URL. PostgreSQL 17 and later keep the slot on
// the standby server; before that, the copy has the slot, as tools that copy slots do it.
func TestFailover(t *testing.T) {
	t.Parallel()
	s, primary := newTestbedOnOwnServer(t)
	s.Env["WALPOST_KAFKA_HEADERS"] = "cloudevents" // fault 23 counts phantoms by the usual ones
	synced := primary.Major() >= 17
	s.Exec("SELECT pg_create_physical_replication_slot('standby', true)")
	s.MustRun("init")
	e2e.StopServer(t, primary, "fast")
	addr, port, _ := strings.Cut(e2e.Address(t, primary), ":")
	settings := map[string]string{
		"primary_conninfo": fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres", addr, port), "primary_slot_name": "standby", "hot_standby_feedback": "on",
	}
	if synced {
		settings["sync_replication_slots"] = "on"
	}
	standby := e2e.CopyServer(t, primary, devenv.CopyConfig{Settings: settings, Standby: true, NoSlots: synced})
	e2e.StartServer(t, primary)

	alone := s.Env["WALPOST_SOURCE_URL"]
	u, _ := url.Parse(alone)
	s.Env["WALPOST_SOURCE_URL"] = fmt.Sprintf("postgres://%s@%s,%s/shop?target_session_attrs=read-write&sslmode=disable", u.User, e2e.Address(t, primary), e2e.Address(t, standby))
	r := s.StartRelay()
	s.InsertRows(10)
	s.WaitUntilConfirmed(20 * time.Second)
	other := s.Copy()
	other.AdminURL = standby.URL("shop")
	if synced {
		cdctest.Eventually(t, time.Minute, func() error {
			s.Exec("SELECT pg_log_standby_snapshot()")
			s.InsertRows(1)
			if is := other.Query("SELECT coalesce((SELECT (synced AND NOT temporary)::text FROM pg_replication_slots WHERE slot_name = $1), 'none')", s.Slot()); is != "true" {
				return fmt.Errorf("the slot on the standby: %s", is)
			}
			return nil
		})
	}
	end := s.Query("SELECT pg_current_wal_lsn()::text")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if is := other.Query("SELECT (pg_last_wal_replay_lsn() >= '" + end + "')::text"); is != "true" {
			return fmt.Errorf("the standby has not replayed up to %s", end)
		}
		return nil
	})
	kept := len(s.rowIDs())
	e2e.StopServer(t, standby, "fast")
	s.InsertRows(7) // delivered, and then lost with the primary
	s.WaitUntilConfirmed(20 * time.Second)
	e2e.StopServer(t, primary, "immediate")
	e2e.StartServer(t, standby)
	s.AdminURL = standby.URL("shop")
	s.Exec("SELECT pg_promote()")
	ids := []string{s.InsertRow(), s.InsertRow()}
	s.InsertRows(200) // well past the LSNs of the lost rows
	ids = append(ids, s.InsertRow())
	r.WaitForLog(40*time.Second, "a failover from timeline 1 took back")
	for _, id := range ids {
		s.WaitForEvent(id)
	}
	s.WaitUntilConfirmed(20 * time.Second)
	if n := len(s.rowIDs()); n != kept+203 || len(s.EventIDs()) != n+7 {
		t.Errorf("%d rows in the table, want %d; %d events in the topic, want these and 7 phantoms", n, kept+203, len(s.EventIDs()))
	}
	if records := cdctest.ReadAll(t, s.Brokers, s.Topic); len(records) != len(s.EventIDs()) {
		t.Errorf("%d records of %d events: rows came twice", len(records), len(s.EventIDs()))
	}
	var status pipeline.Status
	_, body, _ := strings.Cut(r.Get(t, "/status"), " ")
	if err := json.Unmarshal([]byte(body), &status); err != nil || status.State.Phantoms == nil || status.State.Phantoms.Rows != 7 {
		t.Errorf("/status: %v %q", err, body)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}

	e2e.StartServer(t, primary)
	before := s.StateRecord()
	r = s.StartRelay()
	r.WaitForLog(20*time.Second, `"halted"`)
	r.WaitForLog(3*time.Second, "a stale primary")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if after := s.StateRecord(); after.Epoch != before.Epoch {
		t.Error("a relay at a stale primary has written a state record: the right one would be stopped by it")
	}
}

// rowIDs returns the ids in the table.
func (s *testbed) rowIDs() []string {
	s.T.Helper()
	return strings.Fields(s.Query("SELECT coalesce(string_agg(id::text, ' '), '') FROM outbox"))
}

// TestPromotedStandbyWithoutTheSlot: the relay halts. When an operator adopts a new slot, it continues, and the gap is
// named.
func TestPromotedStandbyWithoutTheSlot(t *testing.T) {
	t.Parallel()
	s, primary := newTestbedOnOwnServer(t)
	patroni, err := pgx.Connect(t.Context(), s.AdminURL+"&application_name=Patroni%20heartbeat")
	if err != nil {
		t.Fatal(err)
	}
	warned := strings.Contains(s.MustRun("init"), "warning: Patroni runs this server, and drops a slot that its configuration does not name: before you stop the relay, name the slot with `patronictl edit-config`, slots: {"+s.Slot()+": {type: logical, database: shop, plugin: pgoutput}}")
	if warned != (primary.Major() < 17) {
		t.Errorf("init warned of Patroni: %t", warned)
	}
	_ = patroni.Close(context.Background())
	r := s.StartRelay()
	s.InsertRows(10)
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.InsertRows(5) // not delivered
	e2e.StopServer(t, primary, "fast")
	standby := e2e.CopyServer(t, primary, devenv.CopyConfig{Standby: true, NoSlots: true})
	s.MoveTo(standby)
	r = s.StartRelay()
	r.WaitForLog(20*time.Second, "waits for its promotion")
	s.Exec("SELECT pg_promote()")
	r.WaitForLog(40*time.Second, `"halted"`)
	r.WaitForLog(3*time.Second, "walpost adopt --create-slot")
	out := s.MustRun("adopt", "--create-slot")
	if !strings.Contains(out, "timeline 2, which left timeline 1 at") || !strings.Contains(out, "may be missing in Kafka; `walpost replay --from") {
		t.Errorf("adopt:\n%s", out)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	if n := len(s.EventIDs()); n != 11 {
		t.Errorf("%d events, want 11", n)
	}
	_, command, _ := strings.Cut(out, "`walpost replay ")
	command, _, _ = strings.Cut(command, "`")
	s.MustRun(append([]string{"replay"}, strings.Fields(command)...)...)
	if n := len(s.EventIDs()); n != 16 {
		t.Errorf("%d events after the replay, want 16", n)
	}
}

// TestRestoredSnapshot restores a copy of the disk, with the same system id and timeline. While the copy is behind, the
// end of its WAL reveals it. After it has written more than was delivered, its transactions reveal it, and until then
// the relay has confirmed nothing to its slot.
func TestRestoredSnapshot(t *testing.T) {
	t.Parallel()
	s, primary := newTestbedOnOwnServer(t)
	s.MustRun("init")
	r := s.StartRelay()
	s.InsertRows(10)
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	e2e.StopServer(t, primary, "fast")
	restored := e2e.CopyServer(t, primary, devenv.CopyConfig{})
	e2e.StartServer(t, primary)
	r = s.StartRelay()
	s.InsertRows(10)
	s.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}

	s.MoveTo(restored)
	confirmed := func() string {
		return s.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
	}
	before := confirmed()
	r = s.StartRelay()
	r.WaitForLog(20*time.Second, "a restored backup, a clone or the wrong server")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.InsertRows(50)
	last := s.InsertRow()
	r = s.StartRelay()
	r.WaitForLog(20*time.Second, "this server has another history")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if after := confirmed(); after != before {
		t.Errorf("the slot of another history was moved from %s to %s", before, after)
	}
	if n := len(s.EventIDs()); n != 20 {
		t.Errorf("%d events, want the 20 of the history that was", n)
	}
	s.MustRefuse("another history", "skip", "--to", s.Query("SELECT pg_current_wal_flush_lsn()::text"))
	if out := s.MustRun("adopt"); !strings.Contains(out, "a server with another history") {
		t.Errorf("adopt:\n%s", out)
	}
	s.StartRelay()
	s.WaitForEvent(last)
	if n := len(s.EventIDs()); n != 20+51 {
		t.Errorf("%d events, want all 51 of the new history too", n)
	}
}
