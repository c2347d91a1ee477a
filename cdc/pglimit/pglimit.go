// Package pglimit gives connections to PostgreSQL limits, so that none of them waits for ever: for a host that does not answer, for a
// peer that is gone without a word, for a question that nobody answers.
//
// It is a leaf that the relay, the services and the migrations share.
package pglimit

import (
	"context"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// Connect is how long one address has to accept and to let in; a lower connect_timeout of the URL holds. It is no shorter than the
	// longest pause between two sessions of a relay: one that hung on an address that nobody has tries the next at once.
	Connect = 10 * time.Second
	// resolve is how long a name has to become addresses.
	resolve = 5 * time.Second
	// gone is how long the peer's TCP may be silent while something of ours is on the way to it.
	gone = 30 * time.Second
)

// Set limits connecting, and lets the kernel notice a peer that is gone.
func Set(cfg *pgconn.Config) {
	if cfg.ConnectTimeout <= 0 || cfg.ConnectTimeout > Connect {
		cfg.ConnectTimeout = Connect
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		setGoneAfter(c, gone)
		return c, nil
	}
	lookup := cfg.LookupFunc
	cfg.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, resolve)
		defer cancel()
		return lookup(ctx, host)
	}
}

// Queries is a tracer of pgx that gives every query without a deadline one, so that a server that is frozen or gone ends it. What may
// take longer sets a deadline itself.
type Queries struct{ Within time.Duration }

var (
	_ pgx.QueryTracer = Queries{}
	_ pgx.BatchTracer = Queries{}
)

type limitKey struct{}

// TraceQueryStart returns the context that the query then uses.
func (q Queries) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return q.limited(ctx)
}

// TraceQueryEnd is called when the rows are closed, too.
func (Queries) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { over(ctx) }

// TraceBatchStart returns the context that the batch then uses.
func (q Queries) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return q.limited(ctx)
}

// TraceBatchQuery does nothing: the batch has one limit.
func (Queries) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is called when the batch's results are closed.
func (Queries) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) { over(ctx) }

func (q Queries) limited(ctx context.Context) context.Context {
	if _, limited := ctx.Deadline(); limited {
		return ctx
	}
	ctx, cancel := context.WithTimeout(ctx, q.Within)
	return context.WithValue(ctx, limitKey{}, cancel)
}

func over(ctx context.Context) {
	if cancel, ok := ctx.Value(limitKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

// option is a setting in the URL's options: -c name=value or --name=value.
var option = regexp.MustCompile(`(?:-c\s*|--)([A-Za-z_][A-Za-z0-9_.-]*)=`)

// Parameter is the name in the URL that a refused connection is about, or nothing. A name is not translated, whatever language the
// server's message is in.
func Parameter(cfg *pgconn.Config, pg *pgconn.PgError) (name string) {
	if !slices.Contains([]string{
		pgerrcode.UndefinedObject, pgerrcode.InvalidParameterValue, pgerrcode.InsufficientPrivilege, pgerrcode.CantChangeRuntimeParam, pgerrcode.ProtocolViolation,
	}, pg.Code) {
		return ""
	}
	var names []string
	for n := range cfg.RuntimeParams {
		if !slices.Contains([]string{"application_name", "client_encoding", "replication"}, n) {
			names = append(names, n)
		}
	}
	for _, m := range option.FindAllStringSubmatch(cfg.RuntimeParams["options"], -1) {
		names = append(names, strings.ReplaceAll(m[1], "-", "_"))
	}
	said := strings.FieldsFunc(pg.Message, func(r rune) bool {
		return r != '_' && r != '.' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	slices.Sort(names)
	for _, n := range names {
		// A setting's own name counts before that of the parameter which holds it.
		if slices.ContainsFunc(said, func(word string) bool { return strings.EqualFold(strings.TrimRight(word, "."), n) }) && (name == "" || name == "options") {
			name = n
		}
	}
	return name
}
