package cdc

import "time"

// Row is one insert into the outbox. Byte slices hold PostgreSQL's text output; nil means NULL or an unmapped column.
type Row struct {
	Position
	XID        uint32
	CommitTime time.Time // the server's clock, not monotone across commits
	prior      LSN       // covered before this row came

	ID            []byte
	AggregateType []byte
	AggregateID   []byte
	EventType     []byte
	Payload       []byte
	Headers       []byte
	CreatedAt     []byte

	// Shape describes the columns, and Further has the values of more of them. Both are nil unless the route asks for
	// them: config.Verbatim.
	Shape   *Shape
	Further [][]byte

	// Former has the values that the columns of Shape.Key had, if the row is an update of them, which counts as an insert
	// for a route that asks for it; nil for an insert.
	Former [][]byte
}

// Size returns the number of bytes of the row's values.
func (r *Row) Size() int {
	n := len(r.ID) + len(r.AggregateType) + len(r.AggregateID) + len(r.EventType) + len(r.Payload) + len(r.Headers) + len(r.CreatedAt)
	for _, value := range r.Further {
		n += len(value)
	}
	for _, value := range r.Former {
		n += len(value)
	}
	return n
}

// Header is one header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// Record is the Kafka record of a [Row]. Its slices are valid as long as the row's window.
type Record struct {
	Row     *Row
	Topic   string
	Key     []byte
	Value   []byte
	Headers []Header
	// Timestamp is the record's timestamp; zero: the time at which it is sent.
	Timestamp time.Time
	// Placed is true if the route has chosen Partition. Otherwise the hash of the key chooses it.
	Placed bool

	// Rejected is the reason why the record is a dead letter; nil for an ordinary record.
	Rejected *RejectedError

	// Publish sets Offset, and Partition of a record that is not placed.
	Partition int32
	Offset    int64
}

// Window is a set of rows that are published and become durable together: rows in commit order, copied into one slab,
// and the position that is covered once they are durable.
type Window struct {
	Rows    []Row
	slab    []byte
	further [][]byte // the slab of Row.Further and Row.Former

	// covered is the last commit end or in-order keepalive in the window; zero if there is none.
	covered LSN
	// asked is true if the server wants a reply to a keepalive in this window (it waits to stop, or suspects that the
	// relay is dead).
	asked bool
	// since is the time at which the first row came; zero in a window without rows.
	since time.Time

	maxRows, maxBytes int
}

func newWindow(maxRows, maxBytes int) *Window {
	return &Window{Rows: make([]Row, 0, maxRows), slab: make([]byte, 0, maxBytes), maxRows: maxRows, maxBytes: maxBytes}
}

// add copies the row into the window, or returns false if the window has no room for it. An empty window takes a row
// of any size.
func (w *Window) add(r *Row) bool {
	n := r.Size()
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
	c.Further, c.Former = w.copyAll(r.Further), w.copyAll(r.Former)
	return true
}

// copyAll copies values.
func (w *Window) copyAll(values [][]byte) [][]byte {
	if values == nil {
		return nil
	}
	at := len(w.further)
	for _, value := range values {
		w.further = append(w.further, w.copy(value))
	}
	return w.further[at:len(w.further):len(w.further)]
}

// copy appends b to the slab. It never reallocates: add has made room.
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
		w.slab = make([]byte, 0, w.maxBytes) // one oversized row must not keep its memory
	}
	clear(w.Rows)
	clear(w.further)
	*w = Window{Rows: w.Rows[:0], slab: w.slab[:0], further: w.further[:0], maxRows: w.maxRows, maxBytes: w.maxBytes}
}
