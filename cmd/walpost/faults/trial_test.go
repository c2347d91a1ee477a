package faults

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
)

// trial is one fault in one mode of delivery: a relay between PostgreSQL and Kafka with a proxy on each side, a
// writer with its ledger, the oracle that knows the true order, and the sampler that watches the confirmed LSN.
type trial struct {
	*e2e.Pipeline
	t    *testing.T
	mode config.Delivery
	binaries
	result   string
	recovery time.Duration

	server              *devenv.Postgres // nil if it is the shared one
	kfake               *devenv.Kafka    // nil if it is a real one
	pgProxy, kafkaProxy *cdctest.Proxy
	pgAddress           string // address of its proxy

	oracle      *cdctest.Oracle
	sampler     *cdctest.Sampler
	writer      *cdctest.Writer
	relays      []*e2e.Relay
	faultEnded  time.Time
	faultEndLSN string // the end of the WAL at the end of the fault

	mayMisplace     bool // see fault 3
	partitionsAdded bool // partitions were added: see fault 17
}

// setup describes a trial. The zero value uses the shared PostgreSQL and the Kafka of this test run.
type setup struct {
	server   bool              // a separate PostgreSQL, which the trial may stop
	least    int               // the first major version that supports the fault: an older version of this run is replaced
	settings map[string]string // settings of the separate PostgreSQL
	kfake    int               // number of in-process brokers, instead of the Kafka of this run
	brokers  []string          // instead of the brokers of this run
	options  string            // of the relay's connections: -c wal_sender_timeout=2s
	env      map[string]string
	init     []string             // more arguments of init
	quiet    bool                 // no writer
	load     cdctest.WriterConfig // Rate 60, with prepared and long transactions, if zero
}

// prepare makes everything except a relay, and runs init.
func (s *trial) prepare(c setup) {
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
	s.Pipeline = e2e.NewOn(t, s.program(), admin, brokers)
	s.Env["WALPOST_DELIVERY"] = string(s.mode)
	s.Env["WALPOST_SOURCE_STATUS_INTERVAL"] = "100ms" // an LSN that is confirmed too early is confirmed often
	for k, v := range c.env {
		s.Env[k] = v
	}
	s.MustRun(append([]string{"init"}, c.init...)...)
	s.kafkaProxy = cdctest.StartKafkaProxy(t, brokers, nil)
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	s.pgAddress = u.Host
	s.pgProxy = cdctest.StartProxy(t, u.Host, nil)
	u.Host = s.pgProxy.Addr()
	if c.options != "" {
		q := u.Query()
		q.Set("options", c.options)
		u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
	}
	s.Env["WALPOST_SOURCE_URL"] = u.String()
	s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(s.kafkaProxy.Brokers(), ",")
	if c.quiet {
		return
	}
	s.startLoad(c.load)
}

// startLoad starts oracle, writer and sampler.
func (s *trial) startLoad(load cdctest.WriterConfig) {
	s.t.Helper()
	s.oracle = cdctest.StartOracle(s.t, s.AdminURL, "public.outbox")
	s.startWriter(load)
	s.startSampler()
}

func (s *trial) startSampler() {
	s.t.Helper()
	c := cdctest.SamplerConfig{URL: s.AdminURL, Slot: s.Slot(), Oracle: s.oracle, Brokers: s.Brokers, Topics: []string{s.Topic}}
	if s.mode == config.ExactlyOnce {
		c.TransactionalID = "walpost." + s.Name
	}
	s.sampler = cdctest.StartSampler(s.t, c)
}

func (s *trial) startWriter(load cdctest.WriterConfig) {
	s.t.Helper()
	if load == (cdctest.WriterConfig{}) {
		load = cdctest.WriterConfig{Rate: 60, Prepared: true, Long: 300 * time.Millisecond}
	}
	load.URL = s.AdminURL
	s.writer = cdctest.StartWriter(s.t, load)
}

// startStreaming starts a relay and returns when it streams.
func (s *trial) startStreaming() *e2e.Relay {
	s.t.Helper()
	return s.waitUntilStreaming(s.SpawnRelay())
}

