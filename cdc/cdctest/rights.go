package cdctest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// heldRights selects each right that a role has in this database: the right, the object's name, and the object in the
// syntax of GRANT.
const heldRights = `
	WITH me AS (SELECT oid FROM pg_roles WHERE rolname = $1)
	SELECT privilege_type, relname, 'TABLE ' || c.oid::regclass FROM me, pg_class c, aclexplode(relacl) WHERE grantee = me.oid
	UNION ALL SELECT format('%s (%I)', privilege_type, attname), relname, 'TABLE ' || c.oid::regclass
		FROM me, pg_attribute JOIN pg_class c ON c.oid = attrelid, aclexplode(attacl) WHERE grantee = me.oid
	UNION ALL SELECT privilege_type, proname, 'FUNCTION ' || p.oid::regprocedure FROM me, pg_proc p, aclexplode(proacl) WHERE grantee = me.oid
	ORDER BY 3, 1`

// LeastRights runs work with all rights that a role has in the database at admin, and then once without each of them.
// Each time the error must name the object, and settle must find that nothing is lost once the right is back. A right
// whose absence changes nothing is superfluous.
func LeastRights(t *testing.T, admin, role string, work func() error, settle func()) {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	type right struct{ Privilege, Name, Object string }
	rows, _ := owner.Query(t.Context(), heldRights, role)
	rights, err := pgx.CollectRows(rows, pgx.RowToStructByPos[right])
	if err != nil || len(rights) == 0 {
		t.Fatalf("%d rights: %v", len(rights), err)
	}
	whole := func(when string) {
		t.Helper()
		if err := work(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		settle()
	}
	whole("with all rights")
	for _, r := range rights {
		change := func(verb, preposition string) {
			t.Helper()
			if _, err := owner.Exec(t.Context(), fmt.Sprintf("%s %s ON %s %s %s", verb, r.Privilege, r.Object, preposition, pgx.Identifier{role}.Sanitize())); err != nil {
				t.Fatal(err)
			}
		}
		change("REVOKE", "FROM")
		switch err := work(); {
		case err == nil:
			t.Errorf("%s on %s is superfluous: the work succeeds without it", r.Privilege, r.Name)
		case !strings.Contains(err.Error(), "permission denied for "+strings.ToLower(strings.Fields(r.Object)[0])+" "+r.Name) &&
			!strings.Contains(err.Error(), "may not "+r.Privilege+" ") && !strings.Contains(err.Error(), "permission denied for view "+r.Name):
			t.Errorf("without %s on %s: %v", r.Privilege, r.Name, err)
		default:
			t.Logf("without %s on %s: %s", r.Privilege, r.Name, strings.TrimSpace(err.Error()))
		}
		change("GRANT", "TO")
		settle()
	}
	whole("with all rights again")
}

// Denied returns the first line of a log, after that many bytes, that reports a missing right. Lines at debug level do
// not count: an operator does not see them.
func Denied(log *Log, from int) error {
	for line := range strings.Lines(log.String()[from:]) {
		if strings.Contains(line, "permission denied") && !strings.Contains(line, `"level":"debug"`) {
			return errors.New(strings.TrimSpace(line))
		}
	}
	return nil
}
