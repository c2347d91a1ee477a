package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
)

// delivered has a pipeline that has published rows and was stopped.
func delivered(t *testing.T) *stage {
	t.Helper()
	s := newStage(t)
	s.must("init")
	r := s.start()
	s.insert(20)
	s.confirmed(20 * time.Second)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	return s
}

// rewrite changes the state record behind the relay's back.
func (s *stage) rewrite(change func(*cdc.State)) {
	s.t.Helper()
	cfgs, err := config.Load("", s.getenv)
	if err != nil {
		s.t.Fatal(err)
	}
	st := s.state()
	st.Epoch++
	change(st)
	admin, err := kafka.NewSink(cfgs[0], nil).Admin(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.WriteState(s.t.Context(), st); err != nil {
		s.t.Fatal(err)
	}
}

// TestReconcileHalts changes one side behind the relay's back. Each time the relay halts with a sentence that says what was
// found and what to run, publishes nothing, confirms nothing, and gives the slot back.
func TestReconcileHalts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(s *stage)
		says   []string
	}{
		{"no state record", func(s *stage) {
			s.deleteTopic("walpost.state." + s.pipeline)
		}, []string{"no state record", "walpost init"}},
		{"init did not finish", func(s *stage) { s.rewrite(func(st *cdc.State) { st.Phase = cdc.PhaseCreating }) }, []string{"did not finish", "`walpost init` again"}},
		{"another database", func(s *stage) { s.rewrite(func(st *cdc.State) { st.SystemID = "7" }) }, []string{"system id 7", "another database"}},
		{"another timeline", func(s *stage) { s.rewrite(func(st *cdc.State) { st.Timeline = 7 }) }, []string{"timeline 7", "stale primary"}},
		{"state ahead of the server", func(s *stage) { s.rewrite(func(st *cdc.State) { st.Covered += 1 << 40 }) }, []string{"the server's WAL ends at", "restored backup"}},
		{"slot missing", func(s *stage) { s.exec("SELECT pg_drop_replication_slot($1)", slot(s)) }, []string{"does not exist", "walpost adopt --create-slot"}},
		{"slot re-created", func(s *stage) {
			s.exec("SELECT pg_drop_replication_slot($1)", slot(s))
			s.insert(5) // the rows that nobody would ever see
			s.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot(s))
		}, []string{"re-created or advanced", "may be missing"}},
		{"slot advanced", func(s *stage) {
			s.insert(5)
			s.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", slot(s))
		}, []string{"re-created or advanced", "may be missing"}},
		{"publication changed and changed back", func(s *stage) {
			s.exec("ALTER PUBLICATION walpost SET (publish = 'update')")
			s.insert(5)
			s.exec("ALTER PUBLICATION walpost SET (publish = 'insert')")
		}, []string{"publication or table changed", "may never have been streamed"}},
		{"table taken out of the publication and put back", func(s *stage) {
			s.exec("ALTER PUBLICATION walpost DROP TABLE outbox")
			s.insert(5)
			s.exec("ALTER PUBLICATION walpost ADD TABLE outbox")
		}, []string{"publication or table changed"}},
		{"table renamed and replaced", func(s *stage) {
			s.exec("ALTER TABLE outbox RENAME TO outbox_old")
			s.exec("CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)")
		}, []string{"does not carry public.outbox", "ADD TABLE"}},
		{"publication dropped", func(s *stage) { s.exec("DROP PUBLICATION walpost") }, []string{"walpost does not exist", "walpost init"}},
		{"row filter", func(s *stage) {
			if cdctest.Postgres(s.t).Major() < 15 {
				s.exec("ALTER PUBLICATION walpost SET (publish = 'delete')") // 14 has no filters; another way to hide rows
				return
			}
			s.exec("ALTER PUBLICATION walpost SET TABLE outbox WHERE (event_type <> 'x')")
		}, []string{"ALTER PUBLICATION"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			c.change(s)
			confirmed := s.query("SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = $1", slot(s))
			r := s.start()
			r.says(20*time.Second, `"halted"`)
			for _, text := range c.says {
				r.says(time.Second, text)
			}
			s.insert(5)
			if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "503") || !strings.Contains(ready, c.says[0]) {
				t.Errorf("/readyz does not say the same sentence: %s", ready)
			}
			if status := r.get(t, "/status"); !strings.Contains(status, `"role":"halted"`) {
				t.Errorf("/status does not say that it is halted: %s", status)
			}
			if status := s.must("status"); !strings.Contains(status, c.says[0]) {
				t.Errorf("walpost status does not say it: %s", status)
			}
			if now := s.query("SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = $1", slot(s)); now != confirmed {
				t.Errorf("the halted relay moved the slot from %s to %s", confirmed, now)
			}
			if n := len(cdctest.ReadAll(t, s.brokers, s.topic)); n != 20 {
				t.Errorf("the halted relay published: %d records instead of 20", n)
			}
			if active := s.query("SELECT coalesce(bool_or(active), false)::text FROM pg_replication_slots WHERE slot_name = $1", slot(s)); active != "false" {
				t.Error("the halted relay keeps the slot")
			}
		})
	}
}

