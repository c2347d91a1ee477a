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

// survey holds the facts of both sides: of the server with its slot, and the state record. State is nil if there is no
// record.
type survey struct {
	State *cdc.State
	Facts cdc.Facts
}

// read reads both sides in the order of a session's start, because a relay may be moving both: first the slot, then the
// record, then the end of the WAL. The record always lies between slot and end, so read never sees it behind the slot or
// ahead of the server. record gets the facts from before. The server's identity is left to identify, which may need a
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

// readAll reads both sides and the server's identity.
func readAll(ctx context.Context, from server, record func(context.Context, *cdc.Facts) (*cdc.State, error)) (survey, error) {
	s, err := read(ctx, from, record)
	if err == nil {
		err = s.identify(ctx, from)
	}
	return s, err
}

// again reads the server's facts and identity once more.
func (s *survey) again(ctx context.Context, from server) (err error) {
	if s.Facts, err = from.Facts(ctx); err != nil {
		return err
	}
	return s.identify(ctx, from)
}

// identify reads the server's identity.
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

// unfenced reads the state record without fencing the relay, which may write it meanwhile.
func (p *Pipeline) unfenced(ctx context.Context, _ *cdc.Facts) (*cdc.State, error) {
	return p.sink.Peek(ctx)
}
