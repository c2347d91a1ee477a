package cdctest_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

func TestProxyCutsWhereItIsTold(t *testing.T) {
	direct := cdctest.Database(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := cdctest.StartProxy(t, u.Host, func(f cdctest.Frame) cdctest.Verdict {
		if f.FromServer && f.Type == 'D' && bytes.Contains(f.Bytes, []byte("secret")) {
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	through := proxy.URL(t, direct)
	ask := func(conn *pgx.Conn, sql string) (answer string, err error) {
		err = conn.QueryRow(t.Context(), sql).Scan(&answer)
		return answer, err
	}
	connect := func() *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), through)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(t.Context()) })
		return conn
	}

	conn, other := connect(), connect()
	if got, err := ask(conn, "SELECT 'open'"); got != "open" {
		t.Fatalf("got %q, %v", got, err)
	}
	if got, err := ask(conn, "SELECT 'sec' || 'ret'"); err == nil {
		t.Errorf("a frame that pass dropped arrived: %q", got)
	}
	if got, err := ask(other, "SELECT 'open'"); got != "open" {
		t.Errorf("the other connection went with it: %v", err)
	}
	proxy.Cut()
	if _, err := ask(other, "SELECT 'open'"); err == nil {
		t.Error("open after Cut")
	}
	proxy.Down()
	if _, err := pgx.Connect(t.Context(), through); err == nil {
		t.Error("connected while down")
	}
	proxy.Up()
	connect()
}

func TestProxyCarriesEveryByteHoweverItIsBroken(t *testing.T) {
	direct := cdctest.Database(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := cdctest.StartProxy(t, u.Host, nil)
	conn, err := pgx.Connect(t.Context(), proxy.URL(t, direct))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	const rows = 200
	want := strings.Repeat("0123456789", 20)
	for name, wire := range map[string]cdctest.Wire{
		"as they come":        {},
		"one by one":          {Chunk: 1},
		"split at each place": {Split: true},
		"late":                {Delay: 100 * time.Microsecond},
		"slowly":              {Bandwidth: 200_000},
	} {
		proxy.Set(wire, wire)
		began := time.Now()
		got, err := conn.Query(t.Context(), "SELECT $1::text FROM generate_series(1, $2)", want, rows)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all, err := pgx.CollectRows(got, pgx.RowTo[string])
		if err != nil || len(all) != rows || slices.ContainsFunc(all, func(s string) bool { return s != want }) {
			t.Errorf("%s: %d rows, %v", name, len(all), err)
		}
		if took := time.Since(began); wire.Bandwidth > 0 && took < 150*time.Millisecond {
			t.Errorf("%s: 40 kB at 200 kB/s took %s", name, took)
		}
	}
}

func TestProxyStallsAndSwallows(t *testing.T) {
	direct := cdctest.Database(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := cdctest.StartProxy(t, u.Host, nil)
	connect := func() *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), proxy.URL(t, direct))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	stalled := connect()
	answer := make(chan error, 1)
	proxy.Set(cdctest.Wire{}, cdctest.Wire{Stalled: true})
	go func() {
		_, err := stalled.Exec(t.Context(), "SELECT 1")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("answered through a stalled wire: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	proxy.Set(cdctest.Wire{}, cdctest.Wire{})
	if err := <-answer; err != nil {
		t.Errorf("the stalled bytes did not arrive: %v", err)
	}
	proxy.Set(cdctest.Wire{}, cdctest.Wire{Swallowed: true})
	go func() {
		_, err := stalled.Exec(t.Context(), "SELECT pg_terminate_backend(pg_backend_pid())")
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("the end of a half-open connection was seen: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	proxy.Set(cdctest.Wire{}, cdctest.Wire{})
	if err := <-answer; err == nil {
		t.Error("a connection with missing bytes continued")
	}
	if _, err := connect().Exec(t.Context(), "SELECT 1"); err != nil {
		t.Error(err)
	}
}

// TestKafkaProxyIsTheOnlyWay: the client must never learn the brokers' addresses. The proxy loses the answer to a
// request that was executed.
func TestKafkaProxyIsTheOnlyWay(t *testing.T) {
	cdctest.Long(t, "waits for connections that must not come")
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{Brokers: 3, SeedTopics: map[string]int{"t": 9}})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	var lost atomic.Int64
	proxy := cdctest.StartKafkaProxy(t, cluster.Brokers()[:1], func(f cdctest.Frame) cdctest.Verdict {
		if f.FromServer && f.API == int16(kmsg.Produce) && lost.CompareAndSwap(0, 1) {
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	var mu sync.Mutex
	dialled := map[string]bool{}
	client, err := kgo.NewClient(kgo.SeedBrokers(proxy.Brokers()...), kgo.DefaultProduceTopic("t"), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.Dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialled[addr] = true
			if slices.Contains(cluster.Brokers(), addr) {
				return nil, errors.New("not through the proxy")
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 90 {
		client.Produce(t.Context(), &kgo.Record{Value: []byte("v")}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(cdctest.ReadAll(t, cluster.Brokers(), "t")); n != 90 || lost.Load() != 1 {
		t.Errorf("%d records with %d answers lost, want each of 90 once", n, lost.Load())
	}
	if len(dialled) != 3 {
		t.Errorf("3 brokers lead, %d addresses were dialled: %v", len(dialled), dialled)
	}
}
