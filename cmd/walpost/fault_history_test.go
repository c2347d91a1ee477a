package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// clone copies the scene's stopped server, cold: a standby of it, or the same as it was, and starts the first again.
func (s *scene) clone(standby bool) *devenv.Postgres {
	s.t.Helper()
	s.down("fast")
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
	s.up()
	return copied
}

// follow points relay, writer, oracle and sampler at another server.
func (s *scene) follow(server *devenv.Postgres) {
	s.t.Helper()
	u, err := url.Parse(s.env["WALPOST_SOURCE_URL"])
	if err != nil {
		s.t.Fatal(err)
	}
	at, err := url.Parse(server.URL("shop"))
	if err != nil {
		s.t.Fatal(err)
	}
	u.Host = at.Host
	s.env["WALPOST_SOURCE_URL"] = u.String()
	s.server, s.admin = server, server.URL("shop")
	s.env["WALPOST_ADMIN_URL"] = s.admin
}

// promote ends a standby's recovery.
func (s *scene) promote(standby *devenv.Postgres) {
	s.t.Helper()
	s.follow(standby)
	if s.query("SELECT pg_promote(true, 60)::text") != "true" {
		s.t.Fatal("the standby was not promoted within a minute")
	}
}

// failedOver is fault 22: a standby whose slot lags is promoted after it has received everything.
func failedOver(s *scene) {
	s.build(set{server: true})
	s.failOver()
}

func (s *scene) failOver() {
	s.t.Helper()
	r := s.child()
	s.grows(100)
	standby := s.clone(true) // its slot stays where it is now
	s.grows(200)
	s.flows()
	s.writer.Stop()
	if err := r.stop(); err != nil {
		s.t.Fatal(err)
	}
	end := s.query("SELECT pg_current_wal_lsn()::text")
	primary := s.server
	s.sampler.Stop()
	s.follow(standby)
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		if at := s.query("SELECT pg_last_wal_replay_lsn()::text || CASE WHEN pg_last_wal_replay_lsn() >= $1::text::pg_lsn THEN '' ELSE ' no' END", end); strings.HasSuffix(at, " no") {
			return fmt.Errorf("replayed to %s, not %s", at, end)
		}
		return nil
	})
	s.oracle.Rest()
	if err := primary.Stop(timeout(s.t, time.Minute), "fast"); err != nil {
		s.t.Fatal(err)
	}
	s.promote(standby)
	s.oracle.Follow(s.admin)
	s.write(cdctest.WriterConfig{Rate: 60})
	s.sample()
	s.fixed()
	s.child()
	s.grows(200)
	s.once(s.settle())
	if tl := s.state().Timeline; tl != 2 {
		s.t.Errorf("the state record is of timeline %d after a promotion", tl)
	}
}

// tailLost is fault 23: the standby that is promoted lacks what the relay has already published, and gives its LSNs to others.
func tailLost(s *scene) {
	s.build(set{server: true})
	r := s.child()
	s.grows(100)
	s.flows()
	s.writer.Stop()
	standby := s.clone(true)
	if err := standby.Stop(timeout(s.t, time.Minute), "fast"); err != nil {
		s.t.Fatal(err)
	}
	s.write(cdctest.WriterConfig{Rate: 60})
	s.grows(100)
	gone := s.writer.Stop()
	s.flows()
	if err := r.stop(); err != nil {
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
	s.oracle = cdctest.StartOracle(s.t, s.admin, "public.outbox")
	s.fixed()
	r = s.spawn()
	s.write(cdctest.WriterConfig{Rate: 60})
	s.streams(r)
	r.says(20*time.Second, "took back what was committed")
	s.grows(200)
	s.eventually(time.Minute, "confirmed_flush_lsn >= '"+s.heal+"'")
	s.back = time.Since(s.healed)
	ledger := s.writer.Stop()
	s.confirmed(time.Minute)
	// What was published and then taken back is no ghost: it was committed once.
	taken := map[uuid.UUID]bool{}
	for _, e := range gone.Events {
		taken[e.ID] = true
	}
	for _, e := range ledger.Events {
		delete(taken, e.ID)
	}
	var records []*kgo.Record
	for _, record := range cdctest.ReadAll(s.t, s.brokers, s.topic) {
		if id, err := uuid.Parse(header(record, "id")); err == nil && !taken[id] {
			records = append(records, record)
		}
	}
	report := cdctest.Check(ledger, records)
	if err := report.Err(); err != nil {
		s.t.Error(err)
	}
	s.once(report)
	s.t.Logf("%d events of the lost tail are phantoms, %d events live on; back after %s", len(taken), report.Events, s.back)
	if len(taken) == 0 {
		s.t.Error("nothing was lost: this run proves nothing")
	}
	r.says(time.Second, fmt.Sprintf(`"rows":%d,`, len(taken)))
}

// splitBrain is fault 24: the old primary lives on after a promotion, and the relay looks at it.
func splitBrain(s *scene) {
	s.build(set{server: true, quiet: true})
	s.oneRelay(20)
	old := s.server
	s.promote(s.clone(true))
	s.oneRelay(20)
	s.follow(old)
	s.insert(5)
	s.stays(func() { s.halts(s.start(), "timeline 2", "timeline 1", "stale primary") })
}

// oneRelay publishes rows and ends.
func (s *scene) oneRelay(rows int) {
	s.t.Helper()
	r := s.start()
	r.says(30*time.Second, `"streaming"`)
	s.insert(rows)
	s.confirmed(30 * time.Second)
	if err := r.stop(); err != nil {
		s.t.Fatal(err)
	}
}

// restored is fault 37: a backup of the database, restored, and restored and written past what was delivered.
func restored(s *scene) {
	s.build(set{server: true, quiet: true})
	s.oneRelay(20)
	backup := s.clone(false)
	s.oneRelay(200)
	covered := s.state().Covered
	s.follow(backup)
	s.stays(func() { s.halts(s.start(), "the server's WAL ends at", "restored backup") })
	for s.query("SELECT (pg_current_wal_lsn() > '"+covered.String()+"')::text") != "true" {
		s.insert(100)
	}
	s.stays(func() { s.halts(s.start(), "another history") })
}

// broken is a way to spoil what a halt is for.
type broken struct {
	name string
	does func(*scene)
	says []string
}

// halting does each on a pipeline of its own that has delivered rows: the relay halts, publishes nothing and confirms nothing.
func (s *scene) halting(c set, all ...broken) {
	c.quiet = true
	for _, b := range all {
		s.build(c)
		s.oneRelay(20)
		b.does(s)
		s.insertIfThere(5)
		s.stays(func() { s.halts(s.start(), b.says...) })
		if status := s.must("status"); !strings.Contains(status, b.says[0]) {
			s.t.Errorf("%s: walpost status does not say it: %s", b.name, status)
		}
		s.keeps("nothing was deleted", b.says[0])
	}
}

// insertIfThere writes rows that a wrong relay would skip, into whatever the outbox is now.
func (s *scene) insertIfThere(n int) {
	conn := s.connect()
	defer func() { _ = conn.Close(s.t.Context()) }()
	_, _ = conn.Exec(s.t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k' || i % 7, 'OrderPaid', '{}' FROM generate_series(1, $1::int) i`, n)
}

// slotDropped is fault 25.
func slotDropped(s *scene) {
	s.halting(set{}, broken{"dropped", func(s *scene) {
		s.exec("SELECT pg_drop_replication_slot($1)", s.env["WALPOST_SOURCE_SLOT"])
	}, []string{"does not exist", "walpost adopt"}})
	if n := s.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]); n != "0" {
		s.t.Error("the relay made a slot")
	}
}

