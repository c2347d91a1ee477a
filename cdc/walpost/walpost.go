// Package walpost is a whole relay in a value: what `walpost relay` runs, for any process to run.
//
//	cfg := config.Default() // or config.Load(path, os.Getenv)
//	…
//	r, err := walpost.New(cfg, log, prometheus.DefaultRegisterer)
//	err = r.Run(ctx) // until ctx ends, through every outage
//
// It logs to the logger it is given, registers its metrics with the registerer it is given, and touches nothing of the process: no
// signal, no global, no listener, no exit. When ctx ends, Run delivers and confirms what it has received, within
// [config.Config].ShutdownTimeout. A process that dies loses nothing: what is not confirmed is in the slot, for whoever relays next.
//
// Any number of processes may run the same pipeline: the slot is the lock. One streams, the others stand by, and look once a second
// whether it is free. `walpost init` makes slot and topics once; a relay never does.
//
// What a service shows of it: Role and why, Status for people and GET /status, Ready for a probe of the relay alone. A service that
// takes requests does not wait for its relay: while Kafka is away, events wait in the outbox, and that is what it is for.
package walpost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/console"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// Relay is a pipeline's engine, of which Run and Role are, and its console, of which Status and Ready are.
type Relay struct {
	*cdc.Supervisor
	*console.Console

	cfg config.Config
	log zerolog.Logger
}

// New makes a pipeline's relay. It opens nothing until Run, which may be called again when it has returned. Everything that is
// wrong with the configuration is in the error. A registry takes one relay of a pipeline; reg may be nil, and nothing is measured.
func New(cfg config.Config, log zerolog.Logger, reg prometheus.Registerer) (*Relay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	metrics := prometheus.NewRegistry()
	con := console.New(cfg.Pipeline, cfg.Source.Slot, metrics)
	sink := kafka.NewSink(cfg, route.Topics(cfg.Kafka))
	router := route.New(cfg.Pipeline, cfg.Kafka)
	observer := cdc.Tee(logger(cfg, log), con.Observer())
	if tell := observer.Role; cfg.Commands("`walpost ") != "`walpost " {
		observer.Role = func(role cdc.Role, err error) { tell(role, runnable(&cfg, err)) }
	}
	r := &Relay{Console: con, cfg: cfg, log: log}
	if cfg.Source.Kind == config.KindPolling {
		con.WatchTable(polling.NewWatch(cfg.Pipeline, cfg.Source))
		r.Supervisor = polling.New(cfg, polling.ToKafka(sink, router), observer).Supervisor
	} else {
		if cfg.Poison.Policy == config.PolicyDeadLetter {
			con.CountDeadLetters(sink.Unresolved())
		}
		con.WatchSlot(postgres.NewSource(cfg.Pipeline, cfg.Source)) // of its own: the other is the session's
		r.Supervisor = cdc.NewRelay(options(&cfg), postgres.NewSource(cfg.Pipeline, cfg.Source), sink, router, observer).Supervisor
	}
	if reg != nil {
		if err := reg.Register(metrics); err != nil {
			return nil, fmt.Errorf("register the metrics of pipeline %s: %w: run the relay that is there, or give this one a registry of its own", cfg.Pipeline, err)
		}
	}
	return r, nil
}

// options returns what the engine needs of the configuration.
func options(cfg *config.Config) cdc.Options {
	o := cdc.Options{
		Pipeline: cfg.Pipeline, ExactlyOnce: cfg.Delivery == config.ExactlyOnce,
		WindowRows: cfg.Window.Rows, WindowBytes: int(cfg.Window.Bytes), Pace: cfg.Window.Pace,
		HoldKey: cfg.Poison.HoldKey, StatusInterval: cfg.Source.StatusInterval, CheckInterval: cfg.Source.CheckInterval,
		QueueTimeout: cfg.QueueTimeout, ShutdownTimeout: cfg.ShutdownTimeout,
	}
	if cfg.Poison.Policy == config.PolicyDeadLetter {
		o.DeadLetters = cfg.DeadLetterTopic()
	}
	return o
}

// runnable is the error with commands that name the pipeline.
func runnable(cfg *config.Config, err error) error {
	if err == nil {
		return nil
	}
	return errors.New(cfg.Commands(err.Error()))
}

// Run relays until ctx ends, and keeps the table small, where cleanup.every says so.
func (r *Relay) Run(ctx context.Context) error {
	var cleaner sync.WaitGroup
	defer cleaner.Wait()
	if r.cfg.Cleanup.Every > 0 {
		cleaner.Go(func() { r.keepSmall(ctx) })
	}
	return r.Supervisor.Run(ctx)
}

// Group is the relays of a process, one for each pipeline. None knows of another.
type Group []*Relay

