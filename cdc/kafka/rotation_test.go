package kafka_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/kafka"
)

// guarded is a Kafka with TLS that requires client certificates and passwords. All of it can be changed while it
// runs.
type guarded struct {
	t       *testing.T
	cluster *kfake.Cluster
	brokers []string
	tls     atomic.Pointer[tls.Config]
	client  atomic.Pointer[x509.Certificate] // certificate of the newest connection

	mu    sync.Mutex
	conns []net.Conn
}

func startGuarded(t *testing.T, server cdctest.Pair, clients *cdctest.Authority, opts ...kfake.Opt) *guarded {
	g := &guarded{t: t}
	g.serve(server, clients)
	wanted := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return g.tls.Load(), nil }}
	cluster, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1), kfake.TLS(wanted), kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return cutter{l, g}, err
	}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	g.cluster, g.brokers = cluster, cluster.ListenAddrs()
	return g
}

// serve sets the certificate for new connections, and the authority of the clients' certificates.
func (g *guarded) serve(server cdctest.Pair, clients *cdctest.Authority) {
	g.t.Helper()
	cert, err := tls.LoadX509KeyPair(server.CertFile, server.KeyFile)
	if err != nil {
		g.t.Fatal(err)
	}
	text, err := os.ReadFile(clients.File)
	if err != nil {
		g.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	g.tls.Store(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		VerifyConnection: func(s tls.ConnectionState) error { g.client.Store(s.PeerCertificates[0]); return nil },
	})
}

// cut ends all connections, as a restarted broker does.
func (g *guarded) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
	g.conns = nil
}

type cutter struct {
	net.Listener
	of *guarded
}

func (c cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.of.mu.Lock()
		c.of.conns = append(c.of.conns, conn)
		c.of.mu.Unlock()
	}
	return conn, err
}

// put writes a file as Kubernetes and cert-manager do: in one step.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRotation renews everything with which a client proves its identity, correctly and wrongly, while one publisher
// works. The publisher is never restarted, loses nothing, and continues with the last good files.
func TestRotation(t *testing.T) {
	t.Parallel()
	ca, newCA := cdctest.NewAuthority(t, "servers", time.Time{}), cdctest.NewAuthority(t, "new servers", time.Time{})
	clients := cdctest.NewAuthority(t, "clients", time.Time{})
	kafkas := cdctest.Certificate{Name: "kafka", Hosts: []string{"127.0.0.1"}}
	client := clients.Issue(t, cdctest.Certificate{Name: "first", Until: time.Now().Add(time.Hour)})
	g := startGuarded(t, ca.Issue(t, kafkas), clients, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "walpost", "first"), kfake.Superuser("SCRAM-SHA-512", "admin", "admin"))

	folder := t.TempDir()
	caFile, password := filepath.Join(folder, "ca.crt"), filepath.Join(folder, "password")
	put(t, caFile, text(t, ca.File))
	put(t, password, "first\n")
	var log cdctest.Log
	cfg := config.Default()
	cfg.Pipeline = "rotation"
	cfg.Kafka.Brokers, cfg.Kafka.Replication = g.brokers, 1
	cfg.Kafka.Kafka = identity.Kafka{
		TLS: true, TLSCAFile: caFile, TLSCertFile: client.CertFile, TLSKeyFile: client.KeyFile,
		SASL: identity.SASL{Mechanism: identity.ScramSHA512, Username: "walpost", PasswordFile: password},
	}
	s := &stage{cfg: cfg, topic: "rotation.order"}
	s.sink = kafka.NewSink(s.cfg, []string{s.topic}, zerolog.New(&log))
	admin, err := s.sink.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	s.admin = admin
	p := s.create(t).open(t)

	var published atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			n := published.Load()
			if err := p.Publish(ctx, s.records(int(n), 10), &cdc.State{Version: 1, Covered: cdc.LSN(n)}); err != nil {
				ended <- fmt.Errorf("after %d records: %w", n, err)
				return
			}
			published.Add(10)
		}
		ended <- nil
	}()
	// goesOn cuts all connections and requires that records continue.
	goesOn := func(after string) {
		t.Helper()
		g.cut()
		from := published.Load()
		cdctest.Eventually(t, 20*time.Second, func() error {
			select {
			case err := <-ended:
				t.Fatalf("%s: %v\n%s", after, err, log.String())
			default:
			}
			if n := published.Load(); n < from+100 {
				return fmt.Errorf("%s: %d records since; trouble: %v", after, n-from, s.sink.Trouble())
			}
			return nil
		})
	}
	says := func(what string, times int) {
		t.Helper()
		if n := strings.Count(log.String(), what); n != times {
			t.Errorf("the log says %q %d times, want %d:\n%s", what, n, times, log.String())
		}
	}

	goesOn("at the start")
	clients.Issue(t, cdctest.Certificate{Name: "second", Until: time.Now().Add(48 * time.Hour)}).Replace(t, client)
	goesOn("a renewed client certificate")
	if name := g.client.Load().Subject.CommonName; name != "second" {
		t.Errorf("the client certificate is %s's", name)
	}
	if expires := s.sink.Certificates()["kafka.tls_cert_file"]; time.Until(expires) < 47*time.Hour {
		t.Errorf("the certificate in use expires at %s", expires)
	}
	says("the certificate CN=first expires in 59m", 1)
	says("the certificate CN=second expires in 47h", 1)

	put(t, caFile, text(t, ca.File)+text(t, newCA.File))
	g.serve(newCA.Issue(t, kafkas), clients)
	goesOn("a new authority beside the old one")
	put(t, caFile, text(t, newCA.File))
	goesOn("the new authority alone")

	put(t, password, "second")
	g.setPassword("second", s.cfg.Kafka.Kafka, newCA)
	goesOn("a new password")

	put(t, caFile, "nonsense")
	put(t, password, "\n")
	put(t, client.KeyFile, text(t, clients.Issue(t, cdctest.Certificate{Name: "third"}).KeyFile))
	goesOn("renewals that are wrong")
	goesOn("which stay so")
	says("holds no certificate", 1)
	says("is empty: write the password", 1)
	says("does not fit the certificate", 1)

	third := clients.Issue(t, cdctest.Certificate{Name: "third", Until: time.Now().Add(30 * 24 * time.Hour)})
	third.Replace(t, client)
	put(t, caFile, text(t, newCA.File))
	put(t, password, "second")
	goesOn("renewals that are right again")
	says("is good again, and used", 3)
	says("the certificate CN=third is used", 1)
	if name := g.client.Load().Subject.CommonName; name != "third" {
		t.Errorf("the client certificate is %s's", name)
	}

	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	seen := map[string]bool{}
	records := cdctest.ReadAll(t, g.brokers, s.topic, identity.NewLogin(s.cfg.Kafka.Kafka, g.brokers, identity.Keys, zerolog.Nop()).Options()...)
	for _, r := range records {
		seen[string(r.Value)] = true
	}
	for n := range published.Load() {
		if !seen[fmt.Sprint(n)] {
			t.Fatalf("record %d is lost", n)
		}
	}
	t.Logf("%d records, %d in the topic, %d times cut", published.Load(), len(records), 8)
	if strings.Contains(log.String(), "second\"") {
		t.Error("the password is in the log")
	}
}

