package polling

import (
	"context"
	"errors"

	"github.com/walpost/walpost/cdc"
)

// Handler handles one event within the process. With an error the row is rejected: the relay records the error and tries the row
// again. If a service that the handler needs is away, the handler wraps the error in ErrAway, and the attempt does not count.
type Handler func(ctx context.Context, row *cdc.Row) error

// ErrAway is wrapped by a handler's error when no row is at fault: the session ends, and the next one starts with backoff.
var ErrAway = errors.New("a service that the handler needs is away")

// To returns a Target that calls a handler for one row after the other, without Kafka. The handler may see a row again, because the
// relay marks the row after the handler has returned.
func To(h Handler) Target { return &inProcess{handle: h} }

// inProcess is a Target, and its own Delivery.
type inProcess struct {
	handle  Handler
	records []cdc.Record
}

// Open returns a Delivery to the handler.
func (p *inProcess) Open(context.Context) (Delivery, error) { return &inProcess{handle: p.handle}, nil }

// Take calls the handler.
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

// Flush returns the rows that the handler has handled since the last Flush.
func (p *inProcess) Flush(context.Context) ([]cdc.Record, error) {
	records := p.records
	p.records = nil
	return records, nil
}

// Close does nothing.
func (p *inProcess) Close() {}