// NewGroup makes a relay for each configuration.
func NewGroup(cfgs []config.Config, log zerolog.Logger, reg prometheus.Registerer) (g Group, err error) {
	for _, cfg := range cfgs {
		r, err := New(cfg, log, reg)
		if err != nil {
			return nil, err
		}
		g = append(g, r)
	}
	return g, nil
}

// Run relays until ctx ends. It returns when all have drained, with what each had to say.
func (g Group) Run(ctx context.Context) error {
	errs := make([]error, len(g))
	var running sync.WaitGroup
	for i, r := range g {
		running.Go(func() {
			if errs[i] = r.Run(ctx); errs[i] != nil && len(g) > 1 {
				errs[i] = fmt.Errorf("pipeline %s: %w", r.Pipeline(), errs[i])
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// Console shows all of them.
func (g Group) Console() (all console.Group) {
	for _, r := range g {
		all = append(all, r.Console)
	}
	return all
}

// logger writes one line per change of state at info and above, and one per row at debug. Never payload or key.
func logger(cfg config.Config, log zerolog.Logger) cdc.Observer {
	of, name := "slot", cfg.Source.Slot
	if cfg.Source.Kind == config.KindPolling {
		of, name = "table", cfg.Source.Table
	}
	log = log.With().Str("pipeline", cfg.Pipeline).Str(of, name).Logger()
	var wire string // what the connection runs over
	o := cdc.Observer{
		Connected: func(over string) { wire = over },
		Role: func(role cdc.Role, err error) {
			switch role {
			case cdc.Streaming:
				log.Info().Func(func(e *zerolog.Event) {
					if wire != "" {
						e.Str("wire", wire)
					}
				}).Msg("streaming")
			case cdc.Standby:
				log.Info().AnErr("cause", err).Msg("standing by: another relay owns the " + of)
			case cdc.Retrying:
				log.Warn().Err(err).Msg("session ended, starting over")
			case cdc.Halted:
				log.Error().Err(err).Msg("halted")
			case cdc.Stopped:
				log.Info().AnErr("cause", err).Msg("stopped")
			}
		},
		DeadLettered: func(r *cdc.Record) {
			log.Warn().Bytes("event_id", r.Row.ID).Func(func(e *zerolog.Event) {
				if r.Row.Ordinal > 0 { // of the WAL
					e.Stringer("lsn", r.Row.Commit).Uint32("seq", r.Row.Ordinal).Str("topic", r.Refused.Topic)
				}
			}).Str("class", string(r.Refused.Class)).Str("reason", r.Refused.Reason).Msg("dead letter: the row was put aside")
		},
		Covered: func(st *cdc.State) {
			log.Debug().Stringer("lsn", st.Covered).Int64("epoch", st.Epoch).Msg("state record is durable")
		},
		Stalled: func(stalled bool, since time.Duration) {
			if stalled {
				log.Warn().Dur("waiting_ms", since).Msg("kafka does not take the window; rows wait, nothing is lost")
				return
			}
			log.Info().Dur("waited_ms", since).Msg("kafka answers again")
		},
		Phantoms: func(p *cdc.Phantoms) {
			log.Warn().Int("rows", p.Rows).Bool("at_least", p.AtLeast).Stringer("range", p.Range).Msg(p.String())
		},
		Stuck: func(s *cdc.Stall) {
			if s != nil {
				log.Error().Str("stall", s.Cause).Err(s).Msg("stalled: rows may be waiting and nothing moves")
				return
			}
			log.Info().Msg("rows flow again")
		},
		CommitsWait: func(err error) {
			if err != nil {
				log.Error().Err(err).Msg("this relay has become a synchronous standby")
				return
			}
			log.Info().Msg("no commit waits for this relay any more")
		},
		Hurried: func(timeout, interval time.Duration) {
			log.Warn().Dur("wal_sender_timeout_ms", timeout).Dur("interval_ms", interval).
				Msg("source.status_interval is longer than half of PostgreSQL's wal_sender_timeout: status updates are sent more often")
		},
		Watching: func(err error) {
			if err != nil {
				log.Warn().Err(err).Msg("publication and table cannot be looked at; rows go on")
				return
			}
			log.Info().Msg("publication and table are looked at again")
		},
	}
	if log.GetLevel() <= zerolog.DebugLevel {
		o.Published = func(records []cdc.Record, _ time.Duration) {
			for i := range records {
				r := &records[i]
				log.Debug().Bytes("event_id", r.Row.ID).Stringer("lsn", r.Row.Commit).Uint32("seq", r.Row.Ordinal).
					Str("topic", r.Topic).Int32("partition", r.Partition).Int64("offset", r.Offset).Msg("published")
			}
		}
	}
	return o
}
