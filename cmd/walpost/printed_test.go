package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
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

// provoked is a halt: what brings it about, and what its sentence says to do.
type provoked struct {
	name string
	// found is the beginning of the halt's text as it stands in the source.
	found string
	// change brings it about behind a relay that is stopped; live, under one that streams.
	change, live func(s *testbed)
	// fix does what the sentence asks for in other words than a walpost command: SQL, or another configuration.
	fix func(s *testbed)
	// run names, in their order, those printed commands that are run, by their first words.
	run []string
	// refused names the first words of a printed command that goes as far as it can, and then asks for the next.
	refused string
	// lost is how many rows of the table are given up, and said to be.
	lost int
	// server are settings of a server that this halt needs for itself.
	server map[string]string
	// database are options of CREATE DATABASE.
	database string
	// without is true where nothing was delivered before.
	without bool
}

func sqls(statements ...string) func(*testbed) {
	return func(s *testbed) {
		for _, sql := range statements {
			s.Exec(sql)
		}
	}
}

func each(all ...func(*testbed)) func(*testbed) {
	return func(s *testbed) {
		for _, f := range all {
			f(s)
		}
	}
}

func insert(n int) func(*testbed) { return func(s *testbed) { s.InsertRows(n) } }

func setting(key, value string) func(*testbed) { return func(s *testbed) { s.Env[key] = value } }

func record(change func(*cdc.State)) func(*testbed) {
	return func(s *testbed) { s.RewriteStateRecord(change) }
}

func onSlot(sql string) func(*testbed) { return func(s *testbed) { s.Exec(sql, s.Slot()) } }

const (
	dropSlot = "SELECT pg_drop_replication_slot($1)"
	makeSlot = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"
)

