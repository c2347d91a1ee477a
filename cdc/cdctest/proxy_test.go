package cdctest_test

import (
	"bytes"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
)

func TestProxyCutsWhereItIsTold(t *testing.T) {
	direct := cdctest.Database(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := cdctest.StartProxy(t, u.Host, func(fromServer bool, chunk []byte) bool {
		return !fromServer || !bytes.Contains(chunk, []byte("secret"))
	})
	through := proxy.URL(t, direct)
	ask := func(conn *pgx.Conn, sql string) (answer string, err error) {
		err = conn.QueryRow(t.Context(), sql).Scan(&answer)
		return answer, err
	}
	connect := func() *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), through)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(t.Context()) })
		return conn
	}

	conn, other := connect(), connect()
	if got, err := ask(conn, "SELECT 'open'"); got != "open" {
		t.Fatalf("got %q, %v", got, err)
	}
	if got, err := ask(conn, "SELECT 'sec' || 'ret'"); err == nil {
		t.Errorf("what pass held back arrived: %q", got)
	}
	if got, err := ask(other, "SELECT 'open'"); got != "open" {
		t.Errorf("the other connection went with it: %v", err)
	}
	proxy.Cut()
	if _, err := ask(other, "SELECT 'open'"); err == nil {
		t.Error("open after Cut")
	}
	proxy.Down()
	if _, err := pgx.Connect(t.Context(), through); err == nil {
		t.Error("connected while down")
	}
	proxy.Up()
	connect()
}
