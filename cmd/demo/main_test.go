package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// TestMain is also the process that the tests start and stop, and the relay's process of the demo in this one.
func TestMain(m *testing.M) {
	switch os.Getenv(asMain) {
	case "":
	case misleading:
		with := allParts
		with.relay = misledRelay
		app.Main(func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
			return runWith(ctx, with, args, getenv, stdout, stderr)
		})
	default:
		main()
	}
	cdctest.Main(m)
}

// These are a variable for TestMain, and a value of it.
const (
	asMain     = "DEMO_TEST_MAIN"
	misleading = "misled"
)

// once runs the demo in this process and returns its output and its log.
func once(t *testing.T, with parts, out io.Writer, args ...string) (shown, logged string, err error) {
	t.Helper()
	var stdout, stderr cdctest.Log
	if with.relayEnv == nil {
		with.relayEnv = []string{asMain + "=1"}
	}
	err = runWith(t.Context(), with, append([]string{"--once"}, args...), func(string) string { return "" }, io.MultiWriter(&stdout, out), &stderr)
	return stdout.String(), stderr.String(), err
}

func TestOnce(t *testing.T) {
	t.Parallel()
	out, log, err := once(t, allParts, io.Discard, "--log-level", "debug")
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, log)
	}
	const lsn = `([0-9A-F]+/[0-9A-F]+)`
	event := regexp.MustCompile(`  (\w+) (\S+) of order (\S+)
    outbox     written by transaction \d+, committed; the WAL ends at ` + lsn + ` now
    Kafka      topic outbox\.event\.\w+, partition \d, offset \d+; its headers: lsn ` + lsn + ` \(of its COMMIT\), seq (\d)
    slot       confirmed_flush_lsn ` + lsn + `: .*
    \w+ +group \w+ is at offset \d+: (.*)
`)
	var got []string
	for _, m := range event.FindAllStringSubmatch(out, -1) {
		got = append(got, m[1]+" "+m[6]+": "+m[8])
		if end, committed, confirmed := parse(t, m[4]), parse(t, m[5]), parse(t, m[7]); committed >= end || confirmed <= committed {
			t.Errorf("committed at %s, the WAL's end after it %s, confirmed %s: in no order", committed, end, confirmed)
		}
		// One grep over the log of all three services shows the event's way. An order over SQL does not use the order
		// service, so its log is not searched.
		var services []string
		switch overSQL := m[6] == "2"; {
		case strings.HasPrefix(m[1], "Stock"):
			services = []string{"walpost", "orders"}
		case overSQL, m[1] == "OrderCreated":
			services = []string{"walpost", "inventory"}
		default:
			services = []string{"orders", "walpost", "inventory"}
		}
		for _, service := range services {
			if !hasLine(log, "event_id="+m[2], "service="+service) {
				t.Errorf("%s %s is not in the log of %s", m[1], m[2], service)
			}
		}
	}
	want := []string{
		"OrderCreated 1: no stock moved",
		"OrderPaid 1: MUG-200 5 → 4 (sold), TEA-100 10 → 8 (sold)",
		"StockReserved 1: order 100001 is confirmed",
		"OrderConfirmed 1: no stock moved",
		"OrderCreated 1: no stock moved",
		"OrderPaid 2: TEA-100 8 → 5 (sold)",
		"StockReserved 1: order 100002 is confirmed",
		"OrderConfirmed 1: no stock moved",
		"OrderCreated 1: no stock moved",
		"OrderPaid 2: MUG-200 4 → 2 (sold)",
		"StockReserved 1: order 100003 is confirmed",
		"OrderConfirmed 1: no stock moved",
		"OrderCreated 1: no stock moved",
		"OrderPaid 2: TEA-100 5 → 5 (shortage)",
		"StockRejected 1: order 100004 is rejected, 39.00 EUR are refunded",
		"OrderRejected 1: no stock moved",
		"OrderCancelled 1: MUG-200 2 → 4 (returned)",
		"StockReleased 1: order 100003 is cancelled, 24.00 EUR are refunded",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("shown:\n%s\nwanted:\n%s\nall of it:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), out)
	}
	if strings.Contains(log, "@shop.example") || strings.Contains(log, "unitPrice") {
		t.Errorf("an e-mail address or a payload is in the log:\n%s", log)
	}
}