// startMeasured starts a relay without the race detector, so that its memory and CPU time can be measured.
func (s *trial) startMeasured() *e2e.Relay {
	s.t.Helper()
	return s.waitUntilStreaming(s.StartCommand(exec.Command(s.failpoints(), "relay")))
}

// waitUntilStreaming waits at most a minute: the relay tries again 30 s after a halt that is not latched.
func (s *trial) waitUntilStreaming(r *e2e.Relay) *e2e.Relay {
	s.t.Helper()
	r.WaitForLog(time.Minute, `"streaming"`)
	s.relays = append(s.relays, r)
	return r
}

// startWithFailpoints starts a relay that has failpoints.
func (s *trial) startWithFailpoints(points string) *e2e.Relay {
	s.t.Helper()
	r := s.StartCommand(exec.Command(s.failpoints(), "relay"), "WALPOST_FAILPOINT="+points)
	s.relays = append(s.relays, r)
	return r
}

// waitForCommits waits until this many more rows are committed.
func (s *trial) waitForCommits(by int) {
	s.t.Helper()
	seen := s.writer.Committed()
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		if n := s.writer.Committed(); n < seen+by {
			return fmt.Errorf("%d rows written since, want %d", n-seen, by)
		}
		return nil
	})
}

// waitUntilDelivered waits until all rows committed by now are delivered and confirmed.
func (s *trial) waitUntilDelivered() {
	s.t.Helper()
	s.WaitUntilConfirmed(30 * time.Second)
}

// endFault marks the end of the fault.
func (s *trial) endFault() {
	s.t.Helper()
	s.faultEndLSN = s.Query("SELECT pg_current_wal_lsn()::text")
	s.faultEnded = time.Now()
}

// finish waits until everything is delivered and confirmed, and checks all promises of a run.
func (s *trial) finish() cdctest.Report {
	s.t.Helper()
	if s.faultEnded.IsZero() {
		s.endFault()
	}
	s.WaitForSlot(2*time.Minute, "confirmed_flush_lsn >= '"+s.faultEndLSN+"'")
	s.recovery = max(time.Since(s.faultEnded), 100*time.Millisecond)
	return s.finishWith(s.writer.Stop())
}

// finishWith does the same as finish with another ledger, for runs that may lose a part of their rows.
func (s *trial) finishWith(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	ledger = s.oracle.Complete(s.t, ledger)
	ledger.Spread = s.partitionsAdded
	s.WaitUntilConfirmed(3 * time.Minute) // other tests' WAL is in between, and a busy machine decodes all of it
	samples := s.sampler.Stop()
	report := s.checkTopic(ledger)
	s.t.Logf("%s: %d events in %d commits, %d records, %d duplicates in %d replays, %d samples; back after %s", s.mode, report.Events,
		len(ledger.Commits), report.Records, report.Duplicates, report.Replays, samples, s.recovery.Round(time.Millisecond))
	if samples == 0 {
		s.t.Error("nothing was sampled while it ran")
	}
	s.waitUntilWALReleased()
	if len(s.relays) == 1 {
		s.checkMetrics(s.relays[0], report)
	}
	return report
}

func (s *trial) checkTopic(ledger cdctest.Ledger) cdctest.Report {
	s.t.Helper()
	report := cdctest.Check(ledger, cdctest.ReadAll(s.t, s.Brokers, s.Topic))
	if s.mayMisplace && s.mode == config.AtLeastOnce {
		report.Misplaced = cdctest.Finding{}
	}
	if err := report.Err(); err != nil {
		s.t.Errorf("%s, %d events committed: %v", s.mode, len(ledger.Events), err)
	}
	if s.mode == config.ExactlyOnce && report.Duplicates > 0 {
		s.t.Errorf("exactly once, and %d duplicates under read_committed", report.Duplicates)
	}
	return report
}

// wantNoDuplicates fails the test when a record came twice, in either mode.
func (s *trial) wantNoDuplicates(report cdctest.Report) {
	s.t.Helper()
	if report.Duplicates > 0 {
		s.t.Errorf("%d duplicates, and there is no reason for one", report.Duplicates)
	}
}

