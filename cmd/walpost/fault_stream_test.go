package main

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
	"github.com/walpost/walpost/cdc/devenv"
)

// foreignGiants is fault 54: messages of others, in front of, between and behind the outbox's rows of one transaction, each many times what
// a row may be and what the relay may hold.
func foreignGiants(s *scene) {
	s.build(set{quiet: true})
	s.exec("DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR ALL TABLES")
	s.exec("ALTER TABLE outbox REPLICA IDENTITY FULL; CREATE TABLE blobs (id int PRIMARY KEY, b bytea); ALTER TABLE blobs REPLICA IDENTITY FULL")
	s.must("adopt")
	s.watch(cdctest.WriterConfig{Rate: 30})
	r := s.child()
	s.flows()
	s.exec("CREATE TEMPORARY TABLE none (); " + strings.Join([]string{ // one transaction
		ledgerRow("before", 1),
		"INSERT INTO blobs SELECT 1, decode(repeat('ab', 30000000), 'hex')",
		ledgerRow("between", 2),
		"UPDATE blobs SET b = decode(repeat('cd', 25000000), 'hex')", // the old row with it
		"SELECT pg_logical_emit_message(true, 'other tool', repeat('x', 30000000))",
		"UPDATE outbox SET event_type = event_type WHERE aggregate_id = 'before'",
		"DELETE FROM blobs",
		ledgerRow("behind", 3),
	}, "; "))
	s.fixed()
	s.once(s.settle())
	if log := r.log.String(); strings.Contains(log, "halted") || strings.Contains(log, "starting over") {
		s.t.Errorf("somebody else's messages stopped the relay:\n%s", log)
	}
	if most := r.memory(); most > 150<<20 {
		s.t.Errorf("the relay held %d MiB", most>>20)
	}
}

// ledgerRow is SQL for a row of the outbox, the n-th of its transaction, and its line in the ledger.
func ledgerRow(key string, n int) string {
	return strings.NewReplacer("KEY", key, "ORD", strconv.Itoa(n)).Replace(`WITH new AS (
			INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'KEY', 'Written', '{"n": 1}')
			RETURNING id, aggregate_id, payload)
		INSERT INTO ledger (id, key, seq, ord, sum) SELECT id, aggregate_id, 1, ORD, sha256(convert_to(payload::text, 'UTF8')) FROM new`)
}

// stalls waits until the relay says that it stalls, with the texts, on its log and at /readyz and /status.
func (s *scene) stalls(r *relay, texts ...string) {
	s.t.Helper()
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		ready, err := r.ask("/readyz")
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
	r.says(time.Second, "stalled: rows may be waiting and nothing moves")
	status, metrics := r.get(s.t, "/status"), r.get(s.t, "/metrics")
	for _, text := range texts {
		if quoted, _ := json.Marshal(text); !strings.Contains(status, strings.Trim(string(quoted), `"`)) {
			s.t.Errorf("/status does not say %q: %s", text, status)
		}
	}
	if !regexp.MustCompile(`(?m)^walpost_stalled\{.*\} 1$`).MatchString(metrics) {
		s.t.Error("walpost_stalled is not 1")
	}
}

// ready waits until the relay is.
func (s *scene) ready(r *relay) {
	s.t.Helper()
	cdctest.Eventually(s.t, 30*time.Second, func() error {
		ready, err := r.ask("/readyz")
		if err == nil && !strings.HasPrefix(ready, "200") {
			err = fmt.Errorf("/readyz: %s", ready)
		}
		return err
	})
}

// blocked wants `walpost status` to say the texts.
func (s *scene) blocked(texts ...string) {
	s.t.Helper()
	out := s.must("status")
	for _, text := range texts {
		if !strings.Contains(out, text) {
			s.t.Errorf("status does not say %q:\n%s", text, out)
		}
	}
}

// configured changes a setting of the scene's own server, while it runs.
func (s *scene) configured(name, value string) {
	s.t.Helper()
	s.exec("ALTER SYSTEM SET " + name + " = '" + value + "'")
	s.exec("SELECT pg_reload_conf()")
}

