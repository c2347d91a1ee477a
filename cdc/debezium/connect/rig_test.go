//go:build debezium

package connect_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

// rig is one outbox that the real Debezium and walpost read side by side, each with a slot and topics to itself.
type rig struct {
	testing.TB
	url     string
	brokers []string
	name    string
	conn    *pgx.Conn
	admin   *kadm.Client
	client  *kgo.Client
	binary  string            // walpost
	both    map[string]string // properties of both sides' connector
}

// side is Debezium or walpost.
type side interface {
	label() string
	slot() string
	topic() string // of the aggregate type order
	begin()        // starts the process, and returns without waiting
	up()           // returns when it reads its slot
	end()          // ends it in order
	kill()
	pid() int
	said() string // its log
}

// warm is a side that can stop reading while its process stays: Debezium's Java process stays warm.
type warm interface {
	rest()
	goOn()
}

const outboxTable = `CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype varchar(255) NOT NULL,
	aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)`

// newRig creates the table and its publication.
func newRig(tb testing.TB, brokers []string, binary string) *rig {
	tb.Helper()
	r := &rig{TB: tb, url: cdctest.Database(tb), brokers: brokers, name: cdctest.Name(tb, "side"), binary: binary}
	r.conn = e2e.ConnectTo(tb, r.url)
	var err error
	if r.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.client.Close)
	r.admin = kadm.NewClient(r.client)
	r.exec(outboxTable)
	r.exec("CREATE PUBLICATION dbz_pub FOR TABLE outbox")
	return r
}

// buildWalpost builds walpost as users run it.
func buildWalpost(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "walpost")
	if out, err := exec.Command("go", "build", "-o", path, "../../../cmd/walpost").CombinedOutput(); err != nil {
		tb.Fatalf("build walpost: %v\n%s", err, out)
	}
	return path
}

func (r *rig) exec(sql string, args ...any) {
	r.Helper()
	if _, err := r.conn.Exec(r.Context(), sql, args...); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
}

func (r *rig) query(sql string, args ...any) (text string) {
	r.Helper()
	if err := r.conn.QueryRow(r.Context(), sql, args...).Scan(&text); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	return text
}

// load writes rows of about 400 bytes on the wire in transactions of perTx, with a procedure in the server.
func (r *rig) load(rows, perTx int) {
	r.Helper()
	r.exec(`CREATE OR REPLACE PROCEDURE load(n int, per int) LANGUAGE plpgsql AS $$
		BEGIN
			FOR t IN 0..n / per - 1 LOOP
				INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
				SELECT 'order', 'order-' || (t * per + i) % 5000, 'OrderPaid', jsonb_build_object('n', t * per + i, 'text', repeat('x', 240))
				FROM generate_series(1, per) i;
				COMMIT;
			END LOOP;
		END $$`)
	r.exec(fmt.Sprintf("CALL load(%d, %d)", rows, perTx))
}

// ends returns the sum of a topic's end offsets.
func (r *rig) ends(topic string) (sum int64) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	ends, err := r.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		r.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) { sum += max(0, o.Offset) })
	return sum
}

// connectorConfig returns the connector of both sides: Debezium runs it, and walpost imports it.
func (r *rig) connectorConfig(side, slot string, over map[string]string) map[string]string {
	config := connect.Connector(r.url, map[string]string{
		"slot.name": slot,
		"transforms.outbox.route.topic.replacement": r.name + "." + side + ".${routedByValue}",
	})
	maps.Copy(config, r.both)
	maps.Copy(config, over)
	return config
}

// debezium is the real one.
type debezium struct {
	*rig
	worker *connect.Worker
	config map[string]string
}

