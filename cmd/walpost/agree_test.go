package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// everywhere is what every place must show of a pipeline in one state.
type everywhere struct {
	role   cdc.Role         // walpost_role and /status; "" where no relay runs
	ready  bool             // /readyz
	live   pipeline.Verdict // /status
	asked  pipeline.Verdict // `walpost status`, by its exit code too
	alerts string           // whose rules hold, of all relays' metrics
	view   string           // in outbox_slot.what_to_do; "" where PostgreSQL is away
	says   string           // in log, /readyz, /status and `walpost status`, where they say anything
}

// state is reached from the one before, by the pipeline's relays.
type state struct {
	name  string
	bring func(*agreeing)
	want  everywhere
}

// agreeing is a pipeline that goes from state to state.
type agreeing struct {
	*testbed
	relays []*e2e.Relay // the last one answers the requests; all are scraped
	kafka  *cdctest.Proxy
	server *devenv.Postgres
}

func (a *agreeing) start() {
	a.relays = append(a.relays, a.StartRelay())
}

func (a *agreeing) stream() {
	a.T.Helper()
	a.start()
	a.relays[len(a.relays)-1].WaitForLog(30*time.Second, `"streaming"`)
}

func (a *agreeing) stop() {
	a.T.Helper()
	for _, r := range a.relays {
		if err := r.Stop(); err != nil {
			a.T.Error(err)
		}
	}
	a.relays = nil
}

func (a *agreeing) insertPoison() {
	a.T.Helper()
	a.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', 'k', 'x', '{}')`)
}

func (a *agreeing) stallKafka() {
	a.kafka.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
}

const (
	upToDate = "Nothing: it is read and up to date"
	isRead   = "t is read" // up to date or not: other tests write WAL on the shared server at any time
	unread   = "Start the relay, or see why the one that is up does not read: walpost status"
	noSlot   = "nothing relays it unless walpost polls it. If it was relayed before, run: walpost status"
	waiting  = "It is read, and"
)

