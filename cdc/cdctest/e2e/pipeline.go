package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
)

// Pipeline is a database, a Kafka and a configuration for one test.
type Pipeline struct {
	Program
	T        testing.TB
	AdminURL string // superuser's URL of the database
	Brokers  []string
	Name     string
	Topic    string // of the aggregate type order
	Env      map[string]string

	spare *spare // shared by copies
}

// New returns a pipeline with an empty database. `walpost init` has not run there.
func New(t testing.TB, program Program) *Pipeline {
	t.Helper()
	return NewOn(t, program, cdctest.Database(t), cdctest.Kafka(t))
}

// NewOn does the same as New, for a given database and given brokers.
func NewOn(t testing.TB, program Program, admin string, brokers []string) *Pipeline {
	t.Helper()
	name := cdctest.Name(t, "orders")
	slot := strings.ReplaceAll(name, "-", "_")
	s := &Pipeline{Program: program, T: t, AdminURL: admin, Brokers: brokers, Name: name, Topic: name + ".order", spare: &spare{}}
	s.Env = map[string]string{
		"WALPOST_PIPELINE":              name,
		"WALPOST_SOURCE_URL":            cdctest.As(admin, "relay_"+slot),
		"WALPOST_SOURCE_SLOT":           slot,
		"WALPOST_KAFKA_BROKERS":         strings.Join(brokers, ","),
		"WALPOST_KAFKA_TOPIC":           name + ".{aggregate_type}",
		"WALPOST_KAFKA_AGGREGATE_TYPES": "order",
		"WALPOST_KAFKA_REPLICATION":     "1",
		"WALPOST_HTTP":                  "127.0.0.1:0",
		"WALPOST_ADMIN_URL":             admin,
		"LOG_LEVEL":                     "info",
		"LOG_FORMAT":                    "json",
	}
	t.Cleanup(func() {
		s.spare.close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			return // a server of this test alone is closed already
		}
		defer func() { _ = conn.Close(ctx) }()
		_, _ = conn.Exec(ctx, "DROP ROLE IF EXISTS "+pgx.Identifier{"relay_" + slot}.Sanitize())
	})
	return s
}

// Copy returns the same pipeline with a copy of its configuration.
func (s *Pipeline) Copy() *Pipeline {
	other := *s
	other.Env = maps.Clone(s.Env)
	return &other
}

