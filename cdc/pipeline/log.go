package pipeline

import (
	"errors"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// logger returns an observer that writes one line for each change of state at level info and above, and one for each row at
// level debug. It never writes payload or key.
func logger(cfg config.Config, log zerolog.Logger, away func() string, behind *catchUp) cdc.Observer {
	of, name := "slot", cfg.Source.Slot
	if cfg.Source.Kind == config.KindPolling {
		of, name = "table", cfg.Source.Table
	}
	log = log.With().Str("pipeline", cfg.Pipeline).Str(of, name).Logger()
	var wire string // transport of the replication connection
	behind.log = log
	var noted []string // notes of the last session, which the next one would repeat
	o := cdc.Observer{
		Connected: func(over string) { wire = over },
		Noted: func(notes []string) {
			for _, n := range notes {
				if !slices.Contains(noted, n) {
					log.Warn().Msg(n)
				}
			}
			noted = notes
		},
		Looked: func(covered, end cdc.LSN, _, _ time.Time) { behind.looked(covered, end) },
		Role: func(role cdc.Role, err error) {
			behind.role(role)
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
				log.Error().Err(err).Func(func(e *zerolog.Event) {
					if halt := (*cdc.HaltError)(nil); errors.As(err, &halt) {
						for _, part := range halt.Parts() {
							e.Str(part[0], part[1])
						}
					}
				}).Msg("halted")
			case cdc.Stopped:
				log.Info().AnErr("cause", err).Msg("stopped")
			}
		},
		DeadLettered: func(r *cdc.Record) {
			log.Warn().Bytes("event_id", r.Row.ID).Func(func(e *zerolog.Event) {
				if r.Row.Ordinal > 0 { // of the WAL
					e.Stringer("lsn", r.Row.Commit).Uint32("seq", r.Row.Ordinal).Str("topic", r.Rejected.Topic)
				}
			}).Str("class", string(r.Rejected.Class)).Str("reason", r.Rejected.Reason).Msg("the row became a dead letter")
		},
		Covered: func(st *cdc.State) {
			log.Debug().Stringer("lsn", st.Covered).Int64("epoch", st.Epoch).Msg("state record is durable")
		},
		Stalled: func(stalled bool, since time.Duration) {
			if stalled {
				log.Warn().Dur("waiting_ms", since).Msg(away() + "; rows wait, nothing is lost")
				return
			}
			log.Info().Dur("waited_ms", since).Msg("kafka answers again")
		},
		Phantoms: func(p *cdc.Phantoms) {
			log.Warn().Int("rows", p.Rows).Bool("at_least", p.AtLeast).Stringer("range", p.Range).Msg(p.String())
		},
		Stuck: func(s *cdc.StallError) {
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
				log.Warn().Err(err).Msg("cannot check publication and table; the relay continues")
				return
			}
			log.Info().Msg("publication and table are checked again")
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
