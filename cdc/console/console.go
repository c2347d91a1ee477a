package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/polling"
)

// Console observes one relay.
type Console struct {
	pipeline string

	received, dropped, others, bytes, published, windows, halts, retries prometheus.Counter
	deadLetters                                                          *prometheus.CounterVec
	windowSeconds                                                        prometheus.Histogram
	covered, confirmed, stalled, streaming, lastCommit, refused          prometheus.Gauge
	stuck, synchronous                                                   prometheus.Gauge
	cleanedRows, cleanedPartitions                                       prometheus.Counter

	role  *prometheus.GaugeVec
	asked *asked

	mu     sync.Mutex
	status Status
}

// Status is what /status answers.
type Status struct {
	Pipeline  string    `json:"pipeline"`
	Slot      string    `json:"slot,omitempty"`
	Role      cdc.Role  `json:"role"`
	Reason    string    `json:"reason,omitempty"` // why it is not streaming
	Since     time.Time `json:"since"`
	Covered   cdc.LSN   `json:"-"`
	Confirmed cdc.LSN   `json:"-"`
	Published int64     `json:"published"` // rows since the process started
	Stalled   bool      `json:"kafka_stalled"`
	// LagSeconds is for how long WAL has been there that is not confirmed; left out while it is not known.
	LagSeconds *float64 `json:"lag_seconds,omitempty"`
	// Stall says why rows may be waiting and nothing moves, while that is so.
	Stall string `json:"stalled,omitempty"`
	// CommitsWait says that commits of the server wait for this relay, while they do.
	CommitsWait string `json:"commits_wait,omitempty"`
	// Phantoms are what the last failover took back, in words.
	Phantoms string `json:"phantoms,omitempty"`
	// DeadLetters is how many wait to be redriven or dropped, or why that is not known, where rows are put aside.
	DeadLetters      *int   `json:"unresolved_dead_letters,omitempty"`
	DeadLettersError string `json:"dead_letters_error,omitempty"`
	// Backlog is what waits in a polled table, or why that is not known.
	Backlog      *polling.Backlog `json:"backlog,omitempty"`
	BacklogError string           `json:"backlog_error,omitempty"`
}

// Counter counts unresolved dead letters, each time /status is asked.
type Counter interface {
	Count(ctx context.Context) (int, error)
}

// MarshalJSON writes LSNs as PostgreSQL does, and none where there is no slot.
func (s Status) MarshalJSON() ([]byte, error) {
	type plain Status
	if s.Slot == "" {
		return json.Marshal(plain(s))
	}
	return json.Marshal(struct {
		plain
		Covered   string `json:"covered_lsn"`
		Confirmed string `json:"confirmed_lsn"`
	}{plain(s), s.Covered.String(), s.Confirmed.String()})
}

