package faults

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// copyPostgres stops the trial's server, copies it as a standby or as an identical server, and starts the first
// again.
func (s *trial) copyPostgres(standby bool) *devenv.Postgres {
	s.t.Helper()
	s.stopPostgres("fast")
	settings := map[string]string{}
	if standby {
		u, err := url.Parse(s.server.URL("postgres"))
		if err != nil {
			s.t.Fatal(err)
		}
		settings["primary_conninfo"] = fmt.Sprintf("host=%s port=%s user=postgres", u.Hostname(), u.Port())
		if s.server.Major() >= 17 {
			settings["sync_replication_slots"] = "off"
		}
		settings["hot_standby_feedback"] = "on"
	}
	copied, err := s.server.Copy(timeout(s.t, time.Minute), devenv.CopyConfig{Standby: standby, Settings: settings})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := copied.Close(); err != nil {
			s.t.Error(err)
		}
	})
	s.startPostgres()
	return copied
}

// pointTo points relay, writer, oracle and sampler to another server.
func (s *trial) pointTo(server *devenv.Postgres) {
	s.t.Helper()
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		s.t.Fatal(err)
	}
	at, err := url.Parse(server.URL("shop"))
	if err != nil {
		s.t.Fatal(err)
	}
	u.Host = at.Host
	s.Env["WALPOST_SOURCE_URL"] = u.String()
	s.server, s.AdminURL = server, server.URL("shop")
	s.Env["WALPOST_ADMIN_URL"] = s.AdminURL
}

// promote ends a standby's recovery.
func (s *trial) promote(standby *devenv.Postgres) {
	s.t.Helper()
	s.pointTo(standby)
	if s.Query("SELECT pg_promote(true, 60)::text") != "true" {
		s.t.Fatal("the standby was not promoted within a minute")
	}
}

// failedOver runs fault 22: a standby whose slot lags is promoted after it has received everything.
func failedOver(s *trial) {
	s.prepare(setup{server: true})
	s.failOver()
}

func (s *trial) failOver() {
	s.t.Helper()
	r := s.startStreaming()
	s.waitForCommits(100)
	standby := s.copyPostgres(true) // its slot stays at this position
	s.waitForCommits(200)
	s.waitUntilDelivered()
	s.writer.Stop()
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}
	end := s.Query("SELECT pg_current_wal_lsn()::text")
	primary := s.server
	s.sampler.Stop()
	s.pointTo(standby)
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		if at := s.Query("SELECT pg_last_wal_replay_lsn()::text || CASE WHEN pg_last_wal_replay_lsn() >= $1::text::pg_lsn THEN '' ELSE ' no' END", end); strings.HasSuffix(at, " no") {
			return fmt.Errorf("replayed to %s, not %s", at, end)
		}
		return nil
	})
	s.oracle.Rest()
	if err := primary.Stop(timeout(s.t, time.Minute), "fast"); err != nil {
		s.t.Fatal(err)
	}
	s.promote(standby)
	s.oracle.Follow(s.AdminURL)
	s.startWriter(cdctest.WriterConfig{Rate: 60})
	s.startSampler()
	s.endFault()
	s.startStreaming()
	s.waitForCommits(200)
	s.wantNoDuplicates(s.finish())
	if tl := s.StateRecord().Timeline; tl != 2 {
		s.t.Errorf("the state record is of timeline %d after a promotion", tl)
	}
}

