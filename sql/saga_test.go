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
	"github.com/walpost/walpost/sql"
)

func TestOutboxesAreOfOneShape(t *testing.T) {
	shapes := map[sql.Database]string{}
	for _, which := range []sql.Database{sql.Orders, sql.Inventory} {
		admin, service := migrated(t, which)
		shapes[which] = strings.ReplaceAll(scan[string](t, connect(t, admin), `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
			SELECT format('%s %s %s %s', column_name, data_type, is_nullable, column_default) AS line FROM information_schema.columns WHERE table_name = 'outbox'
			UNION ALL SELECT format('%s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE conrelid = 'outbox'::regclass
			UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'outbox'::regclass
			UNION ALL SELECT pg_get_functiondef('outbox_is_immutable'::regproc)
			UNION ALL SELECT concat_ws(' ', pubname, tablename, pubinsert, pubupdate, pubdelete, pubtruncate)
				FROM pg_publication JOIN pg_publication_tables USING (pubname)
			UNION ALL SELECT relacl::text FROM pg_class WHERE oid = 'outbox'::regclass) AS shape`), connect(t, service).Config().User, "service")
	}
	if shapes[sql.Orders] != shapes[sql.Inventory] || strings.Count(shapes[sql.Orders], "\n") < 15 {
		t.Errorf("orders:\n%s\ninventory:\n%s", shapes[sql.Orders], shapes[sql.Inventory])
	}
}

// TestOldOrdersGetPaymentsAndHistory migrates a database from the time before payments and history.
func TestOldOrdersGetPaymentsAndHistory(t *testing.T) {
	admin := cdctest.Database(t)
	config, err := pgx.ParseConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("orders"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, admin)
	place := func(steps ...string) (id uuid.UUID) {
		t.Helper()
		id = scan[uuid.UUID](t, conn, `SELECT create_order('b', 'a@b.example', '[{"sku": "A", "quantity": 3, "unitPrice": "0.35"}]')`)
		for _, step := range steps {
			scan[uuid.UUID](t, conn, `SELECT `+step+`_order($1)`, id)
		}
		return id
	}
	created, paid, unpaid, refunded, forgotten := place(), place("pay"), place("cancel"), place("pay", "cancel"), place("pay")
	if _, err := conn.Exec(t.Context(), `DELETE FROM outbox WHERE aggregate_id = $1`, forgotten.String()); err != nil {
		t.Fatal(err)
	}
	if err := sql.Migrate(t.Context(), sql.Orders, admin, serviceURL(t, admin), new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[uuid.UUID]string{
		created: "OrderCreated", paid: "OrderPaid charge 1.05", unpaid: "OrderCancelled", refunded: "OrderCancelled charge 1.05 refund 1.05", forgotten: "OrderPaid charge 1.05",
	} {
		got := scan[string](t, conn, `SELECT concat_ws(' ', (SELECT what FROM order_history WHERE order_id = $1 ORDER BY at DESC LIMIT 1),
			(SELECT string_agg(kind || ' ' || amount, ' ' ORDER BY kind) FROM payments WHERE order_id = $1))`, id)
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if n := scan[int](t, conn, `SELECT (SELECT count(*) FROM order_balances WHERE balance <> due)::int`); n != 0 {
		t.Errorf("%d orders are out of balance", n)
	}
	if n := scan[int](t, conn, `SELECT count(*)::int FROM order_history JOIN outbox ON outbox.id = event_id AND event_type = what AND aggregate_id = order_id::text
		AND (payload->>'occurredAt')::timestamptz = at AND payload @> detail`); n != 8 {
		t.Errorf("%d of 8 events are in the history", n)
	}
	if n := scan[int](t, conn, `SELECT (SELECT count(*) FROM order_history WHERE event_id IS NULL)::int * 10 + (SELECT count(*) FROM payments WHERE event_id IS NULL)::int`); n != 21 {
		t.Errorf("%d: two entries and one payment have lost their event", n)
	}
}

func TestPaymentsAddUpOrNothingIsCommitted(t *testing.T) {
	admin, _ := migrated(t, sql.Orders)
	conn := connect(t, admin)
	place := func(pay string) (id uuid.UUID) {
		t.Helper()
		return scan[uuid.UUID](t, conn, `SELECT `+pay+`(create_order('b', 'a@b.example', '[{"sku": "A", "quantity": 3, "unitPrice": "0.35"}]'))`)
	}
	created, paid, cancelled := place(""), place("pay_order"), place("cancel_order")
	for statement, code := range map[string]string{
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'charge', 1.04, 'EUR')`: "23503", // a cent less than the order's amount
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'charge', 1.05, 'USD')`: "23503",
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'refund', 1.05, 'EUR')`: "23503", // nothing was paid
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'gift', 1.05, 'EUR')`:   "23514",
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'charge', 1.05, 'EUR')`: "23514", // the order is still created
		`UPDATE orders SET status = 'paid', paid_at = now() WHERE id = $1`:                           "23514",
	} {
		refused(t, conn, code, statement, created)
		refused(t, conn, map[bool]string{true: "23503", false: code}[strings.Contains(statement, "'refund'")], statement, cancelled)
	}
	for statement, code := range map[string]string{
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'charge', 1.05, 'EUR')`:                                  "23505", // twice
		`INSERT INTO payments (order_id, kind, amount, currency) VALUES ($1, 'refund', 1.05, 'EUR')`:                                  "23514", // the order is still paid
		`DELETE FROM payments WHERE order_id = $1`:                                                                                    "23514",
		`UPDATE payments SET kind = 'refund' WHERE order_id = $1`:                                                                     "23503",
		`UPDATE orders SET status = 'rejected', rejected_at = now() WHERE id = $1`:                                                    "23514",
		`UPDATE orders SET total = 1.06 WHERE id = $1`:                                                                                "23503",
		`UPDATE orders SET status = 'shipped', confirmed_at = now() WHERE id = $1`:                                                    "23514", // without the time of it
		`UPDATE orders SET tracking_code = '1' WHERE id = $1`:                                                                         "23514",
		`INSERT INTO order_history (order_id, what, event_id) SELECT order_id, what, event_id FROM order_history WHERE order_id = $1`: "23505",
	} {
		refused(t, conn, code, statement, paid)
	}
	if err := refused(t, conn, "23514", `UPDATE orders SET status = 'cancelled', cancelled_at = now() WHERE id = $1`, paid); !strings.Contains(err.Message, "its payments add up to 1.05, not to 0") {
		t.Errorf("it says %q", err.Message)
	}
}
