package sql_test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/sql"
)

// TestMigrateNeedsNoMore migrates both databases with the rights of the lines "migrate" of the page, and without each
// of them once: the error names the statement that grants the right.
func TestMigrateNeedsNoMore(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../cdc/identity/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var whole []string
	for _, row := range regexp.MustCompile("(?m)^\\| migrate \\| `([^`]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		whole = append(whole, row[1])
	}
	if len(whole) < 4 {
		t.Fatalf("the page has %d rights", len(whole))
	}
	for _, which := range []sql.Database{sql.Orders, sql.Inventory} {
		m := newMigrator(t, which)
		for _, right := range whole {
			m.exec(right)
		}
		if err := m.migrate(); err != nil || strings.Contains(m.out.String(), "CREATE") {
			t.Errorf("%s with all rights: %v\n%s", which, err, m.out)
		}
		m.exec("GRANT CREATE ON SCHEMA public TO PUBLIC")
		if err := m.migrate(); err != nil || !strings.Contains(m.out.String(), "run REVOKE CREATE ON SCHEMA public FROM PUBLIC") {
			t.Errorf("%s where everybody may CREATE: %v\n%s", which, err, m.out)
		}
	}
	for i, right := range whole {
		m := newMigrator(t, []sql.Database{sql.Orders, sql.Inventory}[i%2])
		for _, other := range whole {
			if other != right {
				m.exec(other)
			}
		}
		switch err := m.migrate(); {
		case err == nil:
			t.Errorf("%s is superfluous: the work succeeds without it", right)
		case !strings.Contains(strings.ReplaceAll(err.Error(), `"`, ""), m.names.Replace(right)):
			t.Errorf("without %s: %v", right, err)
		default:
			t.Logf("without %s: %v", right, err)
		}
		m.exec(right)
		if err := m.migrate(); err != nil {
			t.Errorf("%s is back: %v", right, err)
		}
	}
}

// migrator creates a role without rights in a database without tables.
type migrator struct {
	names   *strings.Replacer // replaces the page's names by those of the test
	exec    func(statement string)
	migrate func() error
	out     *bytes.Buffer
}

func newMigrator(t *testing.T, which sql.Database) migrator {
	t.Helper()
	admin := cdctest.Database(t)
	owner := connect(t, admin)
	database := owner.Config().Database
	m := migrator{out: new(bytes.Buffer), names: strings.NewReplacer("migrator", "migrator_"+database, "DATABASE shop", "DATABASE "+database)}
	m.exec = func(statement string) {
		t.Helper()
		if _, err := owner.Exec(t.Context(), m.names.Replace(statement)); err != nil {
			t.Fatal(err)
		}
	}
	m.exec("CREATE ROLE migrator; REVOKE ALL ON DATABASE shop FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC")
	as := func(role string) string { return cdctest.As(admin, role+"_"+database) }
	m.migrate = func() error {
		err := sql.Migrate(t.Context(), which, as("migrator"), as("service"), m.out)
		if err == nil && which == sql.Inventory {
			err = sql.GrantReader(t.Context(), as("migrator"), as("service"), as("reader"), m.out)
		}
		return err
	}
	return m
}
