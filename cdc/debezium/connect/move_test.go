//go:build debezium

package connect_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

// moving is a pipeline of walpost and a connector of the same table, which writers fill all the time.
type moving struct {
	*e2e.Pipeline
	t      *testing.T
	worker *connect.Worker
	config map[string]string // of the connector
	file   string            // with the connector's configuration
	writer *cdctest.Writer
}

const connector = "outbox"

// startMoving starts Kafka, the connector and the writers.
func startMoving(t *testing.T, mode string) *moving {
	t.Helper()
	return startMovingOn(t, mode, true)
}

// startMovingOn does the same as startMoving, with a distributed worker or a standalone one.
func startMovingOn(t *testing.T, mode string, distributed bool) *moving {
	t.Helper()
	walpost := e2e.Build(t, "../../../cmd/walpost", "-tags=failpoints", "-race=false")()
	if t.Failed() {
		t.FailNow()
	}
	brokers := connect.Kafka(t)
	m := &moving{Pipeline: e2e.NewOn(t, e2e.Program{Path: walpost}, cdctest.Database(t), brokers), t: t}
	m.Env["WALPOST_DELIVERY"] = mode
	cdctest.CreateOutbox(t, m.AdminURL, "outbox")
	slot := cdctest.SlotName(t, "dbz")
	m.Exec("DROP PUBLICATION walpost; CREATE PUBLICATION dbz_pub FOR TABLE outbox")
	m.Exec("SELECT pg_create_logical_replication_slot('" + slot + "', 'pgoutput')")
	m.config = connect.Connector(m.AdminURL, map[string]string{
		"slot.name": slot,
		"transforms.outbox.table.field.event.key": "aggregate_id", "transforms.outbox.route.by.field": "aggregate_type",
		"transforms.outbox.route.topic.replacement": m.Name + ".${routedByValue}",
	})
	m.save()
	m.worker = connect.Start(t, connect.Config{Brokers: brokers, Distributed: distributed, Settings: map[string]string{"offset.flush.interval.ms": "2000"}})
	m.worker.Deploy(connector, m.config)
	m.writer = cdctest.StartWriter(t, cdctest.WriterConfig{URL: m.AdminURL, Rate: 60, Body: 100, Long: 100 * time.Millisecond})
	m.more(500)
	m.worker.Await(time.Minute, func() error {
		offsets, err := m.worker.Offsets(connector)
		if err == nil && len(offsets) == 0 {
			err = errNoOffsets
		}
		return err
	})
	return m
}

