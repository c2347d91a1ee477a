package pipeline

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/internal/shared"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
)

const (
	askEvery  = 5 * time.Second
	askWithin = 3 * time.Second // longest wait for an answer of PostgreSQL or Kafka
	// answerWithin is how long a probe or a scrape waits for a new look before it gets the last one. It is short because a
	// probe's timeout is often a second, and the answer must not take longer when the database hangs.
	answerWithin   = 80 * time.Millisecond
	decisionsEvery = time.Minute
)

// watched are the sources that Status and metrics query, in addition to the relay. Those that a pipeline does not have are nil.
type watched struct {
	slot  string
	facts interface { // the server and its slot
		Facts(ctx context.Context) (cdc.Facts, error)
	}
	table interface { // a polled table
		Backlog(ctx context.Context) (polling.Backlog, error)
	}
	kafka interface { // Kafka and its topics
		Ready(ctx context.Context) (kafka.Partitions, error)
	}
	letters interface { // the unresolved dead letters
		Count(ctx context.Context) (int, error)
	}
	decisions interface { // the operators' decisions
		Decisions(ctx context.Context) ([]cdc.Decision, error)
	}
	login     login
	certified []certified
}

// login knows whether Kafka accepts the client's login.
type login interface {
	Trouble() error // why Kafka does not accept it
}

// certified knows the client certificates in use.
type certified interface {
	Certificates() map[string]time.Time // times when they expire, by their keys
}

// away returns the reason why rows wait for Kafka.
func away(l login) string {
	if l != nil {
		if err := l.Trouble(); err != nil {
			return err.Error()
		}
	}
	return kafkaAway
}

// asked collects the facts that PostgreSQL and Kafka know and the relay does not, or not while it is halted. It queries them
// only for a probe, a scrape or a status. All callers share one look at a time: a probe or a scrape gets the last look and
// does not wait for a database that hangs or a table that is large. A metric without an answer is absent.
type asked struct {
	lag, seconds, retained, lost, safe, left, unresolved *prometheus.Desc
	pending, oldest, failed, heldKeys, horizon, expires  *prometheus.Desc

	watched

	published func() int64 // rows that this process has published
	looks     cdc.Lag
	delivered atomic.Pointer[time.Time] // time up to which the relay has delivered everything

	last shared.Look[look]
	wal  rate // a look at a time uses it
}

// look has the answers of PostgreSQL and Kafka at one time, and the errors of questions without an answer.
type look struct {
	facts     cdc.Facts
	perSecond float64 // bytes of WAL; 0 while that is not known
	backlog   polling.Backlog
	published int64 // rows that this process had published before the backlog was counted
	letters   int

	decisions     []cdc.Decision
	decisionsRead bool
	decisionsAt   time.Time

	factsErr, backlogErr, kafkaErr, lettersErr error
}

// newAsked returns the collector of the metrics that come from PostgreSQL and Kafka.
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

// seen returns the newest look, nil before the first. If it is older than fresh, seen starts a new one and waits for it, for
// at most within.
func (a *asked) seen(fresh, within time.Duration) *look {
	return a.last.Get(fresh, within, func(last *look) *look {
		l := a.ask(last)
		if l.factsErr == nil && a.facts != nil {
			l.perSecond = a.wal.saw(l.facts.WALEnd, l.facts.Time)
			a.looks.Look(l.facts.WALEnd, l.facts.Time)
		}
		return l
	})
}

// knows records the time up to which a session has delivered everything.
func (a *asked) knows(at time.Time) {
	if last := a.delivered.Load(); last == nil || at.After(*last) {
		a.delivered.Store(&at)
	}
}

// behind returns the age of the oldest WAL that is not confirmed. It is known also while the relay does not stream.
func (a *asked) behind(f *cdc.Facts) (time.Duration, bool) {
	at := a.looks.Current(f.Slot.ConfirmedFlush)
	if relay := a.delivered.Load(); relay != nil && relay.After(at) {
		at = *relay
	}
	return cdc.Behind(f.Slot.ConfirmedFlush, f.WALEnd, at, f.Time)
}

// ask queries all sources at once. It keeps the decisions of the last look for a while.
func (a *asked) ask(last *look) *look {
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	l := &look{}
	var questions sync.WaitGroup
	if a.facts != nil {
		questions.Go(func() { l.facts, l.factsErr = a.facts.Facts(ctx) })
	}
	if a.table != nil {
		questions.Go(func() {
			l.published = a.published()
			l.backlog, l.backlogErr = a.table.Backlog(ctx)
		})
	}
	questions.Go(func() {
		if a.kafka != nil {
			_, l.kafkaErr = a.kafka.Ready(ctx)
		}
		if l.lettersErr = l.kafkaErr; a.letters != nil && l.kafkaErr == nil {
			l.letters, l.lettersErr = a.letters.Count(ctx)
		}
		if a.decisions == nil {
			return
		}
		if last != nil {
			l.decisions, l.decisionsRead, l.decisionsAt = last.decisions, last.decisionsRead, last.decisionsAt
		}
		if l.kafkaErr == nil && time.Since(l.decisionsAt) > decisionsEvery {
			if decisions, err := a.decisions.Decisions(ctx); err == nil { // the questions above report that Kafka is away
				l.decisions, l.decisionsRead = decisions, true
			}
			l.decisionsAt = time.Now()
		}
	})
	questions.Wait()
	return l
}

// metrics returns the metrics of a look.
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

// rate measures how fast the server writes WAL, over the last one to two hours, or since the first look.
type rate struct{ from, mid walEnd }

type walEnd struct {
	lsn cdc.LSN
	at  time.Time
}

const (
	rateAfter = 10 * time.Second // a rate over less time would be too inexact
	rateOver  = time.Hour
)

// saw records the end of the WAL and returns the rate in bytes a second; 0 while it is not known.
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