// TestEverywhereTheSame takes pipelines from state to state, and compares log, /readyz, /status, `walpost status`,
// metrics, the alerts' rules and the view outbox_slot.
func TestEverywhereTheSame(t *testing.T) {
	t.Parallel()
	flows, needs, cannot := pipeline.Flows, pipeline.NeedsSomeone, pipeline.CannotTell
	rules := alertRules(t)
	for name, c := range map[string]struct {
		env    map[string]string
		make   func(t *testing.T) *agreeing
		states []state
	}{
		"a relay": {states: []state{
			{"streaming", (*agreeing).stream, everywhere{cdc.Streaming, true, flows, flows, "", isRead, ""}},
			{"standing by", (*agreeing).start, everywhere{cdc.Standby, true, flows, flows, "", isRead, ""}},
			{"no relay", (*agreeing).stop, everywhere{asked: needs, view: unread, says: "no relay streams from the slot: start `walpost relay`"}},
			{"the slot is gone", func(a *agreeing) {
				a.Exec("SELECT pg_drop_replication_slot($1)", a.Slot())
				a.start()
			}, everywhere{cdc.Halted, false, needs, needs, "RelayHalted SlotLost", noSlot, "walpost adopt --create-slot"}},
		}},
		"topics and publication": {states: []state{
			{"a topic is missing", func(a *agreeing) {
				a.deleteTopic(a.Topic)
				a.start()
			}, everywhere{cdc.Halted, false, needs, needs, "RelayHalted", unread, "does not exist"}},
			{"a topic is missing, and a relay streams", func(a *agreeing) {
				a.stop()
				cdctest.CreateTopic(a.T, a.Brokers, a.Topic, 3)
				a.stream()
				a.deleteTopic(a.Topic)
			}, everywhere{cdc.Streaming, true, needs, needs, "", isRead, ""}},
			{"the publication is changed", func(a *agreeing) {
				cdctest.CreateTopic(a.T, a.Brokers, a.Topic, 3)
				a.Exec("ALTER PUBLICATION walpost SET (publish = 'update')")
			}, everywhere{cdc.Halted, false, needs, needs, "RelayHalted", unread, "does not publish inserts"}},
		}},
		"a row that cannot be published": {states: []state{
			{"halted", func(a *agreeing) {
				a.stream()
				a.insertPoison()
			}, everywhere{cdc.Halted, false, needs, needs, "RelayHalted", unread, `its aggregate type "invoice" is not in kafka.aggregate_types`}},
		}},
		"dead letters": {env: map[string]string{"WALPOST_POISON_POLICY": "dead_letter", "WALPOST_POISON_HOLD_KEY": "true"}, states: []state{
			{"a dead letter", func(a *agreeing) {
				a.stream()
				a.insertPoison()
			}, everywhere{cdc.Streaming, true, needs, needs, "DeadLetters", isRead, ""}},
			{"its key is held", func(a *agreeing) {
				a.insertPoison()
				a.relays[0].WaitForMetric("walpost_dead_letters_unresolved", "2")
			}, everywhere{cdc.Streaming, true, needs, needs, "DeadLetters", isRead, ""}},
			{"dropped", func(a *agreeing) {
				a.MustRun("dlq", "drop", "--all", "--yes")
			}, everywhere{cdc.Streaming, true, flows, flows, "", isRead, ""}},
		}},
		"servers that are away": {make: onQuietServer, states: []state{
			{"Kafka, and nothing waits", func(a *agreeing) {
				a.stream()
				a.WaitUntilConfirmed(20 * time.Second)
				a.stallKafka()
			}, everywhere{cdc.Streaming, true, cannot, cannot, "", upToDate, "kafka.brokers: none of"}},
			{"Kafka, and rows wait", func(a *agreeing) {
				a.InsertRows(3)
			}, everywhere{cdc.Streaming, false, needs, needs, "KafkaTakesNothing", waiting, "kafka does not answer"}},
			{"Kafka is back", func(a *agreeing) {
				a.kafka.Set(cdctest.Wire{}, cdctest.Wire{})
			}, everywhere{cdc.Streaming, true, flows, flows, "", upToDate, ""}},
			{"PostgreSQL", func(a *agreeing) {
				a.signalWriter(syscall.SIGCONT)
				e2e.StopServer(a.T, a.server, "fast")
			}, everywhere{cdc.Retrying, false, cannot, cannot, "RelayNotStreaming", "", "onnect"}},
		}},
		"WAL that is not kept": {make: onSmallServer, states: []state{
			{"the slot will be lost soon", func(a *agreeing) {
				a.stream()
				forgotten := a.Connect()
				a.T.Cleanup(func() { _ = forgotten.Close(context.Background()) })
				e2e.ExecOn(a.T, forgotten, "BEGIN; CREATE TABLE forgotten ()")
				a.writeWAL()
			}, everywhere{cdc.Streaming, true, needs, needs, "SlotPastItsLimit", "About to be lost", ""}},
			{"the slot is lost", func(a *agreeing) {
				a.Exec("CHECKPOINT")
			}, everywhere{cdc.Halted, false, needs, needs, "RelayHalted SlotLost", "Lost", "is lost (wal_status lost"}},
		}},
		"polled": {make: polledThroughProxy, env: map[string]string{"WALPOST_SOURCE_POLLING_ATTEMPTS": "1"}, states: []state{
			{"streaming", (*agreeing).stream, everywhere{cdc.Streaming, true, flows, flows, "", noSlot, ""}},
			{"standing by", (*agreeing).start, everywhere{cdc.Standby, true, flows, flows, "", noSlot, ""}},
			{"no relay, and nothing waits", (*agreeing).stop, everywhere{asked: flows, view: noSlot}},
			{"no relay, and rows wait", func(a *agreeing) { a.InsertRows(3) }, everywhere{asked: needs, view: noSlot, says: "3 rows wait and no relay polls public.outbox"}},
			{"a failed row, and its key is held", func(a *agreeing) {
				a.stream()
				a.insertPoison()
				a.insertPoison()
			}, everywhere{cdc.Streaming, true, needs, needs, "FailedRows", noSlot, "1 row has failed and holds 1 key back"}},
			{"Kafka is away, and nothing waits", func(a *agreeing) {
				a.MustRun("dlq", "drop", "--all", "--yes")
				a.WaitUntilPolled()
				a.MustRun("dlq", "drop", "--all", "--yes")
				a.stallKafka()
			}, everywhere{cdc.Streaming, true, cannot, cannot, "", noSlot, "kafka.brokers: none of"}},
			{"Kafka is away, and rows wait", func(a *agreeing) {
				a.InsertRows(3)
			}, everywhere{cdc.Streaming, false, needs, needs, "KafkaTakesNothing", noSlot, "kafka does not answer"}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			make := c.make
			if make == nil {
				make = func(t *testing.T) *agreeing { return &agreeing{testbed: newTestbed(t)} }
			}
			a := make(t)
			for k, v := range c.env {
				a.Env[k] = v
			}
			a.MustRun("init")
			a.Exec(slotView(t))
			for _, st := range c.states {
				began := time.Now()
				st.bring(a)
				cdctest.Eventually(t, time.Minute, func() error {
					if err := a.agrees(st.want, rules); err != nil {
						return fmt.Errorf("%s: %w", st.name, err)
					}
					return nil
				})
				t.Logf("%s: %.1f s", st.name, time.Since(began).Seconds())
			}
		})
	}
}

func throughProxy(t *testing.T, a *agreeing) *agreeing {
	a.kafka = cdctest.StartKafkaProxy(t, a.Brokers, nil)
	a.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(a.kafka.Brokers(), ",")
	return a
}

func polledThroughProxy(t *testing.T) *agreeing {
	return throughProxy(t, &agreeing{testbed: newPolledTestbed(t)})
}

// onQuietServer runs on a server whose WAL comes only from the pipeline: its background writer, which writes a snapshot
// from time to time, is stopped.
func onQuietServer(t *testing.T) *agreeing {
	a := throughProxy(t, onOwnServer(t, map[string]string{"autovacuum": "off", "checkpoint_timeout": "1h"}))
	a.signalWriter(syscall.SIGSTOP)
	return a
}

// signalWriter sends the server's background writer a signal, and lets it continue before the test ends.
func (a *agreeing) signalWriter(sig syscall.Signal) {
	a.T.Helper()
	pid, err := strconv.Atoi(a.Query("SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'background writer'"))
	if err == nil {
		err = syscall.Kill(pid, sig)
	}
	if err != nil {
		a.T.Fatal(err)
	}
	a.T.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
}

func onOwnServer(t *testing.T, settings map[string]string) *agreeing {
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: settings})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	return &agreeing{testbed: newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t)), server: server}
}

