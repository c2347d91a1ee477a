package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// foreignGiants runs fault 54: messages of other tables before, between and after the outbox's rows of one transaction,
// each many times larger than a row may be and than the relay may keep in memory.
func foreignGiants(s *trial) {
	s.prepare(setup{quiet: true})
	s.Exec("DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR ALL TABLES")
	s.Exec("ALTER TABLE outbox REPLICA IDENTITY FULL; CREATE TABLE blobs (id int PRIMARY KEY, b bytea); ALTER TABLE blobs REPLICA IDENTITY FULL")
	s.MustRun("adopt")
	s.startLoad(cdctest.WriterConfig{Rate: 30})
	r := s.startMeasured()
	s.waitUntilDelivered()
	s.Exec("CREATE TEMPORARY TABLE none (); " + strings.Join([]string{ // one transaction
		ledgerRow("before", 1),
		"INSERT INTO blobs SELECT 1, decode(repeat('ab', 30000000), 'hex')",
		ledgerRow("between", 2),
		"UPDATE blobs SET b = decode(repeat('cd', 25000000), 'hex')", // the message has the old row too
		"SELECT pg_logical_emit_message(true, 'other tool', repeat('x', 30000000))",
		"UPDATE outbox SET event_type = event_type WHERE aggregate_id = 'before'",
		"DELETE FROM blobs",
		ledgerRow("behind", 3),
	}, "; "))
	s.endFault()
	s.wantNoDuplicates(s.finish())
	if log := r.Log.String(); strings.Contains(log, "halted") || strings.Contains(log, "starting over") {
		s.t.Errorf("somebody else's messages stopped the relay:\n%s", log)
	}
	held := r.Memory()
	s.t.Logf("the relay held %d MiB", held>>20)
	if held > 80<<20 { // one giant alone is 60 MB of text, and without it the relay uses 30 MiB
		s.t.Error("that is as much as a giant")
	}
}

// ledgerRow returns SQL for a row of the outbox, the n-th of its transaction, and its line in the ledger.
func ledgerRow(key string, n int) string {
	return strings.NewReplacer("KEY", key, "ORD", strconv.Itoa(n)).Replace(`WITH new AS (
			INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'KEY', 'Written', '{"n": 1}')
			RETURNING id, aggregate_id, payload)
		INSERT INTO ledger (id, key, seq, ord, sum) SELECT id, aggregate_id, 1, ORD, sha256(convert_to(payload::text, 'UTF8')) FROM new`)
}

// waitUntilStalled waits until the relay reports a stall with the texts, in its log and at /readyz and /status.
func (s *trial) waitUntilStalled(r *e2e.Relay, texts ...string) {
	s.t.Helper()
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		ready, err := r.Ask("/readyz")
		if err != nil {
			return err
		}
		for _, text := range append(texts, "503 ") {
			if !strings.Contains(ready, text) {
				return fmt.Errorf("/readyz does not say %q: %s", text, ready)
			}
		}
		return nil
	})
	r.WaitForLog(3*time.Second, "stalled: rows may be waiting and nothing moves")
	status, metrics := r.Get(s.t, "/status"), r.Get(s.t, "/metrics")
	for _, text := range texts {
		if quoted, _ := json.Marshal(text); !strings.Contains(status, strings.Trim(string(quoted), `"`)) {
			s.t.Errorf("/status does not say %q: %s", text, status)
		}
	}
	if !regexp.MustCompile(`(?m)^walpost_stalled\{.*\} 1$`).MatchString(metrics) {
		s.t.Error("walpost_stalled is not 1")
	}
}

// waitUntilReady waits until the relay is ready.
func (s *trial) waitUntilReady(r *e2e.Relay) {
	s.t.Helper()
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		ready, err := r.Ask("/readyz")
		if err == nil && !strings.HasPrefix(ready, "200") {
			err = fmt.Errorf("/readyz: %s", ready)
		}
		return err
	})
}

