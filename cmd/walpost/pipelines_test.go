package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// together returns the process with the pipelines of several testbeds: a file, and variables for the settings that
// people do not write into files.
func together(t testing.TB, testbeds ...*testbed) *testbed {
	t.Helper()
	all := &testbed{&e2e.Pipeline{Program: program, T: t, Env: map[string]string{
		"WALPOST_CONFIG": filepath.Join(t.TempDir(), "walpost.yaml"), "WALPOST_HTTP": "127.0.0.1:0", "LOG_LEVEL": "info", "LOG_FORMAT": "json",
	}}}
	text := "kafka: {aggregate_types: [order], replication: 1}\npipelines:\n"
	for _, s := range testbeds {
		text += fmt.Sprintf("- pipeline: %s\n  source: {slot: %s}\n  kafka: {topic: \"%s\", brokers: [\"%s\"]}\n",
			s.Name, s.Slot(), s.Env["WALPOST_KAFKA_TOPIC"], strings.ReplaceAll(s.Env["WALPOST_KAFKA_BROKERS"], ",", `", "`))
		c := config.Config{Pipeline: s.Name}
		all.Env[c.Variable("SOURCE_URL")] = s.Env["WALPOST_SOURCE_URL"]
		all.Env[c.Variable("ADMIN_URL")] = s.Env["WALPOST_ADMIN_URL"]
		all.Env[c.Variable("DELIVERY")] = s.Env["WALPOST_DELIVERY"]
	}
	if err := os.WriteFile(all.Env["WALPOST_CONFIG"], []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return all
}

// roles returns the role of each pipeline in the relay's process.
func roles(r *e2e.Relay) map[string]cdc.Role {
	r.T.Helper()
	var statuses []pipeline.Status
	if _, text, _ := strings.Cut(r.Get(r.T, "/status"), " "); json.Unmarshal([]byte(text), &statuses) != nil {
		r.T.Fatalf("/status: %s", text)
	}
	roles := map[string]cdc.Role{}
	for _, s := range statuses {
		roles[s.Pipeline] = s.Role
	}
	return roles
}

// waitForRole waits until a pipeline of the process is in that role.
func waitForRole(r *e2e.Relay, s *testbed, role cdc.Role) {
	r.T.Helper()
	cdctest.Eventually(r.T, time.Minute, func() error {
		if now := roles(r)[s.Name]; now != role {
			return fmt.Errorf("pipeline %s is %s, not %s", s.Name, now, role)
		}
		return nil
	})
}

// TestPipelinesKeepToThemselves relays two databases of one server in one process. One loses its slot and halts, the
// other goes on; an operator fixes the one by name; the process is killed with both under load, and started again, or
// replaced by one that stands by, and nothing is missing in either.
func TestPipelinesKeepToThemselves(t *testing.T) {
	t.Parallel()
	a := newTestbed(t)
	b := newTestbedOn(t, cdctest.Database(t), a.Brokers)
	b.Env["WALPOST_DELIVERY"] = string(config.ExactlyOnce)
	all := together(t, a, b)
	if out := all.MustRun("init"); !strings.Contains(out, "pipeline "+a.Name) || !strings.Contains(out, "walpost.state."+b.Name+": written") {
		t.Fatalf("init of both:\n%s", out)
	}
	r := all.SpawnRelay()
	waitForRole(r, a, cdc.Streaming)
	waitForRole(r, b, cdc.Streaming)
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("two streaming pipelines are not ready: %s", ready)
	}
	a.WaitForEvent(a.InsertRow())
	b.WaitForEvent(b.InsertRow())
	if n, m := len(a.EventIDs()), len(b.EventIDs()); n != 1 || m != 1 {
		t.Errorf("one event each are %d and %d", n, m)
	}
	r.WaitForMetrics(t, fmt.Sprintf("walpost_slot_lost{pipeline=%q} 0\n", b.Name))

	cdctest.Eventually(t, 30*time.Second, func() error { // the relay takes it again as soon as it can
		conn := b.Connect()
		defer func() { _ = conn.Close(t.Context()) }()
		_, _ = conn.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", b.Slot())
		_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", b.Slot())
		return err
	})
	waitForRole(r, b, cdc.Halted)
	a.WaitForEvent(a.InsertRow())
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503 pipeline "+b.Name+": halted: ") || strings.Contains(ready, a.Name) {
		t.Errorf("/readyz with one halted: %s", ready)
	}
	r.WaitForMetrics(t, fmt.Sprintf("walpost_role{pipeline=%q,role=\"halted\"} 1\n", b.Name), fmt.Sprintf("walpost_role{pipeline=%q,role=\"streaming\"} 1\n", a.Name),
		fmt.Sprintf("walpost_slot_lost{pipeline=%q} 1\n", b.Name), fmt.Sprintf("walpost_slot_lost{pipeline=%q} 0\n", a.Name),
		fmt.Sprintf("walpost_slot_lag_bytes{pipeline=%q} ", a.Name), fmt.Sprintf("walpost_slot_retained_bytes{pipeline=%q} ", a.Name))
	r.WaitForLog(3*time.Second, `"pipeline":"`+b.Name+`","slot":"`+b.Slot()+`","error"`)
	var both []pipeline.Status
	if err := json.Unmarshal([]byte(all.Status("--json")), &both); err != nil || len(both) != 2 {
		t.Fatal(both, err)
	}
	if !both[0].Slot.Active || len(both[0].Blocked) > 0 || both[1].Slot.Exists == nil || *both[1].Slot.Exists || len(both[1].Blocked) == 0 {
		t.Errorf("status of both: %+v", both)
	}
	if text := all.Status(); !strings.Contains(text, "pipeline   "+a.Name) || !strings.Contains(text, "pipeline   "+b.Name) {
		t.Errorf("status of both:\n%s", text)
	}
	for _, args := range [][]string{{"skip", "--to", "0/1"}, {"adopt"}, {"dlq", "list"}, {"where", "x"}, {"init", "--remove", "--yes"}, {"replay", "--from", "x", "--to", "y"}} {
		all.MustRefuse("--pipeline: missing: name one of "+a.Name+", "+b.Name, args...)
	}
	all.MustRefuse("there is no such pipeline: name one of "+a.Name+", "+b.Name, "status", "--pipeline", "c")
	command := all.findCommands(haltSentence(r), "-p "+b.Name+" adopt") // as it is printed, by status as by the log
	if text := all.Status(); !strings.Contains(text, "`walpost "+strings.Join(command, " ")+"`") {
		t.Errorf("status does not print walpost %s:\n%s", strings.Join(command, " "), text)
	}
	if out := all.MustRun(command...); !strings.Contains(out, "`walpost -p "+b.Name+" replay ") {
		t.Errorf("adopt prints no replay of this pipeline:\n%s", out)
	}

	writers := []*cdctest.Writer{cdctest.StartWriter(t, cdctest.WriterConfig{URL: a.AdminURL, Rate: 60}), cdctest.StartWriter(t, cdctest.WriterConfig{URL: b.AdminURL, Rate: 60})}
	for _, standby := range []bool{false, true} {
		before := [2]string{a.InsertRow(), b.InsertRow()}
		killed := r
		if !standby {
			killed.Kill()
		}
		r = all.SpawnRelay()
		if standby {
			waitForRole(r, a, cdc.Standby)
			waitForRole(r, b, cdc.Standby)
			if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
				t.Errorf("a process that stands by for both is not ready: %s", ready)
			}
			killed.Kill()
		}
		waitForRole(r, a, cdc.Streaming)
		waitForRole(r, b, cdc.Streaming)
		a.WaitForEvent(before[0])
		b.WaitForEvent(before[1])
	}
	for i, s := range []*testbed{a, b} {
		ledger := writers[i].Stop()
		s.WaitUntilConfirmed(time.Minute)
		cdctest.Collect(t, s.Brokers, s.Topic, ledger, time.Minute)
		if s.StateRecord().Pipeline != s.Name {
			t.Errorf("state record of %s: %+v", s.Name, s.StateRecord())
		}
	}
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("both stream again, and the process is not ready: %s", ready)
	}
}

