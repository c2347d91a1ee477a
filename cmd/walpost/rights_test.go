package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/schema"
)

// rightsOf returns the rights of the page's table, by who needs them.
func rightsOf(t *testing.T, heading string) (whos []string, rights map[string][]string) {
	t.Helper()
	page, err := os.ReadFile("../../cdc/identity/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n### "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n##")
	rights = map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| ([^|]+) \\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		if rights[row[1]] == nil {
			whos = append(whos, row[1])
		}
		rights[row[1]] = append(rights[row[1]], row[2])
	}
	if len(rights) < 3 {
		t.Fatalf("the table %q has %d roles", heading, len(rights))
	}
	return whos, rights
}

// work is what a line's role does. do returns the error that somebody reads who lacks a right.
type work struct {
	base []string // whose rights it has, too
	env  map[string]string
	prep func(*rightsStage) // as an administrator, before each attempt
	do   func(*rightsStage) error
}

// rightsStage is a pipeline where one user has the rights of a table, and another all.
type rightsStage struct {
	*testbed          // the user's
	boss     *testbed // somebody who may do everything
	kafka    *kadm.Client
	user     string
	url      string     // of PostgreSQL, as the user
	row      string     // id of the row of this attempt
	beside   *e2e.Relay // that of somebody else, while something else is done

	allow  func(rights []string)         // gives the user exactly these
	grants *regexp.Regexp                // matches what a sentence says is to be run
	named  func(line, right string) bool // the line names the right and what grants it
}

// allowKafka gives the user exactly these rights.
func (s *rightsStage) allowKafka(rights []string) {
	s.T.Helper()
	revoke(s.T, s.kafka, s.user)
	grant(s.T, s.kafka, s.user, rights)
}

// revoke takes all rights of a user of Kafka away.
func revoke(t testing.TB, admin *kadm.Client, user string) {
	t.Helper()
	all := kadm.NewACLs().AnyResource().Allow(user).AllowHosts().Operations().ResourcePatternType(kadm.ACLPatternAny)
	if _, err := admin.DeleteACLs(t.Context(), all); err != nil {
		t.Fatal(err)
	}
}

// grant gives a user of Kafka rights.
func grant(t testing.TB, admin *kadm.Client, user string, rights []string) {
	t.Helper()
	for _, right := range rights {
		f := strings.Fields(right) // --operation Write --topic name
		op, err := kmsg.ParseACLOperation(f[1])
		if err != nil {
			t.Fatalf("%s: %v", right, err)
		}
		b := kadm.NewACLs().Allow(user).AllowHosts().Operations(op).ResourcePatternType(kadm.ACLPatternLiteral)
		switch f[2] {
		case "--topic":
			b.Topics(f[3])
		case "--group":
			b.Groups(f[3])
		case "--transactional-id":
			b.TransactionalIDs(f[3])
		default:
			t.Fatalf("what is %s?", right)
		}
		made, err := admin.CreateACLs(t.Context(), b)
		if err != nil || made[0].Err != nil {
			t.Fatal(err, made)
		}
	}
}

// relays starts a relay, and waits until all rows are delivered or the log names a right.
func (s *rightsStage) relays() (err error) {
	r := s.StartRelay()
	end := s.Query("SELECT pg_current_wal_lsn()::text")
	r.WaitForLog(20*time.Second, `"serving HTTP"`)
	cdctest.Eventually(s.T, 20*time.Second, func() error {
		for line := range strings.Lines(r.Log.String()) {
			if s.grants.MatchString(line) {
				err = errors.New(line)
				return nil
			}
		}
		said, _ := r.Ask("/status")
		if !strings.Contains(said, `"published":`) {
			return errors.New("nothing is published, and the log says nothing of rights")
		}
		if s.grants.MatchString(said) {
			err = errors.New(said)
		}
		return nil
	})
	if serr := r.Stop(); err == nil && (serr != nil || s.Query("SELECT (confirmed_flush_lsn >= $1::text::pg_lsn)::text FROM pg_replication_slots WHERE slot_name = $2", end, s.Slot()) != "true") {
		s.T.Errorf("not all is delivered: %v", serr)
	}
	return err
}