// New registers the metrics.
func New(pipeline, slot string, reg prometheus.Registerer) *Console {
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
	c := &Console{
		pipeline:  pipeline,
		received:  counter("walpost_rows_received_total", "Rows of the outbox that were taken off the WAL and had to be delivered."),
		dropped:   counter("walpost_rows_dropped_total", "Rows the server sent again although they are durable in Kafka; not published twice."),
		others:    counter("walpost_other_messages_total", "Messages in the publication that are no inserts into the outbox; ignored."),
		bytes:     counter("walpost_received_bytes_total", "Bytes read from the replication connection."),
		published: counter("walpost_rows_published_total", "Rows that are durable in Kafka, as dead letters too."),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "walpost_dead_letters_total", Help: "Rows that were put aside, by class of the reason: into the dead letter topic, or, polled, as failed.", ConstLabels: labels,
		}, []string{"class"}),
		windows: counter("walpost_windows_total", "Windows that are durable in Kafka."),
		halts:   counter("walpost_halts_total", "Times the relay halted and asked for a human."),
		retries: counter("walpost_retries_total", "Times a session ended and was started over."),
		windowSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "walpost_window_seconds", Help: "Time from a window's first row to its being durable.", ConstLabels: labels,
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		covered:           gauge("walpost_covered_lsn", "LSN in the state record: everything at or below it is durable in Kafka."),
		confirmed:         gauge("walpost_confirmed_lsn", "LSN last confirmed to the slot."),
		stalled:           gauge("walpost_kafka_stalled", "1 while Kafka has not answered for 5 s."),
		stuck:             gauge("walpost_stalled", "1 while rows may be waiting and nothing moves; /status and the log name the cause."),
		synchronous:       gauge("walpost_synchronous_standby", "1 while commits of the whole server wait for this relay, or can, because synchronous_standby_names matches it."),
		streaming:         gauge("walpost_streaming", "1 while this process owns the slot and streams, 0 while it starts, stands by, retries or is halted."),
		lastCommit:        gauge("walpost_last_commit_timestamp_seconds", "Commit time, on the server's clock, of the last durable row."),
		cleanedRows:       counter("walpost_cleanup_rows_total", "Rows that cleanup.every has deleted from the outbox."),
		cleanedPartitions: counter("walpost_cleanup_partitions_total", "Partitions of the outbox that cleanup.every has dropped."),
		refused:           gauge("walpost_cleanup_refused", "1 while cleanup.every was refused, or failed, the last time, so that the outbox grows; the log says why."),
		role: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "walpost_role", Help: "1 for what the relay is doing, 0 for the other roles.", ConstLabels: labels,
		}, []string{"role"}),
		asked:  newAsked(labels),
		status: Status{Pipeline: pipeline, Slot: slot, Role: cdc.Starting, Since: time.Now().UTC()},
	}
	reg.MustRegister(c.windowSeconds, c.deadLetters, c.role, c.asked)
	c.enter(cdc.Starting)
	for _, class := range cdc.Classes {
		c.deadLetters.WithLabelValues(string(class))
	}
	return c
}

// CountDeadLetters lets status and metrics tell what the counter counts. It is called before either is asked for.
func (c *Console) CountDeadLetters(counter Counter) { c.asked.letters = counter }

// WatchSlot lets the metrics tell how the slot stands. It is called before they are asked for.
func (c *Console) WatchSlot(facts Facts) { c.asked.facts = facts }

// WatchTable lets status, metrics and readiness tell how a polled table stands. It is called before any is asked for.
func (c *Console) WatchTable(table Table) { c.asked.table, c.status.Slot = table, "" }

// Cleaned counts what a cleanup took out of the outbox. err says why it did not, or not all.
func (c *Console) Cleaned(rows int64, partitions int, err error) {
	c.cleanedRows.Add(float64(rows))
	c.cleanedPartitions.Add(float64(partitions))
	c.refused.Set(map[bool]float64{true: 1}[err != nil])
}

func (c *Console) enter(role cdc.Role) {
	for _, r := range cdc.Roles {
		c.role.WithLabelValues(string(r)).Set(map[bool]float64{true: 1}[r == role])
	}
}

// Observer is what the relay tells its facts to.
func (c *Console) Observer() cdc.Observer {
	return cdc.Observer{
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
			c.mu.Lock()
			defer c.mu.Unlock()
			c.status.Role, c.status.Reason, c.status.Since = role, "", time.Now().UTC()
			if err != nil {
				c.status.Reason = err.Error()
			}
		},
		Received: func(rows, dropped, others, bytes int) {
			c.received.Add(float64(rows))
			c.dropped.Add(float64(dropped))
			c.others.Add(float64(others))
			c.bytes.Add(float64(bytes))
		},
		Published: func(records []cdc.Record, took time.Duration) {
			c.published.Add(float64(len(records)))
			c.windows.Inc()
			c.windowSeconds.Observe(took.Seconds())
			c.mu.Lock()
			defer c.mu.Unlock()
			c.status.Published += int64(len(records))
		},
		DeadLettered: func(r *cdc.Record) { c.deadLetters.WithLabelValues(string(r.Refused.Class)).Inc() },
		Covered: func(st *cdc.State) {
			c.covered.Set(float64(st.Covered))
			c.asked.knows(st.Current())
			if !st.LastCommitTime.IsZero() {
				c.lastCommit.Set(float64(st.LastCommitTime.UnixMicro()) / 1e6)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.status.Covered = st.Covered
			if st.Phantoms != nil {
				c.status.Phantoms = st.Phantoms.String()
			}
		},
		Confirmed: func(lsn cdc.LSN) {
			c.confirmed.Set(float64(lsn))
			c.mu.Lock()
			defer c.mu.Unlock()
			c.status.Confirmed = lsn
		},
		Stuck: func(s *cdc.Stall) {
			c.stuck.Set(map[bool]float64{true: 1}[s != nil])
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.status.Stall = ""; s != nil {
				c.status.Stall = s.Error()
			}
		},
		Current: c.asked.knows,
		CommitsWait: func(err error) {
			c.synchronous.Set(map[bool]float64{true: 1}[err != nil])
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.status.CommitsWait = ""; err != nil {
				c.status.CommitsWait = err.Error()
			}
		},
		Stalled: func(stalled bool, _ time.Duration) {
			c.stalled.Set(map[bool]float64{true: 1}[stalled])
			c.mu.Lock()
			defer c.mu.Unlock()
			c.status.Stalled = stalled
		},
	}
}

