package polling

import (
	"context"

	"github.com/walpost/walpost/cdc"
)

// ToKafka returns a Target that delivers rows as records, with the engine's route and sink. It writes no state record: the status of
// each row in the table replaces it.
func ToKafka(sink cdc.Sink, route cdc.Route) Target { return &toKafka{sink, route} }

type toKafka struct {
	sink  cdc.Sink
	route cdc.Route
}

// Open opens a publisher.
func (k *toKafka) Open(ctx context.Context) (Delivery, error) {
	pub, err := k.sink.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &window{Publisher: pub, route: k.route, fresh: true}, nil
}

// window is a Delivery to Kafka. It collects the records that are published together.
type window struct {
	cdc.Publisher
	route   cdc.Route
	records []cdc.Record
	fresh   bool // no row was taken since the last Flush
}

// Take routes and checks a row, and adds its record to the window.
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

// Flush publishes the window.
func (w *window) Flush(ctx context.Context) ([]cdc.Record, error) {
	w.fresh = true
	return w.records, w.Publish(ctx, w.records, nil)
}