// URLFor returns the database's URL for another user.
func (s *Pipeline) URLFor(user, password string) string {
	u, err := url.Parse(s.AdminURL)
	if err != nil {
		s.T.Fatal(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String()
}

// Getenv returns a variable for a command in this process.
func (s *Pipeline) Getenv(key string) string { return s.Env[key] }

// Slot returns the name of the replication slot.
func (s *Pipeline) Slot() string { return s.Env["WALPOST_SOURCE_SLOT"] }

// Run runs a command of walpost to its end and returns what it printed.
func (s *Pipeline) Run(args ...string) (string, error) {
	s.T.Helper()
	ctx, cancel := context.WithTimeout(s.T.Context(), cdctest.Patience(2*time.Minute))
	defer cancel()
	var out cdctest.Log
	err := s.run(ctx, args, s.Env, &out)
	cdctest.NoSecret(s.T, "walpost "+args[0], fmt.Sprint(out.String(), "\n", err))
	return out.String(), err
}

// MustRun runs a command that must succeed, and returns its output.
func (s *Pipeline) MustRun(args ...string) string {
	s.T.Helper()
	out, err := s.Run(args...)
	if err != nil {
		s.T.Fatalf("walpost %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Status returns the output of `walpost status`, with any exit code.
func (s *Pipeline) Status(flags ...string) string {
	s.T.Helper()
	out, err := s.Run(append([]string{"status"}, flags...)...)
	if said := strings.TrimLeft(out, "[ \n"); !strings.HasPrefix(said, "pipeline ") && !strings.HasPrefix(said, "{") {
		s.T.Fatalf("walpost status: %v\n%s", err, out)
	}
	return out
}

// MustRefuse runs a command that must fail with an error that contains the text.
func (s *Pipeline) MustRefuse(says string, args ...string) {
	s.T.Helper()
	out, err := s.Run(args...)
	if err == nil || !strings.Contains(err.Error(), says) {
		s.T.Errorf("walpost %s: %v, want an error that says %q\n%s", strings.Join(args, " "), err, says, out)
	}
}

// StateRecord reads the newest state record.
func (s *Pipeline) StateRecord() *cdc.State {
	s.T.Helper()
	st, err := s.Sink().Peek(s.T.Context())
	if err != nil || st == nil {
		s.T.Fatalf("read the state record: %v, %v", st, err)
	}
	return st
}

// RewriteStateRecord changes the state record without the relay's knowledge.
func (s *Pipeline) RewriteStateRecord(change func(*cdc.State)) {
	s.T.Helper()
	st := s.StateRecord()
	st.Epoch++
	change(st)
	admin, err := s.Sink().Admin(s.T.Context())
	if err != nil {
		s.T.Fatal(err)
	}
	defer admin.Close()
	if err := admin.WriteState(s.T.Context(), st); err != nil {
		s.T.Fatal(err)
	}
}

// Sink returns a sink with the relay's configuration for Kafka.
func (s *Pipeline) Sink() *kafka.Sink {
	s.T.Helper()
	cfgs, err := config.Load("", s.Getenv)
	if err != nil {
		s.T.Fatal(err)
	}
	return kafka.NewSink(cfgs[0], nil, zerolog.Nop())
}

// WaitForSlot waits until the slot's row in pg_replication_slots satisfies a condition.
func (s *Pipeline) WaitForSlot(within time.Duration, condition string) {
	s.T.Helper()
	cdctest.Eventually(s.T, within, func() error {
		if row := s.Query("SELECT coalesce((SELECT s::text || CASE WHEN "+condition+" THEN '' ELSE ' no' END FROM pg_replication_slots s WHERE slot_name = $1), 'no slot no')",
			s.Slot()); strings.HasSuffix(row, " no") {
			return fmt.Errorf("slot is not %s: %s", condition, row)
		}
		return nil
	})
}

// WaitUntilFree waits until no process reads the slot: the server notices a moment after the relay that it has closed its
// connection.
func (s *Pipeline) WaitUntilFree(within time.Duration) {
	s.T.Helper()
	cdctest.Eventually(s.T, within, func() error {
		if s.Query("SELECT coalesce(bool_or(active), false)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()) != "false" {
			return errors.New("the slot is still being read")
		}
		return nil
	})
}

// WaitUntilConfirmed waits until the slot has confirmed everything written so far.
func (s *Pipeline) WaitUntilConfirmed(within time.Duration) {
	s.T.Helper()
	end := s.Query("SELECT pg_current_wal_lsn()::text")
	s.WaitForSlot(within, "confirmed_flush_lsn >= '"+end+"'")
}

// CheckDelivered waits until everything committed is delivered and confirmed, and compares the topic with the ledger.
func (s *Pipeline) CheckDelivered(ledger cdctest.Ledger) cdctest.Report {
	s.T.Helper()
	s.WaitUntilConfirmed(time.Minute)
	report := cdctest.Check(ledger, cdctest.ReadAll(s.T, s.Brokers, s.Topic))
	if err := report.Err(); err != nil {
		s.T.Errorf("%d events committed: %v", len(ledger.Events), err)
	}
	s.T.Logf("%d events, %d records, %d duplicates in %d replays", report.Events, report.Records, report.Duplicates, report.Replays)
	return report
}

// CleanupMustRefuse runs cleanup, which must fail with an error that contains the texts, and must delete nothing.
func (s *Pipeline) CleanupMustRefuse(texts ...string) {
	s.T.Helper()
	before := s.CountRows()
	out, err := s.Run("cleanup", "--retention", "1h")
	if err == nil {
		s.T.Fatalf("cleanup did not refuse:\n%s", out)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			s.T.Errorf("cleanup does not say %q: %v", text, err)
		}
	}
	if after := s.CountRows(); after != before {
		s.T.Errorf("cleanup refused, and %s of %s rows are left", after, before)
	}
}

// WaitForEvent waits until the event is in the topic.
func (s *Pipeline) WaitForEvent(id string) {
	s.T.Helper()
	cdctest.Consume(s.T, s.Brokers, s.Topic, 20*time.Second, func(records []*kgo.Record) bool {
		for _, r := range records {
			if Header(r, "id") == id {
				return true
			}
		}
		return false
	})
}

// EventIDs returns the distinct event ids in the topic, in the order of their first appearance.
func (s *Pipeline) EventIDs() (ids []string) {
	s.T.Helper()
	seen := map[string]bool{}
	for _, r := range cdctest.ReadAll(s.T, s.Brokers, s.Topic) {
		if id := Header(r, "id"); !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// LimitTopic sets the topic's max.message.bytes and returns when the broker applies it. A broker answers earlier. It
// applies changes in their order, so LimitTopic sets the limit of a second topic afterwards and waits for that one.
func (s *Pipeline) LimitTopic(bytes string) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		s.T.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	set := func(topic, bytes string) {
		resp, err := admin.AlterTopicConfigs(s.T.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, topic)
		if err != nil || resp[0].Err != nil {
			s.T.Fatal(err, resp)
		}
	}
	later := "limit-" + strings.ToLower(rand.Text())
	cdctest.CreateTopic(s.T, s.Brokers, later, 1)
	set(s.Topic, bytes)
	set(later, "100")
	cdctest.Eventually(s.T, 20*time.Second, func() error {
		err := client.ProduceSync(s.T.Context(), &kgo.Record{Topic: later, Value: make([]byte, 5000)}).FirstErr()
		if errors.Is(err, kerr.MessageTooLarge) {
			return nil
		}
		return fmt.Errorf("5000 bytes on a topic that takes 100: %v", err)
	})
}

// Truncate deletes all records of a topic. A broker refuses that for a topic that is only compacted, so Truncate
// changes its policy meanwhile.
func Truncate(ctx context.Context, admin *kadm.Client, topic string) error {
	policy := func(value string) error {
		answers, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &value}}, topic)
		if err == nil {
			_, err = answers.On(topic, func(a *kadm.AlterConfigsResponse) error { return a.Err })
		}
		return err
	}
	if err := policy("compact,delete"); err != nil {
		return err
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	for { // the leader may not know the new policy yet
		answers, err := admin.DeleteRecords(ctx, ends.Offsets())
		if err == nil {
			err = answers.Error()
		}
		switch {
		case err == nil:
			return policy("compact")
		case !errors.Is(err, kerr.PolicyViolation) || ctx.Err() != nil:
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// PrintedReplay matches the arguments of a replay command that walpost prints.
var PrintedReplay = regexp.MustCompile("`walpost (replay --from [^ ]+ --to [^`]+)`")