// tailLost runs fault 23: the promoted standby lacks rows that the relay has already published, and gives their LSNs to
// others.
func tailLost(s *trial) {
	s.prepare(setup{server: true})
	r := s.startStreaming()
	s.waitForCommits(100)
	s.waitUntilDelivered()
	s.writer.Stop()
	standby := s.copyPostgres(true)
	if err := standby.Stop(timeout(s.t, time.Minute), "fast"); err != nil {
		s.t.Fatal(err)
	}
	s.startWriter(cdctest.WriterConfig{Rate: 60})
	s.waitForCommits(100)
	gone := s.writer.Stop()
	s.waitUntilDelivered()
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.sampler.Stop()
	s.oracle.Rest()
	if err := s.server.Stop(timeout(s.t, time.Minute), "immediate"); err != nil {
		s.t.Fatal(err)
	}
	if err := standby.Start(timeout(s.t, time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	s.promote(standby)
	s.oracle = cdctest.StartOracle(s.t, s.AdminURL, "public.outbox")
	s.endFault()
	r = s.SpawnRelay()
	s.startWriter(cdctest.WriterConfig{Rate: 60})
	s.waitUntilStreaming(r)
	r.WaitForLog(20*time.Second, "took back the commits in")
	s.waitForCommits(200)
	s.WaitForSlot(time.Minute, "confirmed_flush_lsn >= '"+s.faultEndLSN+"'")
	s.recovery = time.Since(s.faultEnded)
	ledger := s.writer.Stop()
	s.WaitUntilConfirmed(time.Minute)
	// A row that was published and then taken back was committed once, so it is expected.
	taken := map[uuid.UUID]bool{}
	for _, e := range gone.Events {
		taken[e.ID] = true
	}
	for _, e := range ledger.Events {
		delete(taken, e.ID)
	}
	var records []*kgo.Record
	for _, record := range cdctest.ReadAll(s.t, s.Brokers, s.Topic) {
		if id, err := uuid.Parse(e2e.Header(record, "id")); err == nil && !taken[id] {
			records = append(records, record)
		}
	}
	report := cdctest.Check(ledger, records)
	if err := report.Err(); err != nil {
		s.t.Error(err)
	}
	s.wantNoDuplicates(report)
	s.t.Logf("%d events of the lost tail are phantoms, %d events live on; back after %s", len(taken), report.Events, s.recovery)
	if len(taken) == 0 {
		s.t.Error("nothing was lost: this run proves nothing")
	}
	r.WaitForLog(3*time.Second, fmt.Sprintf(`"rows":%d,`, len(taken)))
}

// splitBrain runs fault 24: the old primary keeps running after a promotion, and the relay connects to it.
func splitBrain(s *trial) {
	s.prepare(setup{server: true, quiet: true})
	s.deliverWithOneRelay(20)
	old := s.server
	s.promote(s.copyPostgres(true))
	s.deliverWithOneRelay(20)
	s.pointTo(old)
	s.InsertRows(5)
	s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), "timeline 2", "timeline 1", "stale primary") })
}

// deliverWithOneRelay starts a relay, which publishes rows, and stops it.
func (s *trial) deliverWithOneRelay(rows int) {
	s.t.Helper()
	r := s.StartRelay()
	r.WaitForLog(time.Minute, `"streaming"`)
	s.InsertRows(rows)
	s.WaitUntilConfirmed(30 * time.Second)
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// restored runs fault 37: a backup of the database, restored, and restored and then written beyond the delivered
// position.
func restored(s *trial) {
	s.prepare(setup{server: true, quiet: true})
	s.deliverWithOneRelay(20)
	backup := s.copyPostgres(false)
	s.deliverWithOneRelay(200)
	covered := s.StateRecord().Covered
	s.pointTo(backup)
	s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), "the server's WAL ends at", "restored backup") })
	for s.Query("SELECT (pg_current_wal_lsn() > '"+covered.String()+"')::text") != "true" {
		s.InsertRows(100)
	}
	s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), "another history") })
}

// breakage is a way to break something that a halt must notice.
type breakage struct {
	name string
	does func(*trial)
	says []string
}

// wantHaltAfterEach applies each breakage to a new pipeline that has delivered rows: the relay must halt, publish
// nothing and confirm nothing.
func (s *trial) wantHaltAfterEach(c setup, all ...breakage) {
	c.quiet = true
	for _, b := range all {
		s.prepare(c)
		s.deliverWithOneRelay(20)
		b.does(s)
		s.tryInsertRows(5)
		s.wantNothingMoved(func() { s.waitUntilHalted(s.StartRelay(), b.says...) })
		if status := s.Status(); !strings.Contains(status, b.says[0]) {
			s.t.Errorf("%s: walpost status does not say it: %s", b.name, status)
		}
		s.CleanupMustRefuse("nothing was deleted", b.says[0])
	}
}