// command runs one, and returns what it says where it fails or names a right.
func (s *rightsStage) command(args ...string) error {
	out, err := s.Run(args...)
	if s.grants.MatchString(out) && args[0] != "init" || strings.Contains(out, "kafka-acls.sh") || err != nil && args[0] != "status" && args[0] != "doctor" {
		return fmt.Errorf("%s%w", out, errors.Join(err, errors.New("")))
	}
	return nil
}

// commands runs one after the other, up to the first error.
func (s *rightsStage) commands(all ...[]string) error {
	for _, args := range all {
		if err := s.command(args...); err != nil {
			return err
		}
	}
	return nil
}

func inserts(s *rightsStage) { s.row = s.InsertRow() }

// removes takes the pipeline away, so that init makes all of it.
func removes(s *rightsStage) {
	s.boss.MustRun("init", "--remove", "--yes")
	for _, topic := range []string{s.Topic, "walpost.state.shop", "walpost.dlq.shop"} {
		_, _ = s.kafka.DeleteTopic(s.T.Context(), topic)
		cdctest.Eventually(s.T, 20*time.Second, func() error {
			if found, err := s.kafka.ListTopics(s.T.Context(), topic); err != nil || found.Has(topic) {
				return fmt.Errorf("topic %s is there: %v", topic, err)
			}
			return nil
		})
	}
}

