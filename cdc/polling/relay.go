package polling

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

const (
	stallLog   = 5 * time.Second
	maxBackoff = time.Minute
	settleMin  = 2 * time.Millisecond
)

// Target is the destination of rows.
type Target interface {
	Open(ctx context.Context) (Delivery, error)
}

// Delivery is one session's connection to the target.
type Delivery interface {
	// Take takes a row for the next Flush. It returns a RejectedError if the row is at fault and not the target.
	Take(ctx context.Context, row *cdc.Row) error
	// Flush waits until every row that was taken is delivered, and returns the records. It returns a RejectedError if a row is at
	// fault; if several rows were taken, it is not known which one. After an error the Delivery must not be used again.
	Flush(ctx context.Context) ([]cdc.Record, error)
	Close()
}

// Relay moves one pipeline's pending rows from its table to a target.
type Relay struct {
	identity.Unshown

	*cdc.Supervisor
	cfg      config.Config
	outbox   *Outbox
	target   Target
	observer cdc.Observer

	single int64 // rows up to this position are sent one at a time, because one of them was rejected, and it is not known which
	motion motion
	stalls stalls
	spent  error               // ends the session after the fetched rows are marked
	due    map[int64]time.Time // by position, the time of a rejected row's next attempt
}

// New returns a relay. It connects to nothing until Run.
func New(cfg config.Config, target Target, observer cdc.Observer, log zerolog.Logger) *Relay {
	return NewOutbox(cfg.Pipeline, cfg.Source, log).Relay(cfg, target, observer)
}

// Relay returns a relay of the outbox, as New does.
func (o *Outbox) Relay(cfg config.Config, target Target, observer cdc.Observer) *Relay {
	r := &Relay{cfg: cfg, outbox: o, target: target, observer: cdc.Tee(observer)}
	r.Supervisor = cdc.NewSupervisor(observer, func(ctx context.Context) error {
		r.motion.began.Store(false)
		r.motion.rows.Store(0)
		r.motion.round.Store(0)
		return r.failed(r.session(ctx))
	})
	return r
}

// session locks the table and publishes its rows until ctx ends or an error occurs. It returns nil only if ctx has ended and all
// fetched rows are marked.
func (r *Relay) session(ctx context.Context) error {
	t, err := r.outbox.begin(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	if err := t.lock(ctx); err != nil {
		return err
	}
	delivery, err := r.target.Open(ctx)
	if err != nil {
		return err
	}
	defer delivery.Close()
	r.SetRole(cdc.Streaming, nil)
	r.motion.began.Store(true)
	watching, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { r.watch(watching, t.Conn.PgConn().PID()) })
	defer watcher.Wait()
	defer stop()
	r.due = map[int64]time.Time{}

	// Fetched rows are published and marked also after the end of ctx, for at most shutdown_timeout.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(r.cfg.ShutdownTimeout, cancel) })()
	for {
		err := r.round(ctx, work, t, delivery)
		switch {
		case err != nil && work.Err() != nil:
			return fmt.Errorf("%w: shutdown_timeout (%s) ended before all fetched rows were published; the others stay pending", cdc.ErrUndelivered, r.cfg.ShutdownTimeout)
		case err != nil && ctx.Err() != nil && !errors.Is(err, context.Canceled):
			return fmt.Errorf("%w: %w", cdc.ErrUndelivered, err)
		case err != nil || ctx.Err() != nil:
			return err
		}
	}
}

// round publishes all settled rows, and waits until the next round is due.
func (r *Relay) round(ctx, work context.Context, t *table, delivery Delivery) error {
	next := time.Now().Add(r.cfg.Source.Polling.Interval)
	ordered := r.cfg.Source.Polling.Order == config.OrderKey
	for first, pause := true, settleMin; ; first, pause = false, 2*pause {
		more := false
		if ordered {
			var err error
			if more, err = t.settle(ctx, first); err != nil {
				return err
			}
		}
		due, err := r.dueNow(ctx, t)
		if err != nil {
			return err
		}
		for full := true; full && ctx.Err() == nil; {
			if full, err = r.batch(work, t, delivery, due); err != nil {
				return err
			}
		}
		wait := time.Until(next)
		if more && pause < wait {
			wait = pause
		}
		r.motion.round.Add(1)
		r.motion.resting.Store(true)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		r.motion.resting.Store(false)
		if !more || !time.Now().Before(next) {
			return nil
		}
	}
}

// dueNow returns the positions of the rejected rows whose next attempt is due. For a row that an earlier session or another relay
// tried, the wait begins now, because only this process's clock counts.
func (r *Relay) dueNow(ctx context.Context, t *table) (due []int64, err error) {
	retrying, err := t.retrying(ctx)
	if err != nil {
		return nil, err
	}
	now, next := time.Now(), map[int64]time.Time{}
	due = []int64{}
	for position, retries := range retrying {
		at, known := r.due[position]
		if !known {
			at = now.Add(r.backoff(retries))
		}
		if next[position] = at; !now.Before(at) {
			due = append(due, position)
		}
	}
	r.due = next
	return due, nil
}