// provokedHalts are the halts of a relay that reads the WAL.
var provokedHalts = []provoked{
	{name: "never prepared", found: "no state record for pipeline %q, and no replication slot", without: true, run: []string{"init"}},
	{name: "state topic deleted", found: "no state record for pipeline %q, although replication slot", change: func(s *testbed) { s.deleteTopic("walpost.state." + s.Name); s.InsertRows(3) }, run: []string{"adopt"}},
	{name: "init did not finish", found: "the state record of pipeline %q says that `walpost init` did not finish", change: record(func(st *cdc.State) { st.Phase = cdc.PhaseCreating }), run: []string{"init"}},
	{name: "another server, and a new pipeline for it", found: "the state record is of the PostgreSQL with system id", change: record(func(st *cdc.State) { st.SystemID = "7" }), fix: func(s *testbed) {
		s.Env["WALPOST_PIPELINE"] += "-new" // for the new server
		s.Env["WALPOST_SOURCE_SLOT"] += "_new"
	}, run: []string{"init"}},
	{name: "another server takes the place", found: "the state record is of the PostgreSQL with system id", change: each(record(func(st *cdc.State) { st.SystemID = "7" }), insert(3)), run: []string{"adopt --new-server"}},
	{name: "another server takes the place, without the slot", found: "the state record is of the PostgreSQL with system id", change: each(record(func(st *cdc.State) { st.SystemID = "7" }), onSlot(dropSlot)), run: []string{"adopt --new-server --create-slot"}},
	{name: "a copied state topic", found: "the state record was written to Kafka cluster", change: func(s *testbed) {
		s.InsertRows(3)
		st := s.StateRecord()
		st.Epoch, st.Cluster = st.Epoch+1, "another"
		copied, err := json.Marshal(st)
		if err != nil {
			s.T.Fatal(err)
		}
		s.produceRecord("walpost.state."+s.Name, string(copied))
	}, run: []string{"adopt"}},
	{name: "slot renamed", found: "the state record of pipeline %q is of slot", change: func(s *testbed) {
		s.InsertRows(3)
		s.Exec("SELECT pg_copy_logical_replication_slot($1, $2)", s.Slot(), s.Slot()+"_b")
		s.Exec(dropSlot, s.Slot())
		s.Env["WALPOST_SOURCE_SLOT"] += "_b"
	}, run: []string{"adopt"}},
	{name: "publication renamed", found: "the configuration has changed and nothing was read under the new name", change: each(sqls("ALTER PUBLICATION walpost RENAME TO orders"), setting("WALPOST_SOURCE_PUBLICATION", "orders"), insert(3)), run: []string{"adopt"}},
	{name: "stale primary", found: "the state record is of timeline %d, the server is on timeline %d", change: record(func(st *cdc.State) { st.Timeline = 7 }), run: []string{"adopt"}},
	{name: "state ahead of the server", found: "the state record knows commits up to", change: each(record(func(st *cdc.State) { st.Covered += 1 << 40 }), insert(3)), run: []string{"adopt"}},
	{name: "slot missing", found: "replication slot %q does not exist", change: each(insert(3), onSlot(dropSlot)), run: []string{"adopt --create-slot", "replay"}},
	{name: "slot missing, and rows came since", found: "replication slot %q does not exist", change: each(onSlot(dropSlot), insert(3)), run: []string{"adopt --create-slot", "replay"}},
	{
		name: "slot lost", found: "replication slot %q is lost", server: map[string]string{"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"},
		change: func(s *testbed) {
			s.InsertRows(3)
			s.Exec("CREATE TABLE other (text text)")
			cdctest.Eventually(s.T, 30*time.Second, func() error {
				s.Exec("INSERT INTO other SELECT repeat(gen_random_uuid()::text, 100) FROM generate_series(1, 5000)")
				s.Exec("SELECT pg_switch_wal()")
				s.Exec("CHECKPOINT")
				if status := s.Query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); status != "lost" {
					return fmt.Errorf("the slot is %s", status)
				}
				return nil
			})
		}, run: []string{"adopt --create-slot", "replay"},
	},
	{name: "slot advanced", found: "slot %q has confirmed", change: each(insert(3), onSlot("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())")), run: []string{"adopt", "replay"}},
	{name: "slot made again", found: "slot %q has confirmed", change: each(onSlot(dropSlot), insert(3), onSlot(makeSlot)), run: []string{"adopt", "replay"}},
	{name: "changed and changed back", found: "publication or table changed", change: sqls("ALTER PUBLICATION walpost SET (publish = 'update')", aRow, "ALTER PUBLICATION walpost SET (publish = 'insert')"), run: []string{"adopt", "replay"}},
	{name: "taken out and put back", found: "publication or table changed", change: sqls("ALTER PUBLICATION walpost DROP TABLE outbox", aRow, "ALTER PUBLICATION walpost ADD TABLE outbox"), run: []string{"adopt", "replay"}},
	{name: "taken out", found: "publication or table changed", change: sqls("ALTER PUBLICATION walpost DROP TABLE outbox", aRow), fix: sqls("ALTER PUBLICATION walpost ADD TABLE outbox"), run: []string{"adopt", "replay"}},
	{name: "publication dropped", found: "publication or table changed", change: sqls("DROP PUBLICATION walpost", aRow), refused: "init", run: []string{"adopt", "replay"}},
	{name: "publication dropped under a relay", found: "publication", live: sqls("DROP PUBLICATION walpost", aRow), refused: "init", run: []string{"adopt", "replay"}},
	{
		name: "a child by inheritance", found: "publication or table changed", change: sqls("CREATE TABLE kid () INHERITS (outbox)", aRowOf("kid")),
		fix: sqls(`ALTER TABLE kid NO INHERIT "public"."outbox"`, `INSERT INTO "public"."outbox" SELECT * FROM kid`), run: []string{"adopt", "replay"},
	},
	{name: "table replaced", found: "publication or table changed", change: sqls("ALTER TABLE outbox RENAME TO outbox_old", "CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)", aRow), fix: sqls("ALTER PUBLICATION walpost SET TABLE outbox"), run: []string{"adopt", "replay"}},
	{name: "table renamed under a relay", found: "publication or table changed", live: sqls("ALTER TABLE outbox RENAME TO outbox_old", aRowOf("outbox_old")), fix: sqls("ALTER TABLE outbox_old RENAME TO outbox"), run: []string{"adopt", "replay"}},
	{name: "table replaced before its rows were read", found: "publication or table changed", change: sqls(aRow, "ALTER TABLE outbox RENAME TO outbox_old", aRowOf("outbox_old"), "CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)", "INSERT INTO outbox SELECT * FROM outbox_old"), fix: sqls("ALTER PUBLICATION walpost SET TABLE outbox"), run: []string{"adopt", "replay"}},
	{name: "a column of another name", found: "walpost cannot read the rows of the outbox like this", change: setting("WALPOST_SOURCE_COLUMNS_PAYLOAD", "body"), fix: setting("WALPOST_SOURCE_COLUMNS_PAYLOAD", "payload")},
	{name: "role without rights", found: "the relay cannot stream like this", change: func(s *testbed) { s.Exec("ALTER ROLE relay_" + s.Slot() + " NOREPLICATION") }, fix: func(s *testbed) { s.Exec("ALTER ROLE relay_" + s.Slot() + " REPLICATION") }},
	{name: "role dropped", found: "the server does not accept the relay's role from this host", change: func(s *testbed) { s.Exec("DROP ROLE relay_" + s.Slot()) }, run: []string{"init"}},
	{name: "topic missing", found: "topic %s does not exist", change: each(func(s *testbed) { s.deleteTopic(s.Topic) }, insert(3)), run: []string{"init"}, lost: 20}, // deleted with the topic
	{name: "dead letter topic missing", found: "the dead letter topic %s does not exist", change: each(setting("WALPOST_POISON_POLICY", "dead_letter"), insert(3)), run: []string{"init"}},
	{name: "a row too large for us", found: "outbox row %q cannot be read", live: func(s *testbed) {
		s.Exec("ALTER TABLE outbox DROP CONSTRAINT outbox_payload_size")
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('t', repeat('x', 2000000)))`)
		s.InsertRows(3)
	}, run: []string{"skip --to"}, lost: 1},
	{name: "a row of a type that is not listed", found: "outbox row %q at %s/%d cannot be published", live: func(s *testbed) {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', 'k', 'OrderPaid', '{}')`)
		s.InsertRows(3)
	}, run: []string{"skip --to"}, lost: 1},
	{name: "a poison row among others of its transaction", found: "outbox row %q at %s/%d cannot be published", live: func(s *testbed) {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) SELECT gen_random_uuid(), CASE i WHEN 3 THEN 'invoice' ELSE 'order' END, 'k', 'OrderPaid', '{}' FROM generate_series(1, 5) i`)
		s.InsertRows(3)
	}, run: []string{"skip --to"}, lost: 3}, // two stand before it and are published
	{name: "a row that PostgreSQL cannot decode", found: "PostgreSQL cannot decode the change at", database: "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0", live: func(s *testbed) {
		s.Exec("ALTER TABLE outbox DROP CONSTRAINT outbox_payload_object, DROP CONSTRAINT outbox_payload_size, ALTER COLUMN payload TYPE text")
		s.insertTextRows(3)
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', chr(200))`)
		s.insertTextRows(3)
	}, run: []string{"skip --to"}, lost: 1},
	{name: "a branch that the server never had", found: "this server left the common history earlier", change: each(record(func(st *cdc.State) { st.Timeline = 0 }), insert(3)), run: []string{"adopt"}},
	{name: "the record of another pipeline, and a new one", found: "the state record belongs to pipeline", change: record(func(st *cdc.State) { st.Pipeline = "other" }), fix: func(s *testbed) {
		s.Env["WALPOST_PIPELINE"] += "-new"
		s.Env["WALPOST_SOURCE_SLOT"] += "_new"
	}, run: []string{"init"}},
	{name: "another history", found: "this server has another history", change: func(s *testbed) {
		s.InsertRows(3)
		s.RewriteStateRecord(func(st *cdc.State) { st.CommitLSN, st.Ordinal, st.LastXID = st.Covered, 1, 1 })
	}, run: []string{"adopt"}},
	{name: "state topic that is not compacted", found: "Kafka would delete the delivered position", change: func(s *testbed) { s.setCleanupPolicy("walpost.state."+s.Name, "delete") }, fix: func(s *testbed) { s.setCleanupPolicy("walpost.state."+s.Name, "compact") }},
	{name: "dead letter topic that is not compacted", found: "Kafka would delete dead letters", change: func(s *testbed) {
		s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
		s.MustRun("init")
		s.setCleanupPolicy("walpost.dlq."+s.Name, "delete")
	}, fix: func(s *testbed) { s.setCleanupPolicy("walpost.dlq."+s.Name, "compact") }},
	{name: "dead letter topic with two partitions", found: "the order of dead letters would be lost", change: func(s *testbed) {
		s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
		cdctest.CreateTopic(s.T, s.Brokers, "walpost.dlq."+s.Name, 2)
	}, fix: func(s *testbed) { s.deleteTopic("walpost.dlq." + s.Name) }, run: []string{"init"}},
	{name: "somebody else's record in the state topic", found: "the delivered position is not certain", change: each(insert(3), func(s *testbed) { s.produceRecord("walpost.state."+s.Name, "hello") }), fix: func(s *testbed) { s.deleteTopic("walpost.state." + s.Name) }, run: []string{"adopt"}},
	{name: "a parameter that nobody knows", found: "remove it from the URL", change: func(s *testbed) { s.Env["WALPOST_SOURCE_URL"] += "&schema=public" }, fix: func(s *testbed) {
		s.Env["WALPOST_SOURCE_URL"] = strings.TrimSuffix(s.Env["WALPOST_SOURCE_URL"], "&schema=public")
	}},
	{name: "a parameter with a wrong value", found: "correct it in the URL", change: func(s *testbed) { s.Env["WALPOST_SOURCE_URL"] += "&work_mem=much" }, fix: func(s *testbed) {
		s.Env["WALPOST_SOURCE_URL"] = strings.TrimSuffix(s.Env["WALPOST_SOURCE_URL"], "&work_mem=much")
	}},
	{name: "state topic with two partitions", found: "topic %s has %d partitions", change: func(s *testbed) {
		s.InsertRows(3)
		s.deleteTopic("walpost.state." + s.Name)
		cdctest.CreateTopic(s.T, s.Brokers, "walpost.state."+s.Name, 2)
	}, fix: func(s *testbed) { s.deleteTopic("walpost.state." + s.Name) }, run: []string{"adopt"}},
}

