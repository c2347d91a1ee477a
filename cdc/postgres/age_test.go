package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

// instants returns the instants at which a clock in the zone shows this time.
func instants(zone *time.Location, shows time.Time) (all []time.Time) {
	for _, around := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		_, offset := shows.Add(around).In(zone).Zone()
		at := shows.Add(-time.Duration(offset) * time.Second)
		if in := at.In(zone); in.Format(time.DateTime) == shows.Format(time.DateTime) && !slices.ContainsFunc(all, at.Equal) {
			all = append(all, at)
		}
	}
	return all
}

// TestTimesWithoutAZone replays rows around every change of the clocks of 2026: exactly those that can be of the
// requested time.
func TestTimesWithoutAZone(t *testing.T) {
	cdctest.Long(t, "makes many databases")
	t.Parallel()
	admin := cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for i, name := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Europe/Dublin", "Asia/Kathmandu", "UTC"} {
		t.Run(name, func(t *testing.T) {
			zone, err := time.LoadLocation(name)
			if err != nil {
				t.Fatal(err)
			}
			var around []time.Time
			for at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC); at.Year() == 2026; at = at.Add(30 * time.Minute) {
				_, before := at.Add(-time.Minute).In(zone).Zone()
				if _, after := at.In(zone).Zone(); before != after {
					around = append(around, at)
				}
			}
			if want := map[bool]int{true: 0, false: 2}[i >= 4]; len(around) != want {
				t.Fatalf("the clocks change at %s", around)
			}
			if len(around) == 0 {
				around = []time.Time{time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}
			}
			table := fmt.Sprintf("t%d", i)
			if _, err := conn.Exec(t.Context(), fmt.Sprintf(`CREATE TABLE %s (id text, aggregate_type text, aggregate_id text, event_type text, payload text, created_at timestamp);
				INSERT INTO %[1]s VALUES ('never', '', '', '', '', 'infinity'), ('ever', '', '', '', '', '-infinity'), ('null', '', '', '', '', NULL)`, table)); err != nil {
				t.Fatal(err)
			}
			cfg := config.Default().Source
			cfg.URL, cfg.Table, cfg.Columns.CreatedAtZone = admin, "public."+table, name
			a, err := postgres.NewSource("test", cfg, zerolog.Nop()).Admin(t.Context(), admin)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close(t.Context())
			var shown []time.Time // by the writer's clock
			for _, change := range around {
				for m := -240; m < 240; m += 10 {
					in := change.Add(time.Duration(m) * time.Minute).In(zone)
					shown = append(shown, time.Date(in.Year(), in.Month(), in.Day(), in.Hour(), in.Minute(), 0, 0, time.UTC))
				}
			}
			if _, err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO %s SELECT i::text || '@' || t, 'order', 'k', 'Paid', '', t FROM unnest($1::timestamp[]) WITH ORDINALITY u(t, i)`, table), shown); err != nil {
				t.Fatal(err)
			}
			for _, change := range around {
				for m := -200; m < 200; m += 10 {
					for _, long := range []time.Duration{time.Minute, 45 * time.Minute, 2 * time.Hour} {
						from := change.Add(time.Duration(m) * time.Minute)
						var want, got []string
						for i, at := range shown {
							if slices.ContainsFunc(instants(zone, at), func(at time.Time) bool { return !at.Before(from) && at.Before(from.Add(long)) }) {
								want = append(want, fmt.Sprintf("%d@%s", i+1, at.Format(time.DateTime)))
							}
						}
						rows, err := a.Retained(t.Context(), from, from.Add(long))
						if err != nil {
							t.Fatal(err)
						}
						if err := rows.Each(t.Context(), func(row *cdc.Row) error { got = append(got, string(row.ID)); return nil }); err != nil {
							t.Fatal(err)
						}
						slices.Sort(want)
						slices.Sort(got)
						if !slices.Equal(want, got) {
							t.Fatalf("from %s for %s: %s, want %s", from, long, got, want)
						}
					}
				}
			}
		})
	}
}

// TestZoneOfTimesWithoutOne: the zone is the configured one, or UTC if no default of the database is another zone.
func TestZoneOfTimesWithoutOne(t *testing.T) {
	t.Parallel()
	admin := cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	role := "zoned_" + strings.ReplaceAll(cdctest.Name(t, "r"), "-", "_")
	do := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), strings.NewReplacer("{role}", role, "{db}", conn.Config().Database).Replace(sql)); err != nil {
			t.Fatal(err)
		}
	}
	do(`CREATE ROLE "{role}" LOGIN`)
	defer do(`DROP ROLE "{role}"`)
	do(`CREATE DOMAIN moment AS timestamp; CREATE DOMAIN instant AS timestamptz;
		CREATE TABLE outbox (id text, aggregate_type text, aggregate_id text, event_type text, payload text, created_at timestamp, at timestamptz, m moment, i instant)`)
	for _, c := range []struct{ sql, zone, column, says string }{
		{`ALTER DATABASE "{db}" SET timezone = 'Etc/UTC'`, "", "", ""},
		{`ALTER DATABASE "{db}" SET timezone = 'Europe/Berlin'`, "", "", `"created_at" of public.outbox is a timestamp without time zone, and its zone is not certain (database {db}: Europe/Berlin): set source.columns.created_at_zone`},
		{``, "", "", "TYPE timestamptz USING \"created_at\" AT TIME ZONE 'Europe/Berlin'`"},
		{``, "", "m", `column "m"`},
		{``, "", "at", ""},
		{``, "", "i", ""},
		{``, "Europe/Berlin", "", ""},
		{``, "America/New_York", "m", ""},
		{``, "Europe/Berln", "", `source.columns.created_at_zone: PostgreSQL knows no time zone "Europe/Berln"`},
		{`ALTER DATABASE "{db}" SET timezone = 'zulu'; ALTER ROLE "{role}" SET timezone = 'America/New_York'`, "", "", "(database {db}: zulu; role {role}: America/New_York)"},
		{`ALTER ROLE "{role}" SET timezone = 'GMT'`, "", "", ""},
		{`ALTER ROLE "{role}" IN DATABASE "{db}" SET TimeZone = 'Asia/Tokyo'`, "", "", "role {role}: Asia/Tokyo"},
		{`ALTER ROLE "{role}" IN DATABASE "{db}" RESET TimeZone; ALTER ROLE "{role}" IN DATABASE postgres SET TimeZone = 'Asia/Tokyo'`, "", "", ""},
		// this machine's zone
		{`ALTER ROLE "{role}" IN DATABASE postgres RESET TimeZone; ALTER DATABASE "{db}" RESET timezone`, "", "", "server"},
	} {
		do(c.sql)
		cfg := config.Default().Source
		cfg.URL, cfg.Columns.CreatedAt, cfg.Columns.CreatedAtZone = admin, c.column, c.zone
		for _, url := range []string{admin, admin + "&timezone=Asia/Tokyo"} {
			if strings.Contains(url, "Tokyo") && c.says == "server" {
				c.says = "this connection cannot see the server's own zone"
			}
			a, err := postgres.NewSource("test", cfg, zerolog.Nop()).Admin(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			_, err = a.Retained(t.Context(), time.Now(), time.Now())
			a.Close(t.Context())
			says := strings.NewReplacer("{role}", role, "{db}", conn.Config().Database).Replace(c.says)
			if c.says == "server" {
				if err != nil && !strings.Contains(err.Error(), "(server: ") {
					t.Errorf("%s: %v", c.sql, err)
				}
				continue
			}
			if (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
				t.Errorf("%s, zone %q, column %q: %v, want %q", c.sql, c.zone, c.column, err, says)
			}
		}
	}
}
