package polling

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/postgres"
)

// Outbox is a polled table. It keeps no connection open: each method opens its own.
type Outbox struct {
	identity.Unshown

	Source *postgres.Source // opens the connections

	pipeline string
	cfg      config.Source
	template *strings.Replacer
}

// NewOutbox returns the outbox of a pipeline. It passes log to postgres.NewSource.
func NewOutbox(pipeline string, cfg config.Source, log zerolog.Logger) *Outbox {
	return &Outbox{pipeline: pipeline, cfg: cfg, Source: postgres.NewSource(pipeline, cfg, log), template: sqlTemplate(&cfg)}
}

// open connects, and returns the table if it can be polled. Otherwise it returns a HaltError that names everything that is wrong.
func (o *Outbox) open(ctx context.Context) (*postgres.OpenTable, error) {
	t, err := o.Source.OpenTable(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.check(ctx, t); err != nil {
		_ = t.Conn.Close(ctx)
		return nil, err
	}
	return t, nil
}

// sql replaces the placeholders of a statement by the configuration's names.
func (o *Outbox) sql(text string) string { return o.template.Replace(text) }

// sqlTemplate returns the replacer of placeholders by the configuration's names. {holds} is true for a row f that holds later rows of its
// key. {same} is true if row f has the key of row o and comes before it.
func sqlTemplate(cfg *config.Source) *strings.Replacer {
	c, w := cfg.Polling.Columns, cfg.Polling.Words
	id, literal := func(name string) string { return postgres.Ident(name) }, postgres.Literal
	expression := func(value string) string {
		if word, ok := config.Constant(value); ok {
			return literal(word) + "::text"
		}
		if value == config.None {
			return "NULL::text"
		}
		return id(value)
	}
	key, typ := expression(cfg.Columns.AggregateID), expression(cfg.Columns.AggregateType)
	same := `hashtextextended(f.{key}::text, 0) = hashtextextended(o.{key}::text, 0) AND f.{key} = o.{key} AND f.{key}::text <> '' AND f.{position} < o.{position}`
	if typ == id(cfg.Columns.AggregateType) {
		same += ` AND f.{type} = o.{type}`
	}
	if cfg.Columns.AggregateID == config.None { // no row has a key, and none waits for another
		same = "false"
	}
	names := []string{
		"{table}", postgres.TableName(*cfg), "{id}", id(cfg.Columns.ID), "{type}", typ, "{key}", key,
		"{transaction}", id(c.Transaction), "{position}", id(c.Position),
		"{status}", id(c.Status), "{processed_at}", id(c.ProcessedAt), "{retry_count}", id(c.RetryCount), "{last_error}", id(c.LastError),
		"{pending}", literal(w.Pending), "{sent}", literal(w.Sent), "{failed}", literal(w.Failed), "{dropped}", literal(w.Dropped),
	}
	once := strings.NewReplacer(names...)
	return strings.NewReplacer(append(names,
		"{holds}", once.Replace(`(f.{status} = {failed} OR f.{status} = {pending} AND f.{retry_count} > 0)`),
		"{same}", once.Replace(same))...)
}

// unpollable are the SQLSTATEs of errors that a person must fix, in addition to those for which every source halts.
var unpollable = []string{pgerrcode.UndefinedTable, pgerrcode.UndefinedColumn, pgerrcode.DatatypeMismatch, pgerrcode.UndefinedFunction}

// classify returns a server's error, as a HaltError if its SQLSTATE is one that a person must fix.
func classify(t *postgres.OpenTable, doing string, err error) error {
	err, cause := t.Classify(doing, err), err
	var halt *cdc.HaltError
	run := "let `walpost init` create what is missing, or fix it yourself"
	switch {
	case errors.Is(err, postgres.ErrUnseen):
		return &cdc.HaltError{Found: err.Error(), Means: "the table cannot be polled like this, and nothing is lost", Run: "fix it, and the relay resumes by itself; after a change of its configuration, restart it"}
	case errors.As(err, &halt):
		err, run = errors.New(halt.Found), halt.Run+", or let `walpost init` grant it"
	case slices.Contains(unpollable, postgres.SQLState(cause)):
	default:
		return err
	}
	return &cdc.HaltError{Found: err.Error(), Means: "the table cannot be polled like this, and nothing is lost", Run: run + ", and the relay resumes by itself"}
}
