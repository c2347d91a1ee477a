package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// scene is a stage for one fault: a relay's way from PostgreSQL to Kafka with a proxy on each side, a writer with its ledger,
// the oracle that knows the true order, and the sampler that watches what is confirmed.
type scene struct {
	*stage
	t       *testing.T
	mode    mode
	binary  func() string          // walpost with failpoints
	jumping func() (string, error) // the same, with a clock that jumps
	cluster func() any             // three real brokers
	result  string
	back    time.Duration

	server *devenv.Postgres // nil where it is the shared one
	kfake  *devenv.Kafka    // nil where it is a real one
	pg, kf *cdctest.Proxy
	pgAddr string // behind its proxy

	oracle  *cdctest.Oracle
	sampler *cdctest.Sampler
	writer  *cdctest.Writer
	relays  []*relay
	healed  time.Time
	heal    string // the WAL's end then

	mayMisplace bool // see fault 3
	spread      bool // partitions were added: see fault 17
}

// set says what a scene is made of. The zero value is the shared PostgreSQL and the Kafka that the run tests with.
type set struct {
	server   bool              // a PostgreSQL of its own, to be stopped
	least    int               // the first version that can do it: an older one that the run tests with is not taken
	settings map[string]string // of that
	kfake    int               // so many in-process brokers, whatever the run tests with
	brokers  []string          // instead of those the run tests with
	options  string            // of the relay's connections: -c wal_sender_timeout=2s
	env      map[string]string
	init     []string             // more arguments of init
	quiet    bool                 // no writer
	load     cdctest.WriterConfig // Rate 60, with prepared and long transactions, if zero
}

// build makes everything but a relay, and runs init.
func (s *scene) build(c set) {
	t := s.t
	t.Helper()
	var admin string
	if c.server || c.settings != nil {
		own := devenv.PostgresConfig{Settings: c.settings}
		if v, err := strconv.Atoi(os.Getenv("WALPOST_TEST_POSTGRES")); c.least > 0 && (err != nil || v < c.least) {
			own.Version = strconv.Itoa(c.least)
		}
		s.server = cdctest.OwnPostgres(t, own)
		if err := s.server.CreateDatabase(t.Context(), "shop"); err != nil {
			t.Fatal(err)
		}
		admin = s.server.URL("shop")
	} else {
		admin = cdctest.Database(t)
	}
	brokers := strings.Split(os.Getenv("WALPOST_TEST_KAFKA"), ",")
	if c.brokers != nil {
		brokers = c.brokers
	} else if c.kfake > 0 || brokers[0] == "" {
		var err error
		if s.kfake, err = devenv.StartKafka(devenv.KafkaConfig{Brokers: c.kfake}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.kfake.Close)
		brokers = s.kfake.Brokers()
	}
	s.stage = stageOn(t, admin, brokers)
	s.env["WALPOST_DELIVERY"] = string(s.mode)
	s.env["WALPOST_SOURCE_STATUS_INTERVAL"] = "100ms" // what is confirmed too early is confirmed often
	for k, v := range c.env {
		s.env[k] = v
	}
	s.must(append([]string{"init"}, c.init...)...)
	s.kf = cdctest.StartKafkaProxy(t, brokers, nil)
	u, err := url.Parse(s.env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	s.pgAddr = u.Host
	s.pg = cdctest.StartProxy(t, u.Host, nil)
	u.Host = s.pg.Addr()
	if c.options != "" {
		q := u.Query()
		q.Set("options", c.options)
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	}
	s.env["WALPOST_SOURCE_URL"] = u.String()
	s.env["WALPOST_KAFKA_BROKERS"] = strings.Join(s.kf.Brokers(), ",")
	if c.quiet {
		return
	}
	s.watch(c.load)
}

// watch starts oracle, writer and sampler.
func (s *scene) watch(load cdctest.WriterConfig) {
	s.t.Helper()
	s.oracle = cdctest.StartOracle(s.t, s.admin, "public.outbox")
	s.write(load)
	s.sample()
}

func (s *scene) sample() {
	s.t.Helper()
	c := cdctest.SamplerConfig{URL: s.admin, Slot: s.env["WALPOST_SOURCE_SLOT"], Oracle: s.oracle, Brokers: s.brokers, Topics: []string{s.topic}}
	if s.mode == exactlyOnce {
		c.TransactionalID = "walpost." + s.pipeline
	}
	s.sampler = cdctest.StartSampler(s.t, c)
}

func (s *scene) write(load cdctest.WriterConfig) {
	s.t.Helper()
	if load == (cdctest.WriterConfig{}) {
		load = cdctest.WriterConfig{Rate: 60, Prepared: true, Long: 300 * time.Millisecond}
	}
	load.URL = s.admin
	s.writer = cdctest.StartWriter(s.t, load)
}

// run starts a relay in this process, and spawn one of its own; either streams when it returns.
func (s *scene) run() *relay {
	s.t.Helper()
	return s.streams(s.start())
}

func (s *scene) child() *relay {
	s.t.Helper()
	return s.streams(s.spawn())
}

func (s *scene) streams(r *relay) *relay {
	s.t.Helper()
	r.says(30*time.Second, `"streaming"`)
	s.relays = append(s.relays, r)
	return r
}

// failing starts a relay that has failpoints.
func (s *scene) failing(points string) *relay {
	s.t.Helper()
	r := s.stage.command(exec.Command(s.binary(), "relay"), "WALPOST_FAILPOINT="+points)
	s.relays = append(s.relays, r)
	return r
}

// grows waits until so many more rows were committed.
func (s *scene) grows(by int) {
	s.t.Helper()
	seen := s.writer.Committed()
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		if n := s.writer.Committed(); n < seen+by {
			return fmt.Errorf("%d rows written since, want %d", n-seen, by)
		}
		return nil
	})
}

