package pipeline

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
)

// metrics keeps the numbers and the state of one relay, as an observer gets them, for Prometheus and for Status.
type metrics struct {
	received, dropped, others, bytes, published, windows, halts, retries prometheus.Counter
	deadLetters                                                          *prometheus.CounterVec
	windowSeconds                                                        prometheus.Histogram
	covered, confirmed, stalled, streaming, lastCommit, refused          prometheus.Gauge
	stuck, synchronous                                                   prometheus.Gauge
	cleanedRows, cleanedPartitions                                       prometheus.Counter

	roles   *prometheus.GaugeVec
	asked   *asked
	history history
	counted func(published, pending int64) // is called with each count of a polled table

	mu    sync.Mutex
	known Status // the relay's part of the status
	cause error  // of the role, where the relay does not stream; known.Reason is its text
}

// newMetrics registers the metrics.
func newMetrics(pipeline string, of watched, reg prometheus.Registerer) *metrics {
	labels := prometheus.Labels{"pipeline": pipeline}
	counter := func(name, help string) prometheus.Counter {
		m := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
		reg.MustRegister(m)
		return m
	}
	gauge := func(name, help string) prometheus.Gauge {
		m := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
		reg.MustRegister(m)
		return m
	}
	c := &metrics{
		received:  counter("walpost_rows_received_total", "Outbox rows that the relay read from the WAL, or with polling from the table, and has to deliver."),
		dropped:   counter("walpost_rows_dropped_total", "Rows that the server sent again although they are durable in Kafka; the relay does not publish them twice."),
		others:    counter("walpost_other_messages_total", "Messages of the publication that are not inserts into the outbox; the relay ignores them."),
		bytes:     counter("walpost_received_bytes_total", "Bytes that the relay read from the replication connection; with polling, the bytes of the rows."),
		published: counter("walpost_rows_published_total", "Rows that are durable in Kafka, including dead letters."),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "walpost_dead_letters_total", Help: "Rows that became dead letters, or with polling failed, by class of the reason.", ConstLabels: labels,
		}, []string{"class"}),
		windows: counter("walpost_windows_total", "Windows that are durable in Kafka."),
		halts:   counter("walpost_halts_total", "Times the relay halted; it then waits for an operator."),
		retries: counter("walpost_retries_total", "Times a session ended with an error and the relay started the next one."),
		windowSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "walpost_window_seconds", Help: "Time from the arrival of a window's first row until the window is durable, in seconds.", ConstLabels: labels,
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		covered:           gauge("walpost_covered_lsn", "LSN in the state record: everything at or below it is durable in Kafka."),
		confirmed:         gauge("walpost_confirmed_lsn", "LSN that the relay confirmed to the slot last."),
		stalled:           gauge("walpost_kafka_stalled", "1 while Kafka has not answered for 5 s."),
		stuck:             gauge("walpost_stalled", "1 while rows may be waiting and no position moves; /status and the log name the cause."),
		synchronous:       gauge("walpost_synchronous_standby", "1 while commits of the whole server wait for this relay, or may wait, because synchronous_standby_names matches it."),
		streaming:         gauge("walpost_streaming", "1 while this process owns the slot and streams; 0 while it starts, stands by, retries or is halted."),
		lastCommit:        gauge("walpost_last_commit_timestamp_seconds", "Commit time of the last durable row, on the server's clock, in seconds since 1970."),
		cleanedRows:       counter("walpost_cleanup_rows_total", "Rows that cleanup.every has deleted from the outbox."),
		cleanedPartitions: counter("walpost_cleanup_partitions_total", "Partitions of the outbox that cleanup.every has dropped."),
		refused:           gauge("walpost_cleanup_refused", "1 if the last cleanup of cleanup.every was refused or failed, so that the outbox grows; the log says why."),
		roles: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "walpost_role", Help: "1 for the role of the relay, 0 for the other roles.", ConstLabels: labels,
		}, []string{"role"}),
		asked:   newAsked(labels, of),
		known:   Status{Pipeline: pipeline, Role: cdc.Starting, Since: time.Now().UTC()},
		counted: func(int64, int64) {},
	}
	c.asked.published = c.durable
	if of.table != nil {
		c.history.pending = c.pending
	}
	reg.MustRegister(c.windowSeconds, c.deadLetters, c.roles, c.asked)
	c.enter(cdc.Starting)
	for _, class := range cdc.Classes {
		c.deadLetters.WithLabelValues(string(class))
	}
	return c
}

