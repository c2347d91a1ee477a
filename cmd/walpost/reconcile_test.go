package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestWhatHidesRowsIsSeenWithoutARow changes publication or table while the relay streams and no row is written: only
// the relay's checks can find it. The halt is latched: it remains after the change is undone and after a restart, and
// every place shows the same sentence.
func TestWhatHidesRowsIsSeenWithoutARow(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, change, undo, says string
		from                     int // PostgreSQL
	}{
		{"publication dropped", "DROP PUBLICATION walpost", "CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')", "walpost does not exist", 14},
		{"table taken out", "ALTER PUBLICATION walpost DROP TABLE outbox", "ALTER PUBLICATION walpost ADD TABLE outbox", "does not carry public.outbox", 14},
		{"publish changed", "ALTER PUBLICATION walpost SET (publish = 'update')", "ALTER PUBLICATION walpost SET (publish = 'insert')", "does not publish inserts", 14},
		{"table renamed", "ALTER TABLE outbox RENAME TO outbox_old", "ALTER TABLE outbox_old RENAME TO outbox", "public.outbox does not exist", 14},
		{"table swapped", "ALTER TABLE outbox RENAME TO outbox_old; CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)", "DROP TABLE outbox; ALTER TABLE outbox_old RENAME TO outbox", "does not carry public.outbox", 14},
		{"row filter", "ALTER PUBLICATION walpost SET TABLE outbox WHERE (event_type <> 'x')", "ALTER PUBLICATION walpost SET TABLE outbox", "row filter", 15},
		{"column list", "ALTER PUBLICATION walpost SET TABLE outbox (id)", "ALTER PUBLICATION walpost SET TABLE outbox", "column list", 15},
		{"changed and put back between two looks", "ALTER PUBLICATION walpost SET (publish = 'update'); ALTER PUBLICATION walpost SET (publish = 'insert')", "", "the state record knows", 14},
	} {
		if cdctest.Postgres(t).Major() < c.from {
			continue // what does not exist there hides nothing
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "300ms"
			s.MustRun("init")
			r := s.StartRelay()
			s.InsertRows(5)
			s.WaitUntilConfirmed(20 * time.Second)
			s.Exec(c.change)
			r.WaitForLog(20*time.Second, `"halted"`)
			r.WaitForLog(3*time.Second, "publication or table changed")
			r.WaitForLog(3*time.Second, c.says)
			if c.undo != "" {
				s.Exec(c.undo)
			}
			var st *cdc.State
			cdctest.Eventually(t, 20*time.Second, func() error { // the relay first logs the halt, and writes it after it has delivered the received rows
				if st = s.StateRecord(); st.Halt == nil || !st.Halt.Latched || st.Halt.Risk.From == 0 || st.Halt.Risk.To < st.Halt.Risk.From {
					return fmt.Errorf("the halt is not latched with its range: %+v", st.Halt)
				}
				return nil
			})
			sentence := st.Halt.Halt().Error()
			if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503") || !strings.Contains(ready, sentence) {
				t.Errorf("/readyz: %s, want\n%s", ready, sentence)
			}
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			r = s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			if ready := r.Get(t, "/readyz"); !strings.Contains(ready, sentence) {
				t.Errorf("/readyz after a restart: %s, want\n%s", ready, sentence)
			}
			parts, status := st.Halt.Halt().Parts(), s.Status()
			if lines := fmt.Sprintf("blocked    %s\nmeans      %s\nrun        %s\n", parts[0][1], parts[1][1], parts[2][1]); !strings.Contains(status, lines) {
				t.Errorf("status:\n%s\nwant\n%s", status, lines)
			}
			s.WaitUntilFree(10 * time.Second) // a halted relay does not keep it
		})
	}
}

// TestColumns: an added column changes nothing. A needed column that is gone halts the relay at once, and the halt ends
// with its cause.
func TestColumns(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "300ms"
	s.MustRun("init")
	r := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	s.Exec("ALTER TABLE outbox ADD COLUMN more text DEFAULT 'x'")
	s.WaitForEvent(s.InsertRow())
	s.Exec("ALTER TABLE outbox RENAME COLUMN event_type TO kind")
	r.WaitForLog(20*time.Second, `"halted"`)
	r.WaitForLog(40*time.Second, `the table has no column \"event_type\"`) // by the next look where the first one fell into the change, and called it a column list
	s.Exec("ALTER TABLE outbox RENAME COLUMN kind TO event_type")
	if err := r.Stop(); err != nil { // it would go on within 30 s
		t.Fatal(err)
	}
	r = s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	s.Exec("ALTER TABLE outbox DROP CONSTRAINT outbox_event_type, ALTER COLUMN event_type TYPE int USING 1")
	r.WaitForLog(20*time.Second, `column \"event_type\" has the type integer that cannot be used`)
}