// onSmallServer runs on a server that keeps 1 MB of WAL for a slot, after the next checkpoint.
func onSmallServer(t *testing.T) *agreeing {
	return onOwnServer(t, map[string]string{"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "checkpoint_timeout": "1h"})
}

// writeWAL writes more than onSmallServer keeps.
func (a *agreeing) writeWAL() {
	a.T.Helper()
	cdctest.Eventually(a.T, time.Minute, func() error {
		a.Exec("SELECT pg_logical_emit_message(false, 'test', 'x')")
		a.Exec("SELECT pg_switch_wal()")
		if is := a.Query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", a.Slot()); is != "unreserved" {
			return fmt.Errorf("wal_status %s", is)
		}
		return nil
	})
}

// slotView returns the newest migration of outbox_slot.
func slotView(t *testing.T) string {
	files, err := filepath.Glob("../../sql/orders/*outbox_slot*.sql")
	if err != nil || files == nil {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(slices.Max(files))
	if err != nil {
		t.Fatal(err)
	}
	up, _, _ := strings.Cut(string(b), "-- +goose Down")
	return up
}

// agrees returns nil if every place shows the wanted state, and otherwise an error about the first that does not. Cheap
// questions come first.
func (a *agreeing) agrees(want everywhere, rules map[string]string) error {
	if n := len(a.relays); n > 0 {
		r := a.relays[n-1]
		said, err := r.Ask("/readyz")
		if ready := strings.HasPrefix(said, "200"); err != nil || ready != want.ready || !ready && !strings.Contains(said, want.says) {
			return fmt.Errorf("/readyz: %s, %w", said, err)
		}
		if log := strings.ReplaceAll(r.Log.String(), `\"`, `"`); !want.ready && !strings.Contains(log, want.says) {
			return fmt.Errorf("the log does not say %q", want.says)
		}
		said, err = r.Ask("/status")
		if err != nil {
			return err
		}
		var st pipeline.Status
		code, body, _ := strings.Cut(said, " ")
		err = json.Unmarshal([]byte(body), &st)
		if err != nil || code != "200" || st.Role != want.role || st.Verdict != want.live || !strings.Contains(strings.Join(st.Blocked, " "), want.says) {
			return fmt.Errorf("/status: %s, %w", said, err)
		}
	}
	var metrics string
	for _, r := range a.relays {
		said, err := r.Ask("/metrics")
		if err != nil {
			return err
		}
		metrics += said
	}
	if want.role != "" && !strings.Contains(metrics, fmt.Sprintf(`walpost_role{pipeline="%s",role="%s"} 1`, a.Name, want.role)) {
		return fmt.Errorf("walpost_role is not %s", want.role)
	}
	if firing := firing(a.T, rules, metrics); firing != want.alerts {
		return fmt.Errorf("alerts: %q, want %q", firing, want.alerts)
	}
	if want.view != "" {
		if says := a.Query("SELECT what_to_do FROM outbox_slot WHERE coalesce(slot, $1) = $1", a.Slot()); !strings.Contains(says, want.view) {
			return fmt.Errorf("outbox_slot: %s", says)
		}
	}
	out, err := a.Run("status", "--json")
	var st pipeline.Status
	if jsonErr := json.Unmarshal([]byte(out), &st); jsonErr != nil {
		return fmt.Errorf("walpost status --json: %w: %s, %w", jsonErr, out, err)
	}
	code := app.ExitError(0)
	errors.As(err, &code)
	exits := map[pipeline.Verdict]app.ExitError{pipeline.Flows: 0, pipeline.NeedsSomeone: 1, pipeline.CannotTell: 2}
	if st.Verdict != want.asked || code != exits[want.asked] || !strings.Contains(strings.Join(st.Blocked, " "), want.says) {
		return fmt.Errorf("walpost status: exit code %d, %s", code, out)
	}
	return nil
}

// alertRules returns the rules about a relay's metrics, by the alert's name.
func alertRules(t *testing.T) map[string]string {
	b, err := os.ReadFile("../../docker/prometheus/alerts.yml")
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct{ Alert, Expr string }
		}
	}
	if err == nil {
		err = yaml.Unmarshal(b, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]string{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			// Not: those about more than one scrape, and that about certificates, which no relay here has.
			if g.Name == "relay" && r.Expr != "up == 0" && !strings.Contains(r.Expr, "delta(") && !strings.Contains(r.Expr, "time()") {
				rules[r.Alert] = r.Expr
			}
		}
	}
	return rules
}

