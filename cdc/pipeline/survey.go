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

// survey is what both sides say of a pipeline: the server and its slot, and the state record. State is nil where there
// is no record.
type survey struct {
	State *cdc.State
	Facts cdc.Facts
}

// read reads both sides in the order of a session's start, while a relay may be moving both: the slot before the record
// and the WAL's end after it, so that the record, which always lies between them, is never seen behind the slot or
// ahead of the server. record gets what the slot was like before. Who the server is, identify asks: that may need a
// replication connection.
func read(ctx context.Context, from server, record func(context.Context, *cdc.Facts) (*cdc.State, error)) (s survey, err error) {
	before, err := from.Facts(ctx)
	if err != nil {
		return survey{Facts: before}, err
	}
	if s.State, err = record(ctx, &before); err != nil {
		return survey{Facts: before}, err
	}
	s.Facts, err = from.Facts(ctx)
	s.Facts.Slot.ConfirmedFlush = before.Slot.ConfirmedFlush
	return s, err
}

// readAll reads both sides, and who the server is.
func readAll(ctx context.Context, from server, record func(context.Context, *cdc.Facts) (*cdc.State, error)) (survey, error) {
	s, err := read(ctx, from, record)
	if err == nil {
		err = s.identify(ctx, from)
	}
	return s, err
}

// again reads the server once more.
func (s *survey) again(ctx context.Context, from server) (err error) {
	if s.Facts, err = from.Facts(ctx); err != nil {
		return err
	}
	return s.identify(ctx, from)
}

// identify reads who the server is.
func (s *survey) identify(ctx context.Context, from server) error {
	var recorded int32
	if s.State != nil {
		recorded = s.State.Timeline
	}
	id, err := from.Identify(ctx, recorded)
	if err == nil {
		s.Facts.Identity = id
	}
	return err
}

// unfenced reads the state record beside a relay that may write it.
func (p *Pipeline) unfenced(ctx context.Context, _ *cdc.Facts) (*cdc.State, error) {
	return p.sink.Peek(ctx)
}