// newDebezium creates the slot and the topic, and starts the worker without the connector.
func (r *rig) newDebezium(jvm []string, worker, over map[string]string) *debezium {
	r.Helper()
	slot := cdctest.SlotName(r, "dbz")
	r.exec("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
	d := &debezium{rig: r, config: r.connectorConfig("debezium", slot, over)}
	cdctest.CreateTopic(r, r.brokers, d.topic(), 3)
	d.worker = connect.Start(r, connect.Config{Brokers: r.brokers, JVM: jvm, Settings: worker})
	return d
}

func (d *debezium) label() string { return "Debezium" }
func (d *debezium) slot() string  { return d.config["slot.name"] }
func (d *debezium) topic() string { return d.name + ".debezium.order" }
func (d *debezium) pid() int      { return d.worker.PID() }
func (d *debezium) said() string  { return d.worker.Log() }
func (d *debezium) kill()         { d.worker.Kill() }
func (d *debezium) end()          { d.worker.Terminate() }

func (d *debezium) begin() {
	d.Helper()
	d.worker.Begin()
	if err := d.worker.Put("outbox", d.config); err != nil {
		d.Fatal(err)
	}
}

func (d *debezium) up() { d.worker.AwaitStreaming("outbox") }

// rest stops the connector, and keeps the Java process.
func (d *debezium) rest() { d.worker.Stop("outbox") }

// goOn lets the connector run again; it returns without waiting.
func (d *debezium) goOn() {
	d.Helper()
	if err := d.worker.Unstop("outbox"); err != nil {
		d.Fatal(err)
	}
}

// walpost is the relay with the configuration that it imports from Debezium's.
type walpost struct {
	*rig
	is   string // its label
	env  []string
	with string // its slot
	cmd  *exec.Cmd
	log  *cdctest.Log
	over chan struct{}
}

// newWalpost imports the connector's configuration and runs walpost init.
func (r *rig) newWalpost(label, delivery string) *walpost {
	r.Helper()
	w := &walpost{rig: r, is: label, with: cdctest.SlotName(r, "walpost"), log: new(cdctest.Log)}
	side := strings.TrimPrefix(w.with, "walpost_")
	config := r.connectorConfig(side, w.with, nil)
	delete(config, "database.password")
	text, err := json.Marshal(map[string]any{"name": r.name + "-" + side, "config": config})
	if err != nil {
		r.Fatal(err)
	}
	folder := r.TempDir()
	connector, file := filepath.Join(folder, "connector.json"), filepath.Join(folder, "walpost.yaml")
	if err := os.WriteFile(connector, text, 0o600); err != nil {
		r.Fatal(err)
	}
	w.env = append(os.Environ(), "WALPOST_SOURCE_URL="+r.url, "WALPOST_ADMIN_URL="+r.url, "WALPOST_KAFKA_REPLICATION=1", "WALPOST_HTTP=127.0.0.1:0",
		"WALPOST_DELIVERY="+delivery, "LOG_FORMAT=json", "WALPOST_CONFIG="+file)
	imported, err := w.run("import", connector, "--brokers", strings.Join(r.brokers, ","))
	if err != nil {
		r.Fatalf("walpost import: %v\n%s", err, imported)
	}
	if err := os.WriteFile(file, imported, 0o600); err != nil {
		r.Fatal(err)
	}
	cdctest.CreateTopic(r, r.brokers, w.topic(), 3)
	if out, err := w.run("init"); err != nil {
		r.Fatalf("walpost init: %v\n%s", err, out)
	}
	r.Cleanup(func() {
		if w.cmd != nil {
			w.kill()
		}
	})
	return w
}

// run runs a command of walpost, and returns what it wrote to its standard output.
func (w *walpost) run(args ...string) ([]byte, error) {
	cmd := exec.Command(w.binary, args...)
	cmd.Env = w.env
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}

func (w *walpost) label() string { return w.is }
func (w *walpost) slot() string  { return w.with }
func (w *walpost) topic() string {
	return w.name + "." + strings.TrimPrefix(w.with, "walpost_") + ".order"
}
func (w *walpost) pid() int     { return w.cmd.Process.Pid }
func (w *walpost) said() string { return w.log.String() }
func (w *walpost) kill()        { w.finish(syscall.SIGKILL) }
func (w *walpost) end()         { w.finish(syscall.SIGTERM) }

func (w *walpost) begin() {
	w.Helper()
	cmd := exec.Command(w.binary, "relay")
	cmd.Env = w.env
	cmd.Stdout, cmd.Stderr = w.log, w.log
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.cmd, w.over = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(w.over)
}

func (w *walpost) finish(sig os.Signal) {
	_ = w.cmd.Process.Signal(sig)
	<-w.over
}

func (w *walpost) up() {
	w.Helper()
	cdctest.Eventually(w, time.Minute, func() error {
		if w.query("SELECT active::text FROM pg_replication_slots WHERE slot_name = $1", w.with) != "true" {
			return fmt.Errorf("walpost does not read its slot: %s", w.said())
		}
		return nil
	})
}

// cpuOf returns the processor time that a process has used.
func cpuOf(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	fields, err := statOf(pid)
	if err != nil {
		tb.Fatal(err)
	}
	return ticks(fields[11]) + ticks(fields[12])
}

// statOf returns the fields of a process in /proc after its name: its state is the first.
func statOf(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])), nil
}

// ticks returns the duration of a number of clock ticks, which are 10 ms on Linux.
func ticks(s string) time.Duration {
	n, _ := strconv.ParseInt(s, 10, 64)
	return time.Duration(n) * 10 * time.Millisecond
}

// machine is the processor time of everything, and of this process with its descendants.
type machine struct {
	at         time.Time
	busy, ours time.Duration
}

// look reads the machine's processor times.
func look(tb testing.TB) machine {
	tb.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		tb.Fatal(err)
	}
	f := strings.Fields(strings.SplitN(string(text), "\n", 2)[0])
	m := machine{at: time.Now(), busy: ticks(f[1]) + ticks(f[2]) + ticks(f[3]) + ticks(f[6]) + ticks(f[7])}
	parents, times := map[int]int{}, map[int]time.Duration{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := statOf(pid); err == nil {
			parents[pid], _ = strconv.Atoi(s[1])
			times[pid] = ticks(s[11]) + ticks(s[12]) + ticks(s[13]) + ticks(s[14])
		}
	}
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if p == os.Getpid() {
				m.ours += times[pid]
				break
			}
		}
	}
	return m
}

// othersSince returns the part of the machine that others have used since then: 1 is all of its processors.
func (m machine) othersSince(then machine, processors int) float64 {
	return max(0, float64((m.busy-then.busy)-(m.ours-then.ours))/float64(m.at.Sub(then.at))/float64(processors))
}
