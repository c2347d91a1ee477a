package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/sql"
)

// TestMain is also the process that the kill test kills.
func TestMain(m *testing.M) {
	if os.Getenv("ORDERS_TEST_MAIN") != "" {
		main()
	}
	cdctest.Main(m)
}

// watched is the program; the run fails if its output shows a secret.
var watched = cdctest.Watch(runAmong(nil))

// databases returns the administrator's and the service's URL of an empty database.
func databases(t *testing.T) (admin, service string) {
	t.Helper()
	admin = cdctest.Database(t)
	return admin, cdctest.As(admin, "orders_service")
}

func getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func TestMigrateSaysWhatItDid(t *testing.T) {
	admin, service := databases(t)
	u, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("orders_service", cdctest.Canary)
	env := getenv(map[string]string{"ORDERS_ADMIN_DATABASE_URL": admin, "ORDERS_DATABASE_URL": u.String()})
	migrate := func() string {
		var out bytes.Buffer
		if err := watched(t.Context(), []string{"migrate"}, env, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	first, again := migrate(), migrate()
	for _, want := range []string{"schema: applied 00001_orders.sql", `rights: "orders_service" has those of the orders service`} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in:\n%s", want, first)
		}
	}
	if strings.Contains(again, "applied") || !strings.Contains(again, "is at version ") {
		t.Errorf("the second run printed:\n%s", again)
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if err := watched(t.Context(), []string{"--version"}, getenv(nil), &out, io.Discard); err != nil || !strings.HasPrefix(out.String(), "orders ") {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestEveryMistakeInTheConfigurationIsNamedAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		want []string
	}{
		"nothing is set":         {nil, nil, []string{"ORDERS_DATABASE_URL"}},
		"nothing to migrate":     {[]string{"migrate"}, nil, []string{"ORDERS_ADMIN_DATABASE_URL", "ORDERS_DATABASE_URL"}},
		"everything is wrong":    {nil, map[string]string{"ORDERS_DATABASE_URL": "postgres://a:" + cdctest.Canary + "@b:c/d", "ORDERS_HTTP": "nowhere", "ORDERS_DATABASE_WAIT": "long", "LOG_LEVEL": "loud", "LOG_FORMAT": "xml"}, []string{"--database-url", "--http", "--database-wait", "--log-level", "--log-format"}},
		"a relay of nothing":     {[]string{"--relay", "--database-url", "postgres://a@127.0.0.1:1/b"}, nil, []string{"pipeline", "WALPOST_SOURCE_URL", "WALPOST_KAFKA_BROKERS"}},
		"in clear or not":        {nil, map[string]string{"ORDERS_DATABASE_URL": "postgres://a:s3cret@db.example/b"}, []string{"--database-url (ORDERS_DATABASE_URL): the connection to db.example would be encrypted or not"}},
		"the same of migrate":    {[]string{"migrate"}, map[string]string{"ORDERS_DATABASE_URL": "postgres://a:s3cret@db.example/b", "ORDERS_ADMIN_DATABASE_URL": "postgres://a:s3cret@db.example/b"}, []string{"--admin-database-url (ORDERS_ADMIN_DATABASE_URL): the connection", "--database-url (ORDERS_DATABASE_URL): the connection"}},
		"the same of a catalog":  {[]string{"consume", "mail"}, map[string]string{"ORDERS_CATALOG_URL": "postgres://a:s3cret@db.example/b"}, []string{"--catalog-url (ORDERS_CATALOG_URL): the connection to db.example"}},
		"an unknown command":     {[]string{"server"}, nil, []string{"server"}},
		"profiles for everybody": {[]string{"--pprof", ":0", "--http", "127.0.0.1:0", "--database-url", "postgres://a@127.0.0.1:1/b"}, nil, []string{"--pprof (ORDERS_PPROF): :0 is not on loopback"}},
		"and of consumers":       {[]string{"consume", "orders", "--pprof", ":0", "--http", "127.0.0.1:0", "--kafka-brokers", "127.0.0.1:1", "--database-url", "postgres://a@127.0.0.1:1/b"}, nil, []string{"--pprof (ORDERS_CONSUME_PPROF): :0 is not on loopback"}},
		"an unknown flag":        {[]string{"--kafka"}, nil, []string{"--kafka"}},
		"an address in use":      {[]string{"--http", "192.0.2.1:1", "--database-url", "postgres://a@127.0.0.1:1/b"}, nil, []string{"--http (ORDERS_HTTP)"}},
		"a database that is not": {[]string{"--http", "127.0.0.1:0", "--database-url", "postgres://a:" + cdctest.Canary + "@127.0.0.1:1/b", "--database-wait", "0s"}, nil, []string{"ORDERS_DATABASE_URL", "connection refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := watched(t.Context(), c.args, getenv(c.env), io.Discard, io.Discard)
			if err == nil {
				t.Fatal("it serves")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
		})
	}
}

// service runs in this process; the test reads its log line by line.
type service struct {
	log   *logReader
	end   context.CancelCauseFunc
	ended chan error
}

func start(t *testing.T, env map[string]string) *service {
	t.Helper()
	all := map[string]string{"ORDERS_HTTP": "127.0.0.1:0", "LOG_LEVEL": "debug"}
	maps.Copy(all, env)
	ctx, end := context.WithCancelCause(context.Background())
	r, w := io.Pipe()
	s := &service{log: newLogReader(r), end: end, ended: make(chan error, 1)}
	go func() {
		s.ended <- watched(ctx, nil, getenv(all), io.Discard, w)
		_ = w.Close()
	}()
	t.Cleanup(func() {
		end(errors.New("test is over"))
		for range s.log.lines {
		}
	})
	return s
}

// logReader turns a log into its lines.
type logReader struct{ lines chan map[string]any }

func newLogReader(r io.Reader) *logReader {
	l := &logReader{lines: make(chan map[string]any, 1000)}
	go func() {
		defer close(l.lines)
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			var line map[string]any
			if json.Unmarshal(scanner.Bytes(), &line) == nil {
				l.lines <- line
			}
		}
	}()
	return l
}

// wait returns the next line with this message.
func (l *logReader) wait(message string) (map[string]any, error) {
	timeout := time.After(30 * time.Second)
	var seen []any
	for {
		select {
		case line, ok := <-l.lines:
			if !ok {
				return nil, fmt.Errorf("the log ended without %q; it was %v", message, seen)
			}
			if line["message"] == message {
				return line, nil
			}
			seen = append(seen, line)
		case <-timeout:
			return nil, fmt.Errorf("no %q in the log; it is %v", message, seen)
		}
	}
}

func (l *logReader) must(t *testing.T, message string) map[string]any {
	t.Helper()
	line, err := l.wait(message)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// send makes a request and returns status and body; status 0 means that there was no answer.
func send(method, url, body, key string) (int, string) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(text)
}

const good = `{"buyerId": "buyer-7", "buyerEmail": "ada@shop.example", "items": [{"sku": "TEA-100", "quantity": 2, "unitPrice": "19.90"}]}`

func TestServeTakesOrdersTellsOperatorsAndStopsWhenAsked(t *testing.T) {
	admin, url := databases(t)
	if err := sql.Migrate(t.Context(), sql.Orders, admin, url, io.Discard); err != nil {
		t.Fatal(err)
	}
	s := start(t, map[string]string{"ORDERS_DATABASE_URL": url})
	base := "http://" + s.log.must(t, "serving HTTP")["address"].(string)
	if status, body := send("POST", base+"/orders", good, ""); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	line := s.log.must(t, "order created")
	for _, field := range []string{"service", "order_id", "order_number", "event_id", "time"} {
		if line[field] == nil {
			t.Errorf("no %s in %v", field, line)
		}
	}
	if text := fmt.Sprint(line); strings.Contains(text, "ada@") || strings.Contains(text, "buyer-7") {
		t.Errorf("the buyer is in the log: %s", text)
	}
	for path, want := range map[string]string{"/livez": "alive", "/readyz": "ready", "/metrics": `http_requests_total{route="POST /orders",status="201"} 1`} {
		if status, body := send("GET", base+path, "", ""); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	s.end(errors.New("terminated"))
	if err := <-s.ended; err != nil {
		t.Errorf("stopped with %v", err)
	}
	if line := s.log.must(t, "stopping HTTP"); line["cause"] != "terminated" {
		t.Errorf("got %v", line)
	}
}

func TestServeWaitsForADatabaseThatIsAwayAndOutlivesOne(t *testing.T) {
	cdctest.Long(t, "starts and stops a server")
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	url := server.URLFor("orders_service", "", "postgres")
	if err := sql.Migrate(t.Context(), sql.Orders, server.URL("postgres"), url, io.Discard); err != nil {
		t.Fatal(err)
	}
	away := func() {
		t.Helper()
		if err := server.Stop(t.Context(), "immediate"); err != nil {
			t.Fatal(err)
		}
	}
	back := func() {
		t.Helper()
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	away()
	s := start(t, map[string]string{"ORDERS_DATABASE_URL": url, "ORDERS_DATABASE_WAIT": "1m"})
	s.log.must(t, "waiting for the database")
	back()
	s.log.must(t, "the database answers")
	base := "http://" + s.log.must(t, "serving HTTP")["address"].(string)
	away()
	if status, body := send("GET", base+"/readyz", "", ""); status != 503 || !strings.Contains(body, "start it") {
		t.Errorf("readyz %d %s", status, body)
	}
	if status, _ := send("GET", base+"/livez", "", ""); status != 200 {
		t.Errorf("livez %d", status)
	}
	if status, body := send("POST", base+"/orders", good, "k"); status != 503 || !strings.Contains(body, "Idempotency-Key") {
		t.Errorf("%d %s", status, body)
	}
	back()
	cdctest.Eventually(t, 20*time.Second, func() error {
		if status, body := send("POST", base+"/orders", good, "k"); status != 201 {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

func TestServeThatWaitsStopsWhenAsked(t *testing.T) {
	s := start(t, map[string]string{"ORDERS_DATABASE_URL": "postgres://a@127.0.0.1:1/b", "ORDERS_DATABASE_WAIT": "1h"})
	s.log.must(t, "waiting for the database")
	s.end(errors.New("terminated"))
	if err := <-s.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("stopped with %v", err)
	}
}

// TestStrayVariables: a variable that resembles one of the program ends each command. Other variables that begin with
// ORDERS_ cause a warning. Variables of other commands, of Kubernetes and of other programs are allowed; the relay's
// are checked if there is a relay.
func TestStrayVariables(t *testing.T) {
	kubernetes := []string{
		"ORDERS_SERVICE_HOST", "ORDERS_SERVICE_PORT", "ORDERS_SERVICE_PORT_HTTP", "ORDERS_PORT", "ORDERS_PORT_8081_TCP", "ORDERS_PORT_8081_TCP_ADDR",
		"ORDERS_HTTP_SERVICE_HOST", "ORDERS_HTTP_PORT", "ORDERS_KAFKA_SERVICE_HOST", "ORDERS_KAFKA_PORT",
	}
	for _, c := range []struct {
		args  string
		names []string
		err   string // empty: the command's own error, or none
		warns string // empty: no warning
	}{
		{"serve", []string{"ORDERS_KAFKA_SASL_PASWORD"}, "environment ORDERS_KAFKA_SASL_PASWORD: there is no such variable: did you mean ORDERS_KAFKA_SASL_PASSWORD?", ""},
		{"consume", []string{"ORDERS_KAFKA_TLS_CAFILE"}, "environment ORDERS_KAFKA_TLS_CAFILE: there is no such variable: did you mean ORDERS_KAFKA_TLS_CA_FILE?", ""},
		{"consume", []string{"orders_topic", "LOG_LEVLE"}, "environment orders_topic: there is no such variable: did you mean ORDERS_TOPIC?\nenvironment LOG_LEVLE: there is no such variable: did you mean LOG_LEVEL?", ""},
		{"migrate", []string{"ORDERS_ADMIN_DATABASEURL"}, "environment ORDERS_ADMIN_DATABASEURL: there is no such variable: did you mean ORDERS_ADMIN_DATABASE_URL?", ""},
		{"mail list", []string{"ORDERS_SMTP_URI"}, "environment ORDERS_SMTP_URI: there is no such variable: did you mean ORDERS_SMTP_URL?", ""},
		{"serve", []string{"ORDERS_COLOUR", "ORDERS_SHAPE"}, "", "nothing reads ORDERS_COLOUR, ORDERS_SHAPE: `orders COMMAND --help` names the variables of a command"},
		{"serve", append(kubernetes, "PATH", "ORDERS_SMTP_URL", "ORDERS_ADMIN_DATABASE_URL", "ORDERS_KAFKA_SASL_EXTENSIONS", "INVENTORY_HTP", "WALPOST_KAFKA_BROKER", "ORDERS_TEST_MAIN"), "", ""},
		{"--version", []string{"ORDERS_HTTPS", "ORDERS_COLOUR"}, "", ""},
		{"serve --relay", []string{"WALPOST_KAFKA_BROKER", "WALPOST_ADMIN_URL", "WALPOST_READ_URL", "LOG_FORMAT"}, "environment WALPOST_KAFKA_BROKER: there is no such variable: did you mean WALPOST_KAFKA_BROKERS?", ""},
		{"serve --relay", []string{"WALPOST_COLOUR"}, "", "nothing reads WALPOST_COLOUR: cdc/CONFIGURATION.md names the variable of each key"},
	} {
		environ := []string{"ORDERS_DATABASE_ULR="} // an empty variable counts as not set
		for _, name := range c.names {
			environ = append(environ, name+"=x")
		}
		var stderr bytes.Buffer
		err := fmt.Sprint(cdctest.Watch(runAmong(environ))(t.Context(), strings.Fields(c.args), getenv(nil), io.Discard, &stderr))
		if c.err == "" && strings.Contains(err, "no such variable") || !strings.HasSuffix(err, c.err) {
			t.Errorf("%s with %v: %s, want %s", c.args, c.names, err, c.err)
		}
		var line struct{ Level, Service, Message string }
		_ = json.Unmarshal(stderr.Bytes(), &line)
		if line.Message != c.warns || c.warns != "" && (line.Level != "warn" || line.Service != "orders") {
			t.Errorf("%s with %v: it logs %s, want %s", c.args, c.names, stderr.String(), c.warns)
		}
	}
}