// TestInitGoesOnWhereItStopped runs init at every place where an earlier one can have ended.
func TestInitGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	if out := s.must("init", "--dry-run"); !strings.Contains(out, "CREATE PUBLICATION") || !strings.Contains(out, "pg_create_logical_replication_slot") {
		t.Errorf("the dry run does not show its SQL:\n%s", out)
	}
	if n := s.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]); n != "0" {
		t.Fatal("the dry run made a slot")
	}
	s.must("init")
	again := s.must("init")
	for _, text := range []string{"LOGIN and REPLICATION", "there, with the columns", "there, it carries", "there, as configured", "covers"} {
		if !strings.Contains(again, text) {
			t.Errorf("the second init does not say %q:\n%s", text, again)
		}
	}
	if strings.Contains(again, "create it") || strings.Contains(again, "s3cret") {
		t.Errorf("the second init creates again, or tells the password:\n%s", again)
	}
	s.rewrite(func(st *cdc.State) { st.Phase = cdc.PhaseCreating }) // killed between slot and record
	if out := s.must("init"); !strings.Contains(out, "begin again") {
		t.Errorf("init does not say that it begins again:\n%s", out)
	}
	s.insert(3)
	s.start()
	cdctest.Consume(t, s.brokers, s.topic, 20*time.Second, cdctest.AtLeast(3))
}

// TestRowThatKafkaCannotTakeHalts puts a row between others that can never be published. What is before it arrives, nothing
// behind it does, it is named, and once it can be taken the rest goes on, with nothing twice.
func TestRowThatKafkaCannotTakeHalts(t *testing.T) {
	t.Parallel()
	type poison struct {
		name   string
		column string
		value  string
		says   string
		fix    func(*stage)
	}
	for _, c := range []poison{
		{"aggregate type that is not listed", "aggregate_type", "'invoice'", "kafka.aggregate_types", func(s *stage) { s.env["WALPOST_KAFKA_AGGREGATE_TYPES"] = "order,invoice" }},
		{"larger than the topic takes", "payload", "jsonb_build_object('text', repeat('y', 5000))", "max.message.bytes", func(s *stage) { s.limit("1048588") }},
		{"empty key", "aggregate_id", "''", "aggregate_id is empty", nil},
		{"topic that Kafka does not allow", "event_type", "'a b'", "does not allow", func(s *stage) { s.env["WALPOST_KAFKA_RENAME"] = "{'a b': OrderPaid}" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			topic := s.topic
			if c.column == "event_type" {
				s.env["WALPOST_KAFKA_TOPIC"] = s.pipeline + ".{aggregate_type}.{event_type}"
				topic = s.topic + ".OrderPaid"
				cdctest.CreateTopic(t, s.brokers, topic, 3)
			}
			s.must("init")
			s.exec("ALTER TABLE outbox DROP CONSTRAINT outbox_aggregate_id_check")
			if c.says == "max.message.bytes" {
				s.limit("2000")
			}
			if c.column == "aggregate_type" {
				cdctest.CreateTopic(t, s.brokers, s.pipeline+".invoice", 1)
			}
			s.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
				SELECT gen_random_uuid(), 'order', 'k' || i, 'OrderPaid', '{}' FROM generate_series(1, 10) i`)
			columns := map[string]string{"aggregate_type": "'order'", "aggregate_id": "'k'", "event_type": "'OrderPaid'", "payload": "'{}'"}
			columns[c.column] = c.value
			s.exec(fmt.Sprintf(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ('00000000-0000-7000-8000-00000000dead', %s, %s, %s, %s)`,
				columns["aggregate_type"], columns["aggregate_id"], columns["event_type"], columns["payload"]))
			s.insert(10)
			for range 2 { // a restart does not loop past it
				r := s.start()
				r.says(20*time.Second, `"halted"`)
				r.says(time.Second, c.says)
				r.says(time.Second, "00000000-0000-7000-8000-00000000dead")
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
				if n := len(cdctest.ReadAll(t, s.brokers, topic)); n != 10 {
					t.Fatalf("%d records, want the 10 before the row that cannot be published", n)
				}
			}
			if c.fix == nil {
				return
			}
			c.fix(s)
			s.start()
			want := 21
			if c.column == "aggregate_type" {
				want = 20
			}
			cdctest.Consume(t, s.brokers, topic, 20*time.Second, cdctest.AtLeast(want))
			s.confirmed(10 * time.Second)
			if n := len(cdctest.ReadAll(t, s.brokers, topic)); n != want {
				t.Errorf("%d records, want %d, each once", n, want)
			}
		})
	}
}

