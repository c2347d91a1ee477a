package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// zoned prepares a database of another time zone, with an outbox whose times have no zone.
func zoned(s *testbed, zone, partition string) {
	s.T.Helper()
	s.Exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), '` + zone + `'); END $$`)
	s.Exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamp NOT NULL DEFAULT clock_timestamp())` + partition)
}

// insertAgo writes a row as the database's clock had it a while ago.
func (s *testbed) insertAgo(ago string) (id string) {
	s.T.Helper()
	id = uuid.NewString()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES ($1, 'order', 'k', 'OrderPaid', '{}', clock_timestamp() - $2::text::interval)`, id, ago)
	return id
}

// TestTimesOfTheWritersZone: what adopt prints finds the rows that are missing and no others, where finds a row by its
// time, and cleanup deletes by age. While nothing tells the zone they refuse.
func TestTimesOfTheWritersZone(t *testing.T) {
	t.Parallel()
	for zone, delivery := range map[string]string{"Europe/Berlin": "exactly_once", "America/New_York": "at_least_once"} {
		t.Run(zone, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			zoned(s, zone, "")
			s.Env["WALPOST_DELIVERY"] = delivery
			says := "set source.columns.created_at_zone to the writers' zone"
			if out := s.MustRun("init"); !strings.Contains(out, says) || !strings.Contains(out, ": "+zone+")") {
				t.Errorf("init does not say which zone is not known:\n%s", out)
			}
			r := s.StartRelay()
			old := s.insertAgo("2 hours")
			s.WaitForEvent(old)
			s.WaitUntilConfirmed(20 * time.Second)
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			s.MustRefuse(says, "cleanup", "--retention", "6h")
			s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
			missing := []string{s.insertAgo("0"), s.insertAgo("0")}
			printed := e2e.PrintedReplay.FindStringSubmatch(s.MustRun("adopt", "--create-slot"))
			if printed == nil {
				t.Fatal("adopt prints no replay")
			}
			s.MustRefuse(says, strings.Fields(printed[1])...)
			s.MustRefuse(says, "where", old)
			if w := s.where("--since", "1h", old); len(w.Notes) != 1 || !strings.Contains(w.Notes[0], says) || w.Events[0].Times != 1 {
				t.Errorf("where: %+v", w)
			}
			if status := s.Status(); !strings.Contains(status, "note       `walpost replay`, `cleanup` and `where` by time will refuse") {
				t.Errorf("status:\n%s", status)
			}
			s.Env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = "Europe/Berln"
			r = s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			r.WaitForLog(3*time.Second, "source.columns.created_at_zone: PostgreSQL knows no time zone")
			if err := r.Stop(); err != nil || s.StateRecord().Halt != nil {
				t.Error(err, s.StateRecord().Halt) // a wrong name is not latched
			}
			s.Env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = zone
			if out := s.MustRun("init", "--dry-run"); strings.Contains(out, says) {
				t.Errorf("init:\n%s", out)
			}
			if out := s.MustRun(strings.Fields(printed[1])...); !strings.Contains(out, "2 rows were published again") {
				t.Errorf("replay:\n%s", out)
			}
			for _, id := range append(missing, old) {
				if w := s.where(id); len(w.Events) != 1 || w.Events[0].Times != 1 || w.Read.Records > 3 {
					t.Errorf("where %s: %+v", id, w)
				}
			}
			s.StartRelay()
			s.insertAgo("7 hours")
			twice := map[string]time.Time{"Europe/Berlin": time.Date(2025, 10, 26, 1, 30, 0, 0, time.UTC), "America/New_York": time.Date(2025, 11, 2, 6, 30, 0, 0, time.UTC)}[zone]
			again := s.insertAgo("0") // in the hour that came twice
			s.Exec(`UPDATE outbox SET created_at = $2::timestamptz AT TIME ZONE $3 WHERE id = $1`, again, twice, zone)
			s.WaitUntilConfirmed(20 * time.Second)
			deletes := func(rows int, before time.Time) {
				t.Helper()
				deleted := 0
				cdctest.Eventually(t, 30*time.Second, func() error { // another test's open transaction keeps rows for a while
					var n int
					out := s.MustRun("cleanup", "--retention", time.Since(before).Round(time.Second).String())
					_, rest, _ := strings.Cut(out, ": ")
					if _, err := fmt.Sscanf(rest, "%d rows", &n); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					if deleted += n; deleted != rows {
						return fmt.Errorf("%d rows of before %s are deleted, want %d", deleted, before, rows)
					}
					return nil
				})
			}
			deletes(0, twice.Add(-5*time.Minute))
			deletes(1, twice.Add(5*time.Minute))
			deletes(1, time.Now().Add(-6*time.Hour))
			if s.CountRows() != "3" {
				t.Errorf("%s rows are left, want 3", s.CountRows())
			}
		})
	}
}

// TestPartitionsOfTheWritersZone are made for its days, and dropped when they are over there.
func TestPartitionsOfTheWritersZone(t *testing.T) {
	t.Parallel()
	zone := "Etc/GMT+12" // where it is another day
	if time.Now().UTC().Hour() >= 12 {
		zone = "Pacific/Kiritimati"
	}
	s, _ := newTestbedOnOwnServer(t)
	zoned(s, zone, " PARTITION BY RANGE (created_at)")
	s.Env["WALPOST_CLEANUP_EVERY"], s.Env["WALPOST_CLEANUP_URL"] = "1h", s.AdminURL // found before it is time
	s.MustRun("init")
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, "set source.columns.created_at_zone")
	r.WaitForMetric("walpost_cleanup_refused", "1")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Env["WALPOST_CLEANUP_EVERY"] = "0s"
	s.Env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = zone
	s.StartRelay().WaitForLog(20*time.Second, `"streaming"`) // a slot that nobody reads is not waited for
	out := s.MustRun("cleanup")
	const made = `SELECT string_agg(pg_get_expr(relpartbound, c.oid), '; ' ORDER BY relname) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'outbox'::regclass`
	first := s.Query(`SELECT format('FOR VALUES FROM (''%s'') TO (''%s'')', date_trunc('day', now()::timestamp), date_trunc('day', now()::timestamp) + interval '1 day')`)
	if is := s.Query(made); !strings.HasPrefix(is, first) || strings.Count(is, ";") != 7 {
		t.Errorf("cleanup made %s, want 8 from %s on:\n%s", is, first, out)
	}
	if s.MustRun("cleanup"); strings.Count(s.Query(made), ";") != 7 {
		t.Errorf("cleanup made more: %s", s.Query(made))
	}
	s.Exec(`DO $$ BEGIN EXECUTE format('CREATE TABLE outbox_past PARTITION OF outbox FOR VALUES FROM (%L) TO (%L)', now()::timestamp - interval '50 hours', now()::timestamp - interval '26 hours'); END $$`)
	s.insertAgo("27 hours")
	s.WaitUntilConfirmed(20 * time.Second)
	if out := s.MustRun("cleanup", "--retention", "27h"); strings.Contains(out, "dropped") {
		t.Errorf("a partition was dropped that ended 26 hours ago: %s", out)
	}
	if out := s.MustRun("cleanup", "--retention", "25h"); !strings.Contains(out, "dropped: outbox_past") {
		t.Errorf("a partition was not dropped that ended 26 hours ago: %s", out)
	}
}

// TestPolledTimesOfTheWritersZone: how long the oldest row waits is not off by the zone, configured or not.
func TestPolledTimesOfTheWritersZone(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"timezone": "America/New_York"}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	for zone, admin := range map[string]string{"Europe/Berlin": cdctest.Database(t), "America/New_York": server.URL("shop")} {
		s := newTestbedOn(t, admin, cdctest.Kafka(t))
		s.Env["WALPOST_SOURCE_KIND"] = "polling"
		if zoned(s, zone, ""); zone == "America/New_York" {
			s.Exec(`ALTER DATABASE shop RESET timezone`) // the server says it
		}
		s.MustRun("init")
		s.insertAgo("1 hour")
		for _, configured := range []string{"", zone} {
			s.Env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = configured
			if at := s.Backlog().OldestSeconds; at < 3600 || at > 3700 {
				t.Errorf("%s, configured %q: the oldest row waits for %.0f s, want an hour", zone, configured, at)
			}
		}
		s.Env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = "Europe/Berln"
		if status := s.Status(); !strings.Contains(status, `source.columns.created_at_zone: PostgreSQL knows no time zone "Europe/Berln"`) {
			t.Errorf("status:\n%s", status)
		}
		s.Env["WALPOST_SOURCE_KIND"] = "wal"
		s.MustRefuse("source.columns.created_at_zone", "init")
		s.Env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = "UTC+2" // POSIX: west of Greenwich
		s.MustRefuse("source.columns.created_at_zone", "status")
	}
}