// standbySlotAway is fault 55.
func standbySlotAway(s *scene) {
	const setting = "synchronized_standby_slots"
	s.build(set{server: true, least: 17, load: cdctest.WriterConfig{Rate: 20}})
	s.exec("SELECT pg_create_physical_replication_slot('sb1', true)")
	r := s.child()
	s.flows()
	s.configured(setting, "sb1, nosuch") // away, and a typo
	s.stalls(r, `"sb1": it is inactive`, `"nosuch": there is no such slot`, setting)
	s.blocked("blocked ", `"sb1": it is inactive`, `"nosuch": there is no such slot`)
	s.down("fast")
	s.up()
	// A standby that reads, and has not got far.
	standby := s.behind("sb1")
	s.configured(setting, "sb1")
	s.stalls(r, `"sb1": its standby has received the WAL up to`)
	if err := standby.Close(s.t.Context()); err != nil {
		s.t.Error(err)
	}
	s.configured(setting, "")
	s.fixed()
	s.settle()
	s.ready(r)
	r.says(time.Second, "rows flow again")
	if log := r.log.String(); strings.Contains(log, `"halted"`) {
		s.t.Errorf("a standby that is away halted the relay:\n%s", log)
	}
}

// behind is a standby that reads, from a slot if it has one, and confirms nothing.
func (s *scene) behind(slot string) *pgconn.PgConn {
	s.t.Helper()
	conn, err := pgconn.Connect(s.t.Context(), s.admin+"&replication=true&application_name=sb")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	at := s.query("SELECT coalesce((SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = $1), pg_current_wal_flush_lsn())::text", slot)
	if slot != "" {
		slot = "SLOT " + slot
	}
	conn.Frontend().Send(&pgproto3.Query{String: "START_REPLICATION " + slot + " PHYSICAL " + at})
	if err := conn.Frontend().Flush(); err != nil {
		s.t.Fatal(err)
	}
	cdctest.Eventually(s.t, 10*time.Second, func() error {
		if n := s.query("SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'sb'"); n != "1" {
			return errors.New("the standby does not read")
		}
		return nil
	})
	return conn
}

// synchronousStandby is fault 56.
func synchronousStandby(s *scene) {
	const setting, every, can = "synchronous_standby_names", "every commit on this server waits", "commits on this server can have to wait"
	s.build(set{server: true, kfake: 1, load: cdctest.WriterConfig{Rate: 20}})
	r := s.child()
	s.flows()
	relay := "walpost " + s.pipeline
	says := func(names, what string) {
		s.t.Helper()
		s.configured(setting, names)
		out := s.must("status")
		if has := strings.Contains(out, setting); has != (what != "") || !strings.Contains(out, what) {
			s.t.Errorf("%s = '%s': status does not say %q:\n%s", setting, names, what, out)
		}
	}
	for _, names := range []string{"*", "FIRST 1 (*)", "ANY 1 (*)", "ANY 2 (*)", `standby1, "` + strings.ToUpper(relay) + `"`} {
		says(names, every)
	}
	says(`standby1, "walpost"`, "")
	standby := s.behind("")
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
	s.configured(setting, "*")
	r.says(10*time.Second, "this relay has become a synchronous standby")
	s.kf.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
	waits := make(chan error, 1)
	go func() {
		conn := s.connect()
		defer func() { _ = conn.Close(context.Background()) }()
		_, err := conn.Exec(s.t.Context(), "CREATE TABLE waits ()")
		waits <- err
	}()
	cdctest.Eventually(s.t, 20*time.Second, func() error {
		if n := s.query("SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'CREATE TABLE waits%'"); n != "1" {
			return errors.New("no commit waits for the frozen Kafka")
		}
		return nil
	})
	cdctest.Eventually(s.t, 15*time.Second, func() error { // the next look
		if status := r.get(s.t, "/status"); !strings.Contains(status, every) {
			return fmt.Errorf("/status: %s", status)
		}
		return nil
	})
	if metrics := r.get(s.t, "/metrics"); !regexp.MustCompile(`(?m)^walpost_synchronous_standby\{.*\} 1$`).MatchString(metrics) {
		s.t.Error("walpost_synchronous_standby is not 1")
	}
	printed := regexp.MustCompile("`(ALTER SYSTEM SET synchronous_standby_names = '.*?')` and `(SELECT pg_reload_conf\\(\\))`").FindStringSubmatch(s.must("status", "--json"))
	if printed == nil {
		s.t.Fatal("no command was printed")
	}
	s.exec(printed[1])
	s.exec(printed[2])
	select {
	case err := <-waits:
		if err != nil {
			s.t.Error(err)
		}
	case <-time.After(20 * time.Second):
		s.t.Error("the commit still waits after the printed command")
	}
	r.says(30*time.Second, "no commit waits for this relay any more") // also where the session has ended meanwhile
	s.kf.Set(cdctest.Wire{}, cdctest.Wire{})
	s.fixed()
	s.settle()
}