// TestSlotThatIsLostIsNamedWithItsGap: the server invalidates the slot, because it may keep no more WAL for it, or
// because no relay has read it for too long.
func TestSlotThatIsLostIsNamedWithItsGap(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	for _, c := range []struct {
		cause    string
		settings map[string]string
		from     int // PostgreSQL
	}{
		{"wal_removed", map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}, 14},
		{"idle_timeout", map[string]string{"idle_replication_slot_timeout": "1s"}, 18},
	} {
		if cdctest.Postgres(t).Major() < c.from {
			continue // it cannot happen there
		}
		t.Run(c.cause, func(t *testing.T) {
			t.Parallel()
			server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: c.settings})
			if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
				t.Fatal(err)
			}
			s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
			s.MustRun("init")
			r := s.StartRelay()
			s.InsertRows(5)
			s.WaitUntilConfirmed(20 * time.Second)
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			s.InsertRows(5)
			s.Exec("CREATE TABLE other (t text)")
			cdctest.Eventually(t, time.Minute, func() error {
				s.Exec("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
				s.Exec("SELECT pg_switch_wal()")
				s.Exec("CHECKPOINT")
				if is := s.Query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); is != "lost" {
					return fmt.Errorf("wal_status %s", is)
				}
				return nil
			})
			r = s.StartRelay()
			r.WaitForLog(20*time.Second, "is lost (wal_status lost")
			if server.Major() >= 17 {
				r.WaitForLog(3*time.Second, "invalidation_reason "+c.cause)
			}
			s.MustRefuse("is lost", "adopt")
			out := s.MustRun("adopt", "--create-slot")
			for _, text := range []string{"drop it, its WAL is lost", "may be missing in Kafka", "walpost replay --from"} {
				if !strings.Contains(out, text) {
					t.Errorf("adopt does not say %q:\n%s", text, out)
				}
			}
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			s.StartRelay()
			s.WaitForEvent(s.InsertRow())
		})
	}
}

// TestStateTopicThatIsNotToBeTrusted: a damaged state topic is a halt with one clear sentence, and never a start from
// zero.
func TestStateTopicThatIsNotToBeTrusted(t *testing.T) {
	t.Parallel()
	admin := func(s *testbed) *kadm.Client {
		client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
		if err != nil {
			s.T.Fatal(err)
		}
		s.T.Cleanup(client.Close)
		return kadm.NewClient(client)
	}
	topic := func(s *testbed) string { return "walpost.state." + s.Name }
	value := func(s string) *string { return &s }
	for _, c := range []struct {
		name   string
		change func(s *testbed)
		says   string
		adopt  bool // goes on from the slot
	}{
		{"deleted", func(s *testbed) { s.deleteTopic(topic(s)) }, "no state record for pipeline", true},
		{"emptied", func(s *testbed) {
			if err := e2e.Truncate(s.T.Context(), admin(s), topic(s)); err != nil {
				s.T.Fatal(err)
			}
		}, "no state record for pipeline", true},
		{"lost its tail", func(s *testbed) {
			st := s.StateRecord()
			st.Covered, st.CommitLSN, st.Ordinal = st.Covered-1000, 0, 0
			s.RewriteStateRecord(func(newest *cdc.State) { *newest = *st; newest.Epoch += 2 })
		}, "the slot was re-created or advanced, or the state topic lost its tail", true},
		{"garbage", func(s *testbed) {
			client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
			if err != nil {
				s.T.Fatal(err)
			}
			defer client.Close()
			if err := client.ProduceSync(s.T.Context(), &kgo.Record{Topic: topic(s), Key: []byte("k"), Value: []byte("{")}).FirstErr(); err != nil {
				s.T.Fatal(err)
			}
		}, "cannot be read", false},
		{"somebody else's", func(s *testbed) {
			client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
			if err != nil {
				s.T.Fatal(err)
			}
			defer client.Close()
			if err := client.ProduceSync(s.T.Context(), &kgo.Record{Topic: topic(s), Key: []byte("k"), Value: []byte(`{"a": 1}`)}).FirstErr(); err != nil {
				s.T.Fatal(err)
			}
		}, "it has no version, so walpost did not write it", false},
		{"another pipeline's", func(s *testbed) { s.RewriteStateRecord(func(st *cdc.State) { st.Pipeline = "q" }) }, `belongs to pipeline \"q\"`, false},
		{"another slot's", func(s *testbed) { s.RewriteStateRecord(func(st *cdc.State) { st.Slot = "walpost_of_others" }) }, "two pipelines of one name share state and transactional id", false},
		{"auto-created with deletion", func(s *testbed) {
			s.deleteTopic(topic(s))
			cdctest.Eventually(s.T, 30*time.Second, func() error {
				_, err := admin(s).CreateTopic(s.T.Context(), 1, 1, map[string]*string{"cleanup.policy": value("delete")}, topic(s))
				return err
			})
		}, "cleanup.policy=delete", false},
		{"auto-created with partitions", func(s *testbed) {
			s.deleteTopic(topic(s))
			cdctest.Eventually(s.T, 30*time.Second, func() error {
				_, err := admin(s).CreateTopic(s.T.Context(), 3, 1, map[string]*string{"cleanup.policy": value("compact")}, topic(s))
				return err
			})
		}, "has 3 partitions", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := delivered(t)
			c.change(s)
			r := s.StartRelay()
			r.WaitForLog(20*time.Second, `"halted"`)
			r.WaitForLog(3*time.Second, c.says)
			s.InsertRows(3)
			if n := len(cdctest.ReadAll(t, s.Brokers, s.Topic)); n != 20 {
				t.Errorf("%d records, the halted relay published", n)
			}
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
			if !c.adopt {
				return
			}
			s.MustRun("adopt")
			s.StartRelay()
			s.WaitForEvent(s.InsertRow())
			if n := len(s.EventIDs()); n != 24 {
				t.Errorf("%d events, want 24: the slot had kept what was not delivered", n)
			}
		})
	}
}

// TestTwoPipelinesOfOneName have one transactional id. The second one must say so before it fences the first.
func TestTwoPipelinesOfOneName(t *testing.T) {
	t.Parallel()
	s := newTestbed(t)
	s.Env["WALPOST_DELIVERY"] = "exactly_once"
	s.MustRun("init")
	first := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	second := s.Copy()
	second.Env["WALPOST_SOURCE_SLOT"] = "b" + s.Slot()
	s.Exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", second.Slot())
	r := second.StartRelay()
	r.WaitForLog(20*time.Second, "two pipelines of one name share state and transactional id")
	s.WaitForEvent(s.InsertRow())
	if strings.Contains(first.Log.String(), "session ended") {
		t.Error("the first relay was fenced")
	}
}