// waitUntilWALReleased waits until the server no longer keeps the WAL: restart_lsn passes everything that was
// committed when all was confirmed. That happens when a snapshot of running transactions is confirmed; a checkpoint
// logs one. On the shared server other tests' open transactions delay it.
func (s *trial) waitUntilWALReleased() {
	s.t.Helper()
	if s.server == nil {
		return
	}
	end := s.Query("SELECT pg_current_wal_lsn()::text")
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		s.Exec("CHECKPOINT")
		if row := s.Query("SELECT restart_lsn::text || CASE WHEN restart_lsn >= $2::text::pg_lsn THEN '' ELSE ' no' END FROM pg_replication_slots WHERE slot_name = $1",
			s.Slot(), end); strings.HasSuffix(row, " no") {
			return fmt.Errorf("restart_lsn is %s, the WAL ended at %s", row, end)
		}
		return nil
	})
}

var publishedMetric = regexp.MustCompile(`(?m)^walpost_rows_published_total\{.*\} (\d+)`)

// checkMetrics compares the counters of the run's only relay with the records in Kafka.
func (s *trial) checkMetrics(r *e2e.Relay, report cdctest.Report) {
	s.t.Helper()
	text, err := r.Ask("/metrics")
	if err != nil {
		return // the relay has ended
	}
	m := publishedMetric.FindStringSubmatch(text)
	if m == nil {
		s.t.Fatalf("no metric of published rows:\n%s", text)
	}
	least := report.Events
	if s.mode == config.ExactlyOnce && strings.Contains(r.Log.String(), "end a transaction") {
		least = 0 // the answer was lost and the transaction was not: its window is never counted
	}
	if n, _ := strconv.Atoi(m[1]); n < least || n > report.Records {
		s.t.Errorf("walpost_rows_published_total is %d, with %d events in %d records", n, report.Events, report.Records)
	}
}

// reportNotRun records that this machine cannot run the fault.
func (s *trial) reportNotRun(why string) {
	s.t.Log("not run: " + why)
	s.result = notRun
}

// waitUntilHalted waits until the relay has halted with a sentence that contains the texts, and reports it at /readyz
// and in `walpost status`.
func (s *trial) waitUntilHalted(r *e2e.Relay, texts ...string) {
	s.t.Helper()
	r.WaitForLog(60*time.Second, `"halted"`)
	for _, text := range texts {
		r.WaitForLog(6*time.Second, text)
	}
	if ready := r.Get(s.t, "/readyz"); !strings.HasPrefix(ready, "503") {
		s.t.Errorf("/readyz of a halted relay: %s", ready)
	}
}

// wantNothingMoved calls f, during which the relay must neither publish nor confirm.
func (s *trial) wantNothingMoved(f func()) {
	s.t.Helper()
	const slot = "SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name = $1"
	confirmed, published := s.Query(slot, s.Slot()), len(cdctest.ReadAll(s.t, s.Brokers, s.Topic))
	f()
	if now := s.Query(slot, s.Slot()); now != confirmed {
		s.t.Errorf("the halted relay moved the slot from %s to %s", confirmed, now)
	}
	if now := len(cdctest.ReadAll(s.t, s.Brokers, s.Topic)); now != published {
		s.t.Errorf("the halted relay published %d records", now-published)
	}
	s.WaitUntilFree(10 * time.Second) // a halted relay does not keep it
}

// binaries are the programs that the faults run; each is built when it is first needed.
type binaries struct {
	walpost    func() string // as in production
	failpoints func() string
	jumping    func() string // with failpoints, and a clock that jumps
	cluster    func() any    // three real brokers
}

func newBinaries(t *testing.T) binaries {
	return binaries{
		walpost:    e2e.Build(t, ".."),
		failpoints: e2e.Build(t, "..", "-race=false", "-tags", "failpoints"),
		jumping:    jumpingBinary(t),
		cluster:    newCluster(t),
	}
}

func (b binaries) program() e2e.Program { return e2e.Program{Path: b.walpost()} }

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), cdctest.Patience(d))
	t.Cleanup(cancel)
	return ctx
}
