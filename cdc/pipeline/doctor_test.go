package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/postgres"
)

// ward is a pipeline with both its servers, for faults that the doctor must find.
type ward struct {
	*testing.T            // of the fault
	whole      *testing.T // of all faults
	server     *devenv.Postgres
	admin      string    // URL of a superuser, in the pipeline's database
	role       string    // the relay's
	conn       *pgx.Conn // of a superuser, in the pipeline's database
	kafka      *kadm.Client
	caFile     string
	cfg        config.Config
	long       time.Duration // after which a transaction is old
	ahead      time.Duration // of this machine's clock
}

// newWard starts a PostgreSQL with TLS and passwords, where wal_level is replica and few slots and walsenders are allowed, and a Kafka with
// logins and rights.
func newWard(t *testing.T) *ward {
	t.Helper()
	hba, err := os.CreateTemp("", "walpost-hba-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(hba.Name()) })
	_, err = hba.WriteString("host all postgres 127.0.0.1/32 trust\nhost replication postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
	if err := errors.Join(err, hba.Chmod(0o644), hba.Close()); err != nil {
		t.Fatal(err)
	}
	authority := cdctest.NewAuthority(t, "shop", time.Time{})
	pair := authority.Issue(t, cdctest.Certificate{Name: "db.shop.example", Hosts: []string{"db.shop.example"}})
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Version: "17", Settings: map[string]string{
		"wal_level": "replica", "hba_file": hba.Name(), "ssl": "on", "ssl_cert_file": pair.CertFile, "ssl_key_file": pair.KeyFile,
		"min_wal_size": "32MB", "max_wal_size": "32MB", "max_replication_slots": "3", "max_wal_senders": "3", "scram_iterations": "1",
	}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(3), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "boss", cdctest.Canary), kfake.User("PLAIN", "walpost", cdctest.Canary))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.SASL(plain.Auth{User: "boss", Pass: cdctest.Canary}.AsMechanism()), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	w := &ward{T: t, whole: t, server: server, admin: server.URL("shop"), role: "relay", kafka: kadm.NewClient(client), caFile: authority.File, cfg: config.Default(), long: time.Hour}
	c := &w.cfg
	c.Pipeline, c.Source.Slot, c.Source.URL = "shop", "shop", server.URLFor("relay", cdctest.Canary, "shop")
	c.Kafka.Brokers, c.Kafka.AggregateTypes, c.Kafka.Replication = cluster.ListenAddrs(), []string{"order"}, 1
	c.Kafka.SASL.Mechanism, c.Kafka.SASL.Username, c.Kafka.SASL.Password = identity.Plain, "walpost", cdctest.Canary
	for _, topic := range []string{shopTopic, shopState} {
		for _, op := range []kmsg.ACLOperation{kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs} {
			w.allow(topic, op)
		}
	}
	w.connect()
	return w
}

const (
	shopTopic = "outbox.event.order"
	shopState = "walpost.state.shop"
)

// connect opens the superuser's connection.
func (w *ward) connect() {
	w.Helper()
	conn, err := pgx.Connect(w.Context(), w.admin)
	if err != nil {
		w.Fatal(err)
	}
	w.conn = conn
	w.whole.Cleanup(func() { _ = conn.Close(context.Background()) })
}

// exec runs SQL as a superuser.
func (w *ward) exec(sql string, args ...any) {
	w.Helper()
	if _, err := w.conn.Exec(w.Context(), sql, args...); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

// restart restarts PostgreSQL.
func (w *ward) restart() {
	w.Helper()
	if err := errors.Join(w.server.Stop(w.Context(), "immediate"), w.server.Start(w.Context())); err != nil {
		w.Fatal(err)
	}
	w.connect()
}

// setting sets a setting of the server, and waits until it holds. "" resets it.
func (w *ward) setting(name, value string) {
	w.Helper()
	w.exec("ALTER SYSTEM SET " + name + " = '" + value + "'")
	w.reloaded()
}

// reloaded reloads the configuration, and waits until this session has it.
func (w *ward) reloaded() {
	w.Helper()
	w.exec("SELECT pg_reload_conf()")
	cdctest.Eventually(w, 20*time.Second, func() error {
		var wait bool
		err := w.conn.QueryRow(w.Context(), "SELECT EXISTS (SELECT FROM pg_file_settings f JOIN pg_settings s USING (name) WHERE f.applied AND s.context <> 'postmaster' AND s.name IN ('max_slot_wal_keep_size', 'synchronous_standby_names', 'synchronized_standby_slots') AND f.setting <> current_setting(name))").Scan(&wait)
		if err == nil && wait {
			err = errors.New("the new setting does not hold yet")
		}
		return err
	})
}

// allow gives the relay's user of Kafka a right.
func (w *ward) allow(topic string, op kmsg.ACLOperation) {
	w.Helper()
	made, err := w.kafka.CreateACLs(w.Context(), kadm.NewACLs().Allow("User:walpost").AllowHosts().Operations(op).ResourcePatternType(kadm.ACLPatternLiteral).Topics(topic))
	if err != nil || made[0].Err != nil {
		w.Fatal(err, made)
	}
}

// deny takes a right away.
func (w *ward) deny(topic string, op kmsg.ACLOperation) {
	w.Helper()
	if _, err := w.kafka.DeleteACLs(w.Context(), kadm.NewACLs().Allow("User:walpost").AllowHosts().Operations(op).ResourcePatternType(kadm.ACLPatternLiteral).Topics(topic)); err != nil {
		w.Fatal(err)
	}
}

// alter sets a setting of a topic.
func (w *ward) alter(topic, key, value string) {
	w.Helper()
	resp, err := w.kafka.AlterTopicConfigs(w.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: key, Value: &value}}, topic)
	if err != nil || resp[0].Err != nil {
		w.Fatal(err, resp)
	}
}

