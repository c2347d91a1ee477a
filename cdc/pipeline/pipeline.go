package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/debezium"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// Options are the things of the process that its pipelines use. Every field may be left out.
type Options struct {
	Log        zerolog.Logger
	Registerer prometheus.Registerer // gets the metrics; a registry can hold those of only one relay for each pipeline
	Kafka      []kgo.Opt             // further options of each Kafka client: the authentication of the process, for example
	Operator   string                // the person whose name is written down with each decision: ada@host
}

// Pipeline runs one outbox and has the operator's verbs as methods. It keeps no connection open between calls of its methods.
type Pipeline struct {
	identity.Unshown

	cfg      config.Config
	settings []config.Setting
	options  *debezium.Options // nil: the records are walpost's
	patterns []string          // templates of topics whose names depend on the rows
	log      zerolog.Logger
	operator string
	source   *postgres.Source
	sink     *kafka.Sink
	kind     kind
	metrics  *metrics
	registry *prometheus.Registry // holds the metrics
	relay    *cdc.Supervisor
	longOpen time.Duration    // a transaction that is open for longer is reported
	now      func() time.Time // this machine's clock
	ran      atomic.Bool      // Run was called: this process knows the relay's state
}

// kind has the methods that differ between the two kinds of source.
type kind interface {
	// relay returns the supervisor that moves the rows and notifies the observer.
	relay(cdc.Observer) *cdc.Supervisor
	// watched returns the sources of the facts that the relay itself does not know.
	watched() watched
	// survey asks PostgreSQL and Kafka, and fills in the status.
	survey(ctx context.Context, st *Status)
	// examine asks PostgreSQL and Kafka for everything that a relay needs, and adds the findings.
	examine(ctx context.Context, e *Examination)

	// plan returns the steps that the database needs. It returns an error if a slot or state record belongs to another pipeline.
	plan(ctx context.Context, s *setup, byDay bool) ([]postgres.Step, error)
	// begin creates the slot and the first state record, after tables and topics exist. A polled pipeline has neither.
	begin(ctx context.Context, s *setup) error
	// owned returns an error if end would remove the slot or state record of another pipeline.
	owned(ctx context.Context, s *setup) error
	// end removes the slot and the state topic.
	end(ctx context.Context, s *setup) error

	// decide opens PostgreSQL and Kafka for a decision that changes positions.
	decide(ctx context.Context, o decideOptions) (*decision, error)
	// gap returns an error if a replay may need rows that are in the table.
	gap(ctx context.Context) error
	// marks returns the columns that mark a row as delivered; nil where the slots tell it.
	marks() *postgres.Marks
	// delivered returns the commit time up to which rows were delivered; zero if it is unknown.
	delivered(ctx context.Context) (time.Time, error)
	// note writes an operator's decision down.
	note(ctx context.Context, d *cdc.Decision) error

	// reader returns the URL of a role that may read the table, and the key that holds the URL.
	reader(key, url string) (string, string)
	// trace fills in where the rows are, from slot, state record and dead letters, or from the polled table.
	trace(ctx context.Context, t *Trace, rows []postgres.TableRow, end cdc.LSN) error

	// letters returns the unresolved dead letters in the order of their rows.
	letters(ctx context.Context) ([]kafka.Entry, error)
	// whole reads a dead letter's row, if letters has left it out.
	whole(ctx context.Context, e *kafka.Entry) error
	redrive(ctx context.Context, o RedriveOptions) ([]Moved, error)
	drop(ctx context.Context, o DropOptions) (Dropped, error)
}

// New returns a pipeline for the configuration. The error contains everything that is wrong with the configuration. New
// connects to nothing.
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
	p := &Pipeline{log: o.Log, operator: o.Operator, settings: cfg.Settings(), longOpen: longOpen, now: time.Now}
	if len(cfg.Debezium) > 0 {
		var err error
		if p.options, err = debezium.Parse(cfg.Debezium); err != nil {
			return nil, err
		}
		p.options.Configure(&cfg)
	}
	p.cfg = cfg
	var topics []string
	topics, p.patterns = p.router().Topics()
	p.sink = kafka.NewSink(cfg, topics, o.Log, o.Kafka...)
	if cfg.Source.Kind == config.KindPolling {
		table := polling.NewOutbox(cfg.Pipeline, cfg.Source, o.Log)
		p.source, p.kind = table.Source, polled{p, table}
	} else {
		p.source, p.kind = postgres.NewSource(cfg.Pipeline, cfg.Source, o.Log), wal{p}
	}
	if p.options != nil {
		p.source.Require(func(shape *cdc.Shape) error { return debezium.New(p.options).Fits(shape) })
	}
	p.registry = prometheus.NewRegistry()
	of := p.kind.watched()
	of.login, of.certified = p.sink, []certified{p.sink, p.source}
	p.metrics = newMetrics(cfg.Pipeline, of, p.registry)
	behind := &catchUp{now: time.Now, rows: cfg.Source.Kind == config.KindPolling}
	p.metrics.counted = behind.counted
	observer := cdc.Tee(p.metrics.observer(), logger(cfg, o.Log, p.away, behind)) // so that /readyz says it when the log does
	if tell := observer.Role; cfg.Commands("`walpost ") != "`walpost " {
		observer.Role = func(role cdc.Role, err error) { tell(role, runnable(&cfg, err)) }
	}
	p.relay = p.kind.relay(observer)
	return p, nil
}

