package polling

import (
	"context"
	"errors"

	"github.com/walpost/walpost/cdc"
)

// Handler takes one event, in the process. An error is the row's: it is tried again, and recorded. What must not be counted
// as an attempt, because whoever it calls is away, is wrapped in ErrAway.
type Handler func(ctx context.Context, row *cdc.Row) error

// ErrAway says that no row is at fault: the session ends, and goes on with backoff.
var ErrAway = errors.New("what the handler needs is away")

// To delivers rows to a handler, one after the other, without Kafka. It may see a row again: the mark of what was handled comes
// after it.
func To(h Handler) Target { return &inProcess{handle: h} }

type inProcess struct {
	handle  Handler
	records []cdc.Record
}

func (p *inProcess) Open(context.Context) (Delivery, error) { return &inProcess{handle: p.handle}, nil }

func (p *inProcess) Take(ctx context.Context, row *cdc.Row) error {
	err := p.handle(ctx, row)
	switch {
	case err == nil:
		p.records = append(p.records, cdc.Record{Row: row, Key: row.AggregateID, Value: row.Payload})
		return nil
	case errors.Is(err, ErrAway), ctx.Err() != nil:
		return err
	}
	return cdc.Reject(row, cdc.ByHandler, "", "%v", err)
}

func (p *inProcess) Flush(context.Context) ([]cdc.Record, error) {
	records := p.records
	p.records = nil
	return records, nil
}

func (p *inProcess) Close() {}
