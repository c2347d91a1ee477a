package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/console"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// Relays are the relays of a process, one for each pipeline, and their consoles. None knows of another: run ends when all have
// drained after the end of ctx, and says what each had to say.
func Relays(cfgs []cdc.Config, log zerolog.Logger, reg prometheus.Registerer, opts ...kgo.Opt) (run func(ctx context.Context) error, group console.Group) {
	relays := make([]*cdc.Relay, len(cfgs))
	for i, cfg := range cfgs {
		relay, con := Relay(cfg, log, reg, opts...)
		relays[i], group = relay, append(group, con)
	}
	return func(ctx context.Context) error {
		errs := make([]error, len(relays))
		var running sync.WaitGroup
		for i, r := range relays {
			running.Go(func() {
				if errs[i] = r.Run(ctx); errs[i] != nil && len(relays) > 1 {
					errs[i] = fmt.Errorf("pipeline %s: %w", cfgs[i].Pipeline, errs[i])
				}
			})
		}
		running.Wait()
		return errors.Join(errs...)
	}, group
}

// Relay is a pipeline's relay with its console, observed by log and metrics. Client options are for tests.
func Relay(cfg cdc.Config, log zerolog.Logger, reg prometheus.Registerer, opts ...kgo.Opt) (*cdc.Relay, *console.Console) {
	con := console.New(cfg.Pipeline, cfg.Source.Slot, reg)
	sink := kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...)
	if cfg.Poison.Policy == cdc.DeadLetterPolicy {
		con.CountDeadLetters(sink.Unresolved())
	}
	con.WatchSlot(postgres.NewSource(cfg.Pipeline, cfg.Source)) // of its own: the other is the session's
	relay := cdc.NewRelay(cfg,
		postgres.NewSource(cfg.Pipeline, cfg.Source),
		sink,
		route.New(cfg.Pipeline, cfg.Kafka),
		cdc.Tee(logger(cfg, log), con.Observer()))
	return relay, con
}

// logger writes one line per change of state at info and above, and one per row at debug. Never payload or key.
func logger(cfg cdc.Config, log zerolog.Logger) cdc.Observer {
	log = log.With().Str("pipeline", cfg.Pipeline).Str("slot", cfg.Source.Slot).Logger()
	o := cdc.Observer{
		Role: func(role cdc.Role, err error) {
			switch role {
			case cdc.Streaming:
				log.Info().Msg("streaming")
			case cdc.Standby:
				log.Info().AnErr("cause", err).Msg("standing by: another relay owns the slot")
			case cdc.Retrying:
				log.Warn().Err(err).Msg("session ended, starting over")
			case cdc.Halted:
				log.Error().Err(err).Msg("halted")
			case cdc.Stopped:
				log.Info().AnErr("cause", err).Msg("stopped")
			}
		},
		DeadLettered: func(r *cdc.Record) {
			log.Warn().Bytes("event_id", r.Row.ID).Stringer("lsn", r.Row.Commit).Uint32("seq", r.Row.Ordinal).Str("topic", r.Refused.Topic).
				Str("class", string(r.Refused.Class)).Str("reason", r.Refused.Reason).Msg("dead letter: the row was put aside")
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