// cleaned counts the rows and partitions that a cleanup deleted. err is the cleanup's error.
func (c *metrics) cleaned(rows int64, partitions int, err error) {
	c.cleanedRows.Add(float64(rows))
	c.cleanedPartitions.Add(float64(partitions))
	c.refused.Set(number(err != nil))
}

// pending returns the age of the oldest pending row of a polled table, as of the last look; nil if it is not known. It reports the
// look's count to counted, and starts a new look.
func (c *metrics) pending() *time.Duration {
	l := c.asked.seen(askEvery, 0)
	if l == nil || l.backlogErr != nil {
		return nil
	}
	c.counted(l.published, l.backlog.Pending)
	oldest := time.Duration(l.backlog.OldestSeconds * float64(time.Second))
	return &oldest
}

// durable returns the number of rows that this process has published.
func (c *metrics) durable() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known.Published
}

// enter sets the metric of the role.
func (c *metrics) enter(role cdc.Role) {
	for _, r := range cdc.Roles {
		c.roles.WithLabelValues(string(r)).Set(number(r == role))
	}
}

// observer returns the observer that updates the metrics.
func (c *metrics) observer() cdc.Observer {
	return cdc.Observer{
		Connected: func(string) { c.history.connect() },
		Role: func(role cdc.Role, err error) {
			c.streaming.Set(0)
			switch role {
			case cdc.Streaming:
				c.streaming.Set(1)
			case cdc.Halted:
				c.halts.Inc()
			case cdc.Retrying:
				c.retries.Inc()
			}
			c.enter(role)
			c.history.change(role, err)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.known.Role, c.known.Reason, c.known.Since, c.cause = role, "", time.Now().UTC(), err
			if err != nil {
				c.known.Reason = err.Error()
			}
		},
		Received: func(upto cdc.LSN, rows, dropped, others, bytes int) {
			c.history.received.Store(uint64(upto))
			c.received.Add(float64(rows))
			c.dropped.Add(float64(dropped))
			c.others.Add(float64(others))
			c.bytes.Add(float64(bytes))
		},
		Published: func(records []cdc.Record, took time.Duration) {
			c.published.Add(float64(len(records)))
			c.windows.Inc()
			c.windowSeconds.Observe(took.Seconds())
			c.history.arrived(records, took)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.known.Published += int64(len(records))
		},
		DeadLettered: func(r *cdc.Record) { c.deadLetters.WithLabelValues(string(r.Rejected.Class)).Inc() },
		Covered: func(st *cdc.State) {
			c.covered.Set(float64(st.Covered))
			c.asked.knows(st.Current())
			c.history.covered(st.Covered)
			if !st.LastCommitTime.IsZero() {
				c.lastCommit.Set(float64(st.LastCommitTime.UnixMicro()) / 1e6)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.known.records(st)
		},
		Confirmed: func(lsn cdc.LSN) {
			c.confirmed.Set(float64(lsn))
			c.mu.Lock()
			defer c.mu.Unlock()
			c.known.Confirmed = lsn.String()
		},
		Stuck: func(s *cdc.StallError) {
			c.stuck.Set(number(s != nil))
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.known.Stalled = ""; s != nil {
				c.known.Stalled = s.Error()
			}
		},
		Looked: func(_, end cdc.LSN, at, current time.Time) {
			c.asked.knows(current)
			c.history.look(end, at)
		},
		CommitsWait: func(err error) {
			c.synchronous.Set(number(err != nil))
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.known.CommitsWait = ""; err != nil {
				c.known.CommitsWait = err.Error()
			}
		},
		Stalled: func(stalled bool, _ time.Duration) {
			c.stalled.Set(number(stalled))
			c.mu.Lock()
			defer c.mu.Unlock()
			c.known.KafkaStalled = stalled
		},
	}
}

// role returns the relay's role.
func (c *metrics) role() cdc.Role {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known.Role
}

// ready returns nil while the relay streams, or stands by to take over; otherwise it returns the reason.
func (c *metrics) ready() error {
	c.mu.Lock()
	s := c.known
	c.mu.Unlock()
	where := "the slot"
	if c.asked.table != nil {
		where = "the table"
	}
	switch {
	case s.Role == cdc.Standby:
		return nil
	case s.Role != cdc.Streaming && s.Reason != "":
		return fmt.Errorf("%s: %s", s.Role, s.Reason)
	case s.Role != cdc.Streaming:
		return errors.New(string(s.Role))
	case s.KafkaStalled:
		return errors.New(away(c.asked.login) + "; rows wait in " + where)
	case s.Stalled != "":
		return errors.New(s.Stalled)
	case c.asked.table != nil:
		l := c.asked.seen(askEvery, answerWithin)
		switch {
		case l == nil: // it streams, and the first look is under way
			return nil
		case l.backlogErr == nil && l.backlog.Horizon != nil && l.backlog.Horizon.Seconds > heldTooLong.Seconds():
			return errors.New(l.backlog.Horizon.String())
		}
		return l.backlogErr
	}
	return nil
}

var errNoAnswer = errors.New("PostgreSQL and Kafka have not answered yet: ask again")

// heldTooLong is how long rows may wait for an open transaction before the relay is not ready.
const heldTooLong = time.Minute

// status returns the relay's state and the present answers of PostgreSQL and Kafka.
func (c *metrics) status() Status {
	c.mu.Lock()
	s, cause := c.known, c.cause
	c.mu.Unlock()
	s.Blocked = []string{}
	switch {
	case s.Role == cdc.Streaming || s.Role == cdc.Standby:
		s.Verdict = Flows
	case s.Role == cdc.Halted && cause != nil:
		s.needsSomeone(cause)
	default: // until it streams, or halts
		if s.Verdict = CannotTell; cause != nil {
			s.add(cause)
		}
	}
	if s.KafkaStalled {
		s.blockedBy(away(c.asked.login))
	}
	s.blockedBy(s.Stalled)
	s.blockedBy(s.CommitsWait)
	l := c.asked.seen(0, askWithin+answerWithin) // a new look: an older one would hide that a side has stopped to answer
	if l == nil {                                // nothing has answered yet
		l = &look{factsErr: errNoAnswer, backlogErr: errNoAnswer, kafkaErr: errNoAnswer, lettersErr: errNoAnswer}
	}
	if c.asked.kafka != nil {
		s.blocked(l.kafkaErr)
	}
	if c.asked.letters != nil && !s.blocked(l.lettersErr) {
		s.puts(l.letters)
	}
	if l.decisionsRead {
		s.decided(l.decisions)
	}
	if c.asked.facts != nil {
		s.Slot = &Slot{Name: c.asked.slot}
		if !s.blocked(l.factsErr) {
			s.stands(&l.facts)
			s.waits(&l.facts)
			if l.facts.Slot.Exists {
				s.lags(c.asked.behind(&l.facts))
				s.lasts(l.perSecond, &l.facts)
			}
			var received, published cdc.LSN // of this process, unless another one owns the slot
			if s.Role != cdc.Standby {
				received, published = cdc.LSN(c.history.received.Load()), cdc.LSN(c.history.published.Load())
			}
			s.Positions = s.positions(&l.facts, received, published, func(lsn cdc.LSN) *time.Duration { return c.history.behind(lsn, l.facts.WALEnd, l.facts.Time) })
		}
	}
	if c.asked.table != nil && !s.blocked(l.backlogErr) {
		s.backs(&l.backlog)
	}
	return s
}

// number returns 1 for true.
func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
