package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/sql"
)

// embedding returns the environment of an order service that relays its own outbox, after walpost init.
func embedding(t *testing.T) (env map[string]string, admin, topic string) {
	t.Helper()
	admin, service := databases(t)
	if err := sql.Migrate(t.Context(), sql.Orders, admin, service, io.Discard); err != nil {
		t.Fatal(err)
	}
	name := cdctest.Name(t, "embedded")
	env = map[string]string{
		"ORDERS_DATABASE_URL": service, "ORDERS_RELAY": "true",
		"WALPOST_PIPELINE": name, "WALPOST_SOURCE_URL": admin, "WALPOST_SOURCE_SLOT": strings.ReplaceAll(name, "-", "_"),
		"WALPOST_KAFKA_BROKERS": strings.Join(cdctest.Kafka(t), ","), "WALPOST_KAFKA_TOPIC": name + ".{aggregate_type}",
		"WALPOST_KAFKA_AGGREGATE_TYPES": "order", "WALPOST_KAFKA_REPLICATION": "1",
	}
	cfgs, err := config.Load("", getenv(env))
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New(cfgs[0], pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Init(t.Context(), pipeline.InitOptions{AdminURL: admin}); err != nil {
		t.Fatal(err)
	}
	return env, admin, name + ".order"
}

func idOf(r *kgo.Record) string {
	i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == "id" })
	return string(r.Headers[i].Value)
}

// says waits until the page contains the text.
func says(t *testing.T, page, text string) {
	t.Helper()
	cdctest.Eventually(t, time.Minute, func() error {
		if status, body := send("GET", page, "", ""); status != 200 || !strings.Contains(body, text) {
			return fmt.Errorf("%s: %d %s", page, status, body)
		}
		return nil
	})
}

// TestRelayInsideTheServiceSurvivesKills kills the one process that takes orders and relays them, while it does both.
// Every event in the outbox is in Kafka, in order, and no other event is.
func TestRelayInsideTheServiceSurvivesKills(t *testing.T) {
	cdctest.Long(t, "kills under load")
	kills := 4
	if cdctest.LongForm() {
		kills = 20
	}
	env, admin, topic := embedding(t)
	var process *exec.Cmd
	var base atomic.Value
	begin := func() {
		var settings []string
		for k, v := range env {
			settings = append(settings, k+"="+v)
		}
		var url string
		process, url = startProcess(t, env["ORDERS_DATABASE_URL"], settings...)
		base.Store(url)
	}
	begin()
	ctx, stop := context.WithCancel(t.Context())
	post := func(path, body string) (answer string) {
		for key := uuid.NewString(); ctx.Err() == nil; time.Sleep(10 * time.Millisecond) { // the next process is starting
			status, answer := send("POST", base.Load().(string)+path, body, key)
			if status == 200 || status == 201 {
				return answer
			}
		}
		return ""
	}
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				var order struct{ OrderID string }
				if json.Unmarshal([]byte(post("/orders", good)), &order) == nil {
					post("/orders/"+order.OrderID+"/pay", "")
				}
			}
		})
	}
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	written := func() (events map[string]string) { // event type by id
		rows, _ := conn.Query(t.Context(), `SELECT id::text, event_type FROM outbox`)
		events = map[string]string{}
		var id, kind string
		if _, err := pgx.ForEachRow(rows, []any{&id, &kind}, func() error { events[id] = kind; return nil }); err != nil {
			t.Fatal(err)
		}
		return events
	}
	brokers := strings.Split(env["WALPOST_KAFKA_BROKERS"], ",")
	published := func() (ids map[string]bool) {
		ids = map[string]bool{}
		for _, r := range cdctest.ReadAll(t, brokers, topic) {
			ids[idOf(r)] = true
		}
		return ids
	}
	behind := 0
	for range kills {
		before := len(published())
		cdctest.Eventually(t, time.Minute, func() error {
			if len(published()) <= before {
				return errors.New("nothing new is published")
			}
			return nil
		})
		time.Sleep(rand.N(300 * time.Millisecond)) // so that it dies at a random point
		if err := process.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = process.Wait()
		if len(written()) > len(published()) {
			behind++
		}
		begin()
	}
	stop()
	load.Wait()
	cdctest.Eventually(t, time.Minute, func() error {
		missing, there := written(), published()
		maps.DeleteFunc(missing, func(id, _ string) bool { return there[id] })
		if len(missing) > 0 {
			return fmt.Errorf("%d events are missing: %v", len(missing), missing)
		}
		return nil
	})
	says(t, base.Load().(string)+"/status", `"role":"streaming"`)
	_ = process.Process.Signal(syscall.SIGTERM)
	if err := process.Wait(); err != nil {
		t.Errorf("asked to stop, it ended with %v", err)
	}

	events, seen, paid := written(), map[string]bool{}, map[string]bool{}
	records := cdctest.ReadAll(t, brokers, topic)
	for _, r := range records {
		id, order := idOf(r), string(r.Key)
		switch {
		case events[id] == "":
			t.Errorf("event %s was published and is not in the outbox", id)
		case !seen[id] && events[id] == "OrderCreated" && paid[order]:
			t.Errorf("order %s is paid before it is created", order)
		}
		seen[id], paid[order] = true, paid[order] || events[id] == "OrderPaid"
	}
	t.Logf("%d kills, %d of them with events that were committed and not published; %d events, %d records", kills, behind, len(events), len(records))
	if behind == 0 {
		t.Error("no kill came between a commit and its publication")
	}
}

// TestOrdersAreTakenWhileTheirRelayCannotPublish: Kafka is away, and the service is ready. Its status says what the
// relay is waiting for.
func TestOrdersAreTakenWhileTheirRelayCannotPublish(t *testing.T) {
	cdctest.Long(t, "waits for a relay to start over")
	env, _, _ := embedding(t)
	env["WALPOST_KAFKA_BROKERS"] = "127.0.0.1:1"
	s := start(t, env)
	base := "http://" + s.log.must(t, "serving HTTP")["address"].(string)
	says(t, base+"/status", `"role":"retrying"`)
	if status, body := send("POST", base+"/orders", good, ""); status != 201 {
		t.Errorf("an order: %d %s", status, body)
	}
	if status, body := send("GET", base+"/readyz", "", ""); status != 200 {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if status, body := send("GET", base+"/metrics", "", ""); status != 200 || !strings.Contains(body, `role="retrying"} 1`) {
		t.Errorf("/metrics: %d without the relay's", status)
	}
	s.end(errors.New("terminated"))
	if err := <-s.ended; err != nil {
		t.Errorf("stopped with %v", err)
	}
}