// putsAside runs a relay that makes a dead letter of a row of another aggregate type.
func putsAside(s *rightsStage) {
	s.row = uuid.NewString()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) SELECT unnest(ARRAY[$1, gen_random_uuid()]), 'refund', gen_random_uuid()::text, 'Refunded', '{}'`, s.row)
	r := s.boss.StartRelay()
	s.boss.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		s.T.Error(err)
	}
}

func loses(s *rightsStage) {
	inserts(s)
	s.Exec("SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", s.Slot())
}

var (
	once = map[string]string{"WALPOST_DELIVERY": "exactly_once"}
	dead = map[string]string{"WALPOST_POISON_POLICY": "dead_letter"}
)

func relaying(s *rightsStage) error { return s.relays() }

// initTwice makes everything, and looks at what is there.
func initTwice(s *rightsStage) error { return s.commands([]string{"init"}, []string{"init"}) }

func command(args ...string) func(*rightsStage) error {
	return func(s *rightsStage) error { return s.command(args...) }
}

func replaying(s *rightsStage) error {
	return s.command("replay", "--from", time.Now().Add(-time.Minute).Format(time.RFC3339), "--to", "now")
}

func deciding(s *rightsStage) error {
	if err := s.command("adopt"); err != nil {
		return err
	}
	inserts(s)
	return s.command("skip", "--to", s.Query("SELECT pg_current_wal_flush_lsn()::text"))
}

var kafkaWorks = map[string]work{
	"relay":                         {prep: inserts, do: relaying},
	"relay, exactly_once":           {base: []string{"relay"}, env: once, prep: inserts, do: relaying},
	"relay, dead_letter":            {base: []string{"relay"}, env: dead, prep: func(s *rightsStage) { s.InsertPoison(map[string]string{"aggregate_type": "'refund'"}) }, do: relaying},
	"relay, rows of more than 1 MB": {base: []string{"relay"}, prep: insertsLarge, do: relaying},
	"init":                          {prep: removes, do: initTwice},
	"init, exactly_once":            {base: []string{"init"}, env: once, prep: removes, do: initTwice},
	"init, dead_letter":             {base: []string{"init"}, env: dead, prep: removes, do: initTwice},
	"init --remove":                 {prep: func(s *rightsStage) { s.boss.MustRun("init") }, do: command("init", "--remove", "--yes")},
	"status":                        {do: command("status")},
	"status, dead_letter":           {base: []string{"status"}, env: dead, do: command("status")},
	"doctor":                        {do: command("doctor")},
	"doctor, dead_letter":           {base: []string{"doctor"}, env: dead, do: command("doctor")},
	"where":                         {prep: published, do: func(s *rightsStage) error { return s.command("where", s.row) }},
	"tail":                          {prep: published, do: command("tail", "--no-follow")},
	"dlq": {env: dead, prep: putsAside, do: func(s *rightsStage) error {
		s.Env["WALPOST_KAFKA_AGGREGATE_TYPES"], s.Env["WALPOST_KAFKA_RENAME"] = "order,refund", "{refund: order}"
		return s.commands([]string{"dlq", "list"}, []string{"dlq", "redrive", s.row}, []string{"dlq", "drop", "--all", "--yes"})
	}},
	"replay":                    {prep: published, do: replaying},
	"replay, exactly_once":      {base: []string{"replay"}, env: once, prep: published, do: replaying},
	"skip, adopt":               {prep: loses, do: deciding},
	"consumer":                  {prep: published, do: consumes},
	"skip, adopt, exactly_once": {base: []string{"skip, adopt"}, env: once, prep: loses, do: deciding},
}

// consumes applies what is in the topic, with the same settings as the relay, and returns what the log says of a right.
func consumes(s *rightsStage) error { return s.consume(s.T, "inventory", s.row) }

// consume applies events of the topic up to one with an inbox in the pipeline's database, with the pipeline's settings of Kafka. It returns
// the first trouble that the log names.
func (s *testbed) consume(t testing.TB, group, last string) error {
	t.Helper()
	cfgs, err := config.Load("", s.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	k := cfgs[0].Kafka
	if s.Query("SELECT (to_regclass('inbox') IS NULL)::text") == "true" {
		s.Exec(schema.SQL)
	}
	pool, err := pgxpool.New(t.Context(), s.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var log cdctest.Log
	consumer, err := inbox.New(inbox.Config{
		Brokers: k.Brokers, Login: identity.NewLogin(k.Kafka, k.Brokers, identity.Keys, zerolog.New(&log)), Topic: s.Topic, Group: group, Pool: pool, Log: zerolog.New(&log),
		Handle: func(context.Context, pgx.Tx, inbox.Event) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- consumer.Run(ctx) }()
	cdctest.Eventually(t, 30*time.Second, func() error {
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "retrying until it works") {
				err = errors.New(line)
				return nil
			}
		}
		if s.Query("SELECT EXISTS (SELECT FROM inbox WHERE consumer = $1 AND event_id = $2)::text", group, last) != "true" {
			return fmt.Errorf("the event is not applied: %s", log.String())
		}
		return nil
	})
	cancel()
	if rerr := <-ended; rerr != nil && err == nil {
		t.Error(rerr)
	}
	return err
}

// published runs a relay that delivers a row.
func published(s *rightsStage) {
	s.Exec("DELETE FROM outbox")
	inserts(s)
	r := s.boss.StartRelay()
	s.boss.WaitUntilConfirmed(20 * time.Second)
	if err := r.Stop(); err != nil {
		s.T.Error(err)
	}
}

// insertsLarge writes a row that the topic takes, and by default would not.
func insertsLarge(s *rightsStage) {
	s.Exec(`ALTER TABLE outbox DROP CONSTRAINT IF EXISTS outbox_payload_size`)
	bytes := "3000000"
	if resp, err := s.kafka.AlterTopicConfigs(s.T.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, s.Topic); err != nil || resp[0].Err != nil {
		s.T.Fatal(err, resp)
	}
	s.row = uuid.NewString()
	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1, 'order', 'k', 'OrderPaid', jsonb_build_object('text', repeat('y', 1500000)))`, s.row)
}

// TestLeastRights: with the page's rights the work is done; without any one of them the sentence names it, and nothing is lost;
// a right whose absence changes nothing is superfluous.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	t.Run("Kafka", func(t *testing.T) { t.Parallel(); testKafkaRights(t) })
	t.Run("PostgreSQL", func(t *testing.T) { t.Parallel(); testPostgresRights(t) })
}

func testKafkaRights(t *testing.T) {
	const pw = "pw"
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(3), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "boss", pw), kfake.User("PLAIN", "walpost", pw))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := newRightsStage(t, cluster.ListenAddrs(), kgo.SASL(plain.Auth{User: "boss", Pass: pw}.AsMechanism()))
	for _, b := range []*testbed{s.testbed, s.boss} {
		b.Env["WALPOST_KAFKA_SASL_MECHANISM"], b.Env["WALPOST_KAFKA_SASL_PASSWORD"] = "plain", pw
	}
	s.Env["WALPOST_KAFKA_SASL_USERNAME"], s.boss.Env["WALPOST_KAFKA_SASL_USERNAME"] = "walpost", "boss"
	s.testRights("Kafka", kafkaWorks, false) // TestSecureKafka takes each away, from a real broker's user
}

