package pipeline

import (
	"context"

	"github.com/walpost/walpost/cdc"
)

// server is PostgreSQL, as the relay's role or an administrator asks it.
type server interface {
	Facts(ctx context.Context) (cdc.Facts, error)
	Identify(ctx context.Context, recorded int32) (cdc.Identity, error)
}

// survey is what both sides say of a pipeline: the server and its slot, and the state record. State is nil where there is no record.
type survey struct {
	State *cdc.State
	Facts cdc.Facts
}

// take reads both sides in the order of a session's start, while a relay may be moving both: the slot before the record and the WAL's end
// after it, so that the record, which always lies between them, is never seen behind the slot or ahead of the server. record gets what
// the slot was like before.
func take(ctx context.Context, from server, record func(context.Context, *cdc.Facts) (*cdc.State, error)) (s survey, err error) {
	before, err := from.Facts(ctx)
	if err != nil {
		return survey{Facts: before}, err
	}
	if s.State, err = record(ctx, &before); err != nil {
		return survey{Facts: before}, err
	}
	err = s.again(ctx, from)
	s.Facts.Slot.ConfirmedFlush = before.Slot.ConfirmedFlush
	return s, err
}

// again reads the server once more.
func (s *survey) again(ctx context.Context, from server) (err error) {
	if s.Facts, err = from.Facts(ctx); err != nil {
		return err
	}
	var recorded int32
	if s.State != nil {
		recorded = s.State.Timeline
	}
	s.Facts.Identity, err = from.Identify(ctx, recorded)
	return err
}

// unfenced reads the state record beside a relay that may write it.
func (p *Pipeline) unfenced(ctx context.Context, _ *cdc.Facts) (*cdc.State, error) {
	return p.sink.Peek(ctx)
}