// TestPipelineWithoutItsServer: the server of one is gone; the other goes on, and the one when its server is back.
func TestPipelineWithoutItsServer(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	a, b := newTestbed(t), newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	all := together(t, a, b)
	all.MustRun("init")
	r := all.StartRelay()
	waitForRole(r, a, cdc.Streaming)
	waitForRole(r, b, cdc.Streaming)
	if err := server.Stop(t.Context(), "immediate"); err != nil {
		t.Fatal(err)
	}
	waitForRole(r, b, cdc.Retrying)
	a.WaitForEvent(a.InsertRow())
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503 pipeline "+b.Name+": retrying: ") || strings.Contains(ready, a.Name) {
		t.Errorf("/readyz with the server of one gone: %s", ready)
	}
	if out, err := all.Run("init"); err == nil || !strings.Contains(err.Error(), "pipeline "+b.Name) || !strings.Contains(out, "walpost.state."+a.Name) && !strings.Contains(out, "the state record covers") {
		t.Errorf("init with the server of one gone: %v\n%s", err, out)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.WaitForEvent(b.InsertRow())
	a.WaitForEvent(a.InsertRow())
}

func TestMemoryLimitGrowsWithEachPipeline(t *testing.T) {
	a, b := config.Default(), config.Default()
	b.Window.Bytes = 64 << 20
	if one, both := memoryLimit([]config.Config{a}), memoryLimit([]config.Config{a, b}); one != 48<<20 || both != one+392<<20 {
		t.Errorf("the limit is %d MiB of one pipeline, %d of two", one>>20, both>>20)
	}
}