// wantStatus waits until `walpost status` prints the texts. The WAL can end at a page's end for a while, and then the lag is 0: the server
// writes the next record within 30 s.
func (s *trial) wantStatus(texts ...string) {
	s.t.Helper()
	cdctest.Eventually(s.t, 45*time.Second, func() error {
		out := s.Status()
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return fmt.Errorf("status does not say %q:\n%s", text, out)
			}
		}
		return nil
	})
}

// setServerSetting changes a setting of the trial's own server, while it runs.
func (s *trial) setServerSetting(name, value string) {
	s.t.Helper()
	s.Exec("ALTER SYSTEM SET " + name + " = '" + value + "'")
	s.Exec("SELECT pg_reload_conf()")
}

// standbySlotAway runs fault 55.
func standbySlotAway(s *trial) {
	const setting = "synchronized_standby_slots"
	s.prepare(setup{server: true, least: 17, load: cdctest.WriterConfig{Rate: 20}})
	s.Exec("SELECT pg_create_physical_replication_slot('sb1', true)")
	r := s.startStreaming()
	s.waitUntilDelivered()
	s.setServerSetting(setting, "sb1, nosuch") // away, and a typo
	s.waitUntilStalled(r, `"sb1": it is inactive`, `"nosuch": there is no such slot`, setting)
	s.wantStatus("blocked ", `"sb1": it is inactive`, `"nosuch": there is no such slot`)
	s.stopPostgres("fast")
	s.startPostgres()
	// A standby that reads, and is late.
	standby := s.startLaggingStandby("sb1")
	s.setServerSetting(setting, "sb1")
	s.waitUntilStalled(r, `"sb1": its standby has received the WAL up to`)
	if err := standby.Close(s.t.Context()); err != nil {
		s.t.Error(err)
	}
	s.setServerSetting(setting, "")
	s.endFault()
	s.finish()
	s.waitUntilReady(r)
	r.WaitForLog(3*time.Second, "rows flow again")
	if log := r.Log.String(); strings.Contains(log, `"halted"`) {
		s.t.Errorf("a standby that is away halted the relay:\n%s", log)
	}
}

// startLaggingStandby starts a standby that reads, from a slot if it has one, and confirms nothing.
func (s *trial) startLaggingStandby(slot string) *pgconn.PgConn {
	s.t.Helper()
	conn, err := pgconn.Connect(s.t.Context(), s.AdminURL+"&replication=true&application_name=sb")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	at := s.Query("SELECT coalesce((SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = $1), pg_current_wal_flush_lsn())::text", slot)
	if slot != "" {
		slot = "SLOT " + slot
	}
	conn.Frontend().Send(&pgproto3.Query{String: "START_REPLICATION " + slot + " PHYSICAL " + at})
	if err := conn.Frontend().Flush(); err != nil {
		s.t.Fatal(err)
	}
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		if n := s.Query("SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'sb'"); n != "1" {
			return errors.New("the standby does not read")
		}
		return nil
	})
	return conn
}