// save writes the connector's configuration to the file.
func (m *moving) save() {
	m.t.Helper()
	text, err := json.Marshal(map[string]any{"name": connector, "config": m.config})
	if err != nil {
		m.t.Fatal(err)
	}
	m.file = filepath.Join(m.t.TempDir(), "connector.json")
	if err := os.WriteFile(m.file, text, 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// imported gives the pipeline the configuration that walpost imports from the connector, so that its records are like the
// connector's.
func (m *moving) imported() {
	m.t.Helper()
	file := filepath.Join(m.t.TempDir(), "walpost.yaml")
	if err := os.WriteFile(file, []byte(m.MustRun("import", m.file, "--brokers", strings.Join(m.Brokers, ","))), 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.Env["WALPOST_CONFIG"] = file
	for _, decided := range []string{"WALPOST_KAFKA_TOPIC", "WALPOST_KAFKA_AGGREGATE_TYPES", "WALPOST_SOURCE_SLOT"} {
		delete(m.Env, decided)
	}
}

// more waits until the writers have committed n further events.
func (m *moving) more(n int) {
	m.t.Helper()
	upTo := m.writer.Committed() + n
	cdctest.Eventually(m.t, time.Minute, func() error {
		if now := m.writer.Committed(); now < upTo {
			return fmt.Errorf("%d events of %d", now, upTo)
		}
		return nil
	})
}

// takeOver runs the command with further flags.
func (m *moving) takeOver(flags ...string) string {
	m.t.Helper()
	out := m.MustRun(m.flags(flags...)...)
	m.t.Logf("walpost take-over %s\n%s", strings.Join(flags, " "), out)
	return out
}

func (m *moving) flags(flags ...string) []string {
	return append([]string{"take-over", m.file, "--connect-url", m.worker.URL()}, flags...)
}

// killed runs the command, which kills itself at a named instant.
func (m *moving) killed(at string) {
	m.t.Helper()
	r := m.StartCommand(m.Command(m.flags()...), "WALPOST_FAILPOINT="+at+":kill")
	r.WaitUntilEnded(2 * time.Minute)
	if !strings.Contains(r.Log.String(), "failpoint "+at) {
		m.t.Fatalf("it was not killed at %s:\n%s", at, r.Log)
	}
}

// verdict stops the writers, waits for every event, and compares the topic with the ledger. It also returns how many
// duplicates are of events that walpost has published: the others are the connector's own.
func (m *moving) verdict() (report cdctest.Report, twice int) {
	m.t.Helper()
	ledger := m.writer.Stop()
	ledger.Polled = true // Debezium's records have no position
	var records []*kgo.Record
	var ours map[string]bool // events that walpost published
	times := map[string]int{}
	cdctest.Eventually(m.t, time.Minute, func() error {
		records = cdctest.ReadAll(m.t, m.Brokers, m.Topic)
		seen := map[string]bool{}
		ours = map[string]bool{}
		clear(times)
		for _, r := range records {
			id := e2e.Header(r, "id")
			times[id]++
			ours[id] = ours[id] || e2e.Header(r, "lsn") != ""
			r.Headers = slices.DeleteFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key != "id" })
			seen[id] = true
		}
		if len(seen) < len(ledger.Events) {
			return fmt.Errorf("%d events of %d", len(seen), len(ledger.Events))
		}
		return nil
	})
	slices.SortStableFunc(records, func(a, b *kgo.Record) int {
		if a.Partition != b.Partition {
			return int(a.Partition - b.Partition)
		}
		return int(a.Offset - b.Offset)
	})
	report = cdctest.Check(ledger, records)
	if err := report.Err(); err != nil {
		m.t.Errorf("the ledger has %d events: %v", len(ledger.Events), err)
	}
	relayed, twice := 0, 0
	for id, is := range ours {
		if is {
			relayed++
			twice += times[id] - 1
		}
	}
	m.t.Logf("ledger: %d events committed, %d of them with walpost's headers; %d records: every event there, in the order of its key; %d duplicates in %d replays, %d of them of events with walpost's headers",
		len(ledger.Events), relayed, report.Records, report.Duplicates, report.Replays, twice)
	return report, twice
}

// TestMove moves from the connector to walpost, and back, in each way and in both modes of delivery, while rows flow.
func TestMove(t *testing.T) {
	for _, way := range []struct {
		name string
		move func(t *testing.T, mode string)
	}{{"same slot", moveSameSlot}, {"second slot", moveSecondSlot}, {"after a kill", moveAfterAKill}, {"standalone", moveStandalone}} {
		for _, mode := range []string{"at_least_once", "exactly_once"} {
			t.Run(way.name+" "+mode, func(t *testing.T) { way.move(t, mode) })
		}
	}
}

// moveSameSlot stops the connector in order, goes on from its slot and offset, and goes back to the connector: no event
// comes twice.
func moveSameSlot(t *testing.T, mode string) {
	m := startMoving(t, mode)
	m.imported()
	m.MustRefuse("so the connector runs: stop it (PUT /connectors/outbox/stop)", m.flags()...)
	m.more(300)
	m.worker.Stop(connector)
	m.more(300)
	m.takeOver("--dry-run")
	m.killed("init_record")
	m.MustRefuse("has a state record already", m.flags()...)
	relay := m.SpawnRelay()
	m.more(300)
	m.confirmed()
	if mode == "exactly_once" { // at least once, a kill repeats rows
		relay.Kill()
		m.more(200)
		relay = m.SpawnRelay()
		m.more(100)
		m.confirmed()
	}

	m.MustRefuse("stop the relay with SIGTERM", m.flags("--back")...)
	m.stop(relay)
	m.MustRefuse("still has a stored offset", m.flags("--back")...)
	if err := m.worker.ResetOffsets(connector); err != nil {
		t.Fatal(err)
	}
	m.giveBack()
	m.more(100)
	m.worker.Resume(connector)
	m.more(300)
	if report, _ := m.verdict(); report.Duplicates > 0 {
		t.Errorf("%d duplicates, although every stop was orderly", report.Duplicates)
	}
}

// confirmed waits until the relay has confirmed everything written so far.
func (m *moving) confirmed() {
	m.t.Helper()
	end := m.Query("SELECT pg_current_wal_lsn()::text")
	m.worker.Await(time.Minute, func() error {
		slots := m.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = ANY ($1) AND active AND confirmed_flush_lsn >= $2::text::pg_lsn", []string{m.config["slot.name"], m.Slot()}, end)
		if slots == "0" {
			return errors.New("not confirmed yet")
		}
		return nil
	})
}

// giveBack gives slot and publication back. A relay that was stopped inside a transaction runs once more before that.
func (m *moving) giveBack() {
	m.t.Helper()
	for range 5 {
		out, err := m.Run(m.flags("--back")...)
		if err == nil {
			m.t.Logf("walpost take-over --back\n%s", out)
			return
		}
		if !strings.Contains(err.Error(), "in transactions that are not there whole") {
			m.t.Fatal(err)
		}
		relay := m.SpawnRelay()
		m.confirmed()
		m.stop(relay)
	}
	m.t.Fatal("the relay has stopped inside a transaction five times")
}

// stop ends a relay in order.
func (m *moving) stop(relay *e2e.Relay) {
	m.t.Helper()
	if err := relay.Stop(); err != nil {
		m.t.Fatal(err)
	}
}

// moveAfterAKill kills Connect, and goes on from its slot and its last offset.
func moveAfterAKill(t *testing.T, mode string) {
	m := startMoving(t, mode)
	m.Env["WALPOST_SOURCE_SLOT"], m.Env["WALPOST_SOURCE_PUBLICATION"] = m.config["slot.name"], "dbz_pub"
	m.more(300)
	m.worker.Kill()
	m.more(100)
	topic := []string{"take-over", m.file, "--offset-topic", m.worker.OffsetTopic}
	said := m.MustRun(topic...)
	t.Log(said)
	var again int
	if m := regexp.MustCompile("after that: ([0-9]+) of them are in Kafka already").FindStringSubmatch(said); m != nil {
		again, _ = strconv.Atoi(m[1])
	}
	m.SpawnRelay()
	m.more(300)
	if _, twice := m.verdict(); twice != again {
		t.Errorf("%d events came again, and the command has said %d", twice, again)
	}
}

// moveStandalone goes on from the offset file of a standalone worker that ended in order.
func moveStandalone(t *testing.T, mode string) {
	m := startMovingOn(t, mode, false)
	m.imported()
	m.worker.Terminate()
	m.more(100)
	t.Log(m.MustRun("take-over", m.file, "--offset-file", m.worker.OffsetFile))
	m.SpawnRelay()
	m.more(200)
	if report, _ := m.verdict(); report.Duplicates > 0 {
		t.Errorf("%d duplicates, although the worker ended in order", report.Duplicates)
	}
}

// moveSecondSlot moves to a second slot while the connector runs, and gives that slot back. The command is killed at each
// of its instants, Connect is killed after the cut, and the relay later.
func moveSecondSlot(t *testing.T, mode string) {
	m := startMoving(t, mode)
	// The connector captures another table too, which stays with it.
	m.Exec("CREATE TABLE customers (id int PRIMARY KEY); ALTER PUBLICATION dbz_pub ADD TABLE customers")
	maps.Copy(m.config, map[string]string{
		"table.include.list": "public.outbox,public.customers", "transforms.outbox.predicate": "ours",
		"predicates": "ours", "predicates.ours.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches", "predicates.ours.pattern": `.*\.public\.outbox`,
	})
	m.save()
	m.worker.Deploy(connector, m.config)
	customer := func(n int) {
		m.Exec("INSERT INTO customers VALUES ($1)", n)
		cdctest.Consume(t, m.Brokers, "test_server.public.customers", time.Minute, cdctest.AtLeast(n))
	}
	cdctest.CreateTopic(t, m.Brokers, "test_server.public.customers", 1)
	customer(1)
	m.Env["WALPOST_SOURCE_PUBLICATION"] = "relayed"
	m.takeOver("--dry-run")
	for _, at := range []string{"takeover_publication", "takeover_slot", "takeover_cut", "takeover_after_cut"} {
		m.more(50)
		m.killed(at)
	}
	m.worker.Kill()
	m.more(100)
	m.worker.Begin()
	for _, at := range []string{"takeover_drained", "init_record"} {
		m.killed(at)
	}
	m.MustRefuse("has a state record already", m.flags()...)
	relay := m.SpawnRelay()
	m.more(300)
	m.confirmed()
	customer(2)
	m.worker.Delete(connector)
	m.Exec("SELECT pg_drop_replication_slot('" + m.config["slot.name"] + "')")
	if mode == "exactly_once" { // at least once, a kill repeats rows
		relay.Kill()
		m.more(100)
		relay = m.SpawnRelay()
		m.more(100)
		m.confirmed()
	}

	m.stop(relay)
	m.MustRefuse("give the connector the slot that walpost has read", m.flags("--back")...)
	m.config["slot.name"], m.config["publication.name"] = m.Slot(), "relayed"
	m.config["table.include.list"] = "public.outbox"
	m.save()
	m.giveBack()
	m.more(100)
	m.worker.Deploy("back", m.config)
	m.more(200)
	m.worker.Kill()
	m.more(100)
	m.worker.Begin()
	if _, twice := m.verdict(); twice > 0 {
		t.Errorf("%d duplicates of events that walpost published", twice)
	}
}