// limit sets the topic's max.message.bytes and returns once the broker goes by it. A broker answers before it does; it takes
// changes over in their order, so the limit of a second topic, set later, shows it.
func (s *stage) limit(bytes string) {
	s.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	set := func(topic, bytes string) {
		resp, err := admin.AlterTopicConfigs(s.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, topic)
		if err != nil || resp[0].Err != nil {
			s.t.Fatal(err, resp)
		}
	}
	later := "limit-" + strings.ToLower(rand.Text())
	cdctest.CreateTopic(s.t, s.brokers, later, 1)
	set(s.topic, bytes)
	set(later, "100")
	cdctest.Eventually(s.t, 20*time.Second, func() error {
		err := client.ProduceSync(s.t.Context(), &kgo.Record{Topic: later, Value: make([]byte, 5000)}).FirstErr()
		if errors.Is(err, kerr.MessageTooLarge) {
			return nil
		}
		return fmt.Errorf("5000 bytes on a topic that takes 100: %v", err)
	})
}

// TestChangesUnderARunningRelay changes what the relay needs while it streams. It halts before anything is skipped.
func TestChangesUnderARunningRelay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*stage)
		says   string
	}{
		"publication dropped": {func(s *stage) {
			s.exec("DROP PUBLICATION walpost")
			s.insert(5)
		}, "publication"},
		"table renamed": {func(s *stage) {
			s.exec("ALTER TABLE outbox RENAME TO outbox_old")
			s.exec("INSERT INTO outbox_old VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}')")
		}, "public.outbox does not exist"},
		"column taken away": {func(s *stage) {
			s.exec("ALTER TABLE outbox DROP COLUMN event_type CASCADE")
			s.exec("INSERT INTO outbox (id, aggregate_type, aggregate_id, payload) VALUES (gen_random_uuid(), 'order', 'k', '{}')")
		}, "source.columns.event_type"},
		"slot's walsender ended and the slot advanced": {func(s *stage) {
			s.exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"])
			cdctest.Eventually(s.t, 10*time.Second, func() error { // the relay comes back within a moment: be quicker
				conn := s.connect()
				defer func() { _ = conn.Close(context.Background()) }()
				if _, err := conn.Exec(s.t.Context(), "INSERT INTO outbox VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}')"); err != nil {
					return err
				}
				if _, err := conn.Exec(s.t.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.env["WALPOST_SOURCE_SLOT"]); err != nil {
					_, _ = conn.Exec(s.t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"])
					return err
				}
				return nil
			})
		}, "re-created or advanced"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.env["WALPOST_SOURCE_CHECK_INTERVAL"] = "200ms"
			s.must("init")
			r := s.start()
			s.insert(5)
			s.confirmed(20 * time.Second)
			c.change(s)
			r.says(20*time.Second, `"halted"`)
			r.says(time.Second, c.says)
		})
	}
}