// synchronousStandby runs fault 56.
func synchronousStandby(s *trial) {
	const setting, every, can = "synchronous_standby_names", "every commit on this server waits", "commits on this server may have to wait"
	s.prepare(setup{server: true, kfake: 1, load: cdctest.WriterConfig{Rate: 20}})
	r := s.startStreaming()
	s.waitUntilDelivered()
	relay := "walpost " + s.Name
	says := func(names, what string) {
		s.t.Helper()
		s.setServerSetting(setting, names)
		out := s.Status()
		if has := strings.Contains(out, setting); has != (what != "") || !strings.Contains(out, what) {
			s.t.Errorf("%s = '%s': status does not say %q:\n%s", setting, names, what, out)
		}
	}
	for _, names := range []string{"*", "FIRST 1 (*)", "ANY 1 (*)", "ANY 2 (*)", `standby1, "` + strings.ToUpper(relay) + `"`} {
		says(names, every)
	}
	says(`standby1, "walpost"`, "")
	standby := s.startLaggingStandby("")
	says("ANY 2 (*)", every)
	says(`FIRST 2 (sb, "`+relay+`")`, every)
	says("FIRST 1 (*)", can)
	says("FIRST 1 (sb, *)", can)
	says("ANY 1 (*)", can)
	says("first 1 (SB)", "")
	says("*", `ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 ("sb")'`)
	if err := standby.Close(s.t.Context()); err != nil {
		s.t.Error(err)
	}
	s.setServerSetting(setting, "*")
	r.WaitForLog(30*time.Second, "this relay has become a synchronous standby")
	s.kafkaProxy.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
	waits := make(chan error, 1)
	go func() {
		conn := s.Connect()
		defer func() { _ = conn.Close(context.Background()) }()
		_, err := conn.Exec(s.t.Context(), "CREATE TABLE waits ()")
		waits <- err
	}()
	cdctest.Eventually(s.t, 20*time.Second, func() error {
		if n := s.Query("SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'CREATE TABLE waits%'"); n != "1" {
			return errors.New("no commit waits for the frozen Kafka")
		}
		return nil
	})
	counted := regexp.MustCompile(`(?m)^walpost_synchronous_standby\{.*\} 1$`)
	cdctest.Eventually(s.t, 15*time.Second, func() error { // the next look
		if status := r.Get(s.t, "/status"); !strings.Contains(status, every) {
			return fmt.Errorf("/status: %s", status)
		}
		if !counted.MatchString(r.Get(s.t, "/metrics")) {
			return errors.New("walpost_synchronous_standby is not 1")
		}
		return nil
	})
	printed := regexp.MustCompile("`(ALTER SYSTEM SET synchronous_standby_names = '.*?')` and `(SELECT pg_reload_conf\\(\\))`").FindStringSubmatch(s.Status("--json"))
	if printed == nil {
		s.t.Fatal("no command was printed")
	}
	s.Exec(printed[1])
	s.Exec(printed[2])
	select {
	case err := <-waits:
		if err != nil {
			s.t.Error(err)
		}
	case <-time.After(cdctest.Patience(20 * time.Second)):
		s.t.Error("the commit still waits after the printed command")
	}
	r.WaitForLog(30*time.Second, "no commit waits for this relay any more") // also if the session has ended meanwhile
	s.kafkaProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.endFault()
	s.finish()
}

// walsenderPID returns the process that reads the slot.
func (s *trial) walsenderPID() int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.Query("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

func (s *trial) signalProcess(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatal(err)
	}
}

// slowDownProcess lets a process run for 2 ms of 100, until the returned function is called.
func (s *trial) slowDownProcess(pid int) (release func()) {
	ended, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for sig := syscall.SIGSTOP; ; sig = syscall.SIGSTOP {
			_ = syscall.Kill(pid, sig)
			select {
			case <-stop:
				_ = syscall.Kill(pid, syscall.SIGCONT)
				return
			case <-time.After(98 * time.Millisecond):
			}
			_ = syscall.Kill(pid, syscall.SIGCONT)
			time.Sleep(2 * time.Millisecond)
		}
	}()
	release = sync.OnceFunc(func() { close(stop); <-ended })
	s.t.Cleanup(release)
	return release
}