// TestPipelinesAllDrain: at the stop of the process one pipeline has nothing to finish. The other waits for its Kafka,
// and the process waits for it.
func TestPipelinesAllDrain(t *testing.T) {
	t.Parallel()
	a, b := newTestbed(t), newTestbed(t)
	a.MustRun("init")
	b.MustRun("init")
	slow := cdctest.StartKafkaProxy(t, a.Brokers, nil)
	a.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(slow.Brokers(), ",")
	all := together(t, a, b)
	all.Env["WALPOST_SHUTDOWN_TIMEOUT"] = "1m"
	r := all.StartRelay()
	waitForRole(r, a, cdc.Streaming)
	waitForRole(r, b, cdc.Streaming)
	slow.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{})
	id := a.InsertRow()
	r.WaitForMetrics(t, fmt.Sprintf("walpost_rows_received_total{pipeline=%q} 1\n", a.Name))
	ended := make(chan error, 1)
	go func() { ended <- r.Stop() }()
	r.WaitForLog(30*time.Second, `"pipeline":"`+b.Name+`","slot":"`+b.Slot()+`","cause":"context canceled"`)
	if ready := r.Get(t, "/readyz"); !strings.HasPrefix(ready, "503") {
		t.Errorf("the page is to stay until all have drained: %s", ready)
	}
	slow.Set(cdctest.Wire{}, cdctest.Wire{})
	if err := <-ended; err != nil {
		t.Errorf("asked to stop, the process ended with %v", err)
	}
	a.WaitForEvent(id)
	if now := a.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", a.Slot()); now != a.StateRecord().Covered.String() {
		t.Errorf("drained, the slot is at %s and the record at %s", now, a.StateRecord().Covered)
	}
}

// TestOnePipelineOfSeveral: a process each, of one file.
func TestOnePipelineOfSeveral(t *testing.T) {
	t.Parallel()
	a := newTestbed(t)
	b := newTestbedOn(t, cdctest.Database(t), a.Brokers)
	all := together(t, a, b)
	all.MustRun("init", "--pipeline", b.Name)
	r := all.StartCommand(exec.Command(os.Args[0], "relay", "--pipeline", b.Name), "WALPOST_TEST_MAIN=1")
	b.WaitForEvent(b.InsertRow())
	if status := r.Get(t, "/status"); strings.Contains(status, a.Name) || !strings.Contains(status, `{"pipeline":"`+b.Name) {
		t.Errorf("/status: %s", status)
	}
	// The page says the same, with the real thing behind it, and knows no other pipeline.
	cdctest.Eventually(t, time.Minute, func() error {
		page := r.Get(t, "/")
		for _, want := range []string{"<h1>" + b.Name + "</h1>", ">Works<", "<dt>Name</dt><dd>" + b.Slot(), b.Topic, "environment WALPOST_"} {
			if !strings.Contains(page, want) {
				return fmt.Errorf("the page does not have %s: %s", want, page)
			}
		}
		return nil
	})
	if page := r.Get(t, "/pipelines/"+a.Name); !strings.HasPrefix(page, "404") || !strings.Contains(page, "There is no pipeline "+a.Name) {
		t.Errorf("the page of a pipeline of another process: %s", page)
	}
	if n := a.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", a.Slot()); n != "0" {
		t.Error("init of one has made the slot of the other")
	}
}
