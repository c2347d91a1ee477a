package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
)

// stopPostgres stops the trial's own server while only the relay and the writer are connected.
func (s *trial) stopPostgres(mode string) (took time.Duration) {
	s.t.Helper()
	if s.sampler != nil {
		s.sampler.Pause()
		s.oracle.Rest()
	}
	s.Rest()
	began := time.Now()
	if err := s.server.Stop(timeout(s.t, time.Minute), mode); err != nil {
		s.t.Fatal(err)
	}
	return time.Since(began)
}

// startPostgres starts the server again.
func (s *trial) startPostgres() {
	s.t.Helper()
	if err := s.server.Start(timeout(s.t, time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	if s.sampler != nil {
		s.sampler.Resume()
	}
}

// postgresRestarts runs fault 19: every way to stop PostgreSQL, and with Kafka away.
func postgresRestarts(s *trial) {
	s.prepare(setup{server: true, env: map[string]string{"WALPOST_QUEUE_TIMEOUT": "2s", "WALPOST_WINDOW_ROWS": "200"}})
	s.startStreaming()
	for _, mode := range []string{"fast", "immediate", "fast"} {
		s.waitForCommits(50)
		took := s.stopPostgres(mode)
		s.t.Logf("%s: stopped in %s", mode, took.Round(time.Millisecond))
		if took > cdctest.Patience(5*time.Second) {
			s.t.Errorf("a %s stop took %s: PostgreSQL waited for the relay", mode, took)
		}
		s.startPostgres()
		s.endFault()
		s.waitUntilDelivered()
	}
	first := s.writer.Stop() // a smart stop waits for its connections
	s.waitUntilDelivered()
	if took := s.stopPostgres("smart"); took > cdctest.Patience(3*time.Second) {
		s.t.Errorf("a smart stop of an idle server took %s", took)
	}
	s.startPostgres()
	s.startWriter(cdctest.WriterConfig{Rate: 60})
	s.waitForCommits(100)
	s.kafkaProxy.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
	s.waitForCommits(1000) // more than two windows
	if took := s.stopPostgres("fast"); took > cdctest.Patience(10*time.Second) {
		s.t.Errorf("with Kafka away, a fast stop took %s; queue_timeout is 2 s", took)
	}
	s.startPostgres()
	s.kafkaProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.endFault()
	s.finish()
	if len(first.Events) == 0 {
		s.t.Error("nothing was written before the smart stop")
	}
}

// postgresKilled runs fault 20: kill -9 of the walsender, which crashes the server, and of the postmaster.
func postgresKilled(s *trial) {
	s.prepare(setup{server: true})
	s.startStreaming()
	for _, victim := range []string{
		"SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = '" + s.Slot() + "' AND active",
		"SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)",
	} {
		s.waitForCommits(50)
		s.waitUntilDelivered()
		pid, err := strconv.Atoi(s.Query(victim))
		if err != nil {
			s.t.Fatal(err)
		}
		started := s.Query("SELECT pg_postmaster_start_time()::text")
		witness := s.Connect()
		postmaster := strings.Contains(victim, "postmaster")
		if postmaster {
			// A backend that reads the WAL for SQL waits for more WAL without checking its postmaster, and an orphan
			// prevents the next server's start.
			s.sampler.Pause()
			s.oracle.Rest()
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
		if postmaster {
			if err := s.server.Stop(timeout(s.t, time.Minute), "immediate"); err != nil { // the server is gone
				s.t.Fatal(err)
			}
			cdctest.Eventually(s.t, time.Minute, func() error { return s.server.Start(s.t.Context()) })
			s.sampler.Resume()
		}
		cdctest.Eventually(s.t, time.Minute, func() error { // the server ends every connection once it has noticed
			if witness.Ping(s.t.Context()) == nil {
				return errors.New("the server has not noticed")
			}
			return witness.Close(context.Background())
		})
		cdctest.Eventually(s.t, time.Minute, func() error {
			conn, err := pgx.Connect(s.t.Context(), s.AdminURL)
			if err != nil {
				return err
			}
			return conn.Close(context.Background())
		})
		s.endFault()
		if now := s.Query("SELECT pg_postmaster_start_time()::text"); now == started && postmaster {
			s.t.Error("the postmaster was not killed")
		}
		s.waitUntilDelivered()
	}
	s.finish()
}

// slotRegresses runs fault 21: a server that has forgotten confirmations sends rows again; the relay recognizes them by
// the state record.
func slotRegresses(s *trial) {
	s.prepare(setup{server: true, settings: map[string]string{"checkpoint_timeout": "1h"}})
	regressed := false
	for range 3 {
		r := s.startStreaming()
		s.waitForCommits(200)
		s.waitUntilDelivered()
		if err := r.Stop(); err != nil {
			s.t.Fatal(err)
		}
		const position = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1"
		before := s.Query(position, s.Slot())
		_ = s.stopPostgres("immediate")
		s.startPostgres()
		regressed = regressed || s.Query(position, s.Slot()) != before
	}
	if !regressed {
		s.t.Error("the slot never went back: this run proves nothing")
	}
	s.endFault()
	s.startStreaming()
	s.wantNoDuplicates(s.finish())
}

// openTransactions runs fault 30: a long transaction and a forgotten prepared one, both in the database of the outbox.
func openTransactions(s *trial) {
	s.prepare(setup{load: cdctest.WriterConfig{Rate: 60, Prepared: true, Long: time.Second}})
	s.startStreaming()
	s.waitUntilDelivered()
	s.Exec("CREATE TABLE other (n int)")
	s.Exec("BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION '" + s.Name + "'")
	pinned := s.Query("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
	s.waitForCommits(300)
	s.waitUntilDelivered() // rows flow nevertheless
	s.Exec("CHECKPOINT")
	s.waitUntilDelivered()
	s.t.Logf("restart_lsn was %s, and is %s with a transaction prepared", pinned, s.Query("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()))
	s.Exec("COMMIT PREPARED '" + s.Name + "'")
	s.endFault()
	s.wantNoDuplicates(s.finish())
}

// hugeTransactions runs fault 31: one transaction with very many rows, and one without outbox rows. The relay is killed
// in the middle of the first, and its memory must not grow.
func hugeTransactions(s *trial) {
	rows := 60_000
	if cdctest.LongForm() {
		rows = 150_000
	}
	s.prepare(setup{options: "-c wal_sender_timeout=5s", load: cdctest.WriterConfig{Rate: 10}})
	s.Exec("CREATE TABLE other (n int)")
	s.Exec("INSERT INTO other SELECT generate_series(1, $1::int)", 3*rows)
	s.insertWithLedger("big", rows, 200)
	for i := range 2 {
		r := s.startMeasured()
		cdctest.Consume(s.t, s.Brokers, s.Topic, time.Minute, cdctest.AtLeast((i+1)*rows/5))
		held := r.Memory()
		s.t.Logf("the relay held %d MiB", held>>20)
		if held > 128<<20 {
			s.t.Error("that is more than its windows")
		}
		r.Kill()
	}
	s.endFault()
	s.startStreaming()
	s.finish()
}

// walFull runs fault 35: the disk of pg_wal is full, the server crashes, and gets more room.
func walFull(s *trial) {
	if os.Getuid() != 0 {
		s.reportNotRun("mounting a small file system takes root")
		return
	}
	s.prepare(setup{server: true, settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "32MB", "wal_keep_size": "0"}, quiet: true})
	wal := filepath.Join(s.Query("SHOW data_directory"), "pg_wal")
	if err := s.server.Stop(timeout(s.t, time.Minute), "fast"); err != nil {
		s.t.Fatal(err)
	}
	sh := func(script string) error {
		out, err := exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	}
	if err := sh(fmt.Sprintf("cp -a %[1]s %[1]s.old && mount -t tmpfs -o size=96m,mode=700 walpost %[1]s && cp -a %[1]s.old/. %[1]s/ && chown --reference=%[1]s.old %[1]s", wal)); err != nil {
		s.reportNotRun(err.Error())
		return
	}
	s.t.Cleanup(func() {
		_ = s.server.Stop(context.Background(), "immediate")
		if err := sh("umount " + wal); err != nil {
			s.t.Error(err)
		}
	})
	if err := s.server.Start(timeout(s.t, time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	s.startLoad(cdctest.WriterConfig{Rate: 60})
	r := s.startStreaming()
	s.waitForCommits(100)
	r.Signal(syscall.SIGSTOP) // no relay confirms, so the WAL is kept
	conn := s.Connect()
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(s.t.Context(), "CREATE TABLE filler (t text)"); err != nil {
		s.t.Fatal(err)
	}
	var full error
	for range 400 {
		if _, full = conn.Exec(s.t.Context(), "INSERT INTO filler SELECT repeat(md5(i::text), 40) FROM generate_series(1, 500) i"); full != nil {
			break
		}
	}
	if full == nil {
		s.t.Fatal("the disk did not become full")
	}
	s.t.Logf("full: %v", full)
	s.sampler.Pause()
	s.oracle.Rest()
	if err := sh("mount -o remount,size=1g " + wal); err != nil {
		s.t.Fatal(err)
	}
	_ = s.server.Stop(timeout(s.t, time.Minute), "immediate")
	s.startPostgres()
	r.Signal(syscall.SIGCONT)
	s.endFault()
	s.finish()
}

// serverLimits runs fault 39: a very short timeout, none, no free walsender, a refused login.
func serverLimits(s *trial) {
	s.prepare(setup{server: true, settings: map[string]string{"max_wal_senders": "1"}, options: "-c wal_sender_timeout=0"})
	u := s.Env["WALPOST_SOURCE_URL"]
	r := s.startStreaming()
	s.waitForCommits(50)
	s.waitUntilDelivered()
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}
	// The only walsender is taken.
	var taken *pgx.Conn
	cdctest.Eventually(s.t, 20*time.Second, func() (err error) { // the relay's own may not have ended yet
		taken, err = pgx.Connect(s.t.Context(), s.AdminURL+"&replication=database")
		return err
	})
	r = s.SpawnRelay()
	r.WaitForLog(20*time.Second, "max_wal_senders")
	_ = taken.Close(s.t.Context())
	r = s.waitUntilStreaming(r)
	s.waitUntilDelivered()
	// The login is refused, and then accepted.
	role := "relay_" + s.Slot()
	s.Exec("ALTER ROLE " + role + " NOLOGIN")
	s.Exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", s.Slot())
	r.WaitForLog(20*time.Second, "LOGIN")
	s.Exec("ALTER ROLE " + role + " LOGIN")
	r.Kill()
	// A short timeout: five times status_interval.
	s.Env["WALPOST_SOURCE_URL"] = strings.Replace(u, "wal_sender_timeout%3D0", "wal_sender_timeout%3D500ms", 1)
	r = s.startStreaming()
	s.waitForCommits(200)
	s.endFault()
	s.wantNoDuplicates(s.finish())
	if log := r.Log.String(); strings.Contains(log, "starting over") {
		s.t.Errorf("the server with the short timeout ended the session:\n%s", log)
	}
}

// storm runs fault 40: PostgreSQL wants to stop, and asks thousands of times a second, while Kafka blocks the records
// that would let it stop.
func storm(s *trial) {
	s.prepare(setup{server: true, env: map[string]string{"WALPOST_QUEUE_TIMEOUT": "3s", "WALPOST_WINDOW_ROWS": "200"}})
	r := s.startMeasured()
	s.waitForCommits(100)
	s.kafkaProxy.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
	s.waitForCommits(1000)
	used, began := r.CPU(), time.Now()
	took := s.stopPostgres("fast")
	busy := r.CPU() - used
	if took > cdctest.Patience(12*time.Second) {
		s.t.Errorf("the stop took %s, queue_timeout is 3 s", took)
	}
	if share := busy.Seconds() / time.Since(began).Seconds(); time.Since(began) > time.Second && share > 0.5 {
		s.t.Errorf("the relay used %.0f %% of a core during the storm", 100*share)
	}
	s.t.Logf("stopped in %s, %s of CPU time", took.Round(time.Millisecond), busy)
	s.startPostgres()
	s.kafkaProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.endFault()
	s.finish()
}

// oldState runs fault 41: a state record of the first version, and one of a newer program.
func oldState(s *trial) {
	s.prepare(setup{})
	r := s.startStreaming()
	s.waitForCommits(50)
	if err := r.Stop(); err != nil {
		s.t.Fatal(err)
	}
	s.RewriteStateRecord(func(st *cdc.State) { // the fields that the first version had
		*st = cdc.State{
			Version: 1, Pipeline: st.Pipeline, SystemID: st.SystemID, Timeline: st.Timeline, Covered: st.Covered, CommitLSN: st.CommitLSN, Ordinal: st.Ordinal,
			LastXID: st.LastXID, LastCommitTime: st.LastCommitTime, Fingerprint: st.Fingerprint, Instance: st.Instance, Epoch: st.Epoch, Time: st.Time,
		}
	})
	s.endFault()
	s.startStreaming()
	s.wantNoDuplicates(s.finish())
}