func newRightsStage(t *testing.T, brokers []string, opts ...kgo.Opt) *rightsStage {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	boss := newTestbedOn(t, cdctest.Database(t), brokers)
	boss.Name, boss.Topic = "shop", "outbox.event.order"
	boss.Env["WALPOST_PIPELINE"], boss.Env["WALPOST_KAFKA_TOPIC"] = boss.Name, "outbox.event.{aggregate_type}"
	s := &rightsStage{boss: boss, kafka: kadm.NewClient(client), user: "User:walpost"}
	s.testbed = &testbed{boss.Copy()}
	s.allow, s.named, s.grants = s.allowKafka, s.namedKafka, regexp.MustCompile(`kafka-acls\.sh`)
	return s
}

// eachRight has TestLeastRights take each right of PostgreSQL away: with the tag brokers, beside TestSecureKafka, which takes Kafka's.
var eachRight bool

// testRights takes rights away one by one: each of a role's, or its last alone, which takes a quarter of the time.
func (s *rightsStage) testRights(heading string, works map[string]work, each bool) {
	whos, table := rightsOf(s.T.(*testing.T), heading)
	for who := range works {
		if !slices.Contains(whos, who) {
			s.T.Errorf("the page has no rights of %q", who)
		}
	}
	mine, bosses := s.Env, s.boss.Env
	for _, who := range whos {
		w, ok := works[who]
		if !ok {
			s.T.Errorf("the page has rights of %q, and no test does its work", who)
			continue
		}
		s.Env, s.boss.Env = clone(mine, w.env, s.url), clone(bosses, w.env, "")
		s.boss.MustRun("init")
		var whole []string
		for _, base := range append(w.base, who) {
			whole = append(whole, table[base]...)
		}
		try := func(rights []string, fresh bool) error {
			s.T.Helper()
			if fresh && w.prep != nil {
				w.prep(s)
			}
			s.allow(rights)
			return w.do(s)
		}
		if err := try(whole, true); err != nil {
			s.T.Errorf("%s: with all rights of the page: %v", who, err)
			continue
		}
		away := table[who]
		if !each {
			away = away[len(away)-1:]
		}
		for _, right := range away {
			without := slices.DeleteFunc(slices.Clone(whole), func(r string) bool { return r == right })
			err := try(without, true)
			switch {
			case err == nil:
				s.T.Errorf("%s: %s is superfluous: the work succeeds without it", who, right)
				continue
			case s.sentence(err, right) == "":
				s.T.Errorf("%s: without %s: %v", who, right, err)
			default:
				s.T.Logf("%s: without %s: %s", who, right, s.sentence(err, right))
			}
		}
		if err := try(whole, false); err != nil {
			s.T.Errorf("%s: its rights were given back: %v", who, err)
		}
	}
}

