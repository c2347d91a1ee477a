package polling

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/postgres"
)

// TestErrorsThatAPersonMustFixHalt: a table that is gone or has changed is a halt. A lock that cannot be taken is not.
func TestErrorsThatAPersonMustFixHalt(t *testing.T) {
	for code, halts := range map[string]bool{
		pgerrcode.InsufficientPrivilege: true, pgerrcode.UndefinedTable: true, pgerrcode.UndefinedColumn: true,
		pgerrcode.DatatypeMismatch: true, pgerrcode.UndefinedFunction: true,
		pgerrcode.LockNotAvailable: false, pgerrcode.SerializationFailure: false, pgerrcode.AdminShutdown: false,
	} {
		err := classify(&postgres.OpenTable{}, "fetch rows", &pgconn.PgError{Code: code, Message: "no", Detail: "Key (id)=(secret)"})
		var halt *cdc.HaltError
		if errors.As(err, &halt) != halts || halts && (!strings.Contains(halt.Run, "walpost init") || halt.Found != "fetch rows: PostgreSQL says no (SQLSTATE "+code+")") {
			t.Errorf("%s: %v, want a halt: %t", code, err, halts)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the server's detail may hold row data: %v", code, err)
		}
	}
}