func hasLine(log string, parts ...string) bool {
	for line := range strings.Lines(log) {
		missing := 0
		for _, part := range parts {
			if !strings.Contains(line, part) {
				missing++
			}
		}
		if missing == 0 {
			return true
		}
	}
	return false
}

func parse(t *testing.T, text string) (lsn cdc.LSN) {
	t.Helper()
	if err := lsn.Scan(text); err != nil {
		t.Fatal(err)
	}
	return lsn
}

func TestARelayThatDropsARow(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	with := allParts
	with.patience = 8 * time.Second
	with.relayEnv = []string{asMain + "=" + misleading}
	out, _, err := once(t, with, io.Discard)
	if err == nil || !regexp.MustCompile(`^OrderPaid \S+ is committed but did not arrive from Kafka: waited 8s for it; the relay says: ready$`).MatchString(err.Error()) {
		t.Errorf("got %v, having shown:\n%s", err, out)
	}
}

const nowhere = "nowhere" // a topic without readers

// misledRelay returns a relay that loses the first OrderPaid.
func misledRelay(cfgs []config.Config, o pipeline.Options) (pipeline.Group, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfgs[0].Kafka.Brokers...))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopics(context.Background(), 1, 1, nil, nowhere); err != nil {
		return nil, err
	}
	o.Kafka = append(o.Kafka, kgo.WithHooks(&misled{}))
	return pipeline.NewGroup(cfgs, o)
}

// misled sends the first OrderPaid to the wrong topic.
type misled struct{ once sync.Once }

func (m *misled) OnProduceRecordBuffered(r *kgo.Record) {
	if slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == "type" && string(h.Value) == "OrderPaid" }) {
		m.once.Do(func() { r.Topic = nowhere })
	}
}

func TestInventoryIsOff(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	with := allParts
	with.patience = 8 * time.Second
	with.consume = func(_ *inbox.Consumer, ctx context.Context) error {
		<-ctx.Done()
		return nil
	}
	out, _, err := once(t, with, io.Discard)
	if err == nil || !regexp.MustCompile(`^OrderCreated \S+, in Kafka at partition \d, offset 0, is not applied by inventory: .*waited 8s for it.*the consumer is not in group inventory yet$`).MatchString(err.Error()) {
		t.Errorf("got %v, having shown:\n%s", err, out)
	}
}

func TestStockThatIsNotAsTheOrdersSay(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	// A mug disappears without an order, before the last step.
	var url string
	thief := writerFunc(func(shown []byte) (int, error) {
		if m := regexp.MustCompile(`PUT (\S+/MUG-200) `).FindSubmatch(shown); m != nil {
			url = string(m[1])
		}
		if bytes.Contains(shown, []byte("third order is cancelled")) {
			if err := put(t.Context(), url, `{"available": 1}`); err != nil {
				t.Error(err)
			}
		}
		return len(shown), nil
	})
	out, _, err := once(t, allParts, thief)
	if err == nil || err.Error() != "the stock of MUG-200 is 3 and should be 4: 5 before, 1 in confirmed orders" {
		t.Errorf("got %v, having shown:\n%s", err, out)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func put(ctx context.Context, url, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	if res != nil {
		_ = res.Body.Close()
	}
	return err
}

// A child is the demo in a separate process, with a separate temporary folder.
type child struct {
	testing.TB
	cmd      *exec.Cmd
	temp     string
	press    func(keys string)
	out, err cdctest.Log
}

func spawn(t *testing.T, args ...string) *child {
	t.Helper()
	return spawnProgram(t, os.Args[0], args...)
}

func spawnProgram(t *testing.T, name string, args ...string) *child {
	t.Helper()
	// It is not t.TempDir, because a server that runs as another user cannot enter that.
	temp, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(temp) })
	if err := os.Chmod(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &child{TB: t, cmd: exec.Command(name, args...), temp: temp}
	c.cmd.Env = append(os.Environ(), asMain+"=1", "TMPDIR="+temp)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.err
	stdin, err := c.cmd.StdinPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.press = func(key string) {
		t.Helper()
		if _, err := io.WriteString(stdin, key); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
	})
	return c
}

// says waits until the demo has printed the text.
func (c *child) says(text string) {
	c.Helper()
	cdctest.Eventually(c, time.Minute, func() error {
		if out := c.out.String(); !strings.Contains(out, text) {
			return fmt.Errorf("no %q in:\n%s\n%s", text, out, c.err.String())
		}
		return nil
	})
}

