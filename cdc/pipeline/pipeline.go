package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// Options is what a process gives its pipelines. All of it may be left out.
type Options struct {
	Log        zerolog.Logger
	Registerer prometheus.Registerer // takes the metrics; a registry takes those of one relay of a pipeline
	Kafka      []kgo.Opt             // further options of each Kafka client: a process's own authentication, for example
	Operator   string                // who decides, for the record of decisions: ada@host
}

// Pipeline runs one outbox, and is what an operator's verbs act on. It holds nothing open between its methods' calls.
type Pipeline struct {
	identity.Unshown

	cfg      config.Config
	patterns []string // of topics that only rows make known
	log      zerolog.Logger
	operator string
	source   *postgres.Source
	sink     *kafka.Sink
	kind     kind
	metrics  *metrics
	registry *prometheus.Registry // of the metrics
	relay    *cdc.Supervisor
	ran      atomic.Bool // Run was called: this process knows how the relay is doing
}

// kind is what differs between the two kinds of source.
type kind interface {
	// relay returns what moves the rows, and tells the observer.
	relay(cdc.Observer) *cdc.Supervisor
	// watched returns what Status and metrics ask beside the relay.
	watched() watched
	// survey fills in how the pipeline stands, asking both sides.
	survey(ctx context.Context, st *Status)

	// plan returns the steps that the database needs. It refuses what belongs to something else.
	plan(ctx context.Context, s *setup, byDay bool) ([]postgres.Step, error)
	// begin makes what rows are read from, once tables and topics are there.
	begin(ctx context.Context, s *setup) error
	// owned returns an error where what end removes belongs to something else.
	owned(ctx context.Context, s *setup) error
	// end removes what rows are read from.
	end(ctx context.Context, s *setup) error

	// decide opens both sides for a decision over positions.
	decide(ctx context.Context, o decideOptions) (*decision, error)
	// gap returns an error where rows of the table may be needed for a replay.
	gap(ctx context.Context) error
	// marks returns how rows say that they are delivered; nil where slots do.
	marks() *postgres.Marks
	// delivered returns up to which commit time rows were delivered; zero where nothing tells.
	delivered(ctx context.Context) (time.Time, error)
	// note writes an operator's decision down.
	note(ctx context.Context, d *cdc.Decision) error

	// reader returns the URL of a role that may read the table, and what holds it.
	reader(key, url string) (string, string)
	// trace says what has become of rows as slot, state record and dead letters, or the table, tell.
	trace(ctx context.Context, t *Trace, rows []postgres.TableRow, end cdc.LSN) error

	// letters returns the unresolved dead letters in the order of their rows.
	letters(ctx context.Context) ([]kafka.Entry, error)
	// whole reads a dead letter's row, where letters left it out.
	whole(ctx context.Context, e *kafka.Entry) error
	redrive(ctx context.Context, o RedriveOptions) ([]Moved, error)
	drop(ctx context.Context, o DropOptions) (Dropped, error)
}

// New makes a pipeline of a valid configuration; everything that is wrong with that is in the error. It connects to
// nothing yet.
func New(cfg config.Config, o Options) (*Pipeline, error) {
	p, err := newPipeline(cfg, o)
	if err == nil {
		err = p.register(o.Registerer)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func newPipeline(cfg config.Config, o Options) (*Pipeline, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	topics, patterns := route.Topics(cfg.Kafka)
	p := &Pipeline{cfg: cfg, patterns: patterns, log: o.Log, operator: o.Operator, sink: kafka.NewSink(cfg, topics, o.Log, o.Kafka...)}
	if cfg.Source.Kind == config.KindPolling {
		table := polling.NewOutbox(cfg.Pipeline, cfg.Source, o.Log)
		p.source, p.kind = table.Source, polled{p, table}
	} else {
		p.source, p.kind = postgres.NewSource(cfg.Pipeline, cfg.Source, o.Log), wal{p}
	}
	p.registry = prometheus.NewRegistry()
	of := p.kind.watched()
	of.login, of.certified = p.sink, []certified{p.sink, p.source}
	p.metrics = newMetrics(cfg.Pipeline, of, p.registry)
	observer := cdc.Tee(logger(cfg, o.Log, p.away), p.metrics.observer())
	if tell := observer.Role; cfg.Commands("`walpost ") != "`walpost " {
		observer.Role = func(role cdc.Role, err error) { tell(role, runnable(&cfg, err)) }
	}
	p.relay = p.kind.relay(observer)
	return p, nil
}

// register adds the metrics to a registry, if there is one.
func (p *Pipeline) register(with prometheus.Registerer) error {
	if with == nil {
		return nil
	}
	if err := with.Register(p.registry); err != nil {
		return fmt.Errorf("register the metrics of pipeline %s: %w: run the relay that is there, or give this one another registry", p.cfg.Pipeline, err)
	}
	return nil
}

// runnable returns the error with commands that name the pipeline. A halt stays a halt, with its parts.
func runnable(cfg *config.Config, err error) error {
	if err == nil {
		return nil
	}
	var halt *cdc.HaltError
	if errors.As(err, &halt) {
		if before, whole := strings.CutSuffix(err.Error(), halt.Error()); whole {
			named := *halt
			named.Found, named.Means, named.Run = cfg.Commands(halt.Found), cfg.Commands(halt.Means), cfg.Commands(halt.Run)
			return fmt.Errorf("%s%w", cfg.Commands(before), &named)
		}
	}
	return errors.New(cfg.Commands(err.Error()))
}

// away says why rows wait for Kafka.
func (p *Pipeline) away() string { return away(p.sink) }

// Name returns the pipeline's name.
func (p *Pipeline) Name() string { return p.cfg.Pipeline }

// Run relays until ctx ends, and keeps the table small, where cleanup.every says so. It returns nil when everything
// received was delivered (and confirmed, unless the connection was lost), and an error otherwise. It may be called again when
// it has returned.
func (p *Pipeline) Run(ctx context.Context) error {
	p.ran.Store(true)
	p.metrics.asked.seen(0, 0) // so that the first scrape finds something
	var cleaner sync.WaitGroup
	defer cleaner.Wait()
	if p.cfg.Cleanup.Every > 0 {
		cleaner.Go(func() { p.keepSmall(ctx) })
	}
	return p.relay.Run(ctx)
}

// Role returns what Run is doing, and why where it is not streaming.
func (p *Pipeline) Role() (cdc.Role, error) { return p.relay.Role() }

// Ready returns nil while Run streams, or stands by to take over; otherwise an error that says why not.
func (p *Pipeline) Ready(context.Context) error { return p.metrics.ready() }

// Step is what a verb does, or waits for.
type Step struct {
	What string
	SQL  []string // that it runs
}

// Progress hears of each step when it begins. nil hears nothing.
type Progress func(Step)

func (p Progress) step(what string, args ...any) {
	if p != nil {
		p(Step{What: fmt.Sprintf(what, args...)})
	}
}

// note writes down what an operator has decided.
func (p *Pipeline) note(ctx context.Context, command, what, from, to string) error {
	return p.kind.note(ctx, &cdc.Decision{Time: time.Now().UTC(), Command: command, By: cmp.Or(p.operator, "unknown"), What: what, From: from, To: to})
}