// walsender is the process that reads the slot.
func (s *scene) walsender() int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.query("SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

func (s *scene) stopProcess(pid int, sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatal(err)
	}
}

// brake lets a process run for 2 ms of 100, until the returned function is called.
func (s *scene) brake(pid int) (release func()) {
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

// foreignBraked is fault 57.
func foreignBraked(s *scene) {
	rows := 1_200_000
	if long() {
		rows = 8_000_000
	}
	s.build(set{server: true, quiet: true, settings: map[string]string{"wal_sender_timeout": "10min", "max_wal_size": "8GB"}})
	s.exec("CREATE TABLE foreigners (n int)")
	r := s.child()
	s.insert(5)
	s.flows()
	pid := s.walsender()
	conn := s.connect()
	defer func() { _ = conn.Close(context.Background()) }()
	for _, sql := range []string{"BEGIN", "INSERT INTO foreigners SELECT generate_series(1, " + strconv.Itoa(rows) + ")"} {
		if _, err := conn.Exec(s.t.Context(), sql); err != nil {
			s.t.Fatal(err)
		}
	}
	s.confirmed(time.Minute) // it has read all of it, and what comes is the replay
	release := s.brake(pid)
	if _, err := conn.Exec(s.t.Context(), "COMMIT"); err != nil {
		s.t.Fatal(err)
	}
	s.insert(5)
	s.stalls(r, fmt.Sprintf("the walsender is at work (process %d", pid))
	s.blocked(fmt.Sprintf("its walsender is process %d", pid))
	if long() {
		time.Sleep(2 * time.Minute) // of silence: a minute is what a dead connection gets
	}
	if now := s.walsender(); now != pid {
		s.t.Errorf("the walsender was process %d and is %d: the relay gave a connection up that was at work", pid, now)
	}
	release()
	began := time.Now()
	s.confirmed(time.Minute)
	s.back = time.Since(began)
	s.ready(r)
	if log := r.log.String(); strings.Contains(log, "starting over") {
		s.t.Errorf("the session ended:\n%s", log)
	}
	if n := len(cdctest.ReadAll(s.t, s.brokers, s.topic)); n != 10 {
		s.t.Errorf("%d rows arrived, want 10", n)
	}
}

// walsenderStopped is fault 58.
func walsenderStopped(s *scene) {
	s.build(set{server: true, load: cdctest.WriterConfig{Rate: 20}})
	r := s.child()
	s.flows()
	pid := s.walsender()
	s.stopProcess(pid, syscall.SIGSTOP)
	s.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	s.stalls(r, fmt.Sprintf("process %d", pid))
	if lag := s.lag(r); lag < 10 {
		s.t.Errorf("the lag is %.1f s after a stall of 15 s", lag)
	}
	s.pg.Cut()
	r.says(20*time.Second, fmt.Sprintf("the slot is still held by this relay's former session, PID %d", pid))
	if log := r.log.String(); strings.Contains(log, "another relay owns") {
		s.t.Errorf("the relay takes itself for another one:\n%s", log)
	}
	if lag := s.lag(r); lag < 10 {
		s.t.Errorf("the lag is %.1f s while the slot is held", lag)
	}
	s.stopProcess(pid, syscall.SIGCONT)
	s.exec("SELECT pg_terminate_backend($1)", pid) // as the sentence says
	s.fixed()
	s.settle()
	s.ready(r)
}

// lag is the relay's lag in seconds, as /status and the metric have it.
func (s *scene) lag(r *relay) float64 {
	s.t.Helper()
	var status struct {
		Lag *float64 `json:"lag_seconds"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.get(s.t, "/status"), "200 ")), &status); err != nil || status.Lag == nil {
		s.t.Fatalf("/status has no lag: %v", err)
	}
	if m := regexp.MustCompile(`(?m)^walpost_lag_seconds\{.*\} (\S+)$`).FindStringSubmatch(r.get(s.t, "/metrics")); m == nil {
		s.t.Error("no walpost_lag_seconds")
	}
	return *status.Lag
}

// pollingStalls is fault 59: what keeps a polled table's rows from being taken, each on a table of its own, at the same time.
func pollingStalls(of *scene) {
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
		{"key", write, "", "the relay's process on the server is"}, // which is stopped
	} {
		s := &scene{stage: polled(of.t), t: of.t}
		s.env["WALPOST_SOURCE_POLLING_ORDER"] = c.order
		s.must("init")
		holder := s.connect()
		of.t.Cleanup(func() { _ = holder.Close(context.Background()) })
		pid, release := int(holder.PgConn().PID()), func() { run1(of.t, holder, "ROLLBACK") }
		if c.holds != "" {
			s.exec(c.row)
			run1(of.t, holder, "BEGIN; "+c.holds)
		}
		r := s.spawn()
		r.says(10*time.Second, `"streaming"`)
		switch c.holds {
		case "":
			var err error
			if pid, err = strconv.Atoi(s.query("SELECT pid::text FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")); err != nil {
				of.t.Fatal(err)
			}
			s.stopProcess(pid, syscall.SIGSTOP)
			release = sync.OnceFunc(func() { s.stopProcess(pid, syscall.SIGCONT) })
			of.t.Cleanup(release)
			s.exec(c.row)
		case write:
			s.exec(write)
		}
		group.Go(func() {
			named := []string{c.says}
			if c.holds != write { // the oldest transaction of the whole server, here perhaps another's
				named = append(named, strconv.Itoa(pid))
			}
			s.stalls(r, named...)
			release()
			s.ready(r)
			r.says(time.Second, "rows flow again")
		})
	}
	group.Wait()
}

// standbyRestarts is fault 60.
func standbyRestarts(s *scene) {
	s.build(set{server: true, least: 17, quiet: true})
	s.exec("SELECT pg_create_physical_replication_slot('sb1', true)")
	s.down("fast")
	addr, port, _ := strings.Cut(host(s.t, s.server), ":")
	standby := copyOf(s.t, s.server, devenv.CopyConfig{Standby: true, NoSlots: true, Settings: map[string]string{
		"primary_conninfo": fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres application_name=sb1", addr, port), "primary_slot_name": "sb1", "hot_standby_feedback": "on",
	}})
	s.up()
	s.configured("synchronized_standby_slots", "sb1")
	s.watch(cdctest.WriterConfig{Rate: 20})
	r := s.child()
	s.flows()
	for names, what := range map[string]string{"ANY 1 (*)": "can have to wait", "ANY 2 (*)": "every commit", "FIRST 1 (sb1)": "by nothing"} {
		s.configured("synchronous_standby_names", names)
		s.blocked(what)
		s.flows()
	}
	s.configured("synchronous_standby_names", "")
	stopServer(s.t, standby, "fast")
	s.grows(50)
	time.Sleep(5 * time.Second) // a restart
	startServer(s.t, standby)
	s.flows()
	if log := r.log.String(); strings.Contains(log, "stalled") || strings.Contains(log, "starting over") {
		s.t.Errorf("a standby that was restarted is no stall:\n%s", log)
	}
	stopServer(s.t, standby, "immediate")
	s.stalls(r, `"sb1": it is inactive`)
	startServer(s.t, standby)
	s.fixed()
	s.once(s.settle())
	s.ready(r)
}
