package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// tailed is a pipeline whose topics a test writes.
type tailed struct {
	*testing.T
	p      *pipeline.Pipeline
	name   string
	client *kgo.Client
	start  time.Time
}

func newTailed(t *testing.T, brokers []string) *tailed {
	t.Helper()
	s := &tailed{T: t, name: cdctest.Name(t, "tail"), start: time.Now().Add(-time.Hour).Truncate(time.Millisecond)}
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.URL = s.name, "postgres://walpost@127.0.0.1:1/orders"
	cfg.Kafka.Brokers, cfg.Kafka.Topic, cfg.Kafka.AggregateTypes = brokers, s.name+".{aggregate_type}", []string{"order", "stock"}
	var err error
	if s.p, err = pipeline.New(cfg, pipeline.Options{}); err != nil {
		t.Fatal(err)
	}
	if s.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	return s
}

// record returns a record with an id, in this second since the start.
func (s *tailed) record(aggregate string, partition int32, second int, id string, headers ...string) *kgo.Record {
	r := &kgo.Record{Topic: s.name + "." + aggregate, Partition: partition, Timestamp: s.start.Add(time.Duration(second) * time.Second), Key: []byte("k" + id), Value: []byte(`{"n": ` + id + `}`)}
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: "id", Value: []byte(id)})
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: headers[i], Value: []byte(headers[i+1])})
	}
	return r
}

func (s *tailed) write(client *kgo.Client, records ...*kgo.Record) {
	s.Helper()
	if err := client.ProduceSync(s.Context(), records...).FirstErr(); err != nil {
		s.Fatal(err)
	}
}

// tail returns the events that Tail finds without following.
func (s *tailed) tail(o pipeline.TailOptions) (events []pipeline.Event) {
	s.Helper()
	if err := s.p.Tail(s.Context(), o, func(e pipeline.Event) error { events = append(events, e); return nil }); err != nil {
		s.Fatal(err)
	}
	return events
}

func eventIDs(events []pipeline.Event) string {
	var all []string
	for _, e := range events {
		all = append(all, e.ID)
	}
	return strings.Join(all, " ")
}