// flows waits until what is committed now is delivered and confirmed.
func (s *scene) flows() {
	s.t.Helper()
	s.confirmed(30 * time.Second)
}

// fixed marks the end of the fault.
func (s *scene) fixed() {
	s.t.Helper()
	s.heal = s.query("SELECT pg_current_wal_lsn()::text")
	s.healed = time.Now()
}

// settle waits until everything is delivered and confirmed, and checks all that a run must hold.
func (s *scene) settle() cdctest.Report {
	s.t.Helper()
	if s.healed.IsZero() {
		s.fixed()
	}
	s.eventually(2*time.Minute, "confirmed_flush_lsn >= '"+s.heal+"'")
	s.back = max(time.Since(s.healed), 100*time.Millisecond)
	return s.finish(s.writer.Stop())
}

// finish is settle for a ledger of which only a part may be asked for.
func (s *scene) finish(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	ledger = s.oracle.Complete(s.t, ledger)
	ledger.Spread = s.spread
	s.confirmed(3 * time.Minute) // other tests' WAL is in between, and a busy machine decodes all of it
	samples := s.sampler.Stop()
	report := s.check(ledger)
	s.t.Logf("%s: %d events in %d commits, %d records, %d duplicates in %d replays, %d samples; back after %s", s.mode, report.Events,
		len(ledger.Commits), report.Records, report.Duplicates, report.Replays, samples, s.back.Round(time.Millisecond))
	if samples == 0 {
		s.t.Error("nothing was sampled while it ran")
	}
	s.released()
	if len(s.relays) == 1 {
		s.metrics(s.relays[0], report)
	}
	return report
}

func (s *scene) check(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	report := cdctest.Check(ledger, cdctest.ReadAll(s.t, s.brokers, s.topic))
	if s.mayMisplace && s.mode == atLeastOnce {
		report.Misplaced = cdctest.Finding{}
	}
	if err := report.Err(); err != nil {
		s.t.Errorf("%s, %d events committed: %v", s.mode, len(ledger.Events), err)
	}
	if s.mode == exactlyOnce && report.Duplicates > 0 {
		s.t.Errorf("exactly once, and %d duplicates under read_committed", report.Duplicates)
	}
	return report
}

// once says that there is nothing twice, in either mode.
func (s *scene) once(report cdctest.Report) {
	s.t.Helper()
	if report.Duplicates > 0 {
		s.t.Errorf("%d duplicates, and there is no reason for one", report.Duplicates)
	}
}

// released waits until the server lets go of the WAL that was needed: restart_lsn moves past what was committed when all was
// confirmed. It does so when a snapshot of running transactions is confirmed; a checkpoint logs one. On the shared server other
// tests' open transactions hold it back.
func (s *scene) released() {
	s.t.Helper()
	if s.server == nil {
		return
	}
	end := s.query("SELECT pg_current_wal_lsn()::text")
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		s.exec("CHECKPOINT")
		if row := s.query("SELECT restart_lsn::text || CASE WHEN restart_lsn >= $2::text::pg_lsn THEN '' ELSE ' no' END FROM pg_replication_slots WHERE slot_name = $1",
			s.env["WALPOST_SOURCE_SLOT"], end); strings.HasSuffix(row, " no") {
			return fmt.Errorf("restart_lsn is %s, the WAL ended at %s", row, end)
		}
		return nil
	})
}