// router turns rows into records, and knows the topics that rows may go to.
type router interface {
	cdc.Route
	// Topics returns the topics that are known before any row comes, and templates of those that only rows decide.
	Topics() (known, patterns []string)
	// Topic returns the topic of rows of these types.
	Topic(aggregateType, eventType string) string
	// Pattern returns an expression for the topics that rows may go to.
	Pattern() *regexp.Regexp
}

// router returns a new router. One goroutine may use it.
func (p *Pipeline) router() router {
	if p.options != nil {
		return debezium.New(p.options)
	}
	return route.New(p.cfg.Pipeline, p.cfg.Kafka)
}

// register registers the metrics with the registerer; nil registers nothing.
func (p *Pipeline) register(with prometheus.Registerer) error {
	if with == nil {
		return nil
	}
	if err := with.Register(p.registry); err != nil {
		return fmt.Errorf("register the metrics of pipeline %s: %w: use the relay that is registered already, or give this one another registry", p.cfg.Pipeline, err)
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

// away returns the reason why rows wait for Kafka.
func (p *Pipeline) away() string { return away(p.sink) }

// Commands returns the text with walpost commands that can be copied and run: where the file has several pipelines, each names this
// one.
func (p *Pipeline) Commands(text string) string { return p.cfg.Commands(text) }

// Name returns the pipeline's name.
func (p *Pipeline) Name() string { return p.cfg.Pipeline }

// Settings returns every key of the configuration with its value and where that is from. They hold no secret.
func (p *Pipeline) Settings() []config.Setting { return slices.Clone(p.settings) }

// Run relays until ctx ends, and deletes delivered rows, if cleanup.every is set. It returns nil if every received row was
// delivered (and confirmed, unless the connection was lost), and an error otherwise. It may be called again after it has
// returned.
func (p *Pipeline) Run(ctx context.Context) error {
	p.ran.Store(true)
	p.metrics.asked.seen(0, 0) // starts a look, so that the first scrape has values
	var cleaner sync.WaitGroup
	defer cleaner.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cleaner.Go(func() { p.metrics.history.run(ctx, p.relay.Role) })
	if p.cfg.Cleanup.Every > 0 {
		cleaner.Go(func() { p.keepSmall(ctx) })
	}
	return p.relay.Run(ctx)
}

// Role returns what Run is doing, and the reason if it is not streaming.
func (p *Pipeline) Role() (cdc.Role, error) { return p.relay.Role() }

// Ready returns nil while Run streams, or stands by to take over; otherwise it returns the reason.
func (p *Pipeline) Ready(context.Context) error { return p.metrics.ready() }

// Step is a step of a verb: something it does or waits for.
type Step struct {
	What string
	SQL  []string // the statements that the step runs
	// Total is how much the step has to do, and Done how much of that is done, in Unit: rows for example. Total is 0 for a step
	// that counts nothing.
	Done, Total int64
	Unit        string
}

// Progress is called with each step when the step begins, and again and again with a step that counts what is done. It may
// be nil.
type Progress func(Step)

// step calls p with a step without SQL.
func (p Progress) step(what string, args ...any) {
	if p != nil {
		p(Step{What: fmt.Sprintf(what, args...)})
	}
}

// at calls p with how much of a step is done.
func (p Progress) at(done, total int64, unit string) {
	if p != nil && total > 0 {
		p(Step{Done: done, Total: total, Unit: unit})
	}
}

// note writes an operator's decision to the state topic. It fills in the time and the operator.
func (p *Pipeline) note(ctx context.Context, d cdc.Decision) error {
	d.Time, d.By = time.Now().UTC(), cmp.Or(p.operator, "unknown")
	return p.kind.note(ctx, &d)
}
