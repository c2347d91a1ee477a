package sql_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/sql"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// migrated returns the administrator's and the service's URL of a fresh database. The role belongs to this test alone,
// because roles are shared by the whole server.
func migrated(t *testing.T, which sql.Database) (admin, service string) {
	t.Helper()
	admin = cdctest.Database(t)
	service = serviceURL(t, admin)
	if err := sql.Migrate(t.Context(), which, admin, service, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	return admin, service
}

func serviceURL(t *testing.T, admin string) string {
	t.Helper()
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("service of "+path.Base(u.Path), `it's "secret"`)
	return u.String()
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// refused fails the test unless the statement fails with this SQLSTATE.
func refused(t *testing.T, conn *pgx.Conn, code, statement string, args ...any) *pgconn.PgError {
	t.Helper()
	_, err := conn.Exec(t.Context(), statement, args...)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		t.Errorf("%s: got %v, want SQLSTATE %s", statement, err, code)
		return &pgconn.PgError{}
	}
	return pgErr
}

func scan[T any](t *testing.T, conn *pgx.Conn, query string, args ...any) T {
	t.Helper()
	rows, _ := conn.Query(t.Context(), query, args...)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

func TestMigrateMayRunAgainAndAtOnceAndTellsNoPassword(t *testing.T) {
	cdctest.Long(t, "starts a server")
	var log cdctest.Log
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Log: &log, Settings: map[string]string{"log_statement": "all"}})
	for _, which := range []sql.Database{sql.Orders, sql.Inventory} {
		t.Run(string(which), func(t *testing.T) {
			database := string(which)
			if err := server.CreateDatabase(t.Context(), database); err != nil {
				t.Fatal(err)
			}
			outs := make([]bytes.Buffer, 3)
			var wg sync.WaitGroup
			for i := range outs {
				wg.Go(func() {
					err := sql.Migrate(t.Context(), which, server.URL(database), server.URLFor(`the "service" of `+database, "s3cret'", database), &outs[i])
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			said := outs[0].String() + outs[1].String() + outs[2].String()
			if n := strings.Count(said, "role: created"); n != 1 {
				t.Errorf("the role was created %d times:\n%s", n, said)
			}
			if n := strings.Count(said, "schema: applied 00001"); n != 1 {
				t.Errorf("the first migration ran %d times:\n%s", n, said)
			}
			if strings.Contains(said, "s3cret") {
				t.Errorf("the password is in what output:\n%s", said)
			}
		})
	}
	if !strings.Contains(log.String(), "SCRAM-SHA-256$") || strings.Contains(log.String(), "s3cret") {
		t.Error("no verifier in the server's log, or the password itself")
	}
}

// A server that checks passwords checks against the computed verifier.
func TestServicePasswordIsTheOneOfItsURL(t *testing.T) {
	cdctest.Long(t, "starts a server")
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	service := server.URLFor("shop_service", "s3cret'", "postgres")
	if err := sql.Migrate(t.Context(), sql.Orders, server.URL("postgres"), service, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	token := server.URLFor("shop_service", "", "postgres") + "&password_command=echo%20token"
	if err := sql.Migrate(t.Context(), sql.Orders, server.URL("postgres"), token, &out); err != nil || !strings.Contains(out.String(), "keeps its password: the value from password_command counts as a token") {
		t.Errorf("a service with tokens: %v\n%s", err, &out)
	}
	admin := connect(t, server.URL("postgres"))
	const hba = `host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256`
	if _, err := admin.Exec(t.Context(), `COPY (SELECT unnest(string_to_array(E'`+hba+`', E'\n'))) TO '`+scan[string](t, admin, `SHOW hba_file`)+`'`); err != nil {
		t.Fatal(err)
	}
	scan[bool](t, admin, `SELECT pg_reload_conf()`)
	cdctest.Eventually(t, 30*time.Second, func() error {
		conn, err := pgx.Connect(t.Context(), server.URLFor("shop_service", "another", "postgres"))
		if err == nil {
			_ = conn.Close(t.Context())
			return errors.New("a wrong password still opens the door")
		}
		return nil
	})
	connect(t, service)
}

func TestMigrateRefusesURLsThatCannotBeMeant(t *testing.T) {
	admin := cdctest.Database(t)
	other := strings.Replace(serviceURL(t, admin), "/test_", "/elsewhere_", 1)
	const mighty = "mighty" // other packages have other servers
	conn := connect(t, admin)
	if _, err := conn.Exec(t.Context(), "CREATE ROLE "+mighty+" LOGIN SUPERUSER"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := connectBackground(t, admin).Exec(context.Background(), "DROP ROLE "+mighty); err != nil {
			t.Error(err)
		}
	})
	missing := strings.Replace(admin, "/test_", "/missing_", 1)
	for name, c := range map[string]struct{ admin, service, want string }{
		"one role for both":          {admin, admin, "give the service another role"},
		"two databases":              {admin, other, "both URLs must name the same one"},
		"a superuser as the service": {admin, cdctest.As(admin, mighty), "NOSUPERUSER"},
		"no such database":           {missing, serviceURL(t, missing), "CREATE DATABASE"},
		"in clear or not":            {"postgres://postgres@db.example/orders", admin, "administrator's database URL: the connection to db.example would be encrypted or not"},
		"not a URL":                  {"postgres://a:s3cret@:x/", admin, "administrator's database URL"},
	} {
		t.Run(name, func(t *testing.T) {
			err := sql.Migrate(t.Context(), sql.Orders, c.admin, c.service, new(bytes.Buffer))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestOrderServiceHasTheRightsItNeedsAndNoOthers(t *testing.T) {
	admin, service := migrated(t, sql.Orders)
	owner, conn := connect(t, admin), connect(t, service)
	id := scan[uuid.UUID](t, conn, `SELECT create_order('b', 'a@b.example', '[{"sku": "A", "quantity": 1, "unitPrice": "1"}]')`)
	scan[uuid.UUID](t, conn, `SELECT pay_order($1)`, id)
	scan[uuid.UUID](t, conn, `SELECT cancel_order($1)`, id)
	if n := scan[int](t, owner, `SELECT count(*)::int FROM outbox`); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	for _, statement := range []string{
		`SELECT id FROM outbox`, `UPDATE outbox SET event_type = 'x'`, `DELETE FROM outbox`, `TRUNCATE outbox`,
		`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'a', 'a', 'a', '{}') RETURNING id`,
		`UPDATE payments SET amount = 0`, `DELETE FROM payments`, `UPDATE order_history SET what = 'x'`, `DELETE FROM order_history`, `DELETE FROM inbox`,
		`UPDATE orders SET total = 0`, `DELETE FROM orders`, `UPDATE order_lines SET quantity = 1`, `DELETE FROM idempotency_keys`,
		`SELECT * FROM goose_db_version`, `CREATE TABLE mine ()`,
	} {
		refused(t, conn, "42501", statement)
	}
	for _, statement := range []string{
		`INSERT INTO inbox_partitions (consumer_group, topic, partition, owner) VALUES ('c', 't', 0, 'o')`, `UPDATE inbox_partitions SET epoch = 2`,
		`INSERT INTO inbox_parked_keys VALUES ('c', 't', 'k')`, `SELECT FROM inbox_parked_keys FOR SHARE`, `DELETE FROM inbox_parked_keys`, `SELECT inbox_maintain(7, 30)`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	refused(t, conn, "42501", `ALTER PUBLICATION walpost SET (publish = 'insert, update')`)
	if got := scan[string](t, conn, `SELECT what_to_do || coalesce(lag, '') FROM outbox_slot`); !strings.HasSuffix(got, "walpost init") {
		t.Errorf("without a slot the view says %q", got)
	}

	// A right that was granted by hand is revoked by the next migration.
	if _, err := owner.Exec(t.Context(), `GRANT SELECT ON outbox TO `+pgx.Identifier{conn.Config().User}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	scan[int](t, conn, `SELECT count(*)::int FROM outbox`)
	if err := sql.Migrate(t.Context(), sql.Orders, admin, service, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	refused(t, conn, "42501", `SELECT id FROM outbox`)
}

func TestTheReaderHasARoleOfItsOwn(t *testing.T) {
	admin, service := migrated(t, sql.Inventory)
	for _, reader := range []string{admin, service, strings.Replace(serviceURL(t, admin), "/test_", "/elsewhere_", 1)} {
		if err := sql.GrantReader(t.Context(), admin, service, reader, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "reader's database") {
			t.Errorf("%s: got %v", reader, err)
		}
	}
	if scan[bool](t, connect(t, service), `SELECT NOT has_table_privilege('products', 'INSERT')`) {
		t.Error("the service has lost its rights")
	}
}

func TestNobodyChangesAnEvent(t *testing.T) {
	admin, _ := migrated(t, sql.Orders)
	owner := connect(t, admin)
	insert(t, owner, "")
	for _, statement := range []string{`UPDATE outbox SET event_type = 'x'`, `TRUNCATE outbox`, `TRUNCATE outbox CASCADE`} {
		if err := refused(t, owner, "23001", statement); !strings.Contains(err.Message, "an event is a fact") || err.Hint == "" {
			t.Errorf("%s: %s (%s)", statement, err.Message, err.Hint)
		}
	}
	if _, err := owner.Exec(t.Context(), `DELETE FROM outbox`); err != nil {
		t.Errorf("the owner cannot clean up: %v", err)
	}
}

// insert writes an event with one column set to an expression.
func insert(t *testing.T, conn *pgx.Conn, column string, expression ...string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), insertion(column, expression...)); err != nil {
		t.Fatal(err)
	}
}

func insertion(column string, expression ...string) string {
	values := map[string]string{"id": "gen_random_uuid()", "aggregate_type": "'order'", "aggregate_id": "'1'", "event_type": "'T'", "payload": "'{}'", "headers": "'{}'"}
	if column != "" {
		values[column] = expression[0]
	}
	var names, exprs []string
	for n, e := range values {
		names, exprs = append(names, n), append(exprs, e)
	}
	return `INSERT INTO outbox (` + strings.Join(names, ", ") + `) VALUES (` + strings.Join(exprs, ", ") + `)`
}

func TestOutboxRefusesWhatKafkaOrAReaderCouldNotTake(t *testing.T) {
	admin, _ := migrated(t, sql.Orders)
	conn := connect(t, admin)
	for _, c := range []struct{ column, most, tooMuch, code string }{
		{"aggregate_type", `repeat('a', 100)`, `repeat('a', 101)`, "23514"},
		{"aggregate_type", `'A.b_c-1'`, `''`, "23514"},
		{"aggregate_type", `'a'`, `'a b'`, "23514"},
		{"aggregate_type", `'a'`, `E'a\n'`, "23514"},
		{"aggregate_id", `repeat('a', 1024)`, `repeat('ä', 513)`, "23514"},
		{"aggregate_id", `' '`, `''`, "23514"},
		{"aggregate_id", `'1'`, `NULL`, "23502"},
		{"event_type", `repeat('a', 255)`, `''`, "23514"},
		{"payload", `jsonb_build_object('a', repeat('x', 900000 - 9))`, `jsonb_build_object('a', repeat('x', 900000 - 8))`, "23514"},
		{"payload", `'{}'`, `'[]'`, "23514"},
		{"payload", `'{}'`, `'null'`, "23514"},
		{"payload", `'{}'`, `NULL`, "23502"},
		{"headers", `'{"traceparent": "00"}'`, `'[]'`, "23514"},
		{"headers", `jsonb_build_object('a', repeat('x', 16384 - 9))`, `jsonb_build_object('a', repeat('x', 16384 - 8))`, "23514"},
	} {
		insert(t, conn, c.column, c.most)
		refused(t, conn, c.code, insertion(c.column, c.tooMuch))
	}
}

func TestPublicationCarriesInsertsOfTheOutboxAlone(t *testing.T) {
	admin, _ := migrated(t, sql.Orders)
	conn := connect(t, admin)
	got := scan[string](t, conn, `SELECT string_agg(tablename || ' ' || pubinsert || pubupdate || pubdelete || pubtruncate, ',')
		FROM pg_publication JOIN pg_publication_tables USING (pubname) WHERE pubname = 'walpost'`)
	if got != "outbox truefalsefalsefalse" {
		t.Errorf("got %q", got)
	}
}

func TestSlotViewSaysHowTheSlotStands(t *testing.T) {
	admin, service := migrated(t, sql.Orders)
	owner, conn := connect(t, admin), connect(t, service)
	slot := cdctest.SlotName(t, "view")
	scan[any](t, owner, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text`, slot)
	insert(t, owner, "payload", `jsonb_build_object('a', repeat('x', 100000))`)
	rows, _ := conn.Query(t.Context(), `SELECT slot, active, lag_bytes, lag, retained_wal_bytes, wal_status, what_to_do FROM outbox_slot`)
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[struct {
		Slot             string
		Active           bool
		LagBytes         int64
		Lag              string
		RetainedWALBytes int64  `db:"retained_wal_bytes"`
		WALStatus        string `db:"wal_status"`
		WhatToDo         string
	}])
	if err != nil {
		t.Fatal(err)
	}
	if got.Slot != slot || got.Active || got.LagBytes <= 0 || got.Lag == "" || got.RetainedWALBytes < got.LagBytes || got.WALStatus != "reserved" ||
		!strings.Contains(got.WhatToDo, "Start the relay") {
		t.Errorf("got %+v", got)
	}
}

func TestSlotViewTellsAReaderFromNobodyAndLostFromLate(t *testing.T) {
	cdctest.Long(t, "starts a server")
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}})
	if err := sql.Migrate(t.Context(), sql.Orders, server.URL("postgres"), server.URLFor("shop_service", "", "postgres"), new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, server.URL("postgres"))
	scan[any](t, conn, `SELECT pg_create_logical_replication_slot('walpost', 'pgoutput')::text`)
	says := func(words string) {
		t.Helper()
		cdctest.Eventually(t, 30*time.Second, func() error {
			if got := scan[string](t, conn, `SELECT what_to_do FROM outbox_slot`); !strings.Contains(got, words) {
				return fmt.Errorf("it says %q, want %q in it", got, words)
			}
			return nil
		})
	}
	says("Start the relay")

	reader, err := pgconn.Connect(t.Context(), server.URL("postgres")+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	err = pglogrepl.StartReplication(t.Context(), reader, "walpost", 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'walpost'"}})
	if err != nil {
		t.Fatal(err)
	}
	end, err := pglogrepl.ParseLSN(scan[string](t, conn, `SELECT pg_current_wal_flush_lsn()::text`))
	if err != nil {
		t.Fatal(err)
	}
	if err := pglogrepl.SendStandbyStatusUpdate(t.Context(), reader, pglogrepl.StandbyStatusUpdate{WALWritePosition: end + 1<<20}); err != nil { // more than the server writes by itself
		t.Fatal(err)
	}
	says("Nothing: it is read and up to date")
	if err := reader.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	says("Start the relay")

	for range 6 {
		scan[any](t, conn, `SELECT pg_logical_emit_message(false, 'test', 'x')::text`)
		scan[any](t, conn, `SELECT pg_switch_wal()::text`)
	}
	if _, err := conn.Exec(t.Context(), `CHECKPOINT`); err != nil {
		t.Fatal(err)
	}
	says("events may be missing in Kafka")
}

// A managed PostgreSQL gives its customer a role that owns the database and may create roles, but no superuser.
func TestMigrateNeedsNoSuperuser(t *testing.T) {
	super := cdctest.Database(t)
	conn := connect(t, super)
	database := conn.Config().Database
	for _, statement := range []string{`CREATE ROLE customer_` + database + ` LOGIN CREATEROLE`, `ALTER DATABASE ` + database + ` OWNER TO customer_` + database} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	admin := cdctest.As(super, "customer_"+database)
	for range 2 {
		if err := sql.Migrate(t.Context(), sql.Orders, admin, serviceURL(t, admin), new(bytes.Buffer)); err != nil {
			t.Fatal(err)
		}
	}
	scan[uuid.UUID](t, connect(t, serviceURL(t, admin)), `SELECT create_order('b', 'a@b.example', '[{"sku": "A", "quantity": 1, "unitPrice": "1"}]')`)
	refused(t, connect(t, admin), "23001", `UPDATE outbox SET event_type = 'x'`)
}

func TestSQLFunctionsRefuseClearlyAndChangeNothing(t *testing.T) {
	admin, service := migrated(t, sql.Orders)
	owner, conn := connect(t, admin), connect(t, service)
	const good = `[{"sku": "A", "quantity": 1, "unitPrice": "1.00"}]`
	for name, c := range map[string]struct {
		buyer, email, items, currency any
		want                          string
	}{
		"no buyer":                 {nil, "a@b.example", good, "EUR", "buyer_id"},
		"a line break in buyer":    {"a\nb", "a@b.example", good, "EUR", "buyer_id"},
		"no e-mail":                {"b", nil, good, "EUR", "buyer_email"},
		"a header in e-mail":       {"b", "a@b.example\r\nBcc: c@d.example", good, "EUR", "buyer_email"},
		"two e-mails":              {"b", "a@b.example,c@d.example", good, "EUR", "buyer_email"},
		"too long e-mail":          {"b", strings.Repeat("a", 250) + "@b.example", good, "EUR", "buyer_email"},
		"currency":                 {"b", "a@b.example", good, "euro", "currency"},
		"no currency":              {"b", "a@b.example", good, nil, "currency"},
		"no items":                 {"b", "a@b.example", nil, "EUR", "items must be a JSON array"},
		"items of another type":    {"b", "a@b.example", `{}`, "EUR", "items must be a JSON array"},
		"empty items":              {"b", "a@b.example", `[]`, "EUR", "items must be 1 to 100"},
		"an item of another type":  {"b", "a@b.example", `[1]`, "EUR", "items[0] must be an object"},
		"an unknown field":         {"b", "a@b.example", `[{"sku": "A", "quantity": 1, "unitPrice": "1.00", "price": 1}]`, "EUR", "items[0] has a field"},
		"no sku":                   {"b", "a@b.example", `[{"quantity": 1, "unitPrice": "1.00"}]`, "EUR", "items[0].sku"},
		"a sku with a space":       {"b", "a@b.example", `[{"sku": "A B", "quantity": 1, "unitPrice": "1.00"}]`, "EUR", "items[0].sku"},
		"a sku twice":              {"b", "a@b.example", `[{"sku": "A", "quantity": 1, "unitPrice": "1"}, {"sku": "A", "quantity": 1, "unitPrice": "1"}]`, "EUR", "items[0].sku is in another line"},
		"a negative quantity":      {"b", "a@b.example", `[{"sku": "A", "quantity": -1, "unitPrice": "1.00"}]`, "EUR", "items[0].quantity"},
		"quantity zero":            {"b", "a@b.example", `[{"sku": "A", "quantity": 0, "unitPrice": "1.00"}]`, "EUR", "items[0].quantity"},
		"half a piece":             {"b", "a@b.example", `[{"sku": "A", "quantity": 0.5, "unitPrice": "1.00"}]`, "EUR", "items[0].quantity"},
		"too many pieces":          {"b", "a@b.example", `[{"sku": "A", "quantity": 10001, "unitPrice": "1.00"}]`, "EUR", "items[0].quantity"},
		"quantity as text":         {"b", "a@b.example", `[{"sku": "A", "quantity": "1", "unitPrice": "1.00"}]`, "EUR", "items[0].quantity"},
		"a price that is a number": {"b", "a@b.example", `[{"sku": "A", "quantity": 1, "unitPrice": 1.00}]`, "EUR", "items[0].unitPrice"},
		"a negative price":         {"b", "a@b.example", `[{"sku": "A", "quantity": 1, "unitPrice": "-1.00"}]`, "EUR", "items[0].unitPrice"},
		"a price of three places":  {"b", "a@b.example", `[{"sku": "A", "quantity": 1, "unitPrice": "1.001"}]`, "EUR", "items[0].unitPrice"},
		"the second line's price":  {"b", "a@b.example", `[{"sku": "A", "quantity": 1, "unitPrice": "1"}, {"sku": "B", "quantity": 1}]`, "EUR", "items[1].unitPrice"},
	} {
		t.Run(name, func(t *testing.T) {
			err := refused(t, conn, "22023", `SELECT create_order($1, $2, $3, $4)`, c.buyer, c.email, c.items, c.currency)
			if !strings.HasPrefix(err.Message, c.want) || err.Hint == "" {
				t.Errorf("got %q (hint %q), want it to begin with %q", err.Message, err.Hint, c.want)
			}
		})
	}
	refused(t, conn, "P0002", `SELECT pay_order(gen_random_uuid())`)
	refused(t, conn, "P0002", `SELECT cancel_order(NULL)`)
	refused(t, conn, "P0002", `SELECT ship_order(gen_random_uuid())`)
	refused(t, conn, "22023", `SELECT ship_order(gen_random_uuid(), E'1\n2')`)
	refused(t, conn, "22023", `SELECT ship_order(gen_random_uuid(), '')`)
	if n := scan[int](t, owner, `SELECT (SELECT count(*) FROM orders)::int + (SELECT count(*) FROM outbox)::int`); n != 0 {
		t.Fatalf("%d rows after refused changes only", n)
	}

	id := scan[uuid.UUID](t, conn, `SELECT create_order('b', 'a@b.example', $1)`, good)
	scan[uuid.UUID](t, conn, `SELECT pay_order($1)`, id)
	refused(t, conn, "55000", `SELECT pay_order($1)`, id)
	refused(t, conn, "55000", `SELECT complete_order($1)`, id)
	if err := refused(t, conn, "55000", `SELECT ship_order($1)`, id); err.Hint != "Only a confirmed order can become shipped." {
		t.Errorf("hint %q", err.Hint)
	}
	scan[uuid.UUID](t, conn, `SELECT cancel_order($1)`, id)
	refused(t, conn, "55000", `SELECT cancel_order($1)`, id)
	if err := refused(t, conn, "55000", `SELECT pay_order($1)`, id); err.Message != "order 100001 is cancelled" || err.Hint == "" {
		t.Errorf("got %q (%q)", err.Message, err.Hint)
	}
	if n := scan[int](t, owner, `SELECT count(*)::int FROM outbox`); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

func TestUUIDv7(t *testing.T) {
	admin, _ := migrated(t, sql.Orders)
	rows, _ := connect(t, admin).Query(t.Context(), `SELECT uuid_v7(), extract(epoch FROM clock_timestamp())::float8 FROM generate_series(1, 1000)`)
	seen := map[uuid.UUID]bool{}
	var id uuid.UUID
	var now float64
	_, err := pgx.ForEachRow(rows, []any{&id, &now}, func() error {
		sec, nsec := id.Time().UnixTime()
		at := float64(sec) + float64(nsec)/1e9
		if id.Version() != 7 || id.Variant() != uuid.RFC4122 || seen[id] || now-at > 1 || at > now {
			t.Errorf("%s: version %d, variant %s, %f s old, seen %t", id, id.Version(), id.Variant(), now-at, seen[id])
		}
		seen[id] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInventoryServiceHasTheRightsItNeedsAndNoOthers(t *testing.T) {
	_, service := migrated(t, sql.Inventory)
	conn := connect(t, service)
	const event = `INSERT INTO inbox (consumer, event_id, event_day, topic, partition, kafka_offset) VALUES ('c', 'e', inbox_day('e'), 't', 0, 1) ON CONFLICT DO NOTHING`
	for _, statement := range []string{
		`INSERT INTO stock (sku, available) VALUES ('A', 2)`, `UPDATE stock SET available = available - 1`, event, event,
		`INSERT INTO stock_movements (sku, event_id, order_id, change, reason) VALUES ('A', gen_random_uuid(), gen_random_uuid(), -1, 'sold')`,
		`INSERT INTO stock_movements (sku, change, reason) VALUES ('A', 2, 'set')`,
		`INSERT INTO inbox_parked (consumer, topic, partition, kafka_offset, holds_key, reason) VALUES ('c', 't', 0, 1, true, 'no id') ON CONFLICT DO NOTHING`,
		`UPDATE inbox_parked SET status = 'dropped', resolved_at = now()`,
		`INSERT INTO inbox_partitions (consumer_group, topic, partition, owner) VALUES ('c', 't', 0, 'o')`, `UPDATE inbox_partitions SET epoch = 2`,
		`INSERT INTO inbox_parked_keys VALUES ('c', 't', 'k')`, `SELECT FROM inbox_parked_keys FOR SHARE`, `DELETE FROM inbox_parked_keys`,
		`INSERT INTO inbox_decisions (consumer, command, by_whom, what) VALUES ('c', 'drop', 'me', 'it')`, `SELECT inbox_maintain(7, 30)`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	for _, statement := range []string{`DELETE FROM stock`, `UPDATE stock_movements SET change = 1`, `DELETE FROM inbox`, `DROP TABLE inbox_undated`, `DELETE FROM inbox_parked`, `UPDATE inbox_decisions SET what = ''`} {
		refused(t, conn, "42501", statement)
	}
	for _, statement := range []string{
		`UPDATE stock SET available = -1`,
		`INSERT INTO stock (sku, available) VALUES ('', 2)`,
		`INSERT INTO stock_movements (sku, event_id, change, reason) VALUES ('A', gen_random_uuid(), 1, 'sold')`,
		`INSERT INTO stock_movements (sku, event_id, change, reason) VALUES ('A', gen_random_uuid(), 0, 'shortage')`,
		`INSERT INTO stock_movements (sku, change, reason) VALUES ('A', -1, 'sold')`,
	} {
		refused(t, conn, "23514", statement)
	}
}

func connectBackground(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// If a server does not answer, or a URL was written for another program, the migration fails with what to do.
func TestMigrateEndsWithoutAServer(t *testing.T) {
	t.Parallel()
	for url, says := range map[string]string{
		"postgres://postgres@" + cdctest.Silent(t) + "/orders?connect_timeout=1":      "connect as administrator",
		"postgres://postgres@" + cdctest.Unaccepting(t) + "/orders?connect_timeout=1": "connect as administrator",
		cdctest.Database(t) + "&schema=public":                                        `take the parameter "schema" out of the administrator's database URL`,
	} {
		began := time.Now()
		admin, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		err = sql.Migrate(t.Context(), sql.Orders, url, "postgres://orders_service@127.0.0.1/"+admin.Database, io.Discard)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), says) || took > cdctest.Patience(5*time.Second) {
			t.Errorf("after %s: %v, want %s", took, err, says)
		}
	}
}

// TestSlotThatIsReadAndHoldsRowsIsNotUpToDate: the reader confirms nothing, like a relay while Kafka is away.
func TestSlotThatIsReadAndHoldsRowsIsNotUpToDate(t *testing.T) {
	t.Parallel()
	admin, service := migrated(t, sql.Orders)
	conn := connect(t, admin)
	slot := cdctest.SlotName(t, "read")
	scan[string](t, conn, `SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	reader, err := pgconn.Connect(t.Context(), admin+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close(context.Background()) }()
	reader.Frontend().SendQuery(&pgproto3.Query{String: "START_REPLICATION SLOT " + slot + ` LOGICAL 0/0 ("proto_version" '1', "publication_names" 'walpost')`})
	if err := reader.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `CREATE TABLE more ()`); err != nil {
		t.Fatal(err)
	}
	cdctest.Eventually(t, 30*time.Second, func() error {
		if got := scan[string](t, connect(t, service), `SELECT what_to_do FROM outbox_slot`); !strings.Contains(got, "of WAL is not delivered yet") {
			return errors.New(got)
		}
		return nil
	})
}

// TestNoErrorShowsAURL covers all three URLs.
func TestNoErrorShowsAURL(t *testing.T) {
	good := "postgres://postgres@127.0.0.1:1/shop?sslmode=disable"
	for _, bad := range cdctest.BadURLs("postgres") {
		for _, err := range []error{
			sql.Migrate(t.Context(), sql.Orders, bad, good, io.Discard), sql.Migrate(t.Context(), sql.Orders, good, bad, io.Discard),
			sql.GrantReader(t.Context(), bad, good, good, io.Discard), sql.GrantReader(t.Context(), good, bad, good, io.Discard), sql.GrantReader(t.Context(), good, good, bad, io.Discard),
		} {
			if err == nil {
				t.Errorf("%s is taken", bad)
			}
			cdctest.NoSecret(t, "an error", fmt.Sprint(err))
		}
	}
}