// TestTail reads the newest events of all partitions in the order of their times, and leaves nothing in Kafka.
func TestTail(t *testing.T) {
	t.Parallel()
	brokers := cdctest.Kafka(t)
	s := newTailed(t, brokers)
	if got := s.tail(pipeline.TailOptions{Last: 3}); len(got) != 0 {
		t.Errorf("without a topic: %v", got)
	}
	cdctest.CreateTopic(t, brokers, s.name+".order", 3)
	cdctest.CreateTopic(t, brokers, s.name+".stock", 1)
	if got := s.tail(pipeline.TailOptions{Last: 3}); len(got) != 0 {
		t.Errorf("without a record: %v", got)
	}
	for i := range 60 {
		s.write(s.client, s.record("order", int32(i%2), i, fmt.Sprint(i), "type", "Paid"))
	}
	created := s.start.Add(60*time.Second - 1500*time.Millisecond).UTC().Format(time.RFC3339Nano)
	s.write(s.client,
		s.record("stock", 0, 60, "60", "type", "Moved", "created_at", created, "lsn", "0/1A", "seq", "2", "source", "shop"),
		s.record("order", 2, 61, "61", "replay", "true", "created_at", created),
		s.record("order", 0, 10, "62"), // its producer's clock is behind: it stays after those of its partition
	)
	s.write(s.client, &kgo.Record{Topic: s.name + ".order", Partition: 2, Value: []byte("of another program"), Timestamp: s.start.Add(70 * time.Second)})
	last := s.tail(pipeline.TailOptions{Last: 5})
	if got := eventIDs(last); got != "58 62 59 60 61" {
		t.Errorf("the last five are %s", got)
	}
	e := last[3]
	if e.Topic != s.name+".stock" || e.Partition != 0 || e.Offset != 0 || string(e.Key) != "k60" || e.Type != "Moved" || e.LSN != "0/1A" || e.Seq != "2" || e.Source != "shop" ||
		e.Lag == nil || *e.Lag != 1500*time.Millisecond || e.Payload != nil || e.Bytes != len(`{"n": 60}`) || !e.Time.Equal(s.start.Add(time.Minute)) {
		t.Errorf("event 60: %+v", e)
	}
	if again := last[4]; !again.Replay || again.Lag != nil {
		t.Errorf("a row that was published again has no lag: %+v", again)
	}
	for name, c := range map[string]struct {
		o    pipeline.TailOptions
		want string
	}{
		"all":     {pipeline.TailOptions{Last: 4, Payload: true}, "62 59 60 61"},
		"a key":   {pipeline.TailOptions{Last: 4, Key: "k7"}, "7"},
		"a type":  {pipeline.TailOptions{Last: 3, Type: "Paid"}, "57 58 59"},
		"none":    {pipeline.TailOptions{}, ""},
		"unknown": {pipeline.TailOptions{Last: 3, Key: "nobody"}, ""},
	} {
		got := s.tail(c.o)
		if eventIDs(got) != c.want {
			t.Errorf("%s: %s, want %s", name, eventIDs(got), c.want)
		}
		for _, e := range got {
			if want := `{"n": ` + e.ID + `}`; c.o.Payload && string(e.Payload) != want {
				t.Errorf("%s: payload %s, want %s", name, e.Payload, want)
			}
		}
	}
	stop := errors.New("enough")
	if err := s.p.Tail(t.Context(), pipeline.TailOptions{Last: 3, Follow: true}, func(pipeline.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("it goes on: %v", err)
	}
	if os.Getenv("WALPOST_TEST_KAFKA") != "" {
		return // a broker that all tests share has their groups and topics
	}
	admin := kadm.NewClient(s.client)
	groups, err := admin.ListGroups(t.Context())
	topics, errTopics := admin.ListTopics(t.Context())
	if err := errors.Join(err, errTopics); err != nil || len(groups) != 0 || len(topics) != 2 {
		t.Errorf("Kafka has groups %v and topics %v, %v", groups.Groups(), topics.Names(), err)
	}
}

// TestTailReadsEveryKindOfRecord: CloudEvents, Debezium's records, and those of hostile rows.
func TestTailReadsEveryKindOfRecord(t *testing.T) {
	t.Parallel()
	brokers := cdctest.Kafka(t)
	s := newTailed(t, brokers)
	cdctest.CreateTopic(t, brokers, s.name+".order", 1)
	at := s.start.Add(-2 * time.Second).UTC().Format(time.RFC3339Nano)
	cloud := s.record("order", 0, 0, "1")
	cloud.Headers = nil
	for _, h := range [][2]string{{"ce_id", "c"}, {"ce_type", "Paid"}, {"ce_lsn", "0/2"}, {"ce_source", "walpost:x"}, {"ce_time", at}, {"id", "the row's own"}} {
		cloud.Headers = append(cloud.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	debezium := s.record("order", 0, 1, `{"schema":{"type":"string"},"payload":"d"}`)
	hostile := s.record("order", 0, 2, "\u202eid", "type", "\x1b[31m", "created_at", "infinity")
	hostile.Key, hostile.Value = []byte{0xff, 0}, []byte("<b>\xff")
	tombstone := s.record("order", 0, 3, "none")
	tombstone.Key, tombstone.Value = nil, nil
	s.write(s.client, cloud, debezium, hostile, tombstone)
	var lines []string
	for _, e := range s.tail(pipeline.TailOptions{Last: 10, Payload: true}) {
		e.Topic, e.Time = "T", time.Time{}
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(line))
	}
	want := []string{
		`{"time":"0001-01-01T00:00:00Z","topic":"T","partition":0,"offset":0,"type":"Paid","id":"c","lsn":"0/2","source":"walpost:x","bytes":8,"key":"k1","lag_seconds":2,"payload":{"n":1}}`,
		`{"time":"0001-01-01T00:00:00Z","topic":"T","partition":0,"offset":1,"id":"d","bytes":49,"key":"k{\"schema\":{\"type\":\"string\"},\"payload\":\"d\"}","payload":{"n":{"schema":{"type":"string"},"payload":"d"}}}`,
		"{\"time\":\"0001-01-01T00:00:00Z\",\"topic\":\"T\",\"partition\":0,\"offset\":2,\"type\":\"\\u001b[31m\",\"id\":\"\u202eid\",\"bytes\":4,\"key\":null,\"key_base64\":\"/wA=\",\"payload_base64\":\"PGI+/w==\"}",
		`{"time":"0001-01-01T00:00:00Z","topic":"T","partition":0,"offset":3,"id":"none","bytes":0,"key":null}`,
	}
	if !slices.Equal(lines, want) {
		t.Errorf("it says\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestTailFollows shows committed events only, those of topics that are created meanwhile, and ends with ctx.
func TestTailFollows(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, "it waits until a new topic is seen")
	cluster, err := devenv.StartKafka(devenv.KafkaConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.Brokers()
	s := newTailed(t, brokers)
	cdctest.CreateTopic(t, brokers, s.name+".order", 2)
	s.write(s.client, s.record("order", 0, 0, "old"))
	writer, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.TransactionalID(s.name), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	transaction := func(end kgo.TransactionEndTry, ids ...string) {
		t.Helper()
		if err := writer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for i, id := range ids {
			s.write(writer, s.record("order", int32(i%2), 1, id))
		}
		if err := writer.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	transaction(kgo.TryAbort, "aborted")
	transaction(kgo.TryCommit, "committed")
	if err := writer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	s.write(writer, s.record("order", 1, 2, "open"))
	if got := eventIDs(s.tail(pipeline.TailOptions{Last: 5})); got != "old committed" {
		t.Errorf("beside an open transaction: %s", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen, ended := make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- s.p.Tail(ctx, pipeline.TailOptions{Last: 1, Follow: true}, func(e pipeline.Event) error { seen <- e.ID; return nil })
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("it shows %s, want %s", got, want)
			}
		case err := <-ended:
			t.Fatalf("it has ended instead of showing %s: %v", want, err)
		case <-time.After(cdctest.Patience(time.Minute)):
			t.Fatalf("it does not show %s", want)
		}
	}
	next("committed")
	if err := writer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	next("open")
	s.write(s.client, s.record("order", 0, 3, "new"))
	next("new")
	cdctest.CreateTopic(t, brokers, s.name+".stock", 1)
	s.write(s.client, s.record("stock", 0, 4, "of a new topic"))
	next("of a new topic")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ctx has ended: %v", err)
	}

	go func() {
		ended <- s.p.Tail(t.Context(), pipeline.TailOptions{Follow: true}, func(pipeline.Event) error { return nil })
	}()
	cluster.Close()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "start Kafka") {
			t.Errorf("Kafka is away: %v", err)
		}
	case <-time.After(cdctest.Patience(time.Minute)):
		t.Error("Kafka is away, and nothing says so")
	}
	if err := s.p.Tail(t.Context(), pipeline.TailOptions{Last: 1}, nil); err == nil || !strings.Contains(err.Error(), "none of "+brokers[0]) {
		t.Errorf("Kafka is away: %v", err)
	}
}
