//go:build brokers

package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// secureKafka is a real broker that asks everybody who they are. The user relay is let in by each of its ways.
type secureKafka struct {
	t                *testing.T
	plain, tls, sasl string // listeners: the administrator's, with client certificates, with logins
	pidFile, log     string
	folder           string // of what the broker reads
	authority        *cdctest.Authority
	tokens           *cdctest.Tokens
	admin            *kadm.Client
	others           sync.WaitGroup // tests that need the broker as it is
}

func startSecureKafka(t *testing.T) *secureKafka {
	t.Helper()
	k := &secureKafka{t: t, folder: t.TempDir(), authority: cdctest.NewAuthority(t, "authority", time.Time{}), tokens: cdctest.NewTokens(t, "https://tokens.example", "kafka")}
	k.certify(k.authority)
	k.tokens.WriteKeys(t, filepath.Join(k.folder, "jwks.json"))
	cmd := exec.Command("../../.ci/kafka/start", "secure", k.folder)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	lines.Scan()
	f := strings.Fields(lines.Text())
	if len(f) < 5 {
		t.Fatalf("the broker did not start: %q", lines.Text())
	}
	k.plain, k.tls, k.sasl, k.pidFile, k.log = f[0], f[1], f[2], f[3], f[4]
	client, err := kgo.NewClient(kgo.SeedBrokers(k.plain), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	k.admin = kadm.NewClient(client)
	return k
}

// certify gives the broker a certificate of the authority, and lets it trust that for clients beside the first one.
func (k *secureKafka) certify(authority *cdctest.Authority) {
	k.t.Helper()
	pair := authority.Issue(k.t, cdctest.Certificate{Name: "broker", Hosts: []string{"127.0.0.1"}})
	k.write("broker.pem", pair.KeyFile, pair.CertFile)
	k.write("ca.pem", slices.Compact([]string{k.authority.File, authority.File})...)
}

// reload makes the running broker read its new certificate, and waits until a connection gets it.
func (k *secureKafka) reload(authority *cdctest.Authority) {
	k.t.Helper()
	path := filepath.Join(k.folder, "broker.pem")
	answers, err := k.admin.AlterBrokerConfigs(k.t.Context(), []kadm.AlterConfig{
		{Name: "listener.name.ssl.ssl.keystore.location", Value: &path}, {Name: "listener.name.sasl_ssl.ssl.keystore.location", Value: &path},
	}, 1)
	if err == nil {
		err = answers[0].Err
	}
	if err != nil {
		k.t.Fatal(err)
	}
	text, err := os.ReadFile(authority.File)
	if err != nil {
		k.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	cdctest.Eventually(k.t, 20*time.Second, func() error {
		conn, err := tls.Dial("tcp", k.sasl, &tls.Config{RootCAs: pool})
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

// write puts files together into one of the broker's, at once.
func (k *secureKafka) write(name string, from ...string) {
	join(k.t, filepath.Join(k.folder, name), from...)
}

func join(t *testing.T, path string, from ...string) {
	t.Helper()
	var all []byte
	for _, f := range from {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	put(t, path, string(all))
}

// put replaces a file at once, as a program that renews secrets should.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// scram lets a user in with a password, or, with none, no more.
func (k *secureKafka) scram(user, password string) {
	k.t.Helper()
	for _, m := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} { // Kafka takes one of a user at a time
		var del []kadm.DeleteSCRAM
		var set []kadm.UpsertSCRAM
		if password == "" {
			del = append(del, kadm.DeleteSCRAM{User: user, Mechanism: m})
		} else {
			set = append(set, kadm.UpsertSCRAM{User: user, Mechanism: m, Iterations: 4096, Password: password})
		}
		altered, err := k.admin.AlterUserSCRAMs(k.t.Context(), del, set)
		if err == nil {
			err = altered.Error()
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

// restart kills the broker, which is started again at once, and waits until it answers.
func (k *secureKafka) restart() {
	k.t.Helper()
	text, err := os.ReadFile(k.pidFile)
	if err != nil {
		k.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGTERM)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	cdctest.Eventually(k.t, time.Minute, func() error {
		now, err := os.ReadFile(k.pidFile)
		if err == nil && string(now) == string(text) {
			err = errors.New("the broker has not ended")
		}
		if err == nil {
			_, err = k.admin.ListTopics(k.t.Context())
		}
		return err
	})
}

// pipeline returns a pipeline whose relay is let in with these variables, and its user's rights: the page's, of those who do this.
func (k *secureKafka) pipeline(t *testing.T, user string, env map[string]string, whos ...string) *testbed {
	t.Helper()
	s := newTestbedOn(t, cdctest.Database(t), []string{k.plain})
	s.Env["WALPOST_KAFKA_BROKERS"] = k.sasl
	maps.Copy(s.Env, env)
	k.allow(s, user, whos...)
	return s
}

func (k *secureKafka) allow(s *testbed, user string, whos ...string) {
	k.t.Helper()
	_, table := rightsOf(k.t, "Kafka")
	names := strings.NewReplacer("walpost.state.shop", "walpost.state."+s.Name, "walpost.dlq.shop", "walpost.dlq."+s.Name, "walpost.shop", "walpost."+s.Name, "outbox.event.order", s.Topic)
	var rights []string
	for _, who := range whos {
		for _, right := range table[who] {
			rights = append(rights, names.Replace(right))
		}
	}
	grant(k.t, k.admin, "User:"+user, rights)
}

// secured returns variables for TLS that trusts the broker, and more.
func (k *secureKafka) secured(more ...string) map[string]string {
	env := map[string]string{"WALPOST_KAFKA_TLS": "true", "WALPOST_KAFKA_TLS_CA_FILE": k.authority.File}
	for _, m := range more {
		key, value, _ := strings.Cut(m, "=")
		env["WALPOST_KAFKA_"+key] = value
	}
	return env
}

func init() { eachRight = true }

// TestSecureKafka is what must hold on a real broker that asks everybody who they are.
func TestSecureKafka(t *testing.T) {
	t.Parallel()
	k := startSecureKafka(t)
	k.scram("relay", "pw-relay")
	for name, test := range map[string]func(*testing.T){"each way to log in": k.eachWay, "what does not fit says so": k.whatDoesNotFit, "least rights": k.leastRights} {
		t.Run(name, func(t *testing.T) {
			k.others.Add(1) // and not before: -run may leave it out
			defer k.others.Done()
			t.Parallel()
			test(t)
		})
	}
	t.Run("rotation under load", func(t *testing.T) {
		t.Parallel()
		k.rotation(t)
	})
}

// ways returns each way to log in as the user relay.
func (k *secureKafka) ways(t *testing.T) map[string]map[string]string {
	folder := t.TempDir()
	password, token := filepath.Join(folder, "password"), filepath.Join(folder, "token")
	put(t, password, "pw-relay\n")
	word, err := k.tokens.Sign("relay", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	put(t, token, word)
	endpoint := httptest.NewServer(k.tokens.Endpoint("relay", "shop", "client-secret", time.Minute))
	t.Cleanup(endpoint.Close)
	pair := k.authority.Issue(t, cdctest.Certificate{Name: "relay"})
	certificate := k.secured("TLS_CERT_FILE="+pair.CertFile, "TLS_KEY_FILE="+pair.KeyFile)
	certificate["WALPOST_KAFKA_BROKERS"] = k.tls
	return map[string]map[string]string{
		"a client certificate":          certificate,
		"plain":                         k.secured("SASL_MECHANISM=plain", "SASL_USERNAME=relay", "SASL_PASSWORD=pw-relay"),
		"scram-sha-256":                 k.secured("SASL_MECHANISM=scram-sha-256", "SASL_USERNAME=relay", "SASL_PASSWORD_FILE="+password),
		"scram-sha-512":                 k.secured("SASL_MECHANISM=scram-sha-512", "SASL_USERNAME=relay", "SASL_PASSWORD_COMMAND=cat "+password),
		"oauthbearer, a file":           k.secured("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_FILE="+token),
		"oauthbearer, a command":        k.secured("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_COMMAND=cat "+token),
		"oauthbearer, from an endpoint": k.secured("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_URL="+endpoint.URL, "SASL_CLIENT_ID=shop", "SASL_CLIENT_SECRET=client-secret"),
	}
}

// eachWay runs init, relay and a consumer with the rights of the page, with one way to log in after the other.
func (k *secureKafka) eachWay(t *testing.T) {
	for name, env := range k.ways(t) {
		t.Run(name, func(t *testing.T) {
			s := k.pipeline(t, "relay", env, "init", "relay")
			group := s.Name + ".consumer"
			grant(t, k.admin, "User:relay", []string{"--operation Read --topic " + s.Topic, "--operation Read --group " + group})
			s.MustRun("init")
			s.InsertRows(20)
			last := s.InsertRow()
			r := s.StartRelay()
			s.WaitUntilConfirmed(20 * time.Second)
			if err := r.Stop(); err != nil {
				t.Error(err)
			}
			if ids := s.EventIDs(); len(ids) != 21 {
				t.Errorf("%d of 21 rows are in the topic", len(ids))
			}
			if err := s.consume(t, group, last); err != nil {
				t.Error(err)
			}
		})
	}
}

// whatDoesNotFit runs a command and a relay against a broker that does not accept their kind of connection.
func (k *secureKafka) whatDoesNotFit(t *testing.T) {
	s := k.pipeline(t, "relay", nil)
	other := cdctest.NewAuthority(t, "another authority", time.Time{})
	stranger := other.Issue(t, cdctest.Certificate{Name: "relay"})
	expired := k.authority.Issue(t, cdctest.Certificate{Name: "relay", Until: time.Now().Add(-time.Hour)})
	foreign := cdctest.NewTokens(t, k.tokens.Issuer, k.tokens.Audience)
	forged, err := foreign.Sign("relay", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	at := func(brokers string, env map[string]string) map[string]string {
		env = maps.Clone(env)
		env["WALPOST_KAFKA_BROKERS"] = brokers
		return env
	}
	login := []string{"SASL_MECHANISM=scram-sha-512", "SASL_USERNAME=relay", "SASL_PASSWORD=pw-relay"}
	plainly := k.secured(login...)
	delete(plainly, "WALPOST_KAFKA_TLS")
	delete(plainly, "WALPOST_KAFKA_TLS_CA_FILE")
	for name, c := range map[string]struct {
		env  map[string]string
		says string
	}{
		"TLS to a plain port":             {at(k.plain, k.secured()), "TLS on one side only (kafka.tls is true)"},
		"plain to a TLS port":             {at(k.sasl, plainly), "TLS on one side only (kafka.tls is false)"},
		"no client certificate":           {at(k.tls, k.secured()), "wants a client certificate"},
		"a client of another authority":   {at(k.tls, k.secured("TLS_CERT_FILE="+stranger.CertFile, "TLS_KEY_FILE="+stranger.KeyFile)), "refuses the client certificate"},
		"a client certificate that ended": {at(k.tls, k.secured("TLS_CERT_FILE="+expired.CertFile, "TLS_KEY_FILE="+expired.KeyFile)), "has expired at"},
		"a broker of another authority":   {at(k.sasl, map[string]string{"WALPOST_KAFKA_TLS": "true", "WALPOST_KAFKA_TLS_CA_FILE": other.File}), "no authority in the file"},
		"a wrong server name":             {at(k.tls, k.secured("TLS_SERVER_NAME=kafka.example")), "a certificate for 127.0.0.1, and not for kafka.example"},
		"a login where none is taken":     {at(k.plain, plainly), "takes no login at this port"},
		"a login that it has not":         {k.secured("SASL_MECHANISM=aws-msk-iam", "SASL_REGION=eu-central-1"), "it takes oauthbearer, plain, scram-sha-256 or scram-sha-512"},
		"a login at the TLS listener":     {at(k.tls, k.secured(login...)), "wants a client certificate"},
		"no login where one is wanted":    {at(k.sasl, k.secured()), "or another login than it wants"},
		"a wrong password":                {k.secured("SASL_MECHANISM=scram-sha-256", "SASL_USERNAME=relay", "SASL_PASSWORD=no"), `refuses the login of user "relay"`},
		"a wrong password, plain":         {k.secured("SASL_MECHANISM=plain", "SASL_USERNAME=relay", "SASL_PASSWORD=no"), `refuses the login of user "relay"`},
		"a token signed by another":       {k.secured("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_COMMAND=echo "+forged), "refuses the token of kafka.sasl.token_command"},
		"a token of no kind":              {k.secured("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_COMMAND=echo garbage"), "refuses the token of kafka.sasl.token_command"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &testbed{s.Copy()}
			s.T = t
			maps.Copy(s.Env, c.env)
			_, err := s.Run("init")
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want it to say %q", err, c.says)
				return
			}
			t.Log(err)
		})
	}
}

// leastRights runs TestLeastRights on a real broker.
func (k *secureKafka) leastRights(t *testing.T) {
	k.scram("walpost", "pw")
	s := newRightsStage(t, []string{k.plain})
	maps.Copy(s.Env, k.secured("BROKERS="+k.sasl, "SASL_MECHANISM=scram-sha-512", "SASL_USERNAME=walpost", "SASL_PASSWORD=pw"))
	s.testRights("Kafka", kafkaWorks, true)
}

// loaded is a pipeline under load.
type loaded struct {
	*testbed
	user   string
	writer *cdctest.Writer
	relay  *e2e.Relay
}

// load writes rows in transactions of perTx, with a procedure in the server.
func (k *secureKafka) load(t *testing.T, user, delivery string, env map[string]string) *loaded {
	t.Helper()
	l := &loaded{testbed: k.pipeline(t, user, env, "init", "init, exactly_once", "relay", "relay, exactly_once"), user: user}
	l.Env["WALPOST_DELIVERY"] = delivery
	l.MustRun("init")
	l.writer = cdctest.StartWriter(t, cdctest.WriterConfig{URL: l.AdminURL, Goroutines: 2, Rate: 6})
	l.relay = l.StartRelay()
	return l
}

// says waits until the relay's log says a text behind what it has said before, and goesOn until all that is committed now is delivered.
func (l *loaded) says(text string, before int) {
	l.T.Helper()
	cdctest.Eventually(l.T, 40*time.Second, func() error { return contains(l.relay.Log.String()[before:], text) })
	for line := range strings.Lines(l.relay.Log.String()[before:]) {
		if strings.Contains(line, text) {
			l.T.Logf("%s: %s", l.user, strings.TrimSpace(line))
			break
		}
	}
}

func (l *loaded) said() int { return len(l.relay.Log.String()) }

// rotation renews, spoils and revokes under load what four relays prove with who they are. None of them is started again, nothing is lost,
// and exactly once nothing comes twice.
func (k *secureKafka) rotation(t *testing.T) {
	folder := t.TempDir()
	file := func(name string) string { return filepath.Join(folder, name) }
	ca, token, password := file("ca.pem"), file("token"), file("password")
	join(t, ca, k.authority.File)
	env := func(more ...string) map[string]string {
		env := k.secured(more...)
		env["WALPOST_KAFKA_TLS_CA_FILE"] = ca
		return env
	}
	const lasts = 8 * time.Second
	var mu sync.Mutex // of what a goroutine and the endpoint use, too
	tokens, hold := k.tokens, false
	renew := func() {
		mu.Lock()
		defer mu.Unlock()
		word, err := tokens.Sign("tokens", lasts)
		if err == nil && !hold {
			err = os.WriteFile(token+".new", []byte(word), 0o600)
		}
		if err == nil && !hold {
			err = os.Rename(token+".new", token)
		}
		if err != nil {
			t.Error(err)
		}
	}
	renew()
	renewing := time.NewTicker(lasts / 3)
	done := make(chan struct{})
	t.Cleanup(func() { renewing.Stop(); close(done) })
	go func() {
		for {
			select {
			case <-renewing.C:
				renew()
			case <-done:
				return
			}
		}
	}()
	// spoil has nobody renew the token but with this text.
	spoil := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		hold = true
		put(t, token, text)
	}
	put(t, password, "first")
	k.scram("passwords", "first")
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		tokens.Endpoint("endpoint", "shop", "client-secret", lasts).ServeHTTP(w, r)
	}))
	t.Cleanup(endpoint.Close)
	pair := k.authority.Issue(t, cdctest.Certificate{Name: "certificates", Until: time.Now().Add(30 * 24 * time.Hour)})
	certificate := env("TLS_CERT_FILE="+pair.CertFile, "TLS_KEY_FILE="+pair.KeyFile)
	certificate["WALPOST_KAFKA_BROKERS"] = k.tls

	byToken := k.load(t, "tokens", "exactly_once", env("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_FILE="+token))
	byPassword := k.load(t, "passwords", "at_least_once", env("SASL_MECHANISM=scram-sha-512", "SASL_USERNAME=passwords", "SASL_PASSWORD_FILE="+password))
	byCertificate := k.load(t, "certificates", "exactly_once", certificate)
	byEndpoint := k.load(t, "endpoint", "at_least_once", env("SASL_MECHANISM=oauthbearer", "SASL_TOKEN_URL="+endpoint.URL, "SASL_CLIENT_ID=shop", "SASL_CLIENT_SECRET=client-secret"))
	all := []*loaded{byToken, byPassword, byCertificate, byEndpoint}
	goOn := func() {
		t.Helper()
		mu.Lock()
		hold = false
		mu.Unlock()
		renew()
		for _, l := range all {
			l.WaitUntilConfirmed(time.Minute)
		}
	}

	var parts []part
	step := func(name string, do func()) {
		began := time.Now()
		do()
		goOn()
		parts = append(parts, part{name, began, time.Now()})
	}
	step("renewed in time", func() {
		const enough = 30
		from := k.reauthentications()
		before := map[*loaded]int{}
		for _, l := range all {
			before[l] = l.said()
		}
		cdctest.Eventually(t, time.Minute, func() error {
			if n := k.reauthentications() - from; n < enough {
				return fmt.Errorf("%d of %d logins were renewed", n, enough)
			}
			return nil
		})
		for _, l := range all {
			if said := l.relay.Log.String()[before[l]:]; strings.Contains(said, "starting over") {
				t.Errorf("%s: a session ended: %s", l.user, said)
			}
		}
	})
	step("an empty token file", func() {
		before := byToken.said()
		spoil("")
		byToken.says("cannot be read again: the last good one is used", before)
		byToken.says("session ended", before) // it has expired
	})
	step("a web page in the token's place", func() {
		before := byToken.said()
		spoil("<html>")
		byToken.says("cannot be read again: the last good one is used", before)
	})
	step("a wrong token", func() {
		before := byToken.said()
		spoil("garbage")
		byToken.says("refuses the token of kafka.sasl.token_file", before)
	})
	step("a user deleted, and made again with another password", func() {
		before := byPassword.said()
		k.scram("passwords", "")
		byPassword.says(`refuses the login of user \"passwords\"`, before)
		k.scram("passwords", "second")
		put(t, password, "second")
	})
	step("a right taken away, and given back", func() {
		before := byPassword.said()
		revoke(t, k.admin, "User:passwords")
		grant(t, k.admin, "User:passwords", []string{"--operation Write --topic " + byPassword.Topic, "--operation Read --topic walpost.state." + byPassword.Name})
		byPassword.says("kafka-acls.sh", before)
		k.allow(byPassword.testbed, "passwords", "relay")
	})
	k.others.Wait()
	step("certificates, authorities and keys of tokens renewed, and new connections", func() {
		before := byCertificate.said()
		authority := cdctest.NewAuthority(t, "next authority", time.Time{})
		join(t, ca, k.authority.File, authority.File)
		authority.Issue(t, cdctest.Certificate{Name: "certificates"}).Replace(t, pair)
		k.certify(authority)
		k.reload(authority)
		join(t, ca, authority.File) // the one before vouches for nobody any more
		mu.Lock()
		tokens = cdctest.NewTokens(t, k.tokens.Issuer, k.tokens.Audience)
		tokens.WriteKeys(t, filepath.Join(k.folder, "jwks.json"))
		mu.Unlock()
		renew()
		k.restart()
		byCertificate.says("CN=certificates", before)
	})

	count := k.reauthentications()
	for _, l := range all {
		ledger := l.writer.Stop()
		report := l.CheckDelivered(ledger)
		if l.Env["WALPOST_DELIVERY"] == "exactly_once" && report.Duplicates > 0 {
			t.Errorf("%s: exactly once, and %d came twice", l.user, report.Duplicates)
		}
		if err := l.relay.Stop(); err != nil {
			t.Error(err)
		}
		records := cdctest.ReadAll(t, l.Brokers, l.Topic)
		for _, p := range parts {
			t.Logf("%s, %s: %d records, longest pause %s", l.user, p.name, p.count(records), p.pause(records))
		}
	}
	t.Logf("%d re-authentications", count)
}

// part is one of the rotation.
type part struct {
	name         string
	began, ended time.Time
}

func (p part) count(records []*kgo.Record) (n int) {
	for _, r := range records {
		if r.Timestamp.After(p.began) && r.Timestamp.Before(p.ended) {
			n++
		}
	}
	return n
}

// pause returns the longest time between two records of the part.
func (p part) pause(records []*kgo.Record) (longest time.Duration) {
	times := []time.Time{p.began, p.ended}
	for _, r := range records {
		if r.Timestamp.After(p.began) && r.Timestamp.Before(p.ended) {
			times = append(times, r.Timestamp)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	for i := range times[1:] {
		longest = max(longest, times[i+1].Sub(times[i]))
	}
	return longest.Round(time.Millisecond)
}

// reauthentications returns how many connections have logged in once more, by the broker's log.
func (k *secureKafka) reauthentications() int {
	k.t.Helper()
	text, err := os.ReadFile(k.log)
	if err != nil {
		k.t.Fatal(err)
	}
	return strings.Count(string(text), "COMPLETE during re-authentication")
}