// foreignBraked runs fault 57.
func foreignBraked(s *trial) {
	rows := 1_200_000
	if cdctest.LongForm() {
		rows = 6_000_000
	}
	s.prepare(setup{server: true, quiet: true, settings: map[string]string{"wal_sender_timeout": "10min", "max_wal_size": "8GB"}})
	s.Exec("CREATE TABLE foreigners (n int)")
	r := s.startStreaming()
	s.InsertRows(5)
	s.waitUntilDelivered()
	pid := s.walsenderPID()
	conn := s.Connect()
	defer func() { _ = conn.Close(context.Background()) }()
	for _, sql := range []string{"BEGIN", "INSERT INTO foreigners SELECT generate_series(1, " + strconv.Itoa(rows) + ")"} {
		if _, err := conn.Exec(s.t.Context(), sql); err != nil {
			s.t.Fatal(err)
		}
	}
	s.WaitUntilConfirmed(time.Minute) // the relay has read all of it, and only the replay follows
	release := s.slowDownProcess(pid)
	if _, err := conn.Exec(s.t.Context(), "COMMIT"); err != nil {
		s.t.Fatal(err)
	}
	s.InsertRows(5)
	s.waitUntilStalled(r, fmt.Sprintf("the walsender is at work (process %d", pid))
	s.wantStatus(fmt.Sprintf("its walsender is process %d", pid))
	if cdctest.LongForm() {
		time.Sleep(75 * time.Second) // of silence: a dead connection is closed after a minute
	}
	if now := s.walsenderPID(); now != pid {
		s.t.Errorf("the walsender was process %d and is %d: the relay closed a connection whose walsender was at work", pid, now)
	}
	release()
	began := time.Now()
	s.WaitUntilConfirmed(time.Minute)
	s.recovery = time.Since(began)
	s.waitUntilReady(r)
	if log := r.Log.String(); strings.Contains(log, "starting over") {
		s.t.Errorf("the session ended:\n%s", log)
	}
	if n := len(cdctest.ReadAll(s.t, s.Brokers, s.Topic)); n != 10 {
		s.t.Errorf("%d rows arrived, want 10", n)
	}
}

// walsenderStopped runs fault 58.
func walsenderStopped(s *trial) {
	s.prepare(setup{server: true, load: cdctest.WriterConfig{Rate: 20}})
	r := s.startStreaming()
	s.waitUntilDelivered()
	pid := s.walsenderPID()
	s.signalProcess(pid, syscall.SIGSTOP)
	s.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	s.waitUntilStalled(r, fmt.Sprintf("process %d", pid))
	if lag := s.lagSeconds(r); lag < 10 {
		s.t.Errorf("the lag is %.1f s after a stall of 15 s", lag)
	}
	s.pgProxy.Cut()
	r.WaitForLog(20*time.Second, fmt.Sprintf("the slot is still held by this relay's former session, PID %d", pid))
	if log := r.Log.String(); strings.Contains(log, "another relay owns") {
		s.t.Errorf("the relay takes its former session for another relay:\n%s", log)
	}
	if lag := s.lagSeconds(r); lag < 10 {
		s.t.Errorf("the lag is %.1f s while the slot is held", lag)
	}
	s.signalProcess(pid, syscall.SIGCONT)
	s.Exec("SELECT pg_terminate_backend($1)", pid) // as the halt's text says
	s.endFault()
	s.finish()
	s.waitUntilReady(r)
}