// ends waits for the process and returns its exit code.
func (c *child) ends() int {
	c.Helper()
	timer := time.AfterFunc(time.Minute, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	if err := c.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		c.Fatal(err)
	}
	return c.cmd.ProcessState.ExitCode()
}

// folders returns the demo's folders in its temporary folder, and processes the processes that work there.
func (c *child) folders() []string {
	found, _ := filepath.Glob(filepath.Join(c.temp, "*"))
	return found
}

func (c *child) processes() (found []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, cwd := range all {
		if dir, err := os.Readlink(cwd); err == nil && strings.HasPrefix(dir, c.temp+"/") {
			found = append(found, cwd)
		}
	}
	return found
}

func TestExitCode(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	good := spawn(t, "--once")
	if code := good.ends(); code != 0 || good.err.String() != "" || !strings.HasSuffix(good.out.String(), "The stock has decreased by exactly the items of the confirmed orders.\n") {
		t.Errorf("exit code %d; output:\n%s\n%s", code, good.out.String(), good.err.String())
	}
	late := spawn(t, "--once", "--timeout", "100ms")
	if code := late.ends(); code != 1 || !strings.Contains(late.err.String(), "--timeout: 100ms have passed") {
		t.Errorf("exit code %d; output:\n%s\n%s", code, late.out.String(), late.err.String())
	}
	for _, c := range []*child{good, late} {
		if left := append(c.folders(), c.processes()...); len(left) > 0 {
			t.Errorf("%v leaves %v", c.cmd.Args[1:], left)
		}
	}
}

func TestCtrlCLeavesNothing(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	for name, c := range map[string]struct {
		args []string
		when func(*child)
		code int
	}{
		"while it starts":         {nil, (*child).starts, 0},
		"while it starts, --once": {[]string{"--once"}, (*child).starts, 1},
		"when it waits for orders": {nil, func(c *child) {
			c.says("/pay\n")
			c.tries()
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			demo := spawn(t, c.args...)
			c.when(demo)
			if err := demo.cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if code := demo.ends(); code != c.code || (code == 0) != (demo.err.String() == "") {
				t.Errorf("exit code %d, wanted %d; output:\n%s\n%s", code, c.code, demo.out.String(), demo.err.String())
			}
			if left := append(demo.folders(), demo.processes()...); len(left) > 0 {
				t.Errorf("it leaves %v", left)
			}
			if shown := demo.out.String(); strings.Contains(shown, "Orders are now placed") && !strings.Contains(shown, arrivedOnce) {
				t.Errorf("it does not say that every event arrived:\n%s", shown)
			}
		})
	}
}

func (c *child) starts() {
	c.Helper()
	cdctest.Eventually(c, time.Minute, func() error {
		if len(c.folders()) == 0 {
			return errors.New("no folder yet")
		}
		return nil
	})
}

// tries runs the commands that the demo prints, unchanged if the program for them is installed, and waits for their
// output.
func (c *child) tries() {
	c.Helper()
	psql := regexp.MustCompile(`(?m)^  .*pay_order.*'you'.*$`).FindString(c.out.String())
	if _, err := devenv.Tool("psql"); err != nil {
		c.Fatal("psql is not installed, and the demo proposes it")
	}
	if out, err := exec.Command("sh", "-c", psql).CombinedOutput(); err != nil {
		c.Fatalf("%s: %v: %s", psql, err, out)
	}
	c.says("TEA-100 5 → 4 (sold)")
	m := regexp.MustCompile(`curl .* -d '(\{.*\})' (\S+)`).FindStringSubmatch(c.out.String())
	if m == nil {
		c.Fatalf("no curl line in:\n%s", c.out.String())
	}
	res, err := http.Post(m[2], "application/json", strings.NewReader(m[1]))
	if err != nil {
		c.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer res.Body.Close()
	var order struct{ OrderID, OrderNumber string }
	if err := json.NewDecoder(res.Body).Decode(&order); err != nil || res.StatusCode != http.StatusCreated {
		c.Fatalf("%s: %v", res.Status, err)
	}
	c.says("of order " + order.OrderID)
}

func TestSIGKILLLeavesNoServer(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	demo := spawn(t)
	demo.says("An order is placed over HTTP")
	if len(demo.processes()) == 0 {
		t.Fatal("no server is seen while it runs")
	}
	if err := demo.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = demo.cmd.Wait()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if left := demo.processes(); len(left) > 0 {
			return fmt.Errorf("it leaves %v", left)
		}
		return nil
	})
}