// pipeline returns the pipeline with its present configuration.
func (w *ward) pipeline() *Pipeline {
	w.Helper()
	p, err := New(w.cfg, Options{})
	if err != nil {
		w.Fatal(err)
	}
	p.longOpen = w.long
	p.now = func() time.Time { return time.Now().Add(w.ahead) }
	return p
}

// init runs the verb Init as an administrator of both sides.
func (w *ward) init() { w.Helper(); w.initThat("") }

// initThat runs Init, which does its work and then may return an error that says what is left to do.
func (w *ward) initThat(says string) {
	w.Helper()
	cfg := w.cfg
	if cfg.Kafka.SASL.Username != "" {
		cfg.Kafka.SASL.Username = "boss"
	}
	p, err := New(cfg, Options{})
	if err == nil {
		_, err = p.Init(w.Context(), InitOptions{AdminURL: w.admin})
	}
	if says == "" && err != nil || !strings.Contains(fmt.Sprint(err), says) {
		w.Fatal(err)
	}
}

// examine returns the findings that are not ok, by their checks.
func (w *ward) examine() (all Examination, found map[string]cdc.Finding) {
	w.Helper()
	all = w.pipeline().Examine(w.Context())
	page, err := os.ReadFile("../DOCTOR.md")
	if err != nil {
		w.Fatal(err)
	}
	found = map[string]cdc.Finding{}
	for _, f := range all.Findings {
		cdctest.NoSecret(w, "doctor", fmt.Sprint(f))
		if f.Found == "" || f.Check == "" || f.Side == "" || strings.ContainsAny(f.Found+f.Means+f.Run, "\n") {
			w.Errorf("a finding without its parts: %+v", f)
		}
		if !strings.Contains(string(page), "`"+f.Check+"`") {
			w.Errorf("cdc/DOCTOR.md does not have the check %s", f.Check)
		}
		if f.Severity == cdc.OK {
			continue
		}
		if f.Means == "" && !strings.HasPrefix(f.Run, "not yet: ") || f.Run == "" {
			w.Errorf("%s does not say what it means and what to run: %+v", f.Check, f)
		}
		found[f.Check] = f
	}
	return all, found
}

// fault is a fault with the finding that must name it.
type fault struct {
	name     string
	check    string
	side     cdc.Side
	severity cdc.Severity
	found    string // a part of what was found
	run      string // a part of what ends it
	only     bool   // nothing else may be found that is worse than a note
	make     func(w *ward)
	// end ends the fault with what the finding says; nil runs its SQL.
	end func(w *ward, f cdc.Finding)
}

// statement matches the SQL of a finding.
var statement = regexp.MustCompile("(?:ALTER|GRANT|DROP|SELECT pg_|ROLLBACK PREPARED)[^`]*")

// sql runs the SQL of a finding as an operator would copy it.
func (w *ward) sql(f cdc.Finding) {
	w.Helper()
	all := statement.FindAllString(f.Run, -1)
	if len(all) == 0 {
		w.Fatalf("%s has no SQL: %s", f.Check, f.Run)
	}
	for _, sql := range all {
		sql, _, _ = strings.Cut(sql, ", or ")
		sql, _, _ = strings.Cut(sql, " and restart")
		w.exec(sql)
	}
}

// play makes the fault, looks for its finding, ends the fault by what the finding says, and looks again.
func (w *ward) play(t *testing.T, c *fault) {
	w = &ward{T: t, whole: w.whole, server: w.server, admin: w.admin, role: w.role, conn: w.conn, kafka: w.kafka, caFile: w.caFile, cfg: w.cfg, long: w.long, ahead: w.ahead}
	c.make(w)
	all, found := w.examine()
	f, there := found[c.check]
	if !there {
		t.Fatalf("the doctor does not name %s, but %+v", c.check, all.Findings)
	}
	if f.Side != c.side || f.Severity != c.severity || !strings.Contains(f.Found, c.found) || !strings.Contains(f.Run, c.run) {
		t.Errorf("got %+v, want %s of %s with %q and %q", f, c.severity, c.side, c.found, c.run)
	}
	t.Logf("\n%-8s %s: %s\n  means  %s\n  run    %s", f.Severity, f.Check, f.Found, f.Means, f.Run)
	answered := 0
	for _, other := range all.Findings {
		if other.Side != c.side && other.Severity == cdc.OK {
			answered++
		}
	}
	if answered < 2 {
		t.Errorf("the other side has %d findings: %+v", answered, all.Findings)
	}
	for check, other := range found {
		if check != c.check && check != "relay" && c.only && other.Severity != cdc.Note {
			t.Errorf("the doctor also names %+v", other)
		}
	}
	if c.end == nil {
		w.sql(f)
	} else {
		c.end(w, f)
	}
	cdctest.Eventually(t, 20*time.Second, func() error {
		if _, found := w.examine(); found[c.check].Check != "" && found[c.check].Severity != cdc.Note {
			return fmt.Errorf("the fault is ended by %q, and the doctor still names it: %+v", f.Run, found[c.check])
		}
		return nil
	})
}

