package polling

import (
	"context"
	"errors"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/postgres"
)

// Examine checks the table, and returns a finding for each fault, or one that the table can be polled. Postgres.Source.Examine checks the
// server, the role and its rights.
func (o *Outbox) Examine(ctx context.Context) ([]cdc.Finding, error) {
	t, err := o.Source.OpenTable(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Conn.Close(ctx) }()
	has, err := o.inspect(ctx, t)
	if err != nil {
		return nil, err
	}
	all := append(has.problems, has.missing...)
	for i := range all {
		all[i].Means = "the table cannot be polled like this, and nothing is lost"
	}
	if len(all) > 0 {
		return all, nil
	}
	if err := t.SeesAll(ctx); err != nil { // postgres.Source.Examine has the finding
		return nil, nil
	}
	var halt *cdc.HaltError
	switch err := o.unknownWords(ctx, t); {
	case errors.As(err, &halt):
		return []cdc.Finding{postgres.Found("polling_words", err)}, nil
	case err != nil:
		return nil, err
	}
	return []cdc.Finding{{Side: cdc.InPostgreSQL, Severity: cdc.OK, Check: "table", Found: o.cfg.Table + " has the columns and indexes for polling"}}, nil
}