// sentence returns the line of an error that names a right, and what grants it.
func (s *rightsStage) sentence(err error, right string) string {
	for line := range strings.Lines(err.Error()) {
		if s.named(line, right) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

func (s *rightsStage) namedKafka(line, right string) bool {
	_, command, _ := strings.Cut(line, "kafka-acls.sh ")
	f := strings.Fields(right)
	return strings.Contains(command, "--allow-principal "+s.user) && strings.Contains(command, f[0]+" "+f[1]) && strings.Contains(command, f[2]+" "+f[3])
}

// clone returns an environment with more variables; url stands for the tested role's, and without one its variables are left out.
func clone(env, more map[string]string, url string) map[string]string {
	all := maps.Clone(env)
	for k, v := range more {
		switch {
		case v != tested && v != none:
			all[k] = v
		case url != "":
			all[k] = strings.NewReplacer(tested, url, none, "").Replace(v)
		}
	}
	return all
}

var (
	asRelay   = map[string]string{"WALPOST_SOURCE_URL": tested, "WALPOST_ADMIN_URL": none}
	asCleaner = map[string]string{"WALPOST_CLEANUP_URL": tested, "WALPOST_ADMIN_URL": none}
	asReader  = map[string]string{"WALPOST_ADMIN_URL": tested}
	polls     = map[string]string{"WALPOST_SOURCE_URL": tested, "WALPOST_ADMIN_URL": none, "WALPOST_SOURCE_KIND": "polling", "WALPOST_SOURCE_TABLE": "public.polled"}
)

// tested stands for the URL of the role that has the rights, and none for a variable that only an administrator has.
const (
	tested = "the tested role's URL"
	none   = "none"
)

var postgresWorks = map[string]work{
	"relay": {env: asRelay, prep: inserts, do: func(s *rightsStage) error {
		if err := s.relays(); err != nil {
			return err
		}
		return s.commands([]string{"status"}, []string{"dlq", "list"})
	}},
	"doctor":               {env: asRelay, do: command("doctor")},
	"relay, cleanup.every": {base: []string{"relay"}, env: asRelay, prep: relaysOn, do: cleans},
	"relay, polling":       {env: polls, prep: polled, do: pollsAll},
	"cleanup.url":          {env: asCleaner, prep: relaysOn, do: cleans},
	"init":                 {env: asReader, prep: dropped, do: command("init")},
	"where":                {env: asReader, prep: published, do: func(s *rightsStage) error { return s.command("where", s.row) }},
	"replay":               {env: asReader, prep: published, do: replaying},
}

// relaysOn runs a relay that delivers a row and keeps running, because a cleanup needs that.
func relaysOn(s *rightsStage) {
	s.beside = s.boss.StartRelay()
	s.row = s.InsertRow()
	s.boss.WaitUntilConfirmed(20 * time.Second)
}

// cleans deletes what is delivered.
func cleans(s *rightsStage) error {
	defer func() {
		if s.beside != nil {
			if err := s.beside.Stop(); err != nil {
				s.T.Error(err)
			}
			s.beside = nil
		}
	}()
	if s.beside == nil { // the rights were given back
		relaysOn(s)
	}
	if err := s.command("cleanup", "--retention", "1ms"); err != nil {
		return err
	}
	if n := s.CountRows(); n != "0" {
		s.T.Errorf("%s rows are left", n)
	}
	return nil
}

func polled(s *rightsStage) {
	s.Exec(`INSERT INTO polled (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', '{}')`)
}

func pollsAll(s *rightsStage) (err error) {
	r := s.StartRelay()
	cdctest.Eventually(s.T, 20*time.Second, func() error {
		for line := range strings.Lines(r.Log.String()) {
			if s.grants.MatchString(line) {
				err = errors.New(line)
				return nil
			}
		}
		if n := s.Query("SELECT count(*)::text FROM polled WHERE status = 'PENDING'"); n != "0" {
			return fmt.Errorf("%s rows are pending, and the log says nothing of rights", n)
		}
		return nil
	})
	if serr := r.Stop(); err == nil && serr != nil {
		s.T.Error(serr)
	}
	if err != nil {
		return err
	}
	return s.commands([]string{"status"}, []string{"dlq", "list"}, []string{"cleanup", "--retention", "1ms"})
}

func dropped(s *rightsStage) {
	s.boss.MustRun("init", "--remove", "--yes")
	s.Exec("DROP TABLE IF EXISTS outbox, polled")
	s.Exec("REVOKE ALL ON DATABASE " + s.Query("SELECT current_database()") + " FROM relay_" + s.Slot())
	s.Exec("REVOKE ALL ON SCHEMA public FROM relay_" + s.Slot())
	s.Exec("DROP ROLE IF EXISTS relay_" + s.Slot()) // it has nothing any more
	s.Exec(fmt.Sprintf("CREATE ROLE %[1]s LOGIN REPLICATION PASSWORD 's3cret'; GRANT CONNECT ON DATABASE %[2]s TO %[1]s", "relay_"+s.Slot(), s.Query("SELECT current_database()")))
}

func testPostgresRights(t *testing.T) {
	s := newRightsStage(t, cdctest.Kafka(t))
	s.user = "least_" + s.Slot()
	database := s.Query("SELECT current_database()")
	page := strings.NewReplacer("walpost", s.user, "DATABASE shop", "DATABASE "+database)
	s.Exec("CREATE ROLE " + s.user + " PASSWORD 'pw'")
	s.Exec("REVOKE CONNECT, TEMPORARY ON DATABASE " + database + " FROM PUBLIC")
	s.Exec("REVOKE ALL ON SCHEMA public FROM PUBLIC")
	s.grants = regexp.MustCompile(`GRANT|ALTER ROLE`)
	s.allow = func(rights []string) {
		s.Exec("ALTER ROLE " + s.user + " NOLOGIN NOREPLICATION")
		s.Exec("REVOKE ALL ON DATABASE " + database + " FROM " + s.user)
		s.Exec("REVOKE ALL ON SCHEMA public FROM " + s.user)
		s.Exec("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM " + s.user)
		for _, right := range rights {
			s.Exec(page.Replace(right))
		}
	}
	bare := regexp.MustCompile(`\\?"|public\.`)
	s.named = func(line, right string) bool {
		return strings.Contains(bare.ReplaceAllString(bare.ReplaceAllString(line, ""), ""), page.Replace(right))
	}
	s.url = s.URLFor(s.user, "pw")
	s.testInit()
	s.testRights("PostgreSQL", postgresWorks, eachRight)
}

// testInit compares what init gives the relay's role with the page.
func (s *rightsStage) testInit() {
	_, table := rightsOf(s.T.(*testing.T), "PostgreSQL")
	for _, c := range []struct {
		role string
		env  map[string]string
		want []string
	}{
		{"relay_" + s.Slot(), nil, table["relay"]},
		{"relay_" + s.Slot(), map[string]string{"WALPOST_CLEANUP_EVERY": "1h"}, slices.Concat(table["relay"], table["relay, cleanup.every"])},
		{"polls_" + s.Slot(), map[string]string{"WALPOST_SOURCE_KIND": "polling", "WALPOST_SOURCE_TABLE": "public.polled"}, table["relay, polling"]},
	} {
		b := &testbed{s.boss.Copy()}
		b.Env = clone(b.Env, c.env, "")
		b.Env["WALPOST_SOURCE_URL"] = s.URLFor(c.role, "s3cret")
		b.MustRun("init")
		got := strings.Split(s.Query(heldRights, c.role), "\n")
		slices.Sort(got)
		want := slices.Sorted(slices.Values(c.want))
		if !slices.Equal(got, want) {
			s.T.Errorf("init with %v gives\n%s\nand the page says\n%s", c.env, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// heldRights is SQL for what a role was given, as the page has it. What the page does not know is there, too.
const heldRights = `
	WITH me AS (SELECT * FROM pg_roles WHERE rolname = $1)
	SELECT string_agg(held, E'\n') FROM (
		SELECT 'ALTER ROLE walpost LOGIN' AS held FROM me WHERE rolcanlogin
		UNION ALL SELECT 'ALTER ROLE walpost REPLICATION' FROM me WHERE rolreplication
		UNION ALL SELECT 'ALTER ROLE walpost with more' FROM me WHERE rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls
		UNION ALL SELECT 'GRANT ' || g.rolname || ' TO walpost' FROM me JOIN pg_auth_members m ON m.member = me.oid JOIN pg_roles g ON g.oid = m.roleid
		UNION ALL SELECT format('GRANT %s ON DATABASE shop TO walpost', privilege_type) FROM me, pg_database d, aclexplode(datacl) WHERE grantee = me.oid
		UNION ALL SELECT format('GRANT %s ON SCHEMA %s TO walpost', privilege_type, nspname) FROM me, pg_namespace, aclexplode(nspacl) WHERE grantee = me.oid
		UNION ALL SELECT format('GRANT %s ON %s TO walpost', privilege_type, relname) FROM me, pg_class, aclexplode(relacl) WHERE grantee = me.oid
		UNION ALL SELECT format('GRANT %s ON FUNCTION %s TO walpost', privilege_type, proname) FROM me, pg_proc, aclexplode(proacl) WHERE grantee = me.oid
		UNION ALL SELECT format('GRANT %s (%s) ON %s TO walpost', privilege_type, string_agg(attname, ', ' ORDER BY attnum > 0, abs(attnum)), attrelid::regclass)
			FROM me, pg_attribute, aclexplode(attacl) WHERE grantee = me.oid GROUP BY attrelid, privilege_type
	) all_of_them`