var publishedMetric = regexp.MustCompile(`(?m)^walpost_rows_published_total\{.*\} (\d+)`)

// metrics compares what the one relay of this run has counted with what is there.
func (s *scene) metrics(r *relay, report cdctest.Report) {
	s.t.Helper()
	text, err := r.ask("/metrics")
	if err != nil {
		return // it has ended
	}
	m := publishedMetric.FindStringSubmatch(text)
	if m == nil {
		s.t.Fatalf("no metric of published rows:\n%s", text)
	}
	least := report.Events
	if s.mode == exactlyOnce && strings.Contains(r.log.String(), "end a transaction") {
		least = 0 // the answer was lost and the transaction was not: its window is never counted
	}
	if n, _ := strconv.Atoi(m[1]); n < least || n > report.Records {
		s.t.Errorf("walpost_rows_published_total is %d, with %d events in %d records", n, report.Events, report.Records)
	}
}

// impossible records that this machine cannot do the fault.
func (s *scene) impossible(why string) {
	s.t.Log("not run: " + why)
	s.result = notRun
}

// halts waits until the relay has halted with a sentence that holds the texts and says so at /readyz and in `walpost status`.
func (s *scene) halts(r *relay, texts ...string) {
	s.t.Helper()
	r.says(60*time.Second, `"halted"`)
	for _, text := range texts {
		r.says(2*time.Second, text)
	}
	if ready := r.get(s.t, "/readyz"); !strings.HasPrefix(ready, "503") {
		s.t.Errorf("/readyz of a halted relay: %s", ready)
	}
}

// stays does what must neither publish nor confirm, and writes rows that it must not touch.
func (s *scene) stays(f func()) {
	s.t.Helper()
	const slot = "SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = $1"
	confirmed, published := s.query(slot, s.env["WALPOST_SOURCE_SLOT"]), len(cdctest.ReadAll(s.t, s.brokers, s.topic))
	f()
	if now := s.query(slot, s.env["WALPOST_SOURCE_SLOT"]); now != confirmed {
		s.t.Errorf("the halted relay moved the slot from %s to %s", confirmed, now)
	}
	if now := len(cdctest.ReadAll(s.t, s.brokers, s.topic)); now != published {
		s.t.Errorf("the halted relay published %d records", now-published)
	}
	if active := s.query("SELECT coalesce(bool_or(active), false)::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]); active != "false" {
		s.t.Error("the halted relay keeps the slot")
	}
}

// failpointBinary builds walpost with failpoints, when it is first asked for.
func failpointBinary(t *testing.T) func() string {
	dir := t.TempDir()
	build := sync.OnceValues(func() (string, error) {
		path := filepath.Join(dir, "walpost")
		out, err := exec.Command("go", "build", "-tags", "failpoints", "-o", path, ".").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("go build -tags failpoints: %w\n%s", err, out)
		}
		return path, err
	})
	return func() string {
		path, err := build()
		if err != nil {
			t.Error(err)
		}
		return path
	}
}

// signal sends one to a child.
func (r *relay) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := syscall.Kill(r.pid, sig); err != nil {
		r.t.Fatalf("%s to the relay: %v", sig, err)
	}
}

// ends waits until a child is gone.
func (r *relay) ends(within time.Duration) {
	r.t.Helper()
	select {
	case <-r.gone:
	case <-time.After(within):
		r.t.Fatalf("the relay has not ended within %s", within)
	}
}

// stopped waits until a child is frozen.
func (r *relay) frozen(within time.Duration) {
	r.t.Helper()
	cdctest.Eventually(r.t, within, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.pid))
		if err != nil {
			return err
		}
		if _, rest, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(rest, "T") {
			return errors.New("it is not stopped")
		}
		return nil
	})
}

// memory is what a child has resident, in bytes, at its highest so far.
func (r *relay) memory() int {
	r.t.Helper()
	bytes := memoryOf(r.pid)
	if bytes == 0 {
		r.t.Fatal("the relay has gone")
	}
	return int(bytes)
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