// insertTextRows does what InsertRows does, for a payload of type text.
func (s *testbed) insertTextRows(n int) {
	s.T.Helper()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}' FROM generate_series(1, $1::int)`, n)
}

// setCleanupPolicy sets a topic's cleanup.policy.
func (s *testbed) setCleanupPolicy(topic, policy string) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...))
	if err != nil {
		s.T.Fatal(err)
	}
	defer client.Close()
	resp, err := kadm.NewClient(client).AlterTopicConfigs(s.T.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &policy}}, topic)
	if err != nil || resp[0].Err != nil {
		s.T.Fatal(err, resp)
	}
}

// produceRecord writes one record to a topic.
func (s *testbed) produceRecord(topic, value string) {
	s.T.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(s.Brokers...), kgo.DefaultProduceTopic(topic))
	if err != nil {
		s.T.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(s.T.Context(), &kgo.Record{Key: []byte("k"), Value: []byte(value)}).FirstErr(); err != nil {
		s.T.Fatal(err)
	}
}

func aRowOf(table string) string {
	return "INSERT INTO " + table + " (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}')"
}

var aRow = aRowOf("outbox")

// TestPrintedCommandsEndEachHalt provokes each halt, runs the commands that its sentence prints, as they are printed,
// and checks that the halt has ended: every row of the table is in Kafka, except those that were given up and counted.
func TestPrintedCommandsEndEachHalt(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	for _, c := range provokedHalts {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var s *testbed
			if c.server != nil {
				server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: c.server})
				if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
					t.Fatal(err)
				}
				s = newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
			} else {
				s = newTestbedOn(t, cdctest.Database(t, c.database), cdctest.Kafka(t))
			}
			s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "100ms"
			s.Env["WALPOST_SOURCE_MAX_ROW_BYTES"] = "1MiB"
			if c.without {
				s.Exec("CREATE ROLE relay_" + s.Slot() + " LOGIN REPLICATION PASSWORD '" + cdctest.Canary + "'")
			} else {
				s.MustRun("init")
				r := s.StartRelay()
				s.InsertRows(20)
				s.WaitUntilConfirmed(20 * time.Second)
				if c.live != nil {
					c.live(s)
				} else if err := r.Stop(); err != nil {
					t.Fatal(err)
				}
				if c.live != nil {
					s.wantHalt(r, c)
					return
				}
			}
			if c.change != nil {
				c.change(s)
			}
			s.wantHalt(s.StartRelay(), c)
		})
	}
}

