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
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// together is the process that has the pipelines of several stages: a file, and variables for what nobody writes into files.
func together(t testing.TB, stages ...*stage) *stage {
	t.Helper()
	all := &stage{t: t, env: map[string]string{
		"WALPOST_CONFIG": filepath.Join(t.TempDir(), "walpost.yaml"), "WALPOST_HTTP": "127.0.0.1:0", "LOG_LEVEL": "info", "LOG_FORMAT": "json",
	}}
	text := "kafka: {aggregate_types: [order], replication: 1}\npipelines:\n"
	for _, s := range stages {
		text += fmt.Sprintf("- pipeline: %s\n  source: {slot: %s}\n  kafka: {topic: \"%s\", brokers: [\"%s\"]}\n",
			s.pipeline, slot(s), s.env["WALPOST_KAFKA_TOPIC"], strings.ReplaceAll(s.env["WALPOST_KAFKA_BROKERS"], ",", `", "`))
		c := config.Config{Pipeline: s.pipeline}
		all.env[c.Variable("SOURCE_URL")] = s.env["WALPOST_SOURCE_URL"]
		all.env[c.Variable("ADMIN_URL")] = s.env["WALPOST_ADMIN_URL"]
		all.env[c.Variable("DELIVERY")] = s.env["WALPOST_DELIVERY"]
	}
	if err := os.WriteFile(all.env["WALPOST_CONFIG"], []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return all
}

func (r *relay) roles() map[string]cdc.Role {
	r.t.Helper()
	var statuses []pipeline.Status
	if _, text, _ := strings.Cut(r.get(r.t, "/status"), " "); json.Unmarshal([]byte(text), &statuses) != nil {
		r.t.Fatalf("/status: %s", text)
	}
	roles := map[string]cdc.Role{}
	for _, s := range statuses {
		roles[s.Pipeline] = s.Role
	}
	return roles
}

// becomes waits until a pipeline of the process is in that role.
func (r *relay) becomes(s *stage, role cdc.Role) {
	r.t.Helper()
	cdctest.Eventually(r.t, time.Minute, func() error {
		if now := r.roles()[s.pipeline]; now != role {
			return fmt.Errorf("pipeline %s is %s, not %s", s.pipeline, now, role)
		}
		return nil
	})
}

// measures waits until the relay's metrics have all of these.
func (r *relay) measures(t testing.TB, texts ...string) {
	t.Helper()
	cdctest.Eventually(t, 30*time.Second, func() error {
		metrics := r.get(t, "/metrics")
		for _, text := range texts {
			if !strings.Contains(metrics, text) {
				return fmt.Errorf("/metrics lack %s", text)
			}
		}
		return nil
	})
}

// TestPipelinesKeepToThemselves relays two databases of one server in one process. One loses its slot and halts, the other goes on;
// an operator fixes the one by name; the process is killed with both under load, and started again, or replaced by one that stands by,
// and nothing is missing in either.
func TestPipelinesKeepToThemselves(t *testing.T) {
	t.Parallel()
	a := newStage(t)
	b := stageOn(t, cdctest.Database(t), a.brokers)
	b.env["WALPOST_DELIVERY"] = string(exactlyOnce)
	all := together(t, a, b)
	if out := all.must("init"); !strings.Contains(out, "pipeline "+a.pipeline) || !strings.Contains(out, "walpost.state."+b.pipeline+": written") {
		t.Fatalf("init of both:\n%s", out)
	}
	r := all.spawn()
	r.becomes(a, cdc.Streaming)
	r.becomes(b, cdc.Streaming)
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("two streaming pipelines are not ready: %s", ready)
	}
	a.arrives(a.one())
	b.arrives(b.one())
	if n, m := len(a.ids()), len(b.ids()); n != 1 || m != 1 {
		t.Errorf("one event each are %d and %d", n, m)
	}
	r.measures(t, fmt.Sprintf("walpost_slot_lost{pipeline=%q} 0\n", b.pipeline))

	cdctest.Eventually(t, 30*time.Second, func() error { // the relay takes it again as soon as it can
		conn := b.connect()
		defer func() { _ = conn.Close(t.Context()) }()
		_, _ = conn.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", slot(b))
		_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slot(b))
		return err
	})
	r.becomes(b, cdc.Halted)
	a.arrives(a.one())
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "503 pipeline "+b.pipeline+": halted: ") || strings.Contains(ready, a.pipeline) {
		t.Errorf("/readyz with one halted: %s", ready)
	}
	r.measures(t, fmt.Sprintf("walpost_role{pipeline=%q,role=\"halted\"} 1\n", b.pipeline), fmt.Sprintf("walpost_role{pipeline=%q,role=\"streaming\"} 1\n", a.pipeline),
		fmt.Sprintf("walpost_slot_lost{pipeline=%q} 1\n", b.pipeline), fmt.Sprintf("walpost_slot_lost{pipeline=%q} 0\n", a.pipeline),
		fmt.Sprintf("walpost_slot_lag_bytes{pipeline=%q} ", a.pipeline), fmt.Sprintf("walpost_slot_retained_bytes{pipeline=%q} ", a.pipeline))
	r.says(time.Second, `"pipeline":"`+b.pipeline+`","slot":"`+slot(b)+`","error"`)
	var both []pipeline.Status
	if err := json.Unmarshal([]byte(all.must("status", "--json")), &both); err != nil || len(both) != 2 {
		t.Fatal(both, err)
	}
	if !both[0].Slot.Active || len(both[0].Blocked) > 0 || both[1].Slot.Exists || len(both[1].Blocked) == 0 {
		t.Errorf("status of both: %+v", both)
	}
	if text := all.must("status"); !strings.Contains(text, "pipeline   "+a.pipeline) || !strings.Contains(text, "pipeline   "+b.pipeline) {
		t.Errorf("status of both:\n%s", text)
	}
	for _, args := range [][]string{{"skip", "--to", "0/1"}, {"adopt"}, {"dlq", "list"}, {"where", "x"}, {"init", "--remove", "--yes"}, {"replay", "--from", "x", "--to", "y"}} {
		all.refuses("--pipeline: say which: "+a.pipeline+", "+b.pipeline, args...)
	}
	all.refuses("there is no such pipeline: "+a.pipeline+", "+b.pipeline, "status", "--pipeline", "c")
	command := all.find(r.halted(), "-p "+b.pipeline+" adopt") // as it is printed, by status as by the log
	if text := all.must("status"); !strings.Contains(text, "`walpost "+strings.Join(command, " ")+"`") {
		t.Errorf("status does not print walpost %s:\n%s", strings.Join(command, " "), text)
	}
	if out := all.must(command...); !strings.Contains(out, "`walpost -p "+b.pipeline+" replay ") {
		t.Errorf("adopt prints no replay of this pipeline:\n%s", out)
	}

	writers := []*cdctest.Writer{cdctest.StartWriter(t, cdctest.WriterConfig{URL: a.admin, Rate: 60}), cdctest.StartWriter(t, cdctest.WriterConfig{URL: b.admin, Rate: 60})}
	for _, standby := range []bool{false, true} {
		before := [2]string{a.one(), b.one()}
		killed := r
		if !standby {
			killed.kill()
		}
		r = all.spawn()
		if standby {
			r.becomes(a, cdc.Standby)
			r.becomes(b, cdc.Standby)
			if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
				t.Errorf("a process that stands by for both is not ready: %s", ready)
			}
			killed.kill()
		}
		r.becomes(a, cdc.Streaming)
		r.becomes(b, cdc.Streaming)
		a.arrives(before[0])
		b.arrives(before[1])
	}
	for i, s := range []*stage{a, b} {
		ledger := writers[i].Stop()
		s.confirmed(time.Minute)
		cdctest.Collect(t, s.brokers, s.topic, ledger, time.Minute)
		if s.state().Pipeline != s.pipeline {
			t.Errorf("state record of %s: %+v", s.pipeline, s.state())
		}
	}
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("both stream again, and the process is not ready: %s", ready)
	}
}