// tryInsertRows inserts rows that a wrong relay would skip, into the table that is now called the outbox.
func (s *trial) tryInsertRows(n int) {
	conn := s.Connect()
	defer func() { _ = conn.Close(s.t.Context()) }()
	_, _ = conn.Exec(s.t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', '{}' FROM generate_series(1, $1::int) i`, n)
}

// slotDropped runs fault 25.
func slotDropped(s *trial) {
	s.wantHaltAfterEach(setup{}, breakage{"dropped", func(s *trial) {
		s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
	}, []string{"does not exist", "walpost adopt"}})
	if n := s.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); n != "0" {
		s.t.Error("the relay made a slot")
	}
}

// slotMoved runs fault 26.
func slotMoved(s *trial) {
	s.wantHaltAfterEach(setup{},
		breakage{"dropped and made again", func(s *trial) {
			s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
			s.InsertRows(5)
			s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", s.Slot())
		}, []string{"re-created or advanced"}},
		breakage{"advanced", func(s *trial) {
			s.InsertRows(5)
			s.Exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot())
		}, []string{"re-created or advanced"}})
}

// slotLost runs fault 27.
func slotLost(s *trial) {
	s.wantHaltAfterEach(setup{settings: map[string]string{"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}}, breakage{"lost", func(s *trial) {
		s.Exec("CREATE TABLE filler (t text)")
		cdctest.Eventually(s.t, time.Minute, func() error {
			s.Exec("INSERT INTO filler SELECT repeat(md5(i::text), 40) FROM generate_series(1, 5000) i")
			s.Exec("SELECT pg_switch_wal()")
			s.Exec("CHECKPOINT")
			if status := s.Query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); status != "lost" {
				return fmt.Errorf("wal_status is %s", status)
			}
			return nil
		})
	}, []string{"is lost", "walpost adopt"}})
}

// publicationChanged runs fault 28, also if the publication was changed back.
func publicationChanged(s *trial) {
	sql := func(statements ...string) func(*trial) {
		return func(s *trial) {
			for _, statement := range statements {
				s.Exec(statement)
				s.tryInsertRows(2)
			}
		}
	}
	s.wantHaltAfterEach(setup{},
		breakage{"dropped", sql("DROP PUBLICATION walpost"), []string{"walpost does not exist"}},
		breakage{"dropped and made again", sql("DROP PUBLICATION walpost", "CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')"), []string{"publication or table changed"}},
		breakage{"table taken out and put back", sql("ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox"), []string{"publication or table changed"}},
		breakage{"publish changed and changed back", sql("ALTER PUBLICATION walpost SET (publish = 'update')", "ALTER PUBLICATION walpost SET (publish = 'insert')"), []string{"publication or table changed"}})
}

// tableChanged runs fault 29: changes of the table that are allowed, and those that must halt.
func tableChanged(s *trial) {
	s.prepare(setup{})
	s.startStreaming()
	s.waitForCommits(50)
	s.Exec("ALTER TABLE outbox ADD COLUMN note text DEFAULT 'n'")
	s.waitForCommits(50)
	s.Exec("ALTER TABLE outbox DROP COLUMN note")
	s.waitForCommits(50)
	s.endFault()
	s.wantNoDuplicates(s.finish())
	back := s.recovery
	s.wantHaltAfterEach(setup{},
		breakage{"renamed and replaced", func(s *trial) {
			s.Exec("ALTER TABLE outbox RENAME TO outbox_old")
			s.Exec("CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)")
		}, []string{"outbox"}},
		breakage{"a column it needs dropped", func(s *trial) { s.Exec("ALTER TABLE outbox DROP COLUMN event_type CASCADE") }, []string{"event_type"}})
	s.recovery = back
}
