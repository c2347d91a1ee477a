package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/schema"
)

func TestMain(m *testing.M) { cdctest.Main(m) }

// A fixture is a database with an inbox and a topic. The handler's effect is a row in the table effects. It fails for
// the ids that fail has set.
type fixture struct {
	testing.TB
	pool    *pgxpool.Pool
	brokers []string
	topic   string
	group   string
	client  *kgo.Client

	mu    sync.Mutex
	fails map[string]error
	tried map[string]int
}

func newFixture(t testing.TB, partitions int) *fixture {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), cdctest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	f := &fixture{
		TB: t, pool: pool, brokers: cdctest.Kafka(t), topic: cdctest.Name(t, "events"), group: cdctest.Name(t, "group"),
		fails: map[string]error{}, tried: map[string]int{},
	}
	f.exec(schema.SQL)
	f.exec(`CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, event_id text, key text, kafka_offset bigint)`)
	cdctest.CreateTopic(t, f.brokers, f.topic, partitions)
	if f.client, err = kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.client.Close)
	return f
}

func (f *fixture) exec(sql string, args ...any) {
	f.Helper()
	if _, err := f.pool.Exec(f.Context(), sql, args...); err != nil {
		f.Fatalf("%s: %v", sql, err)
	}
}

func scan[T any](f *fixture, sql string, args ...any) T {
	f.Helper()
	rows, _ := f.pool.Query(f.Context(), sql, args...)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		f.Fatalf("%s: %v", sql, err)
	}
	return value
}

// effects returns the ids of the applied events of a key, or of all events, in the order of their effects.
func (f *fixture) effects(key string) []string {
	f.Helper()
	rows, _ := f.pool.Query(f.Context(), `SELECT event_id FROM effects WHERE $1 IN ('', key) ORDER BY n`, key)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		f.Fatal(err)
	}
	return ids
}

func (f *fixture) handle(ctx context.Context, tx pgx.Tx, ev inbox.Event) error {
	f.mu.Lock()
	f.tried[ev.ID]++
	err := f.fails[ev.ID]
	f.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO effects (event_id, key, kafka_offset) VALUES ($1, $2, $3)`, ev.ID, string(ev.Key), ev.Offset)
	return err
}

// fail makes the handler return err for an event; nil makes it succeed again.
func (f *fixture) fail(id string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[id] = err
}

func (f *fixture) tries(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tried[id]
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

func newIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = newID()
	}
	return ids
}

func record(partition int32, key, eventType, id string) *kgo.Record {
	return &kgo.Record{
		Partition: partition, Key: []byte(key), Value: []byte(id),
		Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(id)}, {Key: "type", Value: []byte(eventType)}},
	}
}

func (f *fixture) produce(records ...*kgo.Record) {
	f.Helper()
	for _, r := range records {
		r.Topic = f.topic
	}
	if err := f.client.ProduceSync(f.Context(), records...).FirstErr(); err != nil {
		f.Fatal(err)
	}
}

// send produces events of one key.
func (f *fixture) send(partition int32, key string, ids ...string) {
	f.Helper()
	for _, id := range ids {
		f.produce(record(partition, key, "Thing", id))
	}
}

type running struct {
	*inbox.Consumer
	reg  *prometheus.Registry
	log  *cdctest.Log
	stop func()
}

func (f *fixture) config() inbox.Config {
	return inbox.Config{Brokers: f.brokers, Topic: f.topic, Group: f.group, Consumer: "test", Pool: f.pool, Handle: f.handle}
}

func (f *fixture) start(change ...func(*inbox.Config)) *running {
	f.Helper()
	r := &running{reg: prometheus.NewRegistry(), log: &cdctest.Log{}}
	cfg := f.config()
	cfg.Metrics, cfg.Log = inbox.NewMetrics(r.reg, "test"), zerolog.New(r.log)
	for _, set := range change {
		set(&cfg)
	}
	var err error
	if r.Consumer, err = inbox.New(cfg); err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("consumer: %v", err)
		}
	})
	f.Cleanup(func() {
		r.stop()
		if f.Failed() {
			for line := range strings.Lines(r.log.String()) {
				f.Log(strings.TrimSpace(line))
			}
		}
	})
	return r
}

func policy(p inbox.Policy) func(*inbox.Config) { return func(cfg *inbox.Config) { cfg.Policy = p } }

func (r *running) count(t testing.TB, name string) (sum float64) {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// committed returns the group's offset in each partition that has one.
func (f *fixture) committed(group string) map[int32]int64 {
	f.Helper()
	offsets, err := kadm.NewClient(f.client).FetchOffsets(f.Context(), group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		f.Fatal(err)
	}
	committed := map[int32]int64{}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Err == nil && o.At >= 0 {
			committed[o.Partition] = o.At
		}
	})
	return committed
}

func (f *fixture) waitCommitted(group string, want map[int32]int64) {
	f.Helper()
	eventually(f, func() error {
		if got := f.committed(group); !maps.Equal(got, want) {
			return fmt.Errorf("committed %v, want %v", got, want)
		}
		return nil
	})
}

func (f *fixture) waitEffects(key string, want ...string) {
	f.Helper()
	eventually(f, func() error {
		if got := f.effects(key); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%q: effects %v, want %v", key, got, want)
		}
		return nil
	})
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	cdctest.Eventually(t, 30*time.Second, f)
}
