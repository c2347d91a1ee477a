package pipeline

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
)

const (
	askEvery  = 5 * time.Second
	askWithin = 3 * time.Second // for an answer, after which the next question may be asked
	// answerWithin is how long a probe or a scrape waits for a look, before it gets the last one: a probe's own limit is
	// often a second, and an answer costs the same whether the database hangs or not.
	answerWithin = 80 * time.Millisecond
)

// watched is what Status and metrics ask beside the relay. What a pipeline has not is nil.
type watched struct {
	slot  string
	facts interface { // how the slot stands
		Facts(ctx context.Context) (cdc.Facts, error)
	}
	table interface { // how a polled table stands
		Backlog(ctx context.Context) (polling.Backlog, error)
	}
	kafka interface { // whether it answers, and has the topics
		Ready(ctx context.Context) (kafka.Partitions, error)
	}
	letters interface { // how many dead letters are unresolved
		Count(ctx context.Context) (int, error)
	}
	login     login
	certified []certified
}

// login is how Kafka lets clients in.
type login interface {
	Trouble() error // why it does not
}

// certified shows client certificates.
type certified interface {
	Certificates() map[string]time.Time // when those in use expire, by their keys
}

// away says why rows wait for Kafka.
func away(l login) string {
	if l != nil {
		if err := l.Trouble(); err != nil {
			return err.Error()
		}
	}
	return kafkaAway
}

// asked is what PostgreSQL and Kafka know and the relay does not, or not while it is halted. They are asked when
// somebody wants to know, by one look at a time that all share: a probe and a scrape get what was seen last, and wait for
// neither a database that hangs nor a table that is large. A metric that could not be asked is left out.
type asked struct {
	lag, seconds, retained, lost, safe, left, unresolved *prometheus.Desc
	pending, oldest, failed, heldKeys, horizon, expires  *prometheus.Desc

	watched

	looks     cdc.Lag
	delivered atomic.Pointer[time.Time] // up to when all is delivered, as the relay knows

	mu      sync.Mutex
	last    *look
	looking chan struct{} // closed when the look under way has ended; nil without one
	wal     rate
}

// look is what PostgreSQL and Kafka said, and why a question got no answer.
type look struct {
	at        time.Time
	facts     cdc.Facts
	perSecond float64 // bytes of WAL; 0 while that is not known
	backlog   polling.Backlog
	letters   int

	factsErr, backlogErr, kafkaErr, lettersErr error
}

func newAsked(labels prometheus.Labels, of watched) *asked {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, labels) }
	return &asked{
		watched:    of,
		lag:        desc("walpost_slot_lag_bytes", "Bytes of WAL between the slot's confirmed LSN and the end of the WAL, written by any transaction of the server; also while no relay streams."),
		seconds:    desc("walpost_lag_seconds", "Age in seconds of the oldest WAL that is not confirmed to the slot; 0 when all is confirmed. Absent while it is unknown; never 0 while something is stuck."),
		retained:   desc("walpost_slot_retained_bytes", "Bytes of WAL that the server keeps for the slot; also while no relay streams."),
		lost:       desc("walpost_slot_lost", "1 if the server has removed WAL that was not delivered, or the slot does not exist."),
		pending:    desc("walpost_pending_rows", "Polling: pending rows of the table, counted up to 100,000."),
		oldest:     desc("walpost_oldest_pending_seconds", "Polling: age of the oldest pending row in seconds; 0 if no row is pending."),
		failed:     desc("walpost_failed_rows", "Polling: rows that were rejected at every attempt and wait for walpost dlq, counted up to 100,000."),
		heldKeys:   desc("walpost_held_keys", "Polling: keys whose later rows wait for a failed one."),
		horizon:    prometheus.NewDesc("walpost_horizon_seconds", "Polling: age in seconds of the open transaction that rows wait for, by its process; if the relay may not see its age, how long the rows have waited. Absent while no rows wait.", []string{"pid"}, labels),
		safe:       desc("walpost_slot_safe_wal_bytes", "Bytes of WAL that the server may write before the slot can be lost (safe_wal_size). Absent without a limit (max_slot_wal_keep_size = -1)."),
		left:       desc("walpost_slot_seconds_left", "Seconds until the slot can be lost, if nothing is confirmed meanwhile, at the rate of WAL of the last one to two hours. Absent without a limit, and in the first seconds."),
		expires:    prometheus.NewDesc("walpost_certificate_expires_timestamp_seconds", "Time when the client certificate in use expires, in seconds since 1970, by the key that names its file: Kafka's key, source.url: sslcert, or cleanup.url: sslcert.", []string{"key"}, labels),
		unresolved: desc("walpost_dead_letters_unresolved", "Dead letters that are neither redriven nor dropped."),
	}
}

func (a *asked) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{a.lag, a.seconds, a.retained, a.lost, a.safe, a.left, a.unresolved, a.pending, a.oldest, a.failed, a.heldKeys, a.horizon, a.expires} {
		ch <- d
	}
}