var comparison = regexp.MustCompile(`^\(?(max|min) by \([a-z, ]+\) \((\w+)(?:\{(role="\w+")\})?\) (==|>|<|<=) ([\d *]+)\)?$`)

// firing returns the alerts whose rules are true for the scraped metrics, in their order. It understands only the
// expressions that our rules have.
func firing(t testing.TB, rules map[string]string, metrics string) string {
	holds := func(text string) bool {
		c := comparison.FindStringSubmatch(text)
		if c == nil {
			t.Fatalf("no such rule is known yet: %s", text)
		}
		var values []float64
		for line := range strings.Lines(metrics) {
			if strings.HasPrefix(line, c[2]+"{") && strings.Contains(line, c[3]) {
				value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
				if err != nil {
					t.Fatal(line)
				}
				values = append(values, value)
			}
		}
		limit := 1.
		for n := range strings.SplitSeq(c[5], " * ") {
			f, err := strconv.ParseFloat(n, 64)
			if err != nil {
				t.Fatal(text)
			}
			limit *= f
		}
		if values == nil {
			return false
		}
		value := slices.Max(values)
		if c[1] == "min" {
			value = slices.Min(values)
		}
		return c[4] == "==" && value == limit || c[4] == ">" && value > limit || c[4] == "<" && value < limit || c[4] == "<=" && value <= limit
	}
	var names []string
	for name, rule := range rules {
		both, except, _ := strings.Cut(rule, " unless ")
		fires := except == "" || !holds(except)
		for one := range strings.SplitSeq(both, " and ") {
			fires = holds(one) && fires
		}
		if fires && name != "RelayStalled" { // which comes 15 s later, and of what the other alerts say
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}
