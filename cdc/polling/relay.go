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

// Target is where rows go.
type Target interface {
	Open(ctx context.Context) (Delivery, error)
}

// Delivery is one session's way to the target.
type Delivery interface {
	// Take takes a row for the next Flush, or refuses it with a RejectedError: then the row is at fault, not the target.
	Take(ctx context.Context, row *cdc.Row) error
	// Flush returns when everything that was taken is delivered, and what became of it. It is a RejectedError when a row was, which
	// one is certain only of a single row; after an error the Delivery must not be used again.
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

	single int64 // rows up to here go one at a time: one of them was refused, and it is not known which
	motion motion
	stalls stalls
	spent  error               // ends the session once what was fetched is marked
	due    map[int64]time.Time // when a refused row is tried again
}

// New makes a relay. It holds nothing until Run.
func New(cfg config.Config, target Target, observer cdc.Observer, log zerolog.Logger) *Relay {
	return NewOutbox(cfg.Pipeline, cfg.Source, log).Relay(cfg, target, observer)
}

// Relay makes a relay of the outbox, as New does.
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

// session has the table, from the lock to whatever ends it. It returns nil only when ctx has ended and what was fetched is marked.
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

	// What was fetched is published and marked after the end of ctx too.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(r.cfg.ShutdownTimeout, cancel) })()
	for {
		err := r.round(ctx, work, t, delivery)
		switch {
		case err != nil && work.Err() != nil:
			return fmt.Errorf("%w: shutdown_timeout (%s) was over before what was fetched was published; it stays pending", cdc.ErrUndelivered, r.cfg.ShutdownTimeout)
		case err != nil && ctx.Err() != nil && !errors.Is(err, context.Canceled):
			return fmt.Errorf("%w: %w", cdc.ErrUndelivered, err)
		case err != nil || ctx.Err() != nil:
			return err
		}
	}
}

// round takes everything that is settled, and waits for the next.
func (r *Relay) round(ctx, work context.Context, t *table, delivery Delivery) error {
	next := time.Now().Add(r.cfg.Source.Polling.Interval)
	ordered := r.cfg.Source.Polling.Order == config.OrderKey
	for anew, pause := true, settleMin; ; anew, pause = false, 2*pause {
		more := false
		if ordered {
			var err error
			if more, err = t.settle(ctx, anew); err != nil {
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

// dueNow are the refused rows whose time has come. One that is not known, of an earlier session or another relay, waits its time
// from now on: no clock but this process's is asked.
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

func (r *Relay) backoff(retries int) time.Duration {
	d := r.cfg.Source.Polling.Backoff
	for ; retries > 1 && d < maxBackoff; retries-- {
		d *= 2
	}
	return min(d, maxBackoff)
}

// batch fetches, delivers and marks rows once. full says that there may be more.
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
	// The rows are locked while they are delivered, but not for ever: a transaction that stays open is everybody's burden.
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueueTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, t.Conn, func(tx pgx.Tx) error {
		full, err = r.deliver(ctx, t, tx, delivery, most, due)
		return err
	})
	return full, err
}

// fits refuses a row that was not read, because of its size.
func (r *Relay) fits(it *item) error {
	if most := r.cfg.Source.MaxRowBytes; it.bytes > int64(most) {
		return cdc.Reject(&it.row, cdc.TooLarge, "", "the row is %d bytes, source.max_row_bytes is %s: raise that, if Kafka takes such a record, and `walpost dlq redrive`, or give the row up with `walpost dlq drop`", it.bytes, most)
	}
	return nil
}

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
	r.observer.Received(len(items), 0, 0, bytes)
	began := time.Now()
	var taken []int64
	var last *item // of those taken
	var refused []refusal
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
			refused = append(refused, refusal{it, why})
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
			// The row is known, and the delivery is spent: what is marked counts, and then the session ends.
			r.spent = fmt.Errorf("start over behind a row that was refused: %w", errors.New(why.Error()))
			return false, r.mark(ctx, t, q, nil, append(refused, refusal{last, why}))
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

// mark records what became of rows, and when those refused are tried again.
func (r *Relay) mark(ctx context.Context, t *table, q querier, published []int64, refused []refusal) error {
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
