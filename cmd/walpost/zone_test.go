package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// zoned is a stage in a database of another zone, whose outbox has times without one.
func zoned(s *stage, zone, partition string) {
	s.t.Helper()
	s.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), '` + zone + `'); END $$`)
	s.exec(`CREATE TABLE outbox (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamp NOT NULL DEFAULT clock_timestamp())` + partition)
}

// insertAgo writes a row as the database's clock had it a while ago.
func (s *stage) insertAgo(ago string) (id string) {
	s.t.Helper()
	id = uuid.NewString()
	s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) VALUES ($1, 'order', 'k', 'OrderPaid', '{}', clock_timestamp() - $2::text::interval)`, id, ago)
	return id
}

// TestTimesOfTheWritersZone: what adopt prints finds the rows that are missing and no others, where finds a row by its time, and cleanup
// deletes by age. While nothing tells the zone they refuse.
func TestTimesOfTheWritersZone(t *testing.T) {
	t.Parallel()
	for zone, delivery := range map[string]string{"Europe/Berlin": "exactly_once", "America/New_York": "at_least_once"} {
		t.Run(zone, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			zoned(s, zone, "")
			s.env["WALPOST_DELIVERY"] = delivery
			says := "set source.columns.created_at_zone to the writers' zone"
			if out := s.must("init"); !strings.Contains(out, says) || !strings.Contains(out, ": "+zone+")") {
				t.Errorf("init does not say which zone is not known:\n%s", out)
			}
			r := s.start()
			old := s.insertAgo("2 hours")
			s.arrives(old)
			s.confirmed(20 * time.Second)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			s.exec("SELECT pg_drop_replication_slot($1)", slot(s))
			missing := []string{s.insertAgo("0"), s.insertAgo("0")}
			printed := printedReplay.FindStringSubmatch(s.must("adopt", "--create-slot"))
			if printed == nil {
				t.Fatal("adopt prints no replay")
			}
			s.refuses(says, strings.Fields(printed[1])...)
			s.refuses(says, "cleanup", "--retention", "6h")
			s.refuses(says, "where", old)
			if w := s.where("--since", "1h", old); len(w.Notes) != 1 || !strings.Contains(w.Notes[0], says) || w.Events[0].Times != 1 {
				t.Errorf("where: %+v", w)
			}
			if status := s.must("status"); !strings.Contains(status, "note       `walpost replay`, `cleanup` and `where` by time will refuse") {
				t.Errorf("status:\n%s", status)
			}
			s.env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = "Europe/Berln"
			r = s.start()
			r.says(20*time.Second, `"halted"`)
			r.says(time.Second, "source.columns.created_at_zone: PostgreSQL knows no time zone")
			if err := r.stop(); err != nil || s.state().Halt != nil {
				t.Error(err, s.state().Halt) // a wrong name is not latched
			}
			s.env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = zone
			if out := s.must("init", "--dry-run"); strings.Contains(out, says) {
				t.Errorf("init:\n%s", out)
			}
			if out := s.must(strings.Fields(printed[1])...); !strings.Contains(out, "2 rows were published again") {
				t.Errorf("replay:\n%s", out)
			}
			for _, id := range append(missing, old) {
				if w := s.where(id); len(w.Events) != 1 || w.Events[0].Times != 1 || w.Read.Records > 3 {
					t.Errorf("where %s: %+v", id, w)
				}
			}
			s.start()
			s.insertAgo("7 hours")
			twice := map[string]time.Time{"Europe/Berlin": time.Date(2025, 10, 26, 1, 30, 0, 0, time.UTC), "America/New_York": time.Date(2025, 11, 2, 6, 30, 0, 0, time.UTC)}[zone]
			again := s.insertAgo("0") // in the hour that came twice
			s.exec(`UPDATE outbox SET created_at = $2::timestamptz AT TIME ZONE $3 WHERE id = $1`, again, twice, zone)
			s.confirmed(20 * time.Second)
			deletes := func(rows int, before time.Time) {
				t.Helper()
				deleted := 0
				cdctest.Eventually(t, 30*time.Second, func() error { // another test's open transaction keeps rows for a while
					var n int
					out := s.must("cleanup", "--retention", time.Since(before).Round(time.Second).String())
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
			if s.rows() != "3" {
				t.Errorf("%s rows are left, want 3", s.rows())
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
	s, _ := ownStage(t)
	zoned(s, zone, " PARTITION BY RANGE (created_at)")
	s.env["WALPOST_CLEANUP_EVERY"], s.env["WALPOST_CLEANUP_URL"] = "1h", s.admin // found before it is time
	s.must("init")
	r := s.start()
	r.says(20*time.Second, "set source.columns.created_at_zone")
	r.counts("walpost_cleanup_refused", "1")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s.env["WALPOST_CLEANUP_EVERY"] = "0s"
	s.env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = zone
	s.start().says(20*time.Second, `"streaming"`) // a slot that nobody reads is not waited for
	out := s.must("cleanup")
	const made = `SELECT string_agg(pg_get_expr(relpartbound, c.oid), '; ' ORDER BY relname) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'outbox'::regclass`
	first := s.query(`SELECT format('FOR VALUES FROM (''%s'') TO (''%s'')', date_trunc('day', now()::timestamp), date_trunc('day', now()::timestamp) + interval '1 day')`)
	if is := s.query(made); !strings.HasPrefix(is, first) || strings.Count(is, ";") != 7 {
		t.Errorf("cleanup made %s, want 8 from %s on:\n%s", is, first, out)
	}
	if s.must("cleanup"); strings.Count(s.query(made), ";") != 7 {
		t.Errorf("cleanup made more: %s", s.query(made))
	}
	s.exec(`DO $$ BEGIN EXECUTE format('CREATE TABLE outbox_past PARTITION OF outbox FOR VALUES FROM (%L) TO (%L)', now()::timestamp - interval '50 hours', now()::timestamp - interval '26 hours'); END $$`)
	s.insertAgo("27 hours")
	s.confirmed(20 * time.Second)
	if out := s.must("cleanup", "--retention", "27h"); strings.Contains(out, "dropped") {
		t.Errorf("a partition was dropped that ended 26 hours ago: %s", out)
	}
	if out := s.must("cleanup", "--retention", "25h"); !strings.Contains(out, "dropped: outbox_past") {
		t.Errorf("a partition was not dropped that ended 26 hours ago: %s", out)
	}
}

// TestPolledTimesOfTheWritersZone: how long the oldest row waits is not off by the zone, configured or not.
func TestPolledTimesOfTheWritersZone(t *testing.T) {
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"timezone": "America/New_York"}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	for zone, admin := range map[string]string{"Europe/Berlin": cdctest.Database(t), "America/New_York": server.URL("shop")} {
		s := stageOn(t, admin, cdctest.Kafka(t))
		s.env["WALPOST_SOURCE_KIND"] = "polling"
		if zoned(s, zone, ""); zone == "America/New_York" {
			s.exec(`ALTER DATABASE shop RESET timezone`) // the server says it
		}
		s.must("init")
		s.insertAgo("1 hour")
		for _, configured := range []string{"", zone} {
			s.env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = configured
			if at := s.backlog().OldestSeconds; at < 3600 || at > 3700 {
				t.Errorf("%s, configured %q: the oldest row waits for %.0f s, want an hour", zone, configured, at)
			}
		}
		s.env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = "Europe/Berln"
		if status := s.must("status"); !strings.Contains(status, `source.columns.created_at_zone: PostgreSQL knows no time zone "Europe/Berln"`) {
			t.Errorf("status:\n%s", status)
		}
		s.env["WALPOST_SOURCE_KIND"] = "wal"
		s.refuses("source.columns.created_at_zone", "init")
		s.env["WALPOST_SOURCE_COLUMNS_CREATED_AT_ZONE"] = "UTC+2" // POSIX: west of Greenwich
		s.refuses("source.columns.created_at_zone", "status")
	}
}