// slotMoved is fault 26.
func slotMoved(s *scene) {
	s.halting(set{},
		broken{"dropped and made again", func(s *scene) {
			s.exec("SELECT pg_drop_replication_slot($1)", s.env["WALPOST_SOURCE_SLOT"])
			s.insert(5)
			s.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", s.env["WALPOST_SOURCE_SLOT"])
		}, []string{"re-created or advanced"}},
		broken{"advanced", func(s *scene) {
			s.insert(5)
			s.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.env["WALPOST_SOURCE_SLOT"])
		}, []string{"re-created or advanced"}})
}

// slotLost is fault 27.
func slotLost(s *scene) {
	s.halting(set{settings: map[string]string{"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}}, broken{"lost", func(s *scene) {
		s.exec("CREATE TABLE filler (t text)")
		cdctest.Eventually(s.t, time.Minute, func() error {
			s.exec("INSERT INTO filler SELECT repeat(md5(i::text), 40) FROM generate_series(1, 5000) i")
			s.exec("SELECT pg_switch_wal()")
			s.exec("CHECKPOINT")
			if status := s.query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]); status != "lost" {
				return fmt.Errorf("wal_status is %s", status)
			}
			return nil
		})
	}, []string{"is lost", "walpost adopt"}})
}

// publicationChanged is fault 28, also where it was changed back.
func publicationChanged(s *scene) {
	sql := func(statements ...string) func(*scene) {
		return func(s *scene) {
			for _, statement := range statements {
				s.exec(statement)
				s.insertIfThere(2)
			}
		}
	}
	s.halting(set{},
		broken{"dropped", sql("DROP PUBLICATION walpost"), []string{"walpost does not exist"}},
		broken{"dropped and made again", sql("DROP PUBLICATION walpost", "CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')"), []string{"publication or table changed"}},
		broken{"table taken out and put back", sql("ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox"), []string{"publication or table changed"}},
		broken{"publish changed and changed back", sql("ALTER PUBLICATION walpost SET (publish = 'update')", "ALTER PUBLICATION walpost SET (publish = 'insert')"), []string{"publication or table changed"}})
}

// tableChanged is fault 29: what may be done to the table, and what must halt.
func tableChanged(s *scene) {
	s.build(set{})
	s.run()
	s.grows(50)
	s.exec("ALTER TABLE outbox ADD COLUMN note text DEFAULT 'n'")
	s.grows(50)
	s.exec("ALTER TABLE outbox DROP COLUMN note")
	s.grows(50)
	s.fixed()
	s.once(s.settle())
	back := s.back
	s.halting(set{},
		broken{"renamed and replaced", func(s *scene) {
			s.exec("ALTER TABLE outbox RENAME TO outbox_old")
			s.exec("CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)")
		}, []string{"outbox"}},
		broken{"a column it needs dropped", func(s *scene) { s.exec("ALTER TABLE outbox DROP COLUMN event_type CASCADE") }, []string{"event_type"}})
	s.back = back
}
