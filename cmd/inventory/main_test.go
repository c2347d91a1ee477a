package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestMain is also the process that the tests kill.
func TestMain(m *testing.M) {
	if os.Getenv("INVENTORY_TEST_MAIN") != "" {
		main()
	}
	cdctest.Main(m)
}

// watched is the program; the run fails if its output shows a secret.
var watched = cdctest.Watch(runAmong(nil))

// A service is the program's environment, with the connections through which a test observes it.
type service struct {
	*testing.T
	env    map[string]string
	group  string
	topic  string
	conn   *pgx.Conn // as the database's owner
	client *kgo.Client
}

func newService(t *testing.T) *service {
	t.Helper()
	admin := cdctest.Database(t)
	own, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	own.User = url.UserPassword("inventory_service", cdctest.Canary)
	brokers := cdctest.Kafka(t)
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	s := &service{T: t, group: cdctest.Name(t, "inventory"), topic: cdctest.Name(t, "orders")}
	s.env = map[string]string{
		"INVENTORY_DATABASE_URL": own.String(), "INVENTORY_ADMIN_DATABASE_URL": admin,
		"INVENTORY_KAFKA_BROKERS": strings.Join(brokers, ","), "INVENTORY_TOPIC": s.topic, "INVENTORY_GROUP": s.group,
		"INVENTORY_HTTP": fmt.Sprintf("127.0.0.1:%d", port), "LOG_LEVEL": "debug",
	}
	cdctest.CreateTopic(t, brokers, s.topic, 3)
	cdctest.AlterRoles(t, func() error { return watched(t.Context(), []string{"migrate"}, s.getenv, io.Discard, io.Discard) })
	if s.conn, err = pgx.Connect(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close(context.Background()) })
	if s.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	return s
}

func (s *service) getenv(name string) string { return s.env[name] }

// A child is the program, started by the test binary itself.
type child struct {
	*exec.Cmd
	log cdctest.Log
}

func (s *service) start() *child {
	s.Helper()
	p := &child{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), "INVENTORY_TEST_MAIN=1")
	for name, value := range s.env {
		p.Env = append(p.Env, name+"="+value)
	}
	p.Stderr = &p.log
	if err := p.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	})
	return p
}

// kill kills the process, and removes it from the group, so that the broker notices at once instead of after the
// session timeout.
func (s *service) kill(p *child) {
	s.Helper()
	if err := p.Process.Kill(); err != nil {
		s.Fatal(err)
	}
	_ = p.Wait()
	cdctest.Evict(s, s.client, s.group)
}

// terminate sends SIGTERM and requires a clean end.
func (s *service) terminate(p *child) {
	s.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		s.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		s.Errorf("asked to stop, it ended with %v: %s", err, p.log.String())
	}
}

func (s *service) ready() {
	s.Helper()
	cdctest.Eventually(s, 30*time.Second, func() error {
		status, body, err := s.ask("GET", "/readyz", "")
		if err == nil && status != 200 {
			err = errors.New(body)
		}
		return err
	})
}