// elsewhere returns a configuration with another host in source.url, and other parameters.
func elsewhere(cfg config.Config, host, query string) config.Config {
	u, _ := url.Parse(cfg.Source.URL)
	if u.RawQuery = query; host != "" {
		u.Host = host
	}
	cfg.Source.URL = u.String()
	return cfg
}

// closedPort returns an address on this machine where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// TestDoctorNamesEachFault makes each fault on real servers. The doctor names it, with what it means and what ends it; when that was run, the
// doctor no longer names it.
func TestDoctorNamesEachFault(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, "plays every fault")
	w := newWard(t)
	healthy := w.cfg
	back := func(w *ward, _ cdc.Finding) { w.cfg = healthy }
	var stop func()
	prepare := func(w *ward, _ cdc.Finding) { w.init() }

	t.Run("before init", func(t *testing.T) { w.beforeInit(t) })
	w.init()
	w.exec("GRANT pg_read_all_stats TO relay")
	t.Run("healthy", func(t *testing.T) { w.healthy(t) })

	for _, c := range []fault{
		{
			name: "slot without a limit", check: "slot_limit", side: cdc.InPostgreSQL, severity: cdc.Warning, found: "max_slot_wal_keep_size is -1", run: "ALTER SYSTEM SET max_slot_wal_keep_size", only: true,
			make: func(w *ward) { w.setting("max_slot_wal_keep_size", "-1") },
		},
		{
			name: "PostgreSQL unreachable", check: "connection", side: cdc.InPostgreSQL, severity: cdc.Unknown, found: "connection refused", run: "start it, or name the right host and port", only: true,
			make: func(w *ward) { w.cfg = elsewhere(w.cfg, closedPort(w.T), "sslmode=disable") }, end: back,
		},
		{
			name: "wrong password", check: "connection", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "password authentication failed", run: "`walpost init` does so", only: true,
			make: func(w *ward) {
				w.cfg.Source.URL = w.server.URLFor("relay", "another", "shop")
				w.Cleanup(func() { _, _ = w.conn.Exec(context.Background(), "ALTER ROLE relay PASSWORD '"+cdctest.Canary+"'") })
			},
			end: prepare,
		},
		{
			name: "TLS name mismatch", check: "connection", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "has a certificate for db.shop.example, and not for 127.0.0.1", run: "call it by one of its names", only: true,
			make: func(w *ward) {
				w.cfg = elsewhere(w.cfg, "", "sslmode=verify-full&sslrootcert="+url.QueryEscape(w.caFile))
			}, end: back,
		},
		{
			name: "another database", check: "slot_database", side: cdc.InPostgreSQL, severity: cdc.Problem, found: `slot "shop" belongs to database "shop", source.url names "postgres"`, run: "name shop in source.url", only: true,
			make: func(w *ward) {
				u, _ := url.Parse(w.cfg.Source.URL)
				u.Path = "/postgres"
				w.cfg.Source.URL = u.String()
			}, end: back,
		},
		{
			name: "a question without an answer", check: "slots_free", side: cdc.InPostgreSQL, severity: cdc.Unknown, found: "count slots and walsenders", run: "run `walpost doctor` again", only: true,
			make: func(w *ward) {
				u, _ := url.Parse(w.cfg.Source.URL)
				proxy := cdctest.StartProxy(w, u.Host, func(f cdctest.Frame) cdctest.Verdict {
					if !f.FromServer && bytes.Contains(f.Bytes, []byte("max_wal_senders")) {
						return cdctest.Lose
					}
					return cdctest.Pass
				})
				w.cfg = elsewhere(w.cfg, proxy.Addr(), "sslmode=disable")
				_, found := w.examine()
				if len(found) != 2 {
					w.Errorf("one question has no answer, no relay runs, and the doctor finds %+v", found)
				}
			},
			end: back,
		},
		{
			name: "no slots left", check: "slots_free", side: cdc.InPostgreSQL, severity: cdc.Warning, found: "all 3 slots that max_replication_slots allows are in use", run: "no process reads a, b: drop a slot that is not needed (SELECT pg_drop_replication_slot", only: true,
			make: func(w *ward) {
				w.exec("SELECT pg_create_physical_replication_slot('a'), pg_create_physical_replication_slot('b')")
			},
			end: func(w *ward, _ cdc.Finding) {
				w.exec("SELECT pg_drop_replication_slot('a'), pg_drop_replication_slot('b')")
			},
		},
		{
			name: "no walsenders left", check: "walsenders_free", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "all 3 walsenders", run: "raise max_wal_senders", only: true,
			make: func(w *ward) {
				for range 3 {
					w.replicates()
				}
			},
			end: func(w *ward, _ cdc.Finding) { w.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_replication") },
		},
		{
			name: "role without REPLICATION", check: "role_replication", side: cdc.InPostgreSQL, severity: cdc.Problem, found: `role "relay" may not replicate`, run: `ALTER ROLE "relay" REPLICATION`, only: true,
			make: func(w *ward) { w.exec("ALTER ROLE relay NOREPLICATION") },
		},
		{
			name: "publication missing", check: "publication_missing", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "walpost does not exist", run: "run `walpost init`",
			make: func(w *ward) { w.exec("DROP PUBLICATION walpost"); w.adoptsAtLast() }, end: func(w *ward, _ cdc.Finding) { w.initThat("`walpost adopt` accepts") },
		},
		{
			name: "publication without the table", check: "publication_table", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "walpost does not carry public.outbox", run: `ALTER PUBLICATION "walpost" ADD TABLE "public"."outbox"`,
			make: func(w *ward) { w.exec("ALTER PUBLICATION walpost DROP TABLE outbox"); w.adoptsAtLast() },
		},
		{
			name: "publication with a row filter", check: "publication_filter", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "has a row filter on public.outbox", run: `ALTER PUBLICATION "walpost" DROP TABLE "public"."outbox"`,
			make: func(w *ward) {
				w.exec("ALTER PUBLICATION walpost SET TABLE outbox WHERE (id IS NOT NULL)")
				w.adoptsAtLast()
			},
		},
		{
			name: "publication changed", check: "changed", side: cdc.Between, severity: cdc.Problem, found: "publication or table changed", run: "`walpost adopt`", only: true,
			make: func(w *ward) { w.exec("ALTER PUBLICATION walpost SET (publish = 'insert')") }, end: func(w *ward, _ cdc.Finding) { w.adopt(false) },
		},
		{
			name: "a wrong column type", check: "columns", side: cdc.InPostgreSQL, severity: cdc.Problem, found: `column "payload" has the type jsonb that cannot be used here`, run: "it must be text, uuid", only: true,
			make: func(w *ward) { w.cfg.Source.Columns.AggregateID = "payload" }, end: back,
		},
		{
			name: "cleanup without its rights", check: "table_rights", side: cdc.InPostgreSQL, severity: cdc.Warning, found: `role "relay" lacks rights on public.outbox`, run: `GRANT DELETE, SELECT ("ctid", "xmin", "created_at") ON "public"."outbox" TO "relay"`, only: true,
			make: func(w *ward) { w.cfg.Cleanup.Every = time.Hour },
		},
		{
			name: "row-level security", check: "row_security", side: cdc.InPostgreSQL, severity: cdc.Warning, found: `role "relay" does not see all rows of public.outbox`, run: `ALTER ROLE "relay" BYPASSRLS`, only: true,
			make: func(w *ward) {
				w.cfg.Cleanup.Every = time.Hour
				w.exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
				w.Cleanup(func() {
					_, _ = w.conn.Exec(context.Background(), "ALTER TABLE outbox DISABLE ROW LEVEL SECURITY; ALTER ROLE relay NOBYPASSRLS")
				})
			},
		},
		{
			name: "inheritance children", check: "table_children", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "rows of public.outbox may be in tables that inherit from it (public.old)", run: "ALTER TABLE public.old NO INHERIT",
			make: func(w *ward) {
				w.exec("CREATE TABLE old () INHERITS (outbox)")
				w.Cleanup(func() { _, _ = w.conn.Exec(context.Background(), "DROP TABLE old") })
			},
			end: func(w *ward, f cdc.Finding) {
				_, sql, _ := strings.Cut(f.Run, "(ALTER ")
				sql, _, _ = strings.Cut(sql, ")")
				w.exec("ALTER " + sql)
			},
		},
		{
			name: "an open transaction older than the limit", check: "open_transaction", side: cdc.InPostgreSQL, severity: cdc.Warning, found: "the transaction of pid ", run: "SELECT pg_terminate_backend(", only: true,
			make: func(w *ward) {
				w.long = time.Nanosecond
				w.begin()
			},
		},
		{
			name: "a prepared transaction", check: "open_transaction", side: cdc.InPostgreSQL, severity: cdc.Warning, found: `the prepared transaction "forgotten"`, run: "ROLLBACK PREPARED 'forgotten'", only: true,
			make: func(w *ward) {
				w.long = time.Nanosecond
				w.exec("BEGIN; INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}'); PREPARE TRANSACTION 'forgotten'")
			},
		},
		{
			name: "a relay that is a synchronous standby", check: "synchronous_standby", side: cdc.Between, severity: cdc.Problem, found: "every commit on this server waits", run: "ALTER SYSTEM SET synchronous_standby_names = ''", only: true,
			make: func(w *ward) { w.setting("synchronous_standby_names", "*") }, end: func(w *ward, f cdc.Finding) { w.sql(f); w.reloaded() },
		},
		{
			name: "a standby slot that is away", check: "standby_slot", side: cdc.Between, severity: cdc.Problem, found: `"sb1": it is inactive`, run: "ALTER SYSTEM SET synchronized_standby_slots = ''", only: true,
			make: func(w *ward) {
				w.exec("SELECT pg_create_physical_replication_slot('sb1', true)")
				w.setting("synchronized_standby_slots", "sb1")
			},
		},
		{
			name: "a standby slot that is behind", check: "standby_slot", side: cdc.Between, severity: cdc.Warning, found: `"sb1": its standby has received the WAL up to `, run: "ALTER SYSTEM SET synchronized_standby_slots = ''", only: true,
			make: func(w *ward) {
				w.setting("synchronized_standby_slots", "sb1")
				stop = w.streams("sb1")
				w.exec("SELECT pg_switch_wal()")
			},
			end: func(w *ward, f cdc.Finding) {
				w.sql(f)
				stop()
				cdctest.Eventually(w, 20*time.Second, func() error {
					_, err := w.conn.Exec(w.Context(), "SELECT pg_drop_replication_slot('sb1')")
					return err
				})
			},
		},
		{
			name: "Kafka unreachable", check: "connection", side: cdc.InKafka, severity: cdc.Unknown, found: "kafka.brokers: none of 127.0.0.1:", run: "start Kafka, or name the right brokers", only: true,
			make: func(w *ward) { w.cfg.Kafka.Brokers = []string{closedPort(w.T)} }, end: back,
		},
		{
			name: "wrong password of Kafka", check: "connection", side: cdc.InKafka, severity: cdc.Problem, found: "ends the connection", run: "correct that, or user and password", only: true,
			make: func(w *ward) { w.cfg.Kafka.SASL.Password = "another" }, end: back,
		},
		{
			name: "advertised listener wrong", check: "advertised_listeners", side: cdc.InKafka, severity: cdc.Problem, found: "says that its brokers are at kafka.invalid:9092", run: "set advertised.listeners", only: true,
			make: func(w *ward) { w.cfg.Kafka.Brokers = []string{w.advertises("kafka.invalid", 9092)} }, end: back,
		},
		{
			name: "topic missing", check: "topic_missing", side: cdc.InKafka, severity: cdc.Problem, found: "topic outbox.event.order does not exist", run: "run `walpost init`", only: true,
			make: func(w *ward) {
				if _, err := w.kafka.DeleteTopic(w.Context(), shopTopic); err != nil {
					w.Fatal(err)
				}
			},
			end: prepare,
		},
		{
			name: "topic's limit under the largest row", check: "topic_limit", side: cdc.Between, severity: cdc.Problem, found: "of 1 rows of public.outbox the largest payload has", run: "max.message.bytes=", only: true,
			make: func(w *ward) {
				w.alter(shopTopic, "max.message.bytes", "2000")
				w.exec("GRANT SELECT (payload) ON outbox TO relay")
				w.exec("DELETE FROM outbox")
				w.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('text', repeat('y', 5000)))`)
			},
			end: func(w *ward, f cdc.Finding) {
				w.alter(shopTopic, "max.message.bytes", regexp.MustCompile(`max\.message\.bytes=(\d+)`).FindStringSubmatch(f.Run)[1])
			},
		},
		{
			name: "state topic not compacted", check: "state_topic", side: cdc.InKafka, severity: cdc.Problem, found: "topic walpost.state.shop has cleanup.policy=delete", run: "kafka-configs.sh --alter --topic walpost.state.shop --add-config cleanup.policy=compact", only: true,
			make: func(w *ward) { w.alter(shopState, "cleanup.policy", "delete") },
			end:  func(w *ward, _ cdc.Finding) { w.alter(shopState, "cleanup.policy", "compact") },
		},
		{
			name: "no right to write rows", check: "acl", side: cdc.InKafka, severity: cdc.Problem, found: "kafka does not allow the relay's login to write topic outbox.event.order", run: "--allow-principal User:walpost --operation Write --topic outbox.event.order", only: true,
			make: func(w *ward) { w.deny(shopTopic, kmsg.ACLOperationWrite) },
			end:  func(w *ward, _ cdc.Finding) { w.allow(shopTopic, kmsg.ACLOperationWrite) },
		},
		{
			name: "no right to read the state record", check: "acl", side: cdc.InKafka, severity: cdc.Problem, found: "login to read topic walpost.state.shop", run: "--allow-principal User:walpost --operation Read --topic walpost.state.shop", only: true,
			make: func(w *ward) { w.deny(shopState, kmsg.ACLOperationRead) },
			end:  func(w *ward, _ cdc.Finding) { w.allow(shopState, kmsg.ACLOperationRead) },
		},
		{
			name: "this machine's clock is ahead", check: "clocks", side: cdc.Between, severity: cdc.Warning, found: "this machine's clock is 10m0s ahead of the database server's", run: "set the clocks", only: true,
			make: func(w *ward) { w.ahead = 10 * time.Minute }, end: func(w *ward, _ cdc.Finding) { w.ahead = 0 },
		},
		{
			name: "slot dropped", check: "slot_missing", side: cdc.Between, severity: cdc.Problem, found: `replication slot "shop" does not exist`, run: "`walpost adopt --create-slot`", only: true,
			make: func(w *ward) { w.exec("SELECT pg_drop_replication_slot('shop')") }, end: func(w *ward, _ cdc.Finding) { w.adopt(true) },
		},
		{
			name: "slot lost", check: "slot_lost", side: cdc.Between, severity: cdc.Problem, found: `replication slot "shop" is lost`, run: "`walpost adopt --create-slot`", only: true,
			make: func(w *ward) { w.losesSlot() },
			end: func(w *ward, _ cdc.Finding) {
				w.setting("max_slot_wal_keep_size", "50GB")
				w.adopt(true)
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) { w.play(t, &c) })
	}
}

// adopt runs the verb Adopt.
func (w *ward) adopt(createSlot bool) {
	w.Helper()
	p := w.pipeline()
	_, err := p.Adopt(w.Context(), AdoptOptions{AdminURL: w.server.URL("shop"), CreateSlot: createSlot})
	if err == nil {
		err = p.NoneMissing(w.Context(), time.Now().Add(-time.Hour), time.Now().Add(time.Second))
	}
	if err != nil {
		w.Fatal(err)
	}
}

// adoptsAtLast accepts publication and table at the end of the fault, because the state record knows others.
func (w *ward) adoptsAtLast() {
	p, admin := w.pipeline(), w.server.URL("shop")
	w.Cleanup(func() {
		_, err := p.Adopt(context.Background(), AdoptOptions{AdminURL: admin})
		if err == nil {
			err = p.NoneMissing(context.Background(), time.Now().Add(-time.Hour), time.Now().Add(time.Second))
		}
		if err != nil {
			w.Error(err)
		}
	})
}

// replicates opens a connection in replication mode, for a physical slot.
func (w *ward) replicates() *pgconn.PgConn {
	w.Helper()
	pg, err := pgconn.Connect(w.Context(), w.server.URL("shop")+"&replication=true&application_name=standby")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = pg.Close(context.Background()) })
	return pg
}

// streams reads from a physical slot until stop is called, and never says what it has received.
func (w *ward) streams(slot string) (stop func()) {
	w.Helper()
	pg := w.replicates()
	sys, err := pglogrepl.IdentifySystem(w.Context(), pg)
	if err == nil {
		err = pglogrepl.StartReplication(w.Context(), pg, slot, sys.XLogPos, pglogrepl.StartReplicationOptions{Mode: pglogrepl.PhysicalReplication})
	}
	if err != nil {
		w.Fatal(err)
	}
	return func() { _ = pg.Conn().Close() }
}

// begin opens a transaction that has written something.
func (w *ward) begin() {
	w.Helper()
	conn, err := pgx.Connect(w.Context(), w.server.URL("shop"))
	if err == nil {
		_, err = conn.Exec(w.Context(), "BEGIN; SELECT pg_current_xact_id()")
	}
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close(context.Background()) })
}

// advertises returns the address of a Kafka that says that its broker is elsewhere.
func (w *ward) advertises(host string, port int32) string {
	w.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.User("PLAIN", "walpost", cdctest.Canary))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(cluster.Close)
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		broker := kmsg.NewMetadataResponseBroker()
		broker.Host, broker.Port = host, port
		resp.Brokers = append(resp.Brokers, broker)
		return resp, nil, true
	})
	return cluster.ListenAddrs()[0]
}

// losesSlot writes WAL until the server has dropped what the slot needs.
func (w *ward) losesSlot() {
	w.Helper()
	w.setting("max_slot_wal_keep_size", "16MB")
	w.exec("CREATE TABLE filler (t text)")
	cdctest.Eventually(w, time.Minute, func() error {
		w.exec("INSERT INTO filler SELECT repeat(md5(i::text), 40) FROM generate_series(1, 5000) i")
		w.exec("SELECT pg_switch_wal()")
		w.exec("CHECKPOINT")
		var is string
		if err := w.conn.QueryRow(w.Context(), "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'shop'").Scan(&is); err != nil || is != "lost" {
			return fmt.Errorf("the slot is %s: %w", is, err)
		}
		return nil
	})
}

// beforeInit examines a pipeline of which nothing exists, then one whose role exists, on a server that cannot stream.
func (w *ward) beforeInit(t *testing.T) {
	outer := w.T
	w.T = t
	defer func() { w.T = outer }()
	only := func(problems ...string) map[string]cdc.Finding {
		t.Helper()
		_, found := w.examine()
		for check, f := range found {
			if (f.Severity == cdc.Problem) != slices.Contains(problems, check) {
				t.Errorf("before init: %+v, want problems %v", f, problems)
			}
			t.Logf("\n%-8s %s: %s\n  means  %s\n  run    %s", f.Severity, f.Check, f.Found, f.Means, f.Run)
		}
		for _, p := range problems {
			if found[p].Check == "" {
				t.Errorf("the doctor does not name %s, but %+v", p, found)
			}
		}
		return found
	}
	if found := only("prepared"); found["connection"].Severity != cdc.Note || found["topic_missing"].Severity != cdc.Note || found["state_topic"].Severity != cdc.Note {
		t.Errorf("what init creates is no note: %+v", found)
	}
	w.exec("CREATE ROLE relay LOGIN PASSWORD '" + cdctest.Canary + "'")
	for _, slot := range []string{"a", "b", "c"} {
		w.exec("SELECT pg_create_physical_replication_slot($1)", slot)
	}
	found := only("prepared", "wal_level", "slots_free")
	for _, check := range []string{"role_replication", "table_missing", "publication_missing", "topic_missing", "state_topic"} {
		if found[check].Severity != cdc.Note || !strings.Contains(found[check].Run, "walpost init") {
			t.Errorf("what init creates is no note: %s: %+v", check, found[check])
		}
	}
	for _, slot := range []string{"a", "b", "c"} {
		w.exec("SELECT pg_drop_replication_slot($1)", slot)
	}
	w.sql(found["wal_level"])
	w.restart()
	w.cfg.Kafka.CreateTopics = true
	only("prepared")
	w.cfg.Kafka.CreateTopics = false
	topics, err := w.kafka.ListTopics(w.Context())
	var slots int
	if err == nil {
		err = w.conn.QueryRow(w.Context(), "SELECT count(*) FROM pg_replication_slots").Scan(&slots)
	}
	if err != nil || len(topics) > 0 || slots > 0 {
		t.Errorf("the doctor has made topics %v and %d slots: %v", topics.Names(), slots, err)
	}
}

// healthy examines a pipeline in order.
func (w *ward) healthy(t *testing.T) {
	outer := w.T
	w.T = t
	defer func() { w.T = outer }()
	w.setting("max_slot_wal_keep_size", "50GB")
	all, found := w.examine()
	for _, f := range all.Findings {
		t.Logf("%-8s %s: %s", f.Severity, f.Check, f.Found)
	}
	if all.Severity != cdc.Warning || len(found) != 1 || found["relay"].Check == "" {
		t.Errorf("nothing is wrong except that no relay runs: %s, %+v", all.Severity, found)
	}
}

// TestDoctorTellsWhereTheBrokersClockIs: a topic with the timestamp type LogAppendTime has the broker's time of the state record.
func TestDoctorTellsWhereTheBrokersClockIs(t *testing.T) {
	now := time.Now()
	for off, want := range map[time.Duration]cdc.Severity{0: cdc.OK, 30 * time.Second: cdc.OK, 2 * time.Minute: cdc.Warning, -2 * time.Minute: cdc.Warning} {
		e := Examination{}
		wal{&Pipeline{now: time.Now}}.clocks(&e, &cdc.Facts{Time: now}, &cdc.State{Time: now, Appended: now.Add(off)})
		if len(e.Findings) != 1 || e.Findings[0].Severity != want || want == cdc.Warning && !strings.Contains(e.Findings[0].Found, "the Kafka broker's clock was 2m ") {
			t.Errorf("%s apart: %+v, want %s", off, e.Findings, want)
		}
	}
}

// TestDoctorKnowsTheAgeOfATransactionFromTheStateRecord: the relay's role may not see when another role's transaction began.
func TestDoctorKnowsTheAgeOfATransactionFromTheStateRecord(t *testing.T) {
	pg := &postgres.Examined{Database: "shop", Asked: true, Open: []postgres.OpenTransaction{{Transaction: cdc.Transaction{PID: 7}, XID: "741", Database: "shop"}}}
	elsewhere := &postgres.Examined{Database: "other", Asked: true, Open: pg.Open}
	for name, c := range map[string]struct {
		pg    *postgres.Examined
		state *cdc.State
		want  cdc.Severity
		says  string
	}{
		"no record":                      {pg, nil, cdc.Note, "may not see since when"},
		"a record that does not know it": {pg, &cdc.State{}, cdc.Note, "may not see since when"},
		"a young one":                    {pg, &cdc.State{Open: map[string]time.Time{"741": time.Now().Add(-time.Minute)}}, cdc.OK, "no transaction has been open for 1h"},
		"an old one":                     {pg, &cdc.State{Open: map[string]time.Time{"741": time.Now().Add(-2 * time.Hour)}}, cdc.Warning, "the transaction of pid 7, open for 7200 s"},
		"one after the last look":        {pg, &cdc.State{CheckedAt: time.Now().Add(-time.Second)}, cdc.OK, "no transaction has been open for 1h"},
		"one of another database":        {elsewhere, &cdc.State{Open: map[string]time.Time{"741": time.Now()}, CheckedAt: time.Now()}, cdc.Note, "may not see since when"},
	} {
		e := Examination{}
		e.transactions(c.pg, c.state, time.Hour)
		if len(e.Findings) != 1 || e.Findings[0].Severity != c.want || !strings.Contains(e.Findings[0].Found, c.says) {
			t.Errorf("%s: %+v, want %s", name, e.Findings, c.want)
		}
	}
}

// newPolledWard returns a polled pipeline on the servers that other tests use, too.
func newPolledWard(t *testing.T) *ward {
	t.Helper()
	w := &ward{T: t, whole: t, admin: cdctest.Database(t), cfg: config.Default(), long: time.Hour, role: cdctest.SlotName(t, "relay")}
	c := &w.cfg
	c.Pipeline, c.Source.Kind, c.Source.URL = cdctest.Name(t, "polled"), config.KindPolling, cdctest.As(w.admin, w.role)
	c.Kafka.Brokers, c.Kafka.AggregateTypes, c.Kafka.Replication = cdctest.Kafka(t), []string{"order"}, 1
	client, err := kgo.NewClient(kgo.SeedBrokers(c.Kafka.Brokers...), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	w.kafka = kadm.NewClient(client)
	w.connect()
	t.Cleanup(func() { _, _ = w.conn.Exec(context.Background(), "DROP OWNED BY "+w.role+"; DROP ROLE "+w.role) })
	return w
}

// TestDoctorExaminesAPolledTable makes the faults that a polled table can have.
func TestDoctorExaminesAPolledTable(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, "plays faults on a server")
	w := newPolledWard(t)
	all, found := w.examine()
	if all.Severity != cdc.Problem || found["prepared"].Severity != cdc.Problem || found["connection"].Severity != cdc.Note || found["topic_missing"].Severity != cdc.Note {
		t.Errorf("before init: %+v", all)
	}
	w.exec("CREATE ROLE " + w.role + " LOGIN")
	if all, found = w.examine(); found["prepared"].Severity != cdc.Problem || found["table_missing"].Severity != cdc.Note {
		t.Errorf("before init: %+v", all)
	}
	w.init()
	all, found = w.examine()
	for _, f := range all.Findings {
		t.Logf("%-8s %s: %s", f.Severity, f.Check, f.Found)
	}
	delete(found, "open_transaction") // of another test
	if all.Severity != cdc.Warning || len(found) != 1 || found["relay"].Check == "" {
		t.Errorf("nothing is wrong except that no relay runs: %s, %+v", all.Severity, found)
	}
	healthy := w.cfg
	prepare := func(w *ward, _ cdc.Finding) { w.init() }
	for _, c := range []fault{
		{
			name: "a column of polling is missing", check: "polling_table", side: cdc.InPostgreSQL, severity: cdc.Problem, found: `source.polling.columns.last_error: the table has no column "last_error"`, run: "`walpost init` adds it", only: true,
			make: func(w *ward) { w.exec("ALTER TABLE outbox DROP COLUMN last_error") }, end: prepare,
		},
		{
			name: "a default that lets rows be overtaken", check: "polling_table", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "needs the default pg_current_xact_id()", run: "SET DEFAULT pg_current_xact_id()", only: true,
			make: func(w *ward) {
				w.exec("ALTER TABLE outbox ALTER COLUMN " + w.cfg.Source.Polling.Columns.Transaction + " DROP DEFAULT")
			},
		},
		{
			name: "a right is missing", check: "table_rights", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "lacks rights on public.outbox", run: `GRANT UPDATE ON "public"."outbox" TO "`, only: true,
			make: func(w *ward) { w.exec("REVOKE UPDATE ON outbox FROM " + w.role) },
		},
		{
			name: "row-level security", check: "row_security", side: cdc.InPostgreSQL, severity: cdc.Problem, found: "does not see all rows of public.outbox", run: "BYPASSRLS", only: true,
			make: func(w *ward) {
				w.exec("ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
				w.Cleanup(func() { _, _ = w.conn.Exec(context.Background(), "ALTER TABLE outbox DISABLE ROW LEVEL SECURITY") })
			},
		},
		{
			name: "a wrong column type", check: "columns", side: cdc.InPostgreSQL, severity: cdc.Problem, found: `column "payload" has the type jsonb that cannot be used here`, run: "it must be text", only: true,
			make: func(w *ward) { w.cfg.Source.Columns.EventType = "payload" },
			end:  func(w *ward, _ cdc.Finding) { w.cfg.Source.Columns.EventType = "event_type" },
		},
		{
			name: "failed rows", check: "backlog", side: cdc.Between, severity: cdc.Problem, found: "1 row has failed", run: "`walpost dlq list` says why", only: true,
			make: func(w *ward) {
				w.exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload, status) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}', 'FAILED')`)
			},
			end: func(w *ward, _ cdc.Finding) {
				if _, err := w.pipeline().Drop(w.Context(), DropOptions{}); err != nil {
					w.Error(err)
				}
			},
		},
		{
			name: "topic missing", check: "topic_missing", side: cdc.InKafka, severity: cdc.Problem, found: "does not exist", run: "run `walpost init`", only: true,
			make: func(w *ward) {
				if _, err := w.kafka.DeleteTopic(w.Context(), shopTopic); err != nil {
					w.Fatal(err)
				}
			},
			end: prepare,
		},
		{
			name: "PostgreSQL unreachable", check: "connection", side: cdc.InPostgreSQL, severity: cdc.Unknown, found: "connection refused", run: "start it", only: true,
			make: func(w *ward) { w.cfg = elsewhere(w.cfg, closedPort(w.T), "sslmode=disable") },
			end:  func(w *ward, _ cdc.Finding) { w.cfg = healthy },
		},
	} {
		t.Run(c.name, func(t *testing.T) { w.play(t, &c) })
	}
}
