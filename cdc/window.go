package cdc

import "time"

// Row is one insert into the outbox. Byte slices are in PostgreSQL's text output; nil means NULL or an unmapped column.
type Row struct {
	Position
	XID        uint32
	CommitTime time.Time // the server's clock, not monotone across commits
	prior      LSN       // what was covered before this row came

	ID            []byte
	AggregateType []byte
	AggregateID   []byte
	EventType     []byte
	Payload       []byte
	Headers       []byte
	CreatedAt     []byte
}

func (r *Row) size() int {
	return len(r.ID) + len(r.AggregateType) + len(r.AggregateID) + len(r.EventType) + len(r.Payload) + len(r.Headers) + len(r.CreatedAt)
}

// Header is one header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// Record is what becomes of a [Row] in Kafka. The slices live as long as the row's window.
type Record struct {
	Row     *Row
	Topic   string
	Key     []byte
	Value   []byte
	Headers []Header

	// Refused is why the record is a dead letter; nil for one that is what its row asks for.
	Refused *RejectedError

	// Partition and Offset are set by Publish.
	Partition int32
	Offset    int64
}

// Window is what is published and becomes durable as one: rows in commit order, copied into one slab, and the position
// that is covered once they are durable.
type Window struct {
	Rows []Row
	slab []byte

	// covered is the last commit end or in-order keepalive in the window; zero when there is none.
	covered LSN
	// asked says that the server wants a reply to a keepalive in this window (it is waiting to stop, or suspects us dead).
	asked bool
	// since is when the first row came; zero in a window without rows.
	since time.Time

	maxRows, maxBytes int
}

func newWindow(maxRows, maxBytes int) *Window {
	return &Window{Rows: make([]Row, 0, maxRows), slab: make([]byte, 0, maxBytes), maxRows: maxRows, maxBytes: maxBytes}
}

// add copies the row, or reports false when the window has no room for it. An empty window takes a row of any size.
func (w *Window) add(r *Row) bool {
	n := r.size()
	if len(w.Rows) == w.maxRows || (len(w.Rows) > 0 && len(w.slab)+n > cap(w.slab)) {
		return false
	}
	if n > cap(w.slab) {
		w.slab = make([]byte, 0, n)
	}
	w.Rows = append(w.Rows, *r)
	c := &w.Rows[len(w.Rows)-1]
	c.ID, c.AggregateType, c.AggregateID = w.copy(r.ID), w.copy(r.AggregateType), w.copy(r.AggregateID)
	c.EventType, c.Payload, c.Headers, c.CreatedAt = w.copy(r.EventType), w.copy(r.Payload), w.copy(r.Headers), w.copy(r.CreatedAt)
	return true
}

// copy never reallocates: add has made room.
func (w *Window) copy(b []byte) []byte {
	if b == nil {
		return nil
	}
	at := len(w.slab)
	w.slab = append(w.slab, b...)
	return w.slab[at:len(w.slab):len(w.slab)]
}

func (w *Window) full() bool { return len(w.Rows) == w.maxRows || len(w.slab) >= w.maxBytes }

func (w *Window) empty() bool { return len(w.Rows) == 0 && w.covered == 0 && !w.asked }

func (w *Window) reset() {
	if cap(w.slab) > w.maxBytes {
		w.slab = make([]byte, 0, w.maxBytes) // one oversized row must not stay in memory for ever
	}
	clear(w.Rows)
	*w = Window{Rows: w.Rows[:0], slab: w.slab[:0], maxRows: w.maxRows, maxBytes: w.maxBytes}
}