// backoff returns the wait before the next attempt of a row.
func (r *Relay) backoff(retries int) time.Duration {
	d := r.cfg.Source.Polling.Backoff
	for ; retries > 1 && d < maxBackoff; retries-- {
		d *= 2
	}
	return min(d, maxBackoff)
}

// batch fetches, delivers and marks rows once. full reports that more rows may be waiting.
func (r *Relay) batch(ctx context.Context, t *table, delivery Delivery, due []int64) (full bool, err error) {
	most := r.cfg.Window.Rows
	if r.single > 0 {
		most = 1
	}
	defer func() {
		if err == nil {
			err, r.spent = r.spent, nil
		}
	}()
	if r.cfg.Source.Polling.Order == config.OrderKey {
		return r.deliver(ctx, t, t.Conn, delivery, most, due)
	}
	// The rows are locked while they are delivered, but for at most queue_timeout: an open transaction keeps the whole server from
	// removing dead rows.
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueueTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, t.Conn, func(tx pgx.Tx) error {
		full, err = r.deliver(ctx, t, tx, delivery, most, due)
		return err
	})
	return full, err
}

// fits rejects a row that was not read because of its size.
func (r *Relay) fits(it *item) error {
	if most := r.cfg.Source.MaxRowBytes; it.bytes > int64(most) {
		return cdc.Reject(&it.row, cdc.TooLarge, "", "the row is %d bytes, source.max_row_bytes is %s: raise that, if Kafka takes such a record, and `walpost dlq redrive`, or give the row up with `walpost dlq drop`", it.bytes, most)
	}
	return nil
}

// deliver does the work of batch, with the connection or transaction q.
func (r *Relay) deliver(ctx context.Context, t *table, q querier, delivery Delivery, most int, due []int64) (full bool, err error) {
	items, full, err := t.fetch(ctx, q, most, int(r.cfg.Window.Bytes), due)
	if err != nil || len(items) == 0 {
		return false, err
	}
	if err := failpoint.Hit("poll_fetched"); err != nil {
		return false, err
	}
	bytes := 0
	for _, it := range items {
		bytes += int(it.bytes)
	}
	r.observer.Received(0, len(items), 0, 0, bytes)
	began := time.Now()
	var taken []int64
	var last *item // the last one that was taken
	var refused []rejection
	held := map[string]bool{}
	ordered := r.cfg.Source.Polling.Order == config.OrderKey
	for _, it := range items {
		key := it.key()
		if ordered && key != "" && held[key] {
			continue
		}
		err := r.fits(it)
		if err == nil {
			err = delivery.Take(ctx, &it.row)
		}
		if why := (*cdc.RejectedError)(nil); errors.As(err, &why) {
			refused = append(refused, rejection{it, why})
			held[key] = true
			continue
		}
		if err != nil {
			return false, err
		}
		taken, last = append(taken, it.position), it
	}
	if len(taken) > 0 {
		stall := time.AfterFunc(stallLog, func() {
			r.motion.kafka.Store(true)
			r.observer.Stalled(true, time.Since(began))
		})
		var records []cdc.Record
		err := t.holding(ctx, func(ctx context.Context) (err error) {
			records, err = delivery.Flush(ctx)
			return err
		})
		if !stall.Stop() {
			r.motion.kafka.Store(false)
			r.observer.Stalled(false, time.Since(began))
		}
		why := (*cdc.RejectedError)(nil)
		switch {
		case errors.As(err, &why) && len(taken) > 1:
			r.single = taken[len(taken)-1]
			return false, fmt.Errorf("kafka rejected one record of the window: the relay starts again and sends the rows one at a time, to find out which: %w", errors.New(why.Error()))
		case errors.As(err, &why):
			// The row is known, but the delivery cannot be used again: mark the rejected rows, and then end the session.
			r.spent = fmt.Errorf("start over after a row that was rejected: %w", errors.New(why.Error()))
			return false, r.mark(ctx, t, q, nil, append(refused, rejection{last, why}))
		case err != nil:
			return false, err
		}
		r.observer.Published(records, time.Since(began))
	}
	if err := failpoint.Hit("poll_published"); err != nil {
		return false, err
	}
	if err := r.mark(ctx, t, q, taken, refused); err != nil {
		return false, err
	}
	if items[len(items)-1].position >= r.single {
		r.single = 0
	}
	return full, failpoint.Hit("poll_marked")
}

// mark marks published and rejected rows in the table, and sets the time of the next attempt of those rejected.
func (r *Relay) mark(ctx context.Context, t *table, q querier, published []int64, refused []rejection) error {
	if err := t.mark(ctx, q, published, refused); err != nil {
		return err
	}
	r.motion.rows.Add(int64(len(published) + len(refused)))
	for _, it := range refused {
		r.due[it.position] = time.Now().Add(r.backoff(it.retries + 1))
		if t.fails(it.item) {
			r.observer.DeadLettered(&cdc.Record{Row: &it.row, Rejected: it.why})
		}
	}
	return nil
}