// setPassword changes the user's password, as an administrator who trusts this authority does.
func (g *guarded) setPassword(word string, k identity.Kafka, ca *cdctest.Authority) {
	g.t.Helper()
	k.TLSCAFile, k.SASL = ca.File, identity.SASL{Mechanism: identity.ScramSHA512, Username: "admin", Password: "admin"}
	client, err := kgo.NewClient(append(identity.NewLogin(k, g.brokers, identity.Keys, zerolog.Nop()).Options(), kgo.SeedBrokers(g.brokers...))...)
	if err != nil {
		g.t.Fatal(err)
	}
	defer client.Close()
	changed, err := kadm.NewClient(client).AlterUserSCRAMs(g.t.Context(), nil, []kadm.UpsertSCRAM{{User: "walpost", Mechanism: kadm.ScramSha512, Iterations: 4096, Password: word}})
	if err == nil {
		err = changed.Error()
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// TestAdvertisedNameThatNoCertificateHas: the seed's certificate is right, but the brokers' certificate does not have
// the names that they advertise.
func TestAdvertisedNameThatNoCertificateHas(t *testing.T) {
	t.Parallel()
	ca := cdctest.NewAuthority(t, "authority", time.Time{})
	client := ca.Issue(t, cdctest.Certificate{Name: "walpost"})
	g := startGuarded(t, ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"127.0.0.1"}}), ca)
	g.cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		g.cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		b := kmsg.NewMetadataResponseBroker()
		_, port, _ := net.SplitHostPort(g.brokers[0])
		n, _ := net.LookupPort("tcp", port)
		b.NodeID, b.Host, b.Port = 7, "localhost", int32(n)
		resp.Brokers = append(resp.Brokers, b)
		return resp, nil, true
	})
	cfg := config.Default()
	cfg.Pipeline, cfg.Kafka.Brokers = "advertised", g.brokers
	cfg.Kafka.Kafka = identity.Kafka{TLS: true, TLSCAFile: ca.File, TLSCertFile: client.CertFile, TLSKeyFile: client.KeyFile}
	_, err := kafka.NewSink(cfg, nil, zerolog.Nop()).Peek(t.Context())
	if err == nil || !strings.Contains(err.Error(), "(advertised.listeners), and these do not accept the login: kafka at localhost:") ||
		!strings.HasSuffix(err.Error(), "has a certificate for 127.0.0.1, and not for localhost: name the brokers as it does, or write one of its names into kafka.tls_server_name") {
		t.Errorf("got %v", err)
	}
}