func (a *asked) Collect(ch chan<- prometheus.Metric) {
	for _, m := range a.metrics(a.seen(askEvery, answerWithin)) {
		ch <- m
	}
	for _, c := range a.certified {
		for key, at := range c.Certificates() {
			ch <- prometheus.MustNewConstMetric(a.expires, prometheus.GaugeValue, float64(at.Unix()), key)
		}
	}
}

// seen returns the newest look, nil before the first. If that is older than fresh, it waits for another one, up to so long.
func (a *asked) seen(fresh, within time.Duration) *look {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last != nil && time.Since(a.last.at) < fresh {
		return a.last
	}
	if a.looking == nil {
		done := make(chan struct{})
		a.looking = done
		go func() {
			l := a.ask()
			a.mu.Lock()
			defer a.mu.Unlock()
			if l.factsErr == nil && a.facts != nil {
				l.perSecond = a.wal.saw(l.facts.WALEnd, l.facts.Time)
				a.looks.Look(l.facts.WALEnd, l.facts.Time)
			}
			a.last, a.looking = l, nil
			close(done)
		}()
	}
	done := a.looking
	a.mu.Unlock()
	timer := time.NewTimer(within)
	select {
	case <-done:
	case <-timer.C:
	}
	timer.Stop()
	a.mu.Lock()
	return a.last
}

// knows takes down up to when all is delivered, as a session says.
func (a *asked) knows(at time.Time) {
	if last := a.delivered.Load(); last == nil || at.After(*last) {
		a.delivered.Store(&at)
	}
}

// behind is for how long what is not confirmed has waited. It is known of a relay too that does not stream.
func (a *asked) behind(f *cdc.Facts) (time.Duration, bool) {
	at := a.looks.Current(f.Slot.ConfirmedFlush)
	if relay := a.delivered.Load(); relay != nil && relay.After(at) {
		at = *relay
	}
	return cdc.Behind(f.Slot.ConfirmedFlush, f.WALEnd, at, f.Time)
}

// ask asks all of them at once.
func (a *asked) ask() *look {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	l := &look{}
	var questions sync.WaitGroup
	if a.facts != nil {
		questions.Go(func() { l.facts, l.factsErr = a.facts.Facts(ctx) })
	}
	if a.table != nil {
		questions.Go(func() { l.backlog, l.backlogErr = a.table.Backlog(ctx) })
	}
	questions.Go(func() {
		if a.kafka != nil {
			_, l.kafkaErr = a.kafka.Ready(ctx)
		}
		if l.lettersErr = l.kafkaErr; a.letters != nil && l.kafkaErr == nil {
			l.letters, l.lettersErr = a.letters.Count(ctx)
		}
	})
	questions.Wait()
	l.at = time.Now()
	return l
}

func (a *asked) metrics(l *look) (metrics []prometheus.Metric) {
	if l == nil {
		return nil
	}
	gauge := func(desc *prometheus.Desc, value float64) {
		metrics = append(metrics, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value))
	}
	if f := &l.facts; a.facts != nil && l.factsErr == nil {
		if f.Slot.Lost() {
			gauge(a.lost, 1)
		} else {
			gauge(a.lost, 0)
			gauge(a.lag, max(0, float64(f.WALEnd)-float64(f.Slot.ConfirmedFlush)))
			if behind, known := a.behind(f); known {
				gauge(a.seconds, behind.Seconds())
			}
			gauge(a.retained, max(0, float64(f.WALEnd)-float64(f.Slot.RestartLSN)))
			if f.Slot.SafeWALSize != nil {
				gauge(a.safe, float64(*f.Slot.SafeWALSize))
			}
			if left, limited := secondsLeft(l.perSecond, &f.Slot); limited {
				gauge(a.left, left)
			}
		}
	}
	if b := &l.backlog; a.table != nil && l.backlogErr == nil {
		gauge(a.pending, float64(b.Pending))
		gauge(a.oldest, b.OldestSeconds)
		gauge(a.failed, float64(b.Failed))
		gauge(a.heldKeys, float64(b.HeldKeys))
		if b.Horizon != nil {
			metrics = append(metrics, prometheus.MustNewConstMetric(a.horizon, prometheus.GaugeValue, b.Horizon.Seconds, strconv.Itoa(int(b.Horizon.PID))))
		}
	}
	if a.letters != nil && l.lettersErr == nil {
		gauge(a.unresolved, float64(l.letters))
	}
	return metrics
}

// rate is how fast the server writes WAL, over the last hour or two, or since it was seen first.
type rate struct{ from, mid walEnd }

type walEnd struct {
	lsn cdc.LSN
	at  time.Time
}

const (
	rateAfter = 10 * time.Second // over less it says nothing
	rateOver  = time.Hour
)

// saw takes down where the WAL ended and returns the rate in bytes a second; 0 while it is not known.
func (r *rate) saw(end cdc.LSN, at time.Time) float64 {
	now := walEnd{end, at}
	if r.from.at.IsZero() || end < r.from.lsn { // the first time, or another server
		r.from, r.mid = now, now
	}
	if at.Sub(r.mid.at) > rateOver {
		r.from, r.mid = r.mid, now
	}
	took := at.Sub(r.from.at)
	if took < rateAfter {
		return 0
	}
	return float64(end-r.from.lsn) / took.Seconds()
}