// Ready is nil while the relay streams, or stands by to take over; otherwise it is the sentence that says why not.
func (c *Console) Ready(ctx context.Context) error {
	c.mu.Lock()
	s := c.status
	c.mu.Unlock()
	switch {
	case s.Role == cdc.Streaming && s.Stalled && c.asked.table != nil:
		return errors.New("kafka does not answer; rows wait in the table")
	case s.Role == cdc.Streaming && s.Stall != "" && c.asked.table != nil:
		return errors.New(s.Stall)
	case s.Role == cdc.Streaming && s.Stalled:
		return errors.New("kafka does not answer; rows wait in the slot")
	case s.Role == cdc.Streaming && s.Stall != "":
		return errors.New(s.Stall)
	case s.Role == cdc.Streaming && c.asked.table != nil:
		b, err := c.asked.table.Backlog(ctx)
		if err == nil && b.Horizon != nil && b.Horizon.Seconds > heldTooLong.Seconds() {
			return errors.New(b.Horizon.String())
		}
		return err
	case s.Role == cdc.Streaming, s.Role == cdc.Standby:
		return nil
	case s.Reason != "":
		return fmt.Errorf("%s: %s", s.Role, s.Reason)
	default:
		return errors.New(string(s.Role))
	}
}

// heldTooLong is when rows that wait for an open transaction are somebody's concern.
const heldTooLong = time.Minute

// Status is how the relay stands now.
func (c *Console) Status(ctx context.Context) Status {
	c.mu.Lock()
	s := c.status
	c.mu.Unlock()
	if c.asked.letters != nil {
		if n, err := c.asked.letters.Count(ctx); err != nil {
			s.DeadLettersError = err.Error()
		} else {
			s.DeadLetters = &n
		}
	}
	if c.asked.facts != nil {
		if f, err := c.asked.facts.Facts(ctx); err == nil && f.Slot.Exists {
			if behind, known := c.asked.behind(&f); known {
				seconds := behind.Seconds()
				s.LagSeconds = &seconds
			}
		}
	}
	if c.asked.table != nil {
		if b, err := c.asked.table.Backlog(ctx); err != nil {
			s.BacklogError = err.Error()
		} else {
			s.Backlog = &b
		}
	}
	return s
}

// Pipeline is the name of what it shows.
func (c *Console) Pipeline() string { return c.pipeline }

// Group is the consoles of a process, one for each pipeline.
type Group []*Console

// Ready is nil while every relay of the process is ready; otherwise it says of each that is not why not.
func (g Group) Ready(ctx context.Context) error {
	if len(g) == 1 {
		return g[0].Ready(ctx)
	}
	var errs []error
	for _, c := range g {
		if err := c.Ready(ctx); err != nil {
			errs = append(errs, fmt.Errorf("pipeline %s: %w", c.pipeline, err))
		}
	}
	return errors.Join(errs...)
}

// Routes adds GET /status: the one pipeline's, or a list of them.
func (g Group) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		statuses := make([]Status, len(g))
		var asked sync.WaitGroup
		for i, c := range g {
			asked.Go(func() { statuses[i] = c.Status(r.Context()) })
		}
		asked.Wait()
		w.Header().Set("Content-Type", "application/json")
		if len(g) == 1 {
			_ = json.NewEncoder(w).Encode(statuses[0])
			return
		}
		_ = json.NewEncoder(w).Encode(statuses)
	})
}