// TestPipelineWithoutItsServer: the server of one is gone; the other goes on, and the one when its server is back.
func TestPipelineWithoutItsServer(t *testing.T) {
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	a, b := newStage(t), stageOn(t, server.URL("shop"), cdctest.Kafka(t))
	all := together(t, a, b)
	all.must("init")
	r := all.start()
	r.becomes(a, cdc.Streaming)
	r.becomes(b, cdc.Streaming)
	if err := server.Stop(t.Context(), "immediate"); err != nil {
		t.Fatal(err)
	}
	r.becomes(b, cdc.Retrying)
	a.arrives(a.one())
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "503 pipeline "+b.pipeline+": retrying: ") || strings.Contains(ready, a.pipeline) {
		t.Errorf("/readyz with the server of one gone: %s", ready)
	}
	if out, err := all.walpost("init"); err == nil || !strings.Contains(err.Error(), "pipeline "+b.pipeline) || !strings.Contains(out, "walpost.state."+a.pipeline) && !strings.Contains(out, "the state record covers") {
		t.Errorf("init with the server of one gone: %v\n%s", err, out)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.arrives(b.one())
	a.arrives(a.one())
}

func TestMemoryLimitGrowsWithEachPipeline(t *testing.T) {
	a, b := config.Default(), config.Default()
	b.Window.Bytes = 64 << 20
	if one, both := memoryLimit([]config.Config{a}), memoryLimit([]config.Config{a, b}); one != 48<<20 || both != one+392<<20 {
		t.Errorf("the limit is %d MiB of one pipeline, %d of two", one>>20, both>>20)
	}
}

