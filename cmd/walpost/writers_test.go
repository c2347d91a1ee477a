package main

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
)

// printed returns the walpost commands that stand in backquotes in a text, without the program's name.
func printed(text string) (commands [][]string) {
	for _, m := range regexp.MustCompile("`walpost ([^`]+)`").FindAllStringSubmatch(text, -1) {
		commands = append(commands, strings.Fields(m[1]))
	}
	return commands
}

// insertIn inserts a row in an open transaction.
func insertIn(t testing.TB, conn *pgx.Conn) string {
	t.Helper()
	id := uuid.NewString()
	if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', '{}')`, id); err != nil {
		t.Fatal(err)
	}
	return id
}

func do(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// TestDecisionWaitsForOpenTransactions hides a row of a transaction that is open while the publication changes and
// changes back. A decision waits until it has ended, or names it, and then the command that is printed publishes the
// row that was hidden. Nothing else of the transaction is given up.
func TestDecisionWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hide, show string
		args       []string
		end        string // what ends the transaction while the decision waits for it; empty: after the decision
		prepared   bool
	}{
		"taken out of the publication, and waited for": {"ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox", []string{"adopt"}, "COMMIT", false},
		"other changes published, and waited for":      {"ALTER PUBLICATION walpost SET (publish = 'update')", "ALTER PUBLICATION walpost SET (publish = 'insert')", []string{"adopt"}, "COMMIT", false},
		"prepared, and decided before it ends":         {"ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox", []string{"adopt", "--wait", "0s"}, "", true},
		"open, and decided before it ends":             {"ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox", []string{"adopt", "--wait", "100ms"}, "", false},
		"rolled back, and waited for":                  {"ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox", []string{"adopt"}, "ROLLBACK", false},
		"dropped and created again, and waited for":    {"DROP PUBLICATION walpost", "CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')", []string{"adopt"}, "COMMIT", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "100ms"
			conn := s.Connect()
			defer func() { _ = conn.Close(context.Background()) }()
			do(t, conn, "BEGIN")
			ids := []string{insertIn(t, conn)}
			s.Exec(c.hide)
			ids = append(ids, insertIn(t, conn))
			r := s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			s.Exec(c.show)
			ids = append(ids, insertIn(t, conn))
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			gid := "forgotten " + s.Slot()
			if c.prepared {
				do(t, conn, "PREPARE TRANSACTION '"+gid+"'")
				if out := s.DryRun("adopt"); !strings.Contains(out, `the prepared transaction "`+gid+`"`) || !strings.Contains(out, "ROLLBACK PREPARED '"+gid+"'") {
					t.Errorf("the dry run does not name it:\n%s", out)
				}
			} else if out := s.DryRun("adopt"); !strings.Contains(out, "still open: the transaction of pid ") || !strings.Contains(out, "SELECT pg_terminate_backend(") {
				t.Errorf("the dry run does not name it:\n%s", out)
			}
			if strings.HasPrefix(c.hide, "DROP") { // what it wrote then cannot be decoded by PostgreSQL
				s.MustRefuse("end it (SELECT pg_terminate_backend(", "adopt", "--wait", "0s")
			}
			out := &cdctest.Log{}
			if c.end == "" {
				if _, err := out.Write([]byte(s.MustRun(c.args...))); err != nil {
					t.Fatal(err)
				}
				if c.prepared {
					do(t, conn, "COMMIT PREPARED '"+gid+"'")
				} else {
					do(t, conn, "COMMIT")
				}
			} else {
				ended := make(chan error, 1)
				go func() { ended <- run(t.Context(), c.args, s.Getenv, out, out) }()
				cdctest.Eventually(t, 20*time.Second, func() error { return contains(out.String(), "waits for the transaction of pid") })
				do(t, conn, c.end)
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
			commands := printed(out.String())
			if len(commands) == 0 {
				t.Fatalf("no command is printed:\n%s", out)
			}
			last := commands[len(commands)-1]
			if last[0] != "replay" || (c.end == "") != (last[len(last)-1] == "now") {
				t.Errorf("the command to run is %v:\n%s", last, out)
			}
			s.MustRun(last...)
			s.StartRelay()
			s.WaitForEvent(s.InsertRow())
			want := 21 + len(ids)
			if c.end == "ROLLBACK" {
				want = 21
			}
			if got := s.EventIDs(); len(got) != want {
				t.Errorf("%d events of %d arrived; adopt said\n%s", len(got), want, out)
			}
		})
	}
}