// lagSeconds returns the relay's lag in seconds, which /status and the metric must agree on.
func (s *trial) lagSeconds(r *e2e.Relay) float64 {
	s.t.Helper()
	var status struct {
		Lag *float64 `json:"lag_seconds"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.Get(s.t, "/status"), "200 ")), &status); err != nil || status.Lag == nil {
		s.t.Fatalf("/status has no lag: %v", err)
	}
	if m := regexp.MustCompile(`(?m)^walpost_lag_seconds\{.*\} (\S+)$`).FindStringSubmatch(r.Get(s.t, "/metrics")); m == nil {
		s.t.Error("no walpost_lag_seconds")
	}
	return *status.Lag
}

// pollingStalls runs fault 59: causes that keep a polled table's rows from being read, each on a separate table, at the
// same time.
func pollingStalls(of *trial) {
	const write = "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'Written', '{}')"
	var group sync.WaitGroup
	for _, c := range []struct {
		order      string
		row, holds string // in this order, on two connections
		says       string
	}{
		{"key", write, "LOCK TABLE outbox IN EXCLUSIVE MODE", "holds a lock"},
		{"none", write, "SELECT FROM outbox FOR UPDATE", "holds a lock"}, // the relay steps over it
		{"key", "SELECT", write, "rows wait for the transaction"},
		{"key", write, "", "the relay's process on the server is"}, // the relay's process is stopped
	} {
		s := &trial{Pipeline: e2e.NewPolled(of.t, of.program()), t: of.t, binaries: of.binaries}
		s.Env["WALPOST_SOURCE_POLLING_ORDER"] = c.order
		s.MustRun("init")
		holder := s.Connect()
		of.t.Cleanup(func() { _ = holder.Close(context.Background()) })
		pid, release := int(holder.PgConn().PID()), func() { e2e.ExecOn(of.t, holder, "ROLLBACK") }
		if c.holds != "" {
			s.Exec(c.row)
			e2e.ExecOn(of.t, holder, "BEGIN; "+c.holds)
		}
		r := s.SpawnRelay()
		r.WaitForLog(time.Minute, `"streaming"`)
		switch c.holds {
		case "":
			var err error
			if pid, err = strconv.Atoi(s.Query("SELECT pid::text FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")); err != nil {
				of.t.Fatal(err)
			}
			s.signalProcess(pid, syscall.SIGSTOP)
			release = sync.OnceFunc(func() { s.signalProcess(pid, syscall.SIGCONT) })
			of.t.Cleanup(release)
			s.Exec(c.row)
		case write:
			s.Exec(write)
		}
		group.Go(func() {
			named := []string{c.says}
			if c.holds != write { // the oldest transaction of the whole server, here perhaps another test's
				named = append(named, strconv.Itoa(pid))
			}
			s.waitUntilStalled(r, named...)
			release()
			s.waitUntilReady(r)
			r.WaitForLog(3*time.Second, "rows flow again")
		})
	}
	group.Wait()
}

// standbyRestarts runs fault 60.
func standbyRestarts(s *trial) {
	s.prepare(setup{server: true, least: 17, quiet: true})
	s.Exec("SELECT pg_create_physical_replication_slot('sb1', true)")
	s.stopPostgres("fast")
	addr, port, _ := strings.Cut(e2e.Address(s.t, s.server), ":")
	standby := e2e.CopyServer(s.t, s.server, devenv.CopyConfig{Standby: true, NoSlots: true, Settings: map[string]string{
		"primary_conninfo": fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres application_name=sb1", addr, port), "primary_slot_name": "sb1", "hot_standby_feedback": "on",
	}})
	s.startPostgres()
	s.setServerSetting("synchronized_standby_slots", "sb1")
	s.startLoad(cdctest.WriterConfig{Rate: 20})
	r := s.startStreaming()
	s.waitUntilDelivered()
	for names, what := range map[string]string{"ANY 1 (*)": "may have to wait", "ANY 2 (*)": "every commit", "FIRST 1 (sb1)": "by nothing"} {
		s.setServerSetting("synchronous_standby_names", names)
		s.wantStatus(what)
		s.waitUntilDelivered()
	}
	s.setServerSetting("synchronous_standby_names", "")
	e2e.StopServer(s.t, standby, "fast")
	s.waitForCommits(50)
	time.Sleep(5 * time.Second) // a restart
	e2e.StartServer(s.t, standby)
	s.waitUntilDelivered()
	if log := r.Log.String(); strings.Contains(log, "stalled") || strings.Contains(log, "starting over") {
		s.t.Errorf("a standby that was restarted is no stall:\n%s", log)
	}
	e2e.StopServer(s.t, standby, "immediate")
	s.waitUntilStalled(r, `"sb1": it is inactive`)
	e2e.StartServer(s.t, standby)
	s.endFault()
	s.wantNoDuplicates(s.finish())
	s.waitUntilReady(r)
}