// TestPipelinesAllDrain: one pipeline has nothing to finish when the process is asked to stop, the other waits for its Kafka, and
// is waited for.
func TestPipelinesAllDrain(t *testing.T) {
	t.Parallel()
	a, b := newStage(t), newStage(t)
	a.must("init")
	b.must("init")
	slow := cdctest.StartKafkaProxy(t, a.brokers, nil)
	a.env["WALPOST_KAFKA_BROKERS"] = strings.Join(slow.Brokers(), ",")
	all := together(t, a, b)
	all.env["WALPOST_SHUTDOWN_TIMEOUT"] = "1m"
	r := all.start()
	r.becomes(a, cdc.Streaming)
	r.becomes(b, cdc.Streaming)
	slow.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{})
	id := a.one()
	r.measures(t, fmt.Sprintf("walpost_rows_received_total{pipeline=%q} 1\n", a.pipeline))
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	r.says(30*time.Second, `"pipeline":"`+b.pipeline+`","slot":"`+slot(b)+`","cause":"context canceled"`)
	if ready := r.get(t, "/readyz"); !strings.HasPrefix(ready, "503") {
		t.Errorf("the page is to stay until all have drained: %s", ready)
	}
	slow.Set(cdctest.Wire{}, cdctest.Wire{})
	if err := <-ended; err != nil {
		t.Errorf("asked to stop, the process ended with %v", err)
	}
	a.arrives(id)
	if now := a.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", slot(a)); now != a.state().Covered.String() {
		t.Errorf("drained, the slot is at %s and the record at %s", now, a.state().Covered)
	}
}

// TestOnePipelineOfSeveral: a process each, of one file.
func TestOnePipelineOfSeveral(t *testing.T) {
	t.Parallel()
	a := newStage(t)
	b := stageOn(t, cdctest.Database(t), a.brokers)
	all := together(t, a, b)
	all.must("init", "--pipeline", b.pipeline)
	r := all.command(exec.Command(os.Args[0], "relay", "--pipeline", b.pipeline), "WALPOST_TEST_MAIN=1")
	b.arrives(b.one())
	if status := r.get(t, "/status"); strings.Contains(status, a.pipeline) || !strings.Contains(status, `{"pipeline":"`+b.pipeline) {
		t.Errorf("/status: %s", status)
	}
	if n := a.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", slot(a)); n != "0" {
		t.Error("init of one has made the slot of the other")
	}
}