// wantHalt waits until the relay is halted, and does what the halt says.
func (s *testbed) wantHalt(r *e2e.Relay, c provoked) {
	s.T.Helper()
	sentence := haltSentence(r)
	if literal, _, _ := strings.Cut(c.found, "%"); !strings.Contains(sentence, literal) {
		s.T.Fatalf("the halt is another one: %s", sentence)
	}
	if ready := r.Get(s.T, "/readyz"); !strings.HasPrefix(ready, "503") || !strings.Contains(ready, sentence[:20]) {
		s.T.Errorf("/readyz does not say the sentence: %s", ready)
	}
	if status := s.Status(); !strings.Contains(status, sentence[:20]) {
		s.T.Errorf("status does not say the sentence:\n%s", status)
	}
	if err := r.Stop(); err != nil {
		s.T.Fatal(err)
	}
	if c.refused != "" {
		args := s.findCommands(sentence, c.refused)
		if out, err := s.Run(args...); err == nil || !strings.Contains(err.Error(), "`walpost "+c.run[0]) {
			s.T.Errorf("walpost %s: %v, want an error that says %q\n%s", c.refused, err, c.run[0], out)
		}
	}
	if c.fix != nil {
		c.fix(s)
	}
	said := ""
	for _, command := range c.run {
		out := s.MustRun(s.findCommands(sentence, command)...)
		said += out
	}
	if m := regexp.MustCompile(`(\d+) outbox rows of 1 transactions are given up for good`).FindStringSubmatch(said); c.lost > 0 && c.run[0] == "skip --to" && !strings.Contains(said, "the one transaction that PostgreSQL cannot decode") {
		if m == nil {
			s.T.Errorf("skip does not say how many rows are given up:\n%s", said)
		} else if n, _ := strconv.Atoi(m[1]); n < c.lost {
			s.T.Errorf("skip says that %d rows are given up, at most, and %d are", n, c.lost)
		}
	}
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	s.WaitUntilConfirmed(20 * time.Second)
	n, err := strconv.Atoi(s.Query("SELECT count(*)::text FROM outbox"))
	if err != nil {
		s.T.Fatal(err)
	}
	if old := s.Query("SELECT coalesce(to_regclass('outbox_old')::text, '')"); old != "" && c.name == "table replaced" {
		n += 20
	}
	if got := len(s.EventIDs()); got != n-c.lost {
		s.T.Errorf("%d events arrived, want %d of %d rows: %s\n%s", got, n-c.lost, n, sentence, said)
	}
	if status := s.Status(); !strings.Contains(status, "by nothing") {
		s.T.Errorf("status:\n%s", status)
	}
}

// findCommands returns the printed command that begins with the words.
func (s *testbed) findCommands(sentence, words string) []string {
	s.T.Helper()
	for _, args := range printed(sentence) {
		if strings.HasPrefix(strings.Join(args, " "), words) {
			return args
		}
	}
	s.T.Fatalf("the halt does not print walpost %s: %s", words, sentence)
	return nil
}

// haltSentence waits until the relay is halted, and returns the halt's sentence.
func haltSentence(r *e2e.Relay) (sentence string) {
	r.T.Helper()
	cdctest.Eventually(r.T, 30*time.Second, func() error {
		for line := range strings.Lines(r.Log.String()) {
			var said struct{ Message, Error string }
			if json.Unmarshal([]byte(line), &said) == nil && said.Message == "halted" {
				sentence = said.Error
				return nil
			}
		}
		return fmt.Errorf("the relay is not halted")
	})
	return sentence
}
