package polling

import (
	"context"

	"github.com/walpost/walpost/cdc"
)

// ToKafka delivers rows as records: the engine's route and sink, without a state record. What a row says of itself in the table
// takes its place.
func ToKafka(sink cdc.Sink, route cdc.Route) Target { return &toKafka{sink, route} }

type toKafka struct {
	sink  cdc.Sink
	route cdc.Route
}

func (k *toKafka) Open(ctx context.Context) (Delivery, error) {
	pub, err := k.sink.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &window{Publisher: pub, route: k.route, fresh: true}, nil
}

// window is what is published as one.
type window struct {
	cdc.Publisher
	route   cdc.Route
	records []cdc.Record
	fresh   bool // nothing was taken since the last Flush
}

func (w *window) Take(ctx context.Context, row *cdc.Row) error {
	if w.fresh || len(w.records) == 0 {
		w.route.NextWindow()
		w.records, w.fresh = w.records[:0], false
	}
	var rec cdc.Record
	if err := w.route.Route(row, &rec); err != nil {
		return err
	}
	if err := w.Check(ctx, &rec); err != nil {
		return err
	}
	w.records = append(w.records, rec)
	return nil
}

func (w *window) Flush(ctx context.Context) ([]cdc.Record, error) {
	w.fresh = true
	return w.records, w.Publish(ctx, w.records, nil)
}