func (s *service) ask(method, path, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(s.Context(), method, "http://"+s.env["INVENTORY_HTTP"]+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, string(answer), err
}

func (s *service) number(sql string, args ...any) (n int64) {
	s.Helper()
	if err := s.conn.QueryRow(s.Context(), sql, args...).Scan(&n); err != nil {
		s.Fatal(err)
	}
	return n
}

func (s *service) waitApplied(n int64) {
	s.Helper()
	cdctest.Eventually(s, time.Minute, func() error {
		if got := s.number(`SELECT count(*) FROM inbox`); got < n {
			return fmt.Errorf("%d of %d events applied", got, n)
		}
		return nil
	})
}

// waitsForStock waits until a session in this database waits for a lock. It does not read pg_stat_activity: a
// transaction, such as one on s.conn, sees there the state of its first query.
func (s *service) waitsForStock() {
	s.Helper()
	cdctest.Eventually(s, 30*time.Second, func() error {
		if s.number(`SELECT count(*) FROM pg_locks JOIN pg_locks here USING (pid)
			WHERE NOT pg_locks.granted AND here.database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0 {
			return errors.New("the service does not wait for the stock yet")
		}
		return nil
	})
}

// committed returns the group's offset by partition.
func (s *service) committed() map[int32]int64 {
	s.Helper()
	offsets, err := kadm.NewClient(s.client).FetchOffsets(s.Context(), s.group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		s.Fatal(err)
	}
	committed := map[int32]int64{}
	offsets.Each(func(o kadm.OffsetResponse) { committed[o.Partition] = max(0, o.At) })
	return committed
}

func (s *service) committedSum() (sum int64) {
	for _, at := range s.committed() {
		sum += at
	}
	return sum
}

// behind counts the partitions with an event that is in the database and whose offset is not committed to Kafka.
func (s *service) behind() (n int) {
	committed := s.committed()
	for partition := range int32(3) {
		if s.number(`SELECT coalesce(max(kafka_offset) + 1, 0) FROM inbox WHERE partition = $1`, partition) > committed[partition] {
			n++
		}
	}
	return n
}

// event returns a record as the relay writes it.
func (s *service) event(eventType, orderID string, items map[string]int) *kgo.Record {
	id := uuid.Must(uuid.NewV7()).String()
	body := map[string]any{"eventId": id, "schemaVersion": 1, "orderId": orderID, "wasPaid": true}
	var lines []any
	for sku, quantity := range items {
		lines = append(lines, map[string]any{"sku": sku, "quantity": quantity})
	}
	body["items"] = lines
	value, err := json.Marshal(body)
	if err != nil {
		s.Fatal(err)
	}
	return &kgo.Record{
		Topic: s.topic, Key: []byte(orderID), Value: value,
		Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(id)}, {Key: "type", Value: []byte(eventType)}},
	}
}

// TestKilledUnderLoad kills the service at random points while orders are paid and cancelled, and checks the stock.
func TestKilledUnderLoad(t *testing.T) {
	cdctest.Long(t, "kills under load")
	t.Parallel()
	kills := 5
	if cdctest.LongForm() {
		kills = 30
	}
	s := newService(t)
	skus := []string{"cup", "pot", "tea"}
	const start = 1_000_000
	p := s.start()
	s.ready()
	for _, sku := range skus {
		if status, body, err := s.ask("PUT", "/stock/"+sku, fmt.Sprintf(`{"available": %d}`, start)); err != nil || status != 200 {
			t.Fatal(status, body, err)
		}
	}

	// The quantities produced, by SKU; every fourth event is produced twice.
	paid, givenBack := map[string]int64{}, map[string]int64{}
	var events, records int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			for range 4 {
				orderID, items := uuid.NewString(), map[string]int{}
				for range 1 + rand.IntN(3) {
					items[skus[rand.IntN(3)]] = 1 + rand.IntN(5)
				}
				produce := func(eventType string, sums map[string]int64) {
					record := s.event(eventType, orderID, items)
					for range 1 + rand.IntN(4)/3 {
						copied := *record
						s.client.Produce(context.Background(), &copied, nil)
						records++
					}
					events++
					for sku, quantity := range items {
						sums[sku] += int64(quantity)
					}
				}
				produce("OrderPaid", paid)
				if rand.IntN(3) == 0 {
					produce("OrderCancelled", givenBack)
				}
			}
		}
	})
	between, killed := 0, 0 // kills between the database's commit and Kafka's; the test goes on until there is one
	for ; killed < kills || between == 0 && killed < 20*kills; killed++ {
		s.waitApplied(s.number(`SELECT count(*) FROM inbox`) + 20 + rand.Int64N(150))
		s.kill(p)
		if s.behind() > 0 {
			between++
		}
		p = s.start()
	}
	close(stop)
	load.Wait()
	if err := s.client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitApplied(events)
	cdctest.Eventually(t, time.Minute, func() error {
		if at := s.committedSum(); at != records {
			return fmt.Errorf("offsets committed %d of %d", at, records)
		}
		return nil
	})

	for _, sku := range skus {
		available := s.number(`SELECT available FROM stock WHERE sku = $1`, sku)
		if want := start - paid[sku] + givenBack[sku]; available != want {
			t.Errorf("%s: %d in stock, want %d − %d + %d = %d", sku, available, start, paid[sku], givenBack[sku], want)
		}
		if sum := s.number(`SELECT sum(change)::bigint FROM stock_movements WHERE sku = $1`, sku); sum != available {
			t.Errorf("%s: %d in stock, the movements add up to %d", sku, available, sum)
		}
	}
	for what, sql := range map[string]string{
		"events applied that were not produced": fmt.Sprintf(`SELECT count(*) - %d FROM inbox`, events),
		"shortages":                             `SELECT count(*) FROM stock_movements WHERE reason = 'shortage'`,
		"parked events":                         `SELECT count(*) FROM inbox_parked`,
		"pieces returned before they were sold": `SELECT count(*) FROM stock_movements r JOIN stock_movements s USING (order_id, sku)
			WHERE r.reason = 'returned' AND s.reason = 'sold' AND r.id < s.id`,
	} {
		if n := s.number(sql); n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
	s.terminate(p)
	if between == 0 {
		t.Error("no kill hit between the commit of a transaction and that of its offset: the test shows nothing")
	}
	t.Logf("%d kills, %d of them between the two commits; %d events in %d records", killed, between, events, records)
}

// TestKilledInTheMiddleOfAnEvent kills the service between the inbox row and the stock: no part of the event may stay.
func TestKilledInTheMiddleOfAnEvent(t *testing.T) {
	cdctest.Long(t, "kills processes")
	t.Parallel()
	s := newService(t)
	if _, err := s.conn.Exec(t.Context(), `INSERT INTO stock VALUES ('tea', 10)`); err != nil {
		t.Fatal(err)
	}
	tx, err := s.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM stock FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if err := s.client.ProduceSync(t.Context(), s.event("OrderPaid", uuid.NewString(), map[string]int{"tea": 3})).FirstErr(); err != nil {
		t.Fatal(err)
	}
	p := s.start()
	s.waitsForStock()
	if at := s.committedSum(); at != 0 {
		t.Errorf("offset %d is committed before the event is applied", at)
	}
	s.kill(p)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	p = s.start()
	s.waitApplied(1)
	if available := s.number(`SELECT available FROM stock`); available != 7 {
		t.Errorf("%d in stock, want 7", available)
	}
	s.terminate(p)
}

// TestSIGTERM: after SIGTERM no event arrives twice.
func TestSIGTERM(t *testing.T) {
	t.Parallel()
	s := newService(t)
	if _, err := s.conn.Exec(t.Context(), `INSERT INTO stock VALUES ('tea', 1000)`); err != nil {
		t.Fatal(err)
	}
	const orders = 500
	for range orders {
		s.client.Produce(t.Context(), s.event("OrderPaid", uuid.NewString(), map[string]int{"tea": 1}), nil)
	}
	if err := s.client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := s.start()
	s.waitApplied(10)
	s.terminate(p)
	if applied, committed := s.number(`SELECT count(*) FROM inbox`), s.committedSum(); applied != committed {
		t.Errorf("%d events applied and %d offsets committed", applied, committed)
	}
	p = s.start()
	s.waitApplied(orders)
	s.ready()
	_, metrics, err := s.ask("GET", "/metrics", "")
	if err != nil || !strings.Contains(metrics, "inventory_events_duplicate_total 0\n") {
		t.Errorf("duplicates after a stop in good order (%v)", err)
	}
	s.terminate(p)
	if available := s.number(`SELECT available FROM stock`); available != 1000-orders {
		t.Errorf("%d in stock", available)
	}
	if strings.Contains(p.log.String(), "postgres://") {
		t.Errorf("a URL is in the log")
	}
}

func TestWrongConfigurationIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	stranger := httptest.NewTLSServer(nil)
	stranger.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(stranger.Close)
	valid := map[string]string{
		"INVENTORY_DATABASE_URL": "postgres://inventory_service:" + cdctest.Canary + "@127.0.0.1:1/inventory", "INVENTORY_KAFKA_BROKERS": "127.0.0.1:1",
		"INVENTORY_HTTP": "127.0.0.1:0",
	}
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		want []string
	}{
		{"nothing given", nil, map[string]string{"INVENTORY_DATABASE_URL": "", "INVENTORY_KAFKA_BROKERS": ""}, []string{"INVENTORY_DATABASE_URL", "INVENTORY_KAFKA_BROKERS"}},
		{"all wrong", nil, map[string]string{
			"INVENTORY_DATABASE_URL": "postgres://u:" + cdctest.Canary + "@[", "INVENTORY_KAFKA_BROKERS": "kafka,kafka:x", "INVENTORY_TOPIC": "a b",
			"INVENTORY_HTTP": "8082", "LOG_LEVEL": "loud", "LOG_FORMAT": "xml",
		}, []string{"INVENTORY_DATABASE_URL", `"kafka"`, `"kafka:x"`, "INVENTORY_TOPIC", "INVENTORY_HTTP", "LOG_LEVEL", "LOG_FORMAT"}},
		{"in clear or not", nil, map[string]string{"INVENTORY_DATABASE_URL": "postgres://u:secret@db.example/d"}, []string{"--database-url (INVENTORY_DATABASE_URL): the connection to db.example would be encrypted or not"}},
		{"the same of migrate", []string{"migrate"}, map[string]string{"INVENTORY_ADMIN_DATABASE_URL": "postgres://u:secret@db.example/d"}, []string{"the connection to db.example would be encrypted or not"}},
		{"an address that cannot be had", []string{"--http", "192.0.2.1:80"}, nil, []string{"INVENTORY_HTTP", "choose a free address"}},
		{"profiles for everybody", []string{"--pprof", "0.0.0.0:0"}, nil, []string{"--pprof (INVENTORY_PPROF): 0.0.0.0:0 is not on loopback"}},
		{"an unknown flag", []string{"--nope"}, nil, []string{"--nope"}},
		{"half a login", nil, map[string]string{"INVENTORY_KAFKA_TLS_CERT_FILE": "/c", "INVENTORY_KAFKA_SASL_MECHANISM": "plain", "INVENTORY_KAFKA_SASL_PASSWORD": "secret"}, []string{
			"--kafka-tls-cert-file (INVENTORY_KAFKA_TLS_CERT_FILE): it is for connections with TLS: set --kafka-tls (INVENTORY_KAFKA_TLS) too", "--kafka-sasl-username (INVENTORY_KAFKA_SASL_USERNAME): missing",
		}},
		{"a Kafka with an unknown certificate", []string{"replay", "--offset", "0", "--kafka-tls"}, map[string]string{"INVENTORY_KAFKA_BROKERS": stranger.Listener.Addr().String()}, []string{
			"has a certificate of an authority that this machine does not know (made by O=Acme Co): name the file with its certificate in --kafka-tls-ca-file (INVENTORY_KAFKA_TLS_CA_FILE)",
		}},
		{"migrate without URLs", []string{"migrate"}, map[string]string{"INVENTORY_DATABASE_URL": ""}, []string{"INVENTORY_DATABASE_URL", "INVENTORY_ADMIN_DATABASE_URL"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := maps.Clone(valid)
			maps.Copy(env, c.env)
			err := watched(t.Context(), c.args, func(name string) string { return env[name] }, io.Discard, io.Discard)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(strings.Split(err.Error(), "\n"), func(line string) bool { return strings.Contains(line, want) }) {
					t.Errorf("no line with %s in:\n%v", want, err)
				}
			}
		})
	}
}

// TestStaysUpWithoutPostgreSQLAndKafka: the service waits for both, and reports it.
func TestStaysUpWithoutPostgreSQLAndKafka(t *testing.T) {
	t.Parallel()
	ports := make([]string, 3)
	for i := range ports {
		port, err := devenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	s := &service{T: t, env: map[string]string{
		"INVENTORY_DATABASE_URL":  "postgres://inventory_service:" + cdctest.Canary + "@" + ports[0] + "/inventory",
		"INVENTORY_KAFKA_BROKERS": ports[1], "INVENTORY_HTTP": ports[2],
	}}
	p := s.start()
	cdctest.Eventually(t, 20*time.Second, func() error {
		status, body, err := s.ask("GET", "/readyz", "")
		if err == nil && (status != 503 || !strings.Contains(body, "database") || !strings.Contains(body, "Kafka at "+ports[1])) {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	if status, _, err := s.ask("GET", "/livez", ""); err != nil || status != 200 {
		t.Errorf("livez %d, %v", status, err)
	}
	if status, body, err := s.ask("GET", "/stock", ""); err != nil || status != 503 {
		t.Errorf("stock %d %s, %v", status, body, err)
	}
	s.terminate(p)
}

// TestNoErrorShowsAURL: watched fails the run if an error shows the password.
func TestNoErrorShowsAURL(t *testing.T) {
	t.Parallel()
	for variable, commands := range map[string][][]string{
		"INVENTORY_DATABASE_URL":        {{"serve"}, {"migrate"}, {"parked", "list"}},
		"INVENTORY_ADMIN_DATABASE_URL":  {{"migrate"}},
		"INVENTORY_READER_DATABASE_URL": {{"migrate"}},
	} {
		for _, bad := range cdctest.BadURLs("postgres") {
			for _, args := range commands {
				env := map[string]string{
					"INVENTORY_DATABASE_URL": "postgres://inventory_service@127.0.0.1:1/inventory?sslmode=disable", "INVENTORY_KAFKA_BROKERS": "127.0.0.1:1", "INVENTORY_HTTP": "127.0.0.1:0",
					"INVENTORY_ADMIN_DATABASE_URL": "postgres://postgres@127.0.0.1:1/inventory?sslmode=disable",
				}
				env[variable] = bad
				if err := watched(t.Context(), args, func(name string) string { return env[name] }, io.Discard, io.Discard); err == nil {
					t.Errorf("%v takes %s=%s", args, variable, bad)
				}
			}
		}
	}
}

// TestStrayVariables: a variable that resembles one of the program ends each command. Other variables that begin with
// INVENTORY_ cause a warning, except those of other commands and of Kubernetes.
func TestStrayVariables(t *testing.T) {
	for _, c := range []struct{ command, names, err, warns string }{
		{"serve", "INVENTORY_KAFKA_TLS_CAFILE", "environment INVENTORY_KAFKA_TLS_CAFILE: there is no such variable: did you mean INVENTORY_KAFKA_TLS_CA_FILE?", ""},
		{"migrate", "INVENTORY_READER_DATABASE_URI", "environment INVENTORY_READER_DATABASE_URI: there is no such variable: did you mean INVENTORY_READER_DATABASE_URL?", ""},
		{"serve", "INVENTORY_COLOUR", "", "nothing reads INVENTORY_COLOUR: `inventory COMMAND --help` names the variables of a command"},
		{"serve", "INVENTORY_SERVICE_HOST INVENTORY_SERVICE_PORT INVENTORY_PORT_8082_TCP INVENTORY_ADMIN_DATABASE_URL ORDERS_HTPP WALPOST_KAFKA_BROKER INVENTORY_TEST_MAIN", "", ""},
		{"--version", "INVENTORY_HTTPS INVENTORY_COLOUR", "", ""},
	} {
		var environ []string
		for name := range strings.FieldsSeq(c.names) {
			environ = append(environ, name+"=x")
		}
		var stderr strings.Builder
		err := fmt.Sprint(cdctest.Watch(runAmong(environ))(t.Context(), []string{c.command}, func(string) string { return "" }, io.Discard, &stderr))
		if c.err == "" && strings.Contains(err, "no such variable") || c.err != "" && err != c.err {
			t.Errorf("%s with %s: %s, want %s", c.command, c.names, err, c.err)
		}
		var line struct{ Level, Service, Message string }
		_ = json.Unmarshal([]byte(stderr.String()), &line)
		if line.Message != c.warns || c.warns != "" && (line.Level != "warn" || line.Service != "inventory") {
			t.Errorf("%s with %s: it logs %s, want %s", c.command, c.names, stderr.String(), c.warns)
		}
	}
}