// TestOurFaultIsNoBrokers: the error names what the login waits for within the caller's time, and a token that
// expires between the seed and the brokers is not reported as a fault of the advertised addresses.
func TestOurFaultIsNoBrokers(t *testing.T) {
	t.Parallel()
	cluster := fake(t)
	for _, key := range []kmsg.Key{kmsg.SASLHandshake, kmsg.SASLAuthenticate} {
		cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			return req.ResponseKind(), nil, true
		})
	}
	cfg := config.Default()
	cfg.Pipeline, cfg.Kafka.Brokers = "ours", cluster.ListenAddrs()
	peek := func(sasl identity.SASL, within time.Duration, says string) {
		t.Helper()
		sasl.Mechanism = identity.OAuthBearer
		cfg.Kafka.SASL = sasl
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if _, err := kafka.NewSink(cfg, nil, zerolog.Nop()).Peek(ctx); err == nil || err.Error() != says {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	peek(identity.SASL{TokenCommand: "sleep 100"}, 3*time.Second, "kafka.sasl.token_command: the command sleep has printed nothing yet: run it by hand")

	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	file := filepath.Join(t.TempDir(), "token")
	put(t, file, "e30."+base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, end.Unix()))+".x")
	cluster.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		put(t, file, "")
		<-time.After(time.Until(end))
		return nil, nil, false
	})
	peek(identity.SASL{TokenFile: file}, 10*time.Second, "kafka.sasl.token_file: the file "+file+" is empty: write the password or the token there; the last good one has expired at "+end.UTC().Format(time.RFC3339))
}

// TestRevoked revokes a publisher's login while it works: the error names the key and Kafka's reason, and the next
// session continues when the login is right again. Nothing that was reported as durable is lost.
func TestRevoked(t *testing.T) {
	t.Parallel()
	ca := cdctest.NewAuthority(t, "authority", time.Time{})
	g := startGuarded(t, ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"127.0.0.1"}}), ca)
	var good atomic.Value
	good.Store("token-1")
	g.cluster.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		g.cluster.KeepControl()
		return req.ResponseKind(), nil, true
	})
	g.cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		g.cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if !strings.Contains(string(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes), "auth=Bearer "+good.Load().(string)+"\x01") {
			resp.ErrorCode, resp.ErrorMessage = kerr.SaslAuthenticationFailed.Code, kmsg.StringPtr("token was revoked")
		}
		return resp, nil, true
	})
	client := ca.Issue(t, cdctest.Certificate{Name: "walpost"})
	tokenFile := filepath.Join(t.TempDir(), "token")
	put(t, tokenFile, "token-1")
	s := &stage{cfg: config.Default(), topic: "revoked.order"}
	s.cfg.Pipeline, s.cfg.Kafka.Brokers, s.cfg.Kafka.Replication = "revoked", g.brokers, 1
	s.cfg.Kafka.Kafka = identity.Kafka{
		TLS: true, TLSCAFile: ca.File, TLSCertFile: client.CertFile, TLSKeyFile: client.KeyFile,
		SASL: identity.SASL{Mechanism: identity.OAuthBearer, TokenFile: tokenFile},
	}
	s.sink = kafka.NewSink(s.cfg, []string{s.topic}, zerolog.Nop())
	admin, err := s.sink.Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	s.admin = admin
	p := s.create(t).open(t)
	if err := p.Publish(t.Context(), s.records(0, 10), nil); err != nil {
		t.Fatal(err)
	}
	good.Store("token-2")
	g.cut()
	published := make(chan error, 1)
	go func() { published <- p.Publish(t.Context(), s.records(10, 10), nil) }()
	const says = "refuses the token of kafka.sasl.token_file (token was revoked)"
	cdctest.Eventually(t, 10*time.Second, func() error {
		if err := s.sink.Trouble(); err == nil || !strings.Contains(err.Error(), says) {
			return fmt.Errorf("trouble: %v", err)
		}
		return nil
	})
	if _, err := s.sink.Open(t.Context()); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "token-1") {
		t.Errorf("a new session: %v", err)
	}
	put(t, tokenFile, "token-2")
	if err := <-published; err != nil {
		t.Errorf("the login is right again: %v", err)
	}
	if err := s.sink.Trouble(); err != nil {
		t.Errorf("there is trouble still: %v", err)
	}
	if n := len(cdctest.ReadAll(t, g.brokers, s.topic, identity.NewLogin(s.cfg.Kafka.Kafka, g.brokers, identity.Keys, zerolog.Nop()).Options()...)); n != 20 {
		t.Errorf("%d records, want 20", n)
	}
}
