package sql_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox/schema"
	"github.com/walpost/walpost/sql"
)

// inboxShape returns a description of the inbox's tables and functions, except for the days' names.
const inboxShape = `
	SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default) AS line
		FROM information_schema.columns WHERE table_name ~ '^inbox(_[a-z_]+)?$'
		UNION ALL SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint WHERE conrelid::regclass::text ~ '^inbox(_[a-z_]+)?$'
		UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename ~ '^inbox(_[a-z_]+)?$'
		UNION ALL SELECT pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_proc WHERE proname ~ '^inbox_'
	) AS shape`

func TestMigrationIsTheSchema(t *testing.T) {
	admin, service := migrated(t, sql.Inventory)
	fresh := connect(t, cdctest.Database(t))
	if _, err := fresh.Exec(t.Context(), schema.SQL); err != nil {
		t.Fatal(err)
	}
	role := connect(t, service).Config().User
	clean := strings.NewReplacer(`,"\"`+role+`\"=X/postgres"`, "")
	want, got := scan[string](t, fresh, inboxShape), clean.Replace(scan[string](t, connect(t, admin), inboxShape))
	lines := map[string]int{}
	for line := range strings.Lines(want + "\n") {
		lines[line]++
	}
	for line := range strings.Lines(got + "\n") {
		lines[line]--
	}
	for line, n := range lines {
		if n != 0 {
			t.Errorf("%+d in cdc/inbox/schema over sql/inventory: %s", n, line)
		}
	}
	if len(lines) < 100 {
		t.Errorf("only %d lines compared", len(lines))
	}
}

// TestOldInboxIsMigratedWithItsRows migrates a database as the first release left it.
func TestOldInboxIsMigratedWithItsRows(t *testing.T) {
	admin := cdctest.Database(t)
	config, err := pgx.ParseConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("inventory"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, admin)
	exec := func(statement string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	ids := []string{
		uuid.Must(uuid.NewV7()).String(), uuid.NewString(), "42",
		"00000000-0001-7000-8000-000000000001", // of 1970
		"0fffffff-ffff-7000-8000-000000000001", // of the year 2527
	}
	for i, id := range ids {
		exec(`INSERT INTO inbox VALUES ('inventory', $1, 'orders', 0, $2, '2026-01-02 03:04:05Z')`, id, i)
	}
	exec(`INSERT INTO stock VALUES ('tea', 7)`)
	exec(`INSERT INTO malformed_events VALUES ('orders', 1, 5, 'inventory', NULL, 'header id is missing', '2026-01-02 03:04:05Z'),
		('orders', 1, 6, 'inventory', $1, 'the value is empty', now()), ('orders', 1, 7, 'inventory', $1, 'the value is empty', now())`, ids[0])

	var out bytes.Buffer
	if err := sql.Migrate(t.Context(), sql.Inventory, admin, serviceURL(t, admin), &out); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		got := scan[string](t, conn, `SELECT concat_ws(' ', consumer, topic, partition, kafka_offset, processed_at AT TIME ZONE 'UTC') FROM inbox WHERE event_id = $1`, id)
		if want := "inventory orders 0 " + string(rune('0'+i)) + " 2026-01-02 03:04:05"; got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
		// The event is still a duplicate.
		tag, err := conn.Exec(t.Context(), `INSERT INTO inbox (consumer, event_id, event_day, topic, partition, kafka_offset)
			VALUES ('inventory', $1, CASE WHEN $2 THEN inbox_day($1) ELSE 0 END, 'orders', 0, 9) ON CONFLICT DO NOTHING`, id, i < 3)
		if err != nil || tag.RowsAffected() != 0 {
			t.Errorf("%s comes again: %v, %v", id, tag, err)
		}
	}
	if got := scan[string](t, conn, `SELECT string_agg(concat_ws(' ', consumer, topic, partition, kafka_offset, status, holds_key, reason), ', ' ORDER BY kafka_offset) FROM inbox_parked`); got !=
		"inventory orders 1 5 parked f header id is missing, inventory orders 1 6 parked f the value is empty, inventory orders 1 7 parked f the value is empty" {
		t.Errorf("parked: %s", got)
	}
	if n := scan[int](t, conn, `SELECT available::int FROM stock`); n != 7 {
		t.Errorf("%d in stock", n)
	}

	// Then the migration is reverted.
	if _, err := provider.DownTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if n := scan[int](t, conn, `SELECT (SELECT count(*) FROM inbox)::int * 100 + (SELECT count(*) FROM malformed_events)::int`); n != 503 {
		t.Errorf("%d events are in the old tables", n)
	}
}

func TestInboxForgetsByDaysOfTheIDsOwnTime(t *testing.T) {
	admin, _ := migrated(t, sql.Inventory)
	conn := connect(t, admin)
	today := scan[int](t, conn, `SELECT (now() AT TIME ZONE 'UTC')::date - date '1970-01-01'`)
	if n := scan[int](t, conn, `SELECT count(*)::int FROM pg_inherits WHERE inhparent = 'inbox'::regclass`); n != 9 {
		t.Errorf("%d partitions, want undated, before and seven days ahead", n)
	}
	// The rows look as if they had been written 40 days ago.
	for _, statement := range []string{
		`DROP TABLE inbox_before`,
		`DO $$ BEGIN FOR day IN (SELECT (now() AT TIME ZONE 'UTC')::date - date '1970-01-01') - 40 .. (SELECT (now() AT TIME ZONE 'UTC')::date - date '1970-01-01') LOOP
			EXECUTE format('CREATE TABLE inbox_%s PARTITION OF inbox FOR VALUES FROM (%s) TO (%s)', day, day, day + 1); END LOOP; END $$`,
		`INSERT INTO inbox VALUES ('c', 'new', 0, 't', 0, 0, 1, now()), ('c', 'old', 0, 't', 0, 0, 1, now() - interval '31 days')`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	for range 2 {
		if got := scan[string](t, conn, `SELECT concat_ws(' ', first_day - $1, last_day - $1) FROM inbox_maintain(9, 30)`, today); got != "-30 9" {
			t.Errorf("it remembers days %s of today, want -30 to 9", got)
		}
	}
	if got := scan[string](t, conn, `SELECT string_agg(event_id, ' ') FROM inbox`); got != "new" {
		t.Errorf("undated rows: %s", got)
	}
	if got := scan[string](t, conn, `SELECT concat_ws(' ', first_day - $1, dropped) FROM inbox_maintain(9, NULL)`, today); got != "-30 0" {
		t.Errorf("without a retention: %s", got)
	}
}
