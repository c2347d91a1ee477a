// Package pglimit sets time limits on connections to PostgreSQL, so that none of them waits without end for a host that does not answer,
// a peer that has vanished, or a query without an answer.
//
// The relay, the services and the migrations use it. It imports no other package of this module.
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
	// Connect is the longest time for one address to accept a connection and to log in; a lower connect_timeout of the URL wins. It is
	// at least the longest pause between two sessions of a relay, so a relay that waited for an address without a host tries the next
	// address at once.
	Connect = 10 * time.Second
	// resolve is the longest time to resolve a name.
	resolve = 5 * time.Second
	// gone is how long the peer may acknowledge nothing while bytes are on the way to it.
	gone = 30 * time.Second
)

// Set limits the time to connect, and lets the kernel end a connection whose peer has vanished.
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

// Queries is a tracer of pgx that sets a deadline for every query without one, so that no query waits without end for a server that is
// frozen or gone. A caller whose query may take longer sets its own deadline.
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

// TraceQueryEnd releases the deadline. pgx calls it also when the rows are closed.
func (Queries) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { over(ctx) }

// TraceBatchStart returns the context that the batch then uses.
func (q Queries) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return q.limited(ctx)
}

// TraceBatchQuery does nothing: the batch has one limit.
func (Queries) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd releases the deadline. pgx calls it when the batch's results are closed.
func (Queries) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) { over(ctx) }

// limited returns the context with a deadline.
func (q Queries) limited(ctx context.Context) context.Context {
	if _, limited := ctx.Deadline(); limited {
		return ctx
	}
	ctx, cancel := context.WithTimeout(ctx, q.Within)
	return context.WithValue(ctx, limitKey{}, cancel)
}

// over releases the deadline that limited has set.
func over(ctx context.Context) {
	if cancel, ok := ctx.Value(limitKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

// option is a setting in the URL's options: -c name=value or --name=value.
var option = regexp.MustCompile(`(?:-c\s*|--)([A-Za-z_][A-Za-z0-9_.-]*)=`)

// Parameter returns the parameter of the URL for which the server refused the connection; empty if it is another reason. It looks for
// the parameter's name in the server's message, because a name is the same in every language.
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
		// Prefer the name of a setting over options, the parameter that contains it.
		if slices.ContainsFunc(said, func(word string) bool { return strings.EqualFold(strings.TrimRight(word, "."), n) }) && (name == "" || name == "options") {
			name = n
		}
	}
	return name
}
