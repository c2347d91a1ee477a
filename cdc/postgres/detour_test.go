package postgres_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/postgres"
)

const columns = `id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb, created_at timestamptz, status text, day date`

// TestDetoursAreFound changes a healthy table, T, and its publication, P. A change that hides rows is named and
// changes the fingerprint; a change that only makes the table unfit is named; any other change has no effect.
func TestDetoursAreFound(t *testing.T) {
	cdctest.Long(t, "makes many tables")
	t.Parallel()
	admin := cdctest.Database(t)
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	const plain, named = `CREATE TABLE T (` + columns + `)`, `CREATE PUBLICATION P FOR TABLE T WITH (publish = 'insert')`
	root := func(by string) string { return plain + " PARTITION BY " + by }
	const viaRoot = `CREATE PUBLICATION P FOR TABLE T WITH (publish = 'insert', publish_via_partition_root = true)`
	const wide = `CREATE PUBLICATION P FOR ALL TABLES WITH (publish = 'insert', publish_via_partition_root = true)`
	trigger := func(body string) string {
		return `CREATE FUNCTION T_f() RETURNS trigger LANGUAGE plpgsql AS $$ ` + body + ` $$; CREATE TRIGGER t BEFORE INSERT ON T FOR EACH ROW EXECUTE FUNCTION T_f()`
	}
	const sends = `BEGIN INSERT INTO elsewhere SELECT NEW.*; RETURN NULL; END`
	for name, c := range map[string]struct {
		table, publication, change string
		hidden, unfit              string // empty: none
		changed                    bool   // the fingerprint changed although nothing is hidden now
		rejects                    string // the server's SQLSTATE for the change
		from                       int    // oldest major version with this case
	}{
		"a child":                          {plain, named, `CREATE TABLE T_c () INHERITS (T)`, "T_c), which the WAL shows as other tables", "", false, "", 0},
		"a table that becomes a child":     {plain, named, `CREATE TABLE T_c (LIKE T); ALTER TABLE T_c INHERIT T`, "T_c", "", false, "", 0},
		"five children":                    {plain, named, `DO $$ BEGIN FOR i IN 1..5 LOOP EXECUTE format('CREATE TABLE T_c%s () INHERITS (T)', i); END LOOP; END $$`, "T_c1, public.T_c2, public.T_c3 and 2 more", "", false, "", 0},
		"a child's child":                  {plain, named, `CREATE TABLE T_c () INHERITS (T); CREATE TABLE T_d () INHERITS (T_c)`, "T_c, public.T_d", "", false, "", 0},
		"a foreign child":                  {plain, named, `CREATE FOREIGN TABLE T_c () INHERITS (T) SERVER nowhere`, "T_c", "", false, "", 0},
		"a parent":                         {plain, named, `CREATE TABLE T_p (id uuid); ALTER TABLE T INHERIT T_p`, "", "", false, "", 0},
		"an empty hypertable":              {plain, named, `CREATE SCHEMA IF NOT EXISTS _timescaledb_catalog; CREATE TABLE IF NOT EXISTS _timescaledb_catalog.hypertable (schema_name name, table_name name); INSERT INTO _timescaledb_catalog.hypertable SELECT 'public', substr('T_', 1, length('T_') - 1)`, "is a hypertable", "", false, "", 0},
		"an unlogged partition":            {root("RANGE (created_at)"), viaRoot, `CREATE UNLOGGED TABLE T_p PARTITION OF T DEFAULT`, "never reach the WAL", "", false, "", 0},
		"an unlogged partition below":      {root("RANGE (created_at)"), viaRoot, `CREATE TABLE T_p PARTITION OF T DEFAULT PARTITION BY LIST (aggregate_type); CREATE UNLOGGED TABLE T_q PARTITION OF T_p DEFAULT`, "T_q", "", false, "", 0},
		"a foreign partition":              {root("RANGE (created_at)"), viaRoot, `CREATE FOREIGN TABLE T_p PARTITION OF T DEFAULT SERVER nowhere`, "T_p", "", false, "", 0},
		"a partition made unlogged":        {root("RANGE (created_at)") + `; CREATE TABLE T_p PARTITION OF T DEFAULT`, viaRoot, `ALTER TABLE T_p SET UNLOGGED`, "T_p", "", false, "", 0},
		"partitions come and go":           {root("RANGE (created_at)") + `; CREATE TABLE T_p PARTITION OF T DEFAULT`, viaRoot, `DROP TABLE T_p; CREATE TABLE T_q PARTITION OF T DEFAULT; TRUNCATE T_q`, "", "", false, "", 0},
		"a rule instead":                   {plain, named, `CREATE RULE away AS ON INSERT TO T DO INSTEAD INSERT INTO elsewhere SELECT NEW.*`, "rules on", "", false, "", 0},
		"a rule instead, of nothing":       {plain, named, `CREATE RULE away AS ON INSERT TO T DO INSTEAD NOTHING`, "away", "", false, "", 0},
		"a rule instead, of some":          {plain, named, `CREATE RULE away AS ON INSERT TO T WHERE NEW.status = 'x' DO INSTEAD NOTHING`, "away", "", false, "", 0},
		"a child and a rule":               {plain, named, `CREATE TABLE T_c () INHERITS (T); CREATE RULE away AS ON INSERT TO T DO INSTEAD NOTHING`, "T_c), which the WAL shows as other tables: make it a table partitioned by RANGE (created_at), which is relayed as a whole, or take each child away (ALTER TABLE ", "", false, "", 0},
		"a rule beside":                    {plain, named, `CREATE RULE also AS ON INSERT TO T DO ALSO INSERT INTO elsewhere SELECT NEW.*`, "", "", false, "", 0},
		"a rule switched off":              {plain, named, `CREATE RULE away AS ON INSERT TO T DO INSTEAD NOTHING; ALTER TABLE T DISABLE RULE away`, "", "", false, "", 0},
		"a trigger that sends away":        {plain, named, trigger(sends), "sends rows to another table", "", false, "", 0},
		"a trigger by EXECUTE":             {plain, named, trigger(`BEGIN EXECUTE format('INSERT INTO %I SELECT $1.*', 'e_' || NEW.status) USING NEW; return null; END`), "sends rows to another table", "", false, "", 0},
		"a trigger that joins rows":        {plain, named, trigger(`BEGIN UPDATE T SET payload = NEW.payload WHERE aggregate_id = NEW.aggregate_id; IF FOUND THEN RETURN NULL; END IF; RETURN NEW; END`), "sends rows to another table", "", false, "", 0},
		"a trigger that knows ids":         {plain, named, trigger(`BEGIN INSERT INTO elsewhere (id) VALUES (NEW.id) ON CONFLICT DO NOTHING; IF NOT FOUND THEN RETURN NULL; END IF; RETURN NEW; END`), "", "", false, "", 0},
		"a trigger with brackets":          {plain, named, trigger(`BEGIN INSERT INTO elsewhere SELECT NEW.*; RAISE NOTICE 'will -- return later'; RETURN (NULL); END`), "sends rows to another table", "", false, "", 0},
		"a trigger that empties the row":   {plain, named, trigger(`BEGIN INSERT INTO elsewhere SELECT (NEW).*; PERFORM pg_notify('x', NEW.id::text); NEW := NULL; RETURN NEW; END`), "sends rows to another table", "", false, "", 0},
		"a trigger that notifies":          {plain, named, trigger(`BEGIN PERFORM pg_notify('outbox', NEW.id::text); RETURN NULL; END`), "sends rows to another table", "", false, "", 0},
		"a trigger of a partition":         {root("RANGE (created_at)") + `; CREATE TABLE T_p PARTITION OF T DEFAULT`, viaRoot, strings.Replace(trigger(sends), "ON T ", "ON T_p ", 1), "sends rows to another table", "", false, "", 0},
		"a trigger's function changed":     {plain + "; " + trigger(`BEGIN RETURN NEW; END`), named, `CREATE OR REPLACE FUNCTION T_f() RETURNS trigger LANGUAGE plpgsql AS $$ ` + sends + ` $$`, "sends rows to another table", "", false, "", 0},
		"a trigger switched off":           {plain, named, trigger(sends) + `; ALTER TABLE T DISABLE TRIGGER t`, "", "", false, "", 0},
		"a trigger on replicas":            {plain, named, trigger(sends) + `; ALTER TABLE T ENABLE REPLICA TRIGGER t`, "", "", false, "", 0},
		"a trigger always on":              {plain, named, trigger(sends) + `; ALTER TABLE T ENABLE ALWAYS TRIGGER t`, "sends rows to another table", "", false, "", 0},
		"a trigger that sets a time":       {plain, named, trigger(`BEGIN NEW.created_at := now(); RETURN NEW; END`), "", "", false, "", 0},
		"a trigger that writes a log":      {plain, named, trigger(`BEGIN INSERT INTO elsewhere SELECT NEW.*; RETURN NEW; END`), "", "", false, "", 0},
		"a trigger that copies to a child": {plain, named, trigger(`BEGIN IF NEW.day < '2026-01-01' THEN INSERT INTO elsewhere VALUES (NEW.*); ELSIF NEW.day < '2027-01-01' THEN insert  into public.elsewhere VALUES (NEW.*); ELSE RAISE EXCEPTION 'out of range'; END IF; RETURN NULL; END`), "sends rows to another table", "", false, "", 0},
		"a trigger that audits":            {plain, named, trigger(`BEGIN IF TG_OP = 'INSERT' THEN INSERT INTO elsewhere SELECT NEW.*; RETURN NEW; ELSIF TG_OP = 'UPDATE' THEN INSERT INTO elsewhere SELECT NEW.*; RETURN NEW; ELSIF TG_OP = 'DELETE' THEN INSERT INTO elsewhere SELECT OLD.*; RETURN OLD; END IF; RETURN NULL; END`), "", "", false, "", 0},
		"a trigger that drops repeats":     {plain, named, trigger(`BEGIN PERFORM 1 FROM T WHERE id = NEW.id FOR UPDATE; IF FOUND THEN RETURN NULL; END IF; RETURN NEW; END`), "", "", false, "", 0},
		"a trigger with a comment":         {plain, named, trigger("BEGIN -- INSERT INTO old\n /* EXECUTE\n */ IF NEW.id IS NULL THEN RETURN NULL; END IF; RETURN NEW; END"), "", "", false, "", 0},
		"a trigger after":                  {plain, named, strings.Replace(trigger(sends), "BEFORE", "AFTER", 1), "", "", false, "", 0},
		"a trigger of the statement":       {plain, named, strings.Replace(trigger(`BEGIN EXECUTE 'SELECT 1'; RETURN NULL; END`), "EACH ROW", "EACH STATEMENT", 1), "", "", false, "", 0},
		"a key by status":                  {root("LIST (status)"), viaRoot, ``, "", "partitioned by status, which an UPDATE can change", false, "", 0},
		"a key by an expression":           {root("LIST ((status = 'x' OR day IS NULL))"), viaRoot, ``, "", "partitioned by day, status", false, "", 0},
		"a key below":                      {root("RANGE (created_at)"), viaRoot, `CREATE TABLE T_p PARTITION OF T DEFAULT PARTITION BY LIST (day)`, "", "T_p is partitioned by day", false, "", 0},
		"a key with one column more":       {root("RANGE (created_at, day)"), viaRoot, ``, "", "partitioned by day", false, "", 0},
		"keys of the event":                {root("RANGE (created_at)"), viaRoot, `CREATE TABLE T_p PARTITION OF T DEFAULT PARTITION BY HASH (aggregate_id); CREATE TABLE T_q PARTITION OF T_p FOR VALUES WITH (MODULUS 1, REMAINDER 0) PARTITION BY LIST (lower(event_type))`, "", "", false, "", 0},
		"unlogged, named":                  {plain, named, `ALTER TABLE T SET UNLOGGED`, "", "", false, "55000", 0},
		"unlogged, of all":                 {plain, wide, `ALTER TABLE T SET UNLOGGED`, "unlogged", "", false, "", 0},
		"unlogged for a moment":            {plain, wide, `ALTER TABLE T SET UNLOGGED; ALTER TABLE T SET LOGGED`, "", "", true, "", 0},
		"unlogged for a moment, schema":    {plain, strings.Replace(named, "TABLE T", "TABLES IN SCHEMA public", 1), `ALTER TABLE T SET UNLOGGED; ALTER TABLE T SET LOGGED`, "", "", true, "", 15},
		"emptied, packed, moved":           {plain, wide, `TRUNCATE T; CREATE INDEX T_i ON T (id); CLUSTER T USING T_i; ALTER TABLE T ADD COLUMN more text DEFAULT 'x'`, "", "", false, "", 0},
		"a table that becomes a partition": {plain, named, `ALTER PUBLICATION P SET (publish_via_partition_root = true); CREATE TABLE T_r (LIKE T) PARTITION BY LIST (status); ALTER PUBLICATION P ADD TABLE T_r; ALTER TABLE T_r ATTACH PARTITION T DEFAULT`, "is a partition of public.T_r", "", false, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			tables++
			table := fmt.Sprintf("t%d", tables)
			do := func(sql string) error {
				sql = strings.NewReplacer("T_", table+"_", " P ", " p"+table+" ").Replace(" " + sql + " ")
				sql = strings.ReplaceAll(strings.ReplaceAll(sql, " T ", " "+table+" "), " T;", " "+table+";")
				sql = strings.ReplaceAll(strings.ReplaceAll(sql, "(T)", "("+table+")"), "LIKE T)", "LIKE "+table+")")
				_, err := conn.Exec(t.Context(), sql)
				return err
			}
			if tables == 1 {
				if err := do(`CREATE TABLE elsewhere (` + columns + `); CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing`); err != nil {
					t.Fatal(err)
				}
			}
			var major int
			if err := conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&major); err != nil {
				t.Fatal(err)
			}
			if major < c.from {
				return // such a table cannot be created on it
			}
			for _, sql := range []string{c.table, c.publication} {
				if err := do(sql); err != nil {
					t.Fatal(err)
				}
			}
			defer func() { _ = do(`DROP PUBLICATION P `) }()
			cfg := config.Default().Source
			cfg.URL, cfg.Table, cfg.Publication = admin, "public."+table, "p"+table
			source := postgres.NewSource("test", cfg, zerolog.Nop())
			before, err := source.Facts(t.Context())
			if err != nil || len(before.Hidden) > 0 || (len(before.Unfit) > 0) != (c.change == "") {
				t.Fatal(before, err)
			}
			if c.publication == named && !healthy.MatchString(before.Fingerprint) {
				t.Errorf("the fingerprint of a healthy table is %s: records of before have none that is like it", before.Fingerprint)
			}
			if err := do(c.change); c.rejects != "" {
				if err == nil || !strings.Contains(err.Error(), c.rejects) {
					t.Errorf("%v, want an error of SQLSTATE %s", err, c.rejects)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			after, err := source.Facts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for what, is := range map[string][2]string{"hidden": {c.hidden, cdc.Sentences(after.Hidden)}, "unfit": {c.unfit, cdc.Sentences(after.Unfit)}} {
				want := strings.NewReplacer("T_", table+"_", "public.T ;", "public."+table+";", "public.T ", "public."+table+" ").Replace(is[0])
				if (want == "") != (is[1] == "") || !strings.Contains(is[1], want) {
					t.Errorf("%s is %q, want %q", what, is[1], want)
				}
			}
			if changed := before.Fingerprint != after.Fingerprint; changed != (c.hidden != "" || c.changed) {
				t.Errorf("the fingerprint was %s, and is %s", before.Fingerprint, after.Fingerprint)
			}
		})
	}
}

var (
	tables  int
	healthy = regexp.MustCompile(`^publication \d+/\d+ entry \d+/\d+ table \d+ public\.t\d+$`)
)
