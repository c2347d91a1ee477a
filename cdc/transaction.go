package cdc

import (
	"fmt"
	"strings"
)

// Transaction is an open transaction of the server. A prepared one has a name and no process.
type Transaction struct {
	PID      int32   `json:"pid,omitempty"`
	Prepared string  `json:"prepared,omitempty"`
	Seconds  float64 `json:"open_seconds"` // 0 if the server does not show it
}

func (t Transaction) String() string {
	who := fmt.Sprintf("the transaction of pid %d", t.PID)
	if t.PID == 0 {
		who = fmt.Sprintf("the prepared transaction %q", t.Prepared)
	}
	if t.Seconds > 0 {
		who += fmt.Sprintf(", open for %.0f s", t.Seconds)
	}
	return who
}

// End returns the SQL that ends the transaction.
func (t Transaction) End() string {
	if t.PID == 0 {
		name := "'" + strings.ReplaceAll(t.Prepared, "'", "''") + "'"
		return fmt.Sprintf("COMMIT PREPARED %s or ROLLBACK PREPARED %s", name, name)
	}
	return fmt.Sprintf("SELECT pg_terminate_backend(%d)", t.PID)
}
