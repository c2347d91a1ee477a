package identity_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/identity"
	_ "github.com/walpost/walpost/cdc/identity/aws"
)

// start starts a Kafka of one broker, and returns its address.
func start(t *testing.T, opts ...kfake.Opt) (string, *kfake.Cluster) {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()[0], cluster
}

// served returns the TLS configuration of a broker with this certificate. If clients is not nil, the broker wants a
// client certificate of that authority.
func served(t *testing.T, pair cdctest.Pair, clients *cdctest.Authority) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
	if clients != nil {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, pool(t, clients.File)
	}
	return cfg
}

func pool(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := x509.NewCertPool()
	if !all.AppendCertsFromPEM(text) {
		t.Fatal("no certificate")
	}
	return all
}

// ask connects to the broker and sends it a request. The error is the login's sentence, if it has one.
func ask(t *testing.T, k identity.Kafka, broker string) error {
	t.Helper()
	if err := k.Check(identity.Keys); err != nil {
		t.Fatal(err)
	}
	return asks(t, identity.NewLogin(k, []string{broker}, identity.Keys, zerolog.Nop()), broker)
}

func asks(t *testing.T, login *identity.Login, broker string) error {
	t.Helper()
	client, err := kgo.NewClient(append(login.Options(), kgo.SeedBrokers(broker), kgo.RequestRetries(0))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = client.SeedBrokers()[0].Request(ctx, kmsg.NewPtrMetadataRequest())
	if said := login.Explain(ctx, broker, err); said != nil {
		if !errors.Is(err, io.EOF) && login.Explain(ctx, broker, context.DeadlineExceeded) == nil { // Kafka ends a connection without a login after it was made
			t.Error("who has only waited does not learn why")
		}
		return said
	}
	return err
}

// bearers makes the broker accept the tokens for which take returns true, and refuse others in Apache Kafka's two
// steps.
func bearers(cluster *kfake.Cluster, life time.Duration, good func(first string) bool) {
	control(cluster, func(_ *kmsg.SASLHandshakeRequest, resp *kmsg.SASLHandshakeResponse) {
		resp.SupportedMechanisms = []string{"OAUTHBEARER"}
	})
	control(cluster, func(req *kmsg.SASLAuthenticateRequest, resp *kmsg.SASLAuthenticateResponse) {
		switch first := string(req.SASLAuthBytes); {
		case first == "\x01":
			said := "{\"status\":\"invalid_token\"}"
			resp.ErrorCode, resp.ErrorMessage = kerr.SaslAuthenticationFailed.Code, &said
		case !good(first):
			resp.SASLAuthBytes = []byte(`{"status":"invalid_token"}`)
		default:
			resp.SessionLifetimeMillis = life.Milliseconds()
		}
	})
}

// control answers each request of a kind.
func control[Q kmsg.Request, R kmsg.Response](cluster *kfake.Cluster, fill func(Q, R)) {
	var q Q
	key := map[string]kmsg.Key{"*kmsg.SASLHandshakeRequest": kmsg.SASLHandshake, "*kmsg.SASLAuthenticateRequest": kmsg.SASLAuthenticate}[fmt.Sprintf("%T", q)]
	cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(R)
		fill(req.(Q), resp)
		return resp, nil, true
	})
}

// write writes a file, and returns its path.
func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "word")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// jwt returns a token that contains the time when it expires. It has no signature.
func jwt(expires time.Time) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"sub":"walpost","exp":%d}`, expires.Unix())) + "." + part("x")
}

// TestEachWayIn logs in to Kafka with each mechanism and each source of a password or token.
func TestEachWayIn(t *testing.T) {
	t.Parallel()
	ca, clients := cdctest.NewAuthority(t, "servers", time.Time{}), cdctest.NewAuthority(t, "clients", time.Time{})
	server := ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"127.0.0.1"}})
	client := clients.Issue(t, cdctest.Certificate{Name: "walpost"})
	users := []kfake.Opt{kfake.EnableSASL(), kfake.Superuser("PLAIN", "walpost", cdctest.Canary), kfake.Superuser("SCRAM-SHA-256", "walpost", cdctest.Canary), kfake.Superuser("SCRAM-SHA-512", "walpost", cdctest.Canary)}
	locked, _ := start(t, users...)
	encrypted, _ := start(t, append(users, kfake.TLS(served(t, server, nil)))...)
	named, _ := start(t, kfake.TLS(served(t, ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"kafka.example"}}), nil)))
	mutual, _ := start(t, kfake.TLS(served(t, server, clients)))
	good := jwt(time.Now().Add(time.Hour))
	oauth, cluster := start(t, kfake.TLS(served(t, server, nil)))
	var first string
	bearers(cluster, 0, func(said string) bool { first = said; return strings.Contains(said, "auth=Bearer "+good+"\x01") })
	endpoint := tokens(t, func(w http.ResponseWriter, r *http.Request) {
		id, secret, basic := r.BasicAuth()
		if _ = r.ParseForm(); basic || r.Form.Get("client_id") != "walpost" || r.Form.Get("client_secret") != cdctest.Canary || r.Form.Get("scope") != "kafka all" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprintf(w, `{"error":"invalid_client","error_description":"%s%s"}`, id, secret)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token":%q,"expires_in":3600,"token_type":"Bearer"}`, good)
	})
	secured := httptest.NewUnstartedServer(endpoint.Config.Handler)
	secured.TLS = served(t, server, nil)
	secured.StartTLS()
	t.Cleanup(secured.Close)

	tlsOn := identity.Kafka{TLS: true, TLSCAFile: ca.File}
	with := func(k identity.Kafka, s identity.SASL) identity.Kafka { k.SASL = s; return k }
	for name, c := range map[string]struct {
		broker string
		k      identity.Kafka
	}{
		"TLS with a private authority":      {encrypted, with(tlsOn, identity.SASL{Mechanism: identity.Plain, Username: "walpost", Password: cdctest.Canary})},
		"another name of the server":        {named, identity.Kafka{TLS: true, TLSCAFile: ca.File, TLSServerName: "kafka.example"}},
		"scram-sha-256 over TLS":            {encrypted, with(tlsOn, identity.SASL{Mechanism: identity.ScramSHA256, Username: "walpost", Password: cdctest.Canary})},
		"a client certificate":              {mutual, identity.Kafka{TLS: true, TLSCAFile: ca.File, TLSCertFile: client.CertFile, TLSKeyFile: client.KeyFile}},
		"scram-sha-512, password in a file": {locked, with(identity.Kafka{}, identity.SASL{Mechanism: identity.ScramSHA512, Username: "walpost", PasswordFile: write(t, cdctest.Canary+"\n")})},
		"plain, password of a command":      {locked, with(identity.Kafka{}, identity.SASL{Mechanism: identity.Plain, Username: "walpost", PasswordCommand: "echo " + cdctest.Canary})},
		"oauthbearer, file":                 {oauth, with(tlsOn, identity.SASL{Mechanism: identity.OAuthBearer, TokenFile: write(t, good)})},
		"oauthbearer, command":              {oauth, with(tlsOn, identity.SASL{Mechanism: identity.OAuthBearer, TokenCommand: "echo " + good})},
		"oauthbearer, endpoint": {oauth, with(tlsOn, identity.SASL{
			Mechanism: identity.OAuthBearer, TokenURL: endpoint.URL, ClientID: "walpost", ClientSecretFile: write(t, cdctest.Canary), Scope: "kafka all",
		})},
		"oauthbearer, endpoint with TLS": {oauth, with(tlsOn, identity.SASL{
			Mechanism: identity.OAuthBearer, TokenURL: secured.URL, TokenCAFile: ca.File, ClientID: "walpost", ClientSecret: cdctest.Canary, Scope: "kafka all",
		})},
	} {
		t.Run(name, func(t *testing.T) {
			if err := ask(t, c.k, c.broker); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("extensions", func(t *testing.T) {
		k := with(tlsOn, identity.SASL{Mechanism: identity.OAuthBearer, TokenFile: write(t, good), Extensions: "logicalCluster=lkc-1, identityPoolId=pool-1"})
		if err := ask(t, k, oauth); err != nil || !strings.HasSuffix(first, "\x01identityPoolId=pool-1\x01logicalCluster=lkc-1\x01\x01") {
			t.Errorf("%v; %q", err, first)
		}
	})
}

// tokens starts a token endpoint.
func tokens(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server
}

// TestKafkaThatLetsNobodyIn has one sentence for each reason.
func TestKafkaThatLetsNobodyIn(t *testing.T) {
	t.Parallel()
	past := time.Now().Add(-time.Minute)
	ca, other, over := cdctest.NewAuthority(t, "servers", time.Time{}), cdctest.NewAuthority(t, "others", time.Time{}), cdctest.NewAuthority(t, "over", past)
	hosts := []string{"127.0.0.1"}
	server := ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: hosts})
	client := ca.Issue(t, cdctest.Certificate{Name: "walpost"})
	plain, _ := start(t)
	locked, _ := start(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "walpost", cdctest.Canary))
	wrong, cluster := start(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "walpost", cdctest.Canary), kfake.Superuser("SCRAM-SHA-512", "walpost", cdctest.Canary))
	control(cluster, func(_ *kmsg.SASLAuthenticateRequest, resp *kmsg.SASLAuthenticateResponse) { // kfake hangs up instead
		resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
	})
	encrypted := func(pair cdctest.Pair) string { broker, _ := start(t, kfake.TLS(served(t, pair, nil))); return broker }
	fine := encrypted(server)
	mutual := func(cfg *tls.Config) string { broker, _ := start(t, kfake.TLS(cfg)); return broker }
	old := served(t, server, ca)
	old.MaxVersion = tls.VersionTLS12
	trusts := identity.Kafka{TLS: true, TLSCAFile: ca.File}
	with := func(pair cdctest.Pair) identity.Kafka {
		return identity.Kafka{TLS: true, TLSCAFile: ca.File, TLSCertFile: pair.CertFile, TLSKeyFile: pair.KeyFile}
	}
	login := func(s identity.SASL) identity.Kafka { return identity.Kafka{SASL: s} }
	oauth, cluster := start(t)
	bearers(cluster, 0, func(string) bool { return false })
	for name, c := range map[string]struct {
		broker string
		k      identity.Kafka
		says   string
	}{
		"an unknown authority":                     {fine, identity.Kafka{TLS: true}, "has a certificate of an authority that this machine does not know (made by CN=servers): name the file with its certificate in kafka.tls_ca_file"},
		"another authority":                        {fine, identity.Kafka{TLS: true, TLSCAFile: other.File}, "has a certificate (made by CN=servers), and no authority in the file " + other.File + " has made it: write the authority's certificate there (kafka.tls_ca_file)"},
		"an authority whose time is over":          {encrypted(over.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: hosts})), identity.Kafka{TLS: true, TLSCAFile: over.File}, "kafka.tls_ca_file: the authority CN=over in the file " + over.File + " has expired at "},
		"one of two authorities, that is over":     {encrypted(over.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: hosts})), identity.Kafka{TLS: true, TLSCAFile: join(t, over.File, other.File)}, "has a certificate whose authority CN=over is out of its time (valid from "},
		"a server's certificate that is over":      {encrypted(ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: hosts, Until: past})), trusts, "has a certificate that is out of its time (valid from "},
		"another name":                             {encrypted(ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"kafka-1.example", "kafka-2.example"}})), trusts, "has a certificate for kafka-1.example or kafka-2.example, and not for 127.0.0.1: name the brokers as it does, or write one of its names into kafka.tls_server_name"},
		"another name than kafka.tls_server_name":  {fine, identity.Kafka{TLS: true, TLSCAFile: ca.File, TLSServerName: "kafka.example"}, "has a certificate for 127.0.0.1, and not for kafka.example"},
		"no name at all":                           {encrypted(ca.Issue(t, cdctest.Certificate{Name: "127.0.0.1"})), trusts, "has a certificate that names no host (a common name alone does not count), and not for 127.0.0.1"},
		"TLS to a plain port":                      {plain, trusts, "takes the connection and gives no answer to the TLS handshake within 8s: the port may speak no TLS (kafka.tls is true)"},
		"plain to a TLS port":                      {fine, identity.Kafka{}, "ends the connection: TLS on one side only (kafka.tls is false)"},
		"no client certificate":                    {mutual(served(t, server, ca)), trusts, "wants a client certificate (certificate required): name its files in kafka.tls_cert_file and kafka.tls_key_file"},
		"no client certificate, TLS 1.2":           {mutual(old), trusts, "wants a client certificate (handshake failure): name its files in kafka.tls_cert_file and kafka.tls_key_file"},
		"a client of another authority":            {mutual(served(t, server, ca)), with(other.Issue(t, cdctest.Certificate{Name: "walpost"})), "does not know the authority that made the client certificate of kafka.tls_cert_file (unknown certificate authority): write one there that Kafka's own authority for clients has made"},
		"a client's certificate that is over":      {mutual(served(t, server, ca)), with(ca.Issue(t, cdctest.Certificate{Name: "walpost", Until: past})), "kafka.tls_cert_file: the client certificate CN=walpost has expired at "},
		"a client's certificate that is used well": {mutual(served(t, server, ca)), with(client), ""},

		"a wrong password":           {wrong, login(identity.SASL{Mechanism: identity.Plain, Username: "walpost", PasswordFile: write(t, "wrong")}), `refuses the login of user "walpost": correct kafka.sasl.username and kafka.sasl.password_file`},
		"a wrong password, scram":    {wrong, login(identity.SASL{Mechanism: identity.ScramSHA512, Username: "walpost", Password: "wrong"}), `refuses the login of user "walpost": correct kafka.sasl.username and kafka.sasl.password`},
		"another mechanism":          {locked, login(identity.SASL{Mechanism: identity.OAuthBearer, TokenCommand: "echo x"}), "does not take the login kafka.sasl.mechanism: oauthbearer: name one that it takes; it takes plain, scram-sha-256 or scram-sha-512"},
		"no login":                   {locked, identity.Kafka{}, `or another login than it wants (kafka.sasl.mechanism is "")`},
		"a command that fails":       {locked, login(identity.SASL{Mechanism: identity.Plain, Username: "walpost", PasswordCommand: "false"}), "kafka.sasl.password_command: the command false: exit status 1: run it by hand"},
		"a token that is refused":    {oauth, login(identity.SASL{Mechanism: identity.OAuthBearer, TokenFile: write(t, "t")}), `refuses the token of kafka.sasl.token_file ({"status":"invalid_token"}): look at its issuer`},
		"a token whose time is over": {oauth, login(identity.SASL{Mechanism: identity.OAuthBearer, TokenFile: write(t, jwt(past))}), "kafka.sasl.token_file: the token has expired at "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := ask(t, c.k, c.broker)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// join writes the files into one.
func join(t *testing.T, files ...string) string {
	t.Helper()
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return write(t, string(all))
}

// TestAmazonMSK logs in by IAM, and checks the sentence for each reason why that fails.
func TestAmazonMSK(t *testing.T) {
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": cdctest.Canary, "AWS_REGION": "", "AWS_DEFAULT_REGION": ""} {
		t.Setenv(name, value)
	}
	ca := cdctest.NewAuthority(t, "servers", time.Time{})
	broker, cluster := start(t, kfake.TLS(served(t, ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"127.0.0.1"}}), nil)))
	control(cluster, func(*kmsg.SASLHandshakeRequest, *kmsg.SASLHandshakeResponse) {})
	control(cluster, func(req *kmsg.SASLAuthenticateRequest, resp *kmsg.SASLAuthenticateResponse) {
		if !strings.Contains(string(req.SASLAuthBytes), `"x-amz-credential":"AKIAEXAMPLE/`) || !strings.Contains(string(req.SASLAuthBytes), "/eu-central-1/kafka-cluster/aws4_request") {
			said := "[b1c2] Access denied"
			resp.ErrorCode, resp.ErrorMessage = kerr.SaslAuthenticationFailed.Code, &said
			return
		}
		resp.SASLAuthBytes = []byte(`{"version":"2020_10_22","request-id":"b1c2"}`)
	})
	for _, c := range []struct{ name, region, variable, value, says string }{
		{"a region in the settings", "eu-central-1", "", "", ""},
		{"a region in the environment", "", "AWS_REGION", "eu-central-1", ""},
		{"another region", "eu-west-1", "", "", "refuses the AWS credentials ([b1c2] Access denied): allow their role kafka-cluster:Connect on the cluster, and look at the clock and at kafka.sasl.region"},
		{"no region", "", "AWS_REGION", "", "kafka.sasl.region: missing: the name of the broker 127.0.0.1 does not show the region, and AWS_REGION is not set: write eu-central-1, for example"},
		{"no credentials", "eu-central-1", "AWS_SECRET_ACCESS_KEY", "", "kafka.sasl.mechanism: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HOME", t.TempDir())
			t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			if c.variable != "" {
				t.Setenv(c.variable, c.value)
			}
			err := ask(t, identity.Kafka{TLS: true, TLSCAFile: ca.File, SASL: identity.SASL{Mechanism: identity.AWSMSKIAM, Region: c.region}}, broker)
			if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), cdctest.Canary)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// TestTokenIsRenewed: a client logs in again on its connection before Kafka ends it (KIP-368), with a token that it has
// requested in time. If the endpoint returns none, the client uses the last one until it expires.
func TestTokenIsRenewed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		life  time.Duration
		fails bool // the endpoint returns one token, and then none for a while
	}{{"in time", 6 * time.Second, false}, {"not at once", 3 * time.Second, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var asked, logins, connections atomic.Int64
			var failing atomic.Bool
			var until sync.Map // by token
			endpoint := tokens(t, func(w http.ResponseWriter, _ *http.Request) {
				if failing.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				token := fmt.Sprintf("token-%d", asked.Add(1))
				until.Store(token, time.Now().Add(c.life))
				w.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprintf(w, `{"access_token":%q,"expires_in":%d}`, token, int(c.life.Seconds()))
			})
			broker, cluster := start(t)
			control(cluster, func(*kmsg.SASLHandshakeRequest, *kmsg.SASLHandshakeResponse) {})
			control(cluster, func(req *kmsg.SASLAuthenticateRequest, resp *kmsg.SASLAuthenticateResponse) {
				logins.Add(1)
				_, token, _ := strings.Cut(strings.Trim(string(req.SASLAuthBytes), "\x01"), "Bearer ")
				if end, ok := until.Load(token); ok && time.Now().Before(end.(time.Time)) {
					resp.SessionLifetimeMillis = time.Until(end.(time.Time)).Milliseconds()
					return
				}
				resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
			})
			var out cdctest.Log
			login := identity.NewLogin(identity.Kafka{SASL: identity.SASL{Mechanism: identity.OAuthBearer, TokenURL: endpoint.URL, ClientID: "walpost", ClientSecret: cdctest.Canary}},
				[]string{broker}, identity.Keys, zerolog.New(&out))
			if c.fails {
				for range 2 {
					if err := asks(t, login, broker); err != nil || asked.Load() != 1 {
						t.Fatalf("%d tokens for two logins, %v", asked.Load(), err)
					}
				}
				failing.Store(true)
				from := time.Now()
				const says = "answers 503 Service Unavailable and no token"
				cdctest.Eventually(t, 2*c.life, func() error {
					if !strings.Contains(out.String(), says) {
						if err := asks(t, login, broker); err != nil {
							t.Fatalf("%v after %s", err, time.Since(from))
						}
						return errors.New("the log says nothing")
					}
					if err := asks(t, login, broker); err == nil || !strings.Contains(err.Error(), says) {
						return fmt.Errorf("with the last token: %v", err)
					}
					return nil
				})
				if after := time.Since(from); after < c.life-time.Second/2 {
					t.Errorf("the last token was used for %s only", after)
				}
				failing.Store(false)
				if err := asks(t, login, broker); err != nil || strings.Count(out.String(), says) != 1 || !strings.Contains(out.String(), "is good again") || strings.Contains(out.String(), cdctest.Canary) {
					t.Errorf("%v; the log:\n%s", err, out.String())
				}
				return
			}
			client, err := kgo.NewClient(append(login.Options(), kgo.SeedBrokers(broker), kgo.WithHooks(connected(func() { connections.Add(1) })))...)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			from := time.Now()
			cdctest.Eventually(t, 3*c.life, func() error {
				if _, err := client.SeedBrokers()[0].Request(t.Context(), kmsg.NewPtrMetadataRequest()); err != nil {
					t.Fatalf("after %s: %v", time.Since(from), err)
				}
				if asked.Load() < 2 || time.Since(from) < c.life+time.Second/2 {
					return errors.New("not renewed yet")
				}
				return nil
			})
			if connections.Load() != 1 || asked.Load() != 2 || logins.Load() < 2 {
				t.Errorf("%d connections, %d tokens, %d logins; want 1, 2 and at least 2", connections.Load(), asked.Load(), logins.Load())
			}
		})
	}
}

// connected is called for each connection.
type connected func()

func (c connected) OnBrokerConnect(kgo.BrokerMetadata, time.Duration, net.Conn, error) { c() }

// TestTokenEndpoint checks the sentence for each answer without a token.
func TestTokenEndpoint(t *testing.T) {
	t.Parallel()
	broker, cluster := start(t)
	bearers(cluster, 0, func(string) bool { return true })
	answers := func(status int, kind, body string) string {
		return tokens(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}).URL
	}
	gone := tokens(t, nil)
	gone.Close()
	release := make(chan struct{})
	hangs := tokens(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	encrypted := httptest.NewTLSServer(nil)
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(encrypted.Close)
	ca := cdctest.NewAuthority(t, "others", time.Time{})
	host := func(u string) string { return strings.TrimPrefix(strings.TrimPrefix(u, "http://"), "https://") }
	for name, c := range map[string]struct{ url, says string }{
		"refuses the client":       {answers(401, "application/json", `{"error":"invalid_client","error_description":"no client with secret `+cdctest.Canary+`"}`), `refuses the client "walpost" (invalid_client, no client with secret ***): correct kafka.sasl.client_id and kafka.sasl.client_secret`},
		"repeats the secret":       {answers(401, "application/json", `{"error":"invalid_client","error_description":"Basic `+base64.StdEncoding.EncodeToString([]byte("walpost:"+cdctest.Canary))+`"}`), "(invalid_client, Basic ***)"},
		"refuses without a word":   {answers(401, "text/plain", ""), `refuses the client "walpost" (401 Unauthorized)`},
		"does not know the scope":  {answers(400, "application/json", `{"error":"invalid_scope"}`), `does not know the scope "kafka" (invalid_scope): correct kafka.sasl.scope`},
		"gives another error":      {answers(400, "application/json", `{"error":"invalid_request"}`), "gives no token (invalid_request)"},
		"is a web page":            {answers(200, "text/html", "<html>login</html>"), "answers with something that is no token, a web page for example: name the service's token endpoint"},
		"is a web page, as text":   {answers(200, "text/plain", "<html>login</html>"), "answers without an access_token"},
		"is not found":             {answers(404, "text/html", "<html>not here</html>"), "answers 404 Not Found and no token"},
		"sends us elsewhere":       {tokens(t, http.RedirectHandler(answers(200, "application/json", `{"access_token":"x"}`), http.StatusFound).ServeHTTP).URL, "answers 302 Found and no token"},
		"has no token":             {answers(200, "application/json", `{"expires_in":3600}`), "answers without an access_token"},
		"has a token of two parts": {answers(200, "application/json", `{"access_token":"a\u0001auth=Bearer b"}`), "answers with an access_token that is none: it has a character that no token has"},
		"is not there":             {gone.URL, "cannot be reached: "},
		"hangs":                    {hangs.URL, "has not answered within 8s: start it, or let connections through to it"},
		"has a stranger's TLS":     {encrypted.URL, "has a certificate (made by O=Acme Co), and no authority in the file " + ca.File + " has made it: write the authority's certificate there (kafka.sasl.token_ca_file)"},
		"speaks no TLS":            {"https://" + host(answers(200, "", "")), "speaks no TLS: name the endpoint with TLS, or write http://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := ask(t, identity.Kafka{SASL: identity.SASL{
				Mechanism: identity.OAuthBearer, TokenURL: c.url, TokenCAFile: ca.File, ClientID: "walpost", ClientSecret: cdctest.Canary, Scope: "kafka",
			}}, broker)
			if err == nil || !strings.HasPrefix(err.Error(), "kafka.sasl.token_url: "+c.url) || !strings.Contains(err.Error(), c.says) || cdctest.Leak(err.Error()) != "" || strings.Contains(err.Error(), "html>") {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// TestWrongSettings checks the sentence for each wrong combination and for each file that cannot be read.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	ca := cdctest.NewAuthority(t, "servers", time.Time{})
	a, b := ca.Issue(t, cdctest.Certificate{Name: "a"}), ca.Issue(t, cdctest.Certificate{Name: "b"})
	sasl := func(s identity.SASL) identity.Kafka { return identity.Kafka{SASL: s} }
	pair := func(cert, key string) identity.Kafka {
		return identity.Kafka{TLS: true, TLSCertFile: cert, TLSKeyFile: key}
	}
	bearer := func(s identity.SASL) identity.Kafka {
		s.Mechanism = identity.OAuthBearer
		return sasl(s)
	}
	empty, none := write(t, "\n"), filepath.Join(t.TempDir(), "none")
	whole, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	half := write(t, string(whole)+string(whole[:len(whole)/2]))
	for name, c := range map[string]struct {
		k    identity.Kafka
		says string // the whole error; empty: the settings are right
	}{
		"nothing at all":             {identity.Kafka{}, ""},
		"TLS alone":                  {identity.Kafka{TLS: true}, ""},
		"files without TLS":          {identity.Kafka{TLSCAFile: ca.File}, "kafka.tls_ca_file: it is for connections with TLS: set kafka.tls too, or leave it out"},
		"a name without TLS":         {identity.Kafka{TLSServerName: "kafka"}, "kafka.tls_server_name: it is for connections with TLS: set kafka.tls too, or leave it out"},
		"a certificate without key":  {pair(a.CertFile, ""), "kafka.tls_key_file: missing: the client certificate of kafka.tls_cert_file needs its key"},
		"a key without certificate":  {pair("", a.KeyFile), "kafka.tls_cert_file: missing: the key of kafka.tls_key_file needs its certificate"},
		"a key of another":           {pair(a.CertFile, b.KeyFile), "kafka.tls_key_file: the key in the file " + b.KeyFile + " does not fit the certificate in " + a.CertFile + ": write the two that were made together"},
		"the files changed places":   {pair(a.KeyFile, a.CertFile), "kafka.tls_cert_file: the file " + a.KeyFile + " holds no certificate: write PEM there, which begins with -----BEGIN CERTIFICATE-----"},
		"no key in the file":         {pair(a.CertFile, ca.File), "kafka.tls_key_file: the file " + ca.File + " holds no key: write PEM there, which begins with -----BEGIN PRIVATE KEY-----"},
		"a key with a passphrase":    {pair(a.CertFile, write(t, "-----BEGIN ENCRYPTED PRIVATE KEY-----")), "has a passphrase, which this process cannot ask for"},
		"an empty authority":         {identity.Kafka{TLS: true, TLSCAFile: empty}, "kafka.tls_ca_file: the file " + empty + " holds no certificate: it is empty: write PEM there, which begins with -----BEGIN CERTIFICATE-----"},
		"half of an authority":       {identity.Kafka{TLS: true, TLSCAFile: half}, "kafka.tls_ca_file: the file " + half + " is cut off or damaged: of the 2 things that begin in it 1 can be read: copy it again"},
		"half of a chain":            {pair(half, a.KeyFile), "kafka.tls_cert_file: the file " + half + " is cut off or damaged"},
		"a web page as a token":      {bearer(identity.SASL{TokenFile: write(t, "<html>login</html>")}), "kafka.sasl.token_file: this is not a token, because a token has no spaces, brackets or quotes: write the token alone"},
		"a Java keystore":            {identity.Kafka{TLS: true, TLSCAFile: write(t, "\xfe\xed\xfe\xed")}, "it is a Java keystore: turn it into"},
		"a relative path":            {identity.Kafka{TLS: true, TLSCAFile: "ca.crt"}, `kafka.tls_ca_file: "ca.crt" depends on where the process is started: write the whole path, from / on`},
		"a file that is not there":   {identity.Kafka{TLS: true, TLSCAFile: none}, "kafka.tls_ca_file: read the file: open " + none + ": no such file or directory"},
		"an unknown mechanism":       {sasl(identity.SASL{Mechanism: "gssapi"}), `kafka.sasl.mechanism: "gssapi": write plain, scram-sha-256, scram-sha-512, oauthbearer or aws-msk-iam`},
		"no user":                    {sasl(identity.SASL{Mechanism: identity.Plain, Password: "x"}), "kafka.sasl.username: missing: mechanism plain needs a user"},
		"no password":                {sasl(identity.SASL{Mechanism: identity.ScramSHA256, Username: "x"}), "kafka.sasl.password: missing: mechanism scram-sha-256 needs the password: set this one, kafka.sasl.password_file or kafka.sasl.password_command"},
		"two passwords":              {sasl(identity.SASL{Mechanism: identity.Plain, Username: "x", Password: cdctest.Canary, PasswordCommand: "x"}), "kafka.sasl.password_command: kafka.sasl.password says where the password comes from already: leave one of them out"},
		"an empty password file":     {sasl(identity.SASL{Mechanism: identity.Plain, Username: "x", PasswordFile: empty}), "kafka.sasl.password_file: the file " + empty + " is empty: write the password or the token there"},
		"a password without a login": {sasl(identity.SASL{Password: cdctest.Canary}), `kafka.sasl.password: it is for plain and scram, and kafka.sasl.mechanism is "": leave it out, or correct the mechanism`},
		"a token for plain":          {sasl(identity.SASL{Mechanism: identity.Plain, Username: "x", Password: "x", TokenFile: ca.File}), `kafka.sasl.token_file: it is for oauthbearer, and kafka.sasl.mechanism is "plain": leave it out, or correct the mechanism`},
		"no token":                   {bearer(identity.SASL{}), "kafka.sasl.token_file: missing: mechanism oauthbearer needs the token: set this one, kafka.sasl.token_command or kafka.sasl.token_url"},
		"two tokens":                 {bearer(identity.SASL{TokenFile: ca.File, TokenCommand: "x"}), "kafka.sasl.token_command: kafka.sasl.token_file says where the token comes from already: leave one of them out"},
		"an empty token file":        {bearer(identity.SASL{TokenFile: empty}), "kafka.sasl.token_file: the file " + empty + " is empty: write the password or the token there"},
		"no client":                  {bearer(identity.SASL{TokenURL: "https://a/b", ClientSecret: cdctest.Canary}), "kafka.sasl.client_id: missing: kafka.sasl.token_url needs to know who asks"},
		"no secret":                  {bearer(identity.SASL{TokenURL: "https://a/b", ClientID: "x"}), "kafka.sasl.client_secret_file: missing: kafka.sasl.token_url needs the secret of kafka.sasl.client_id: set this one or kafka.sasl.client_secret"},
		"two secrets":                {bearer(identity.SASL{TokenURL: "https://a/b", ClientID: "x", ClientSecret: cdctest.Canary, ClientSecretFile: a.KeyFile}), "kafka.sasl.client_secret_file: kafka.sasl.client_secret is set already: leave one of them out"},
		"a client without endpoint":  {bearer(identity.SASL{TokenFile: a.KeyFile, ClientID: "x"}), "kafka.sasl.client_id: it is for kafka.sasl.token_url: set that, or leave it out"},
		"no URL":                     {bearer(identity.SASL{TokenURL: "login.example", ClientID: "x", ClientSecret: cdctest.Canary}), "kafka.sasl.token_url: it is no URL: write https://login.example/oauth2/token"},
		"no pairs":                   {bearer(identity.SASL{TokenCommand: "x", Extensions: "lkc-1"}), `kafka.sasl.extensions: "lkc-1" is no pair of letters and a value: write logicalCluster=lkc-1,identityPoolId=pool-1`},
		"IAM without TLS":            {sasl(identity.SASL{Mechanism: identity.AWSMSKIAM}), "kafka.tls: missing: Amazon MSK takes IAM over TLS only: set it to true, and name the IAM port in the brokers, 9098 or 9198"},
		"IAM with a password":        {identity.Kafka{TLS: true, SASL: identity.SASL{Mechanism: identity.AWSMSKIAM, Password: cdctest.Canary}}, `kafka.sasl.password: it is for plain and scram, and kafka.sasl.mechanism is "aws-msk-iam": leave it out, or correct the mechanism`},
		"a region without IAM":       {sasl(identity.SASL{Region: "eu-central-1"}), `kafka.sasl.region: it is for aws-msk-iam, and kafka.sasl.mechanism is "": leave it out, or correct the mechanism`},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.k.Check(identity.Keys)
			if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") || cdctest.Leak(err.Error()) != "") {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
	t.Run("flags are named as flags", func(t *testing.T) {
		k := pair(a.CertFile, "")
		k.SASL.Mechanism = identity.Plain
		err := k.Check(identity.Flags("ORDERS_"))
		for _, name := range []string{"--kafka-tls-key-file (ORDERS_KAFKA_TLS_KEY_FILE): missing", "--kafka-sasl-username (ORDERS_KAFKA_SASL_USERNAME): missing"} {
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want %q", err, name)
			}
		}
	})
}

// TestWarningsAreSaidOnce: settings that are common inside a cluster are a warning, and not an error.
func TestWarningsAreSaidOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		k      identity.Kafka
		broker string
		says   string
	}{
		"plain, away":       {identity.Kafka{SASL: identity.SASL{Mechanism: identity.Plain}}, "kafka:9092", "kafka.sasl.mechanism: plain sends the password or the token to kafka:9092 in clear, without TLS"},
		"oauthbearer, away": {identity.Kafka{SASL: identity.SASL{Mechanism: identity.OAuthBearer}}, "10.0.0.1:9092", "kafka.sasl.mechanism: oauthbearer sends"},
		"plain, here":       {identity.Kafka{SASL: identity.SASL{Mechanism: identity.Plain}}, "127.0.0.1:9092", ""},
		"plain, TLS":        {identity.Kafka{TLS: true, SASL: identity.SASL{Mechanism: identity.Plain}}, "kafka:9092", ""},
		"scram, away":       {identity.Kafka{SASL: identity.SASL{Mechanism: identity.ScramSHA256}}, "kafka:9092", ""},
		"a plain endpoint":  {identity.Kafka{TLS: true, SASL: identity.SASL{Mechanism: identity.OAuthBearer, TokenURL: "http://keycloak:8080/token"}}, "kafka:9092", "kafka.sasl.token_url: the client secret and the token go to keycloak:8080 without TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			login := identity.NewLogin(c.k, []string{c.broker}, identity.Keys, zerolog.New(&out))
			login.Options()
			login.Options()
			if lines := strings.Count(out.String(), "\n"); (c.says == "") != (lines == 0) || lines > 1 || !strings.Contains(out.String(), c.says) {
				t.Errorf("%s", out.String())
			}
		})
	}
}

// TestNoErrorShowsTheTokenURL: an error does not show the URL's user and parameters, which can be secret.
func TestNoErrorShowsTheTokenURL(t *testing.T) {
	t.Parallel()
	broker, cluster := start(t)
	bearers(cluster, 0, func(string) bool { return true })
	secret := cdctest.Canary
	for _, u := range []string{"http://user:" + secret + "@127.0.0.1:1/token", "http://127.0.0.1:1/token?key=" + secret, "http://user:" + secret + "@host:port/", "http://" + secret + "%zz/", "http://a b/" + secret} {
		k := identity.Kafka{SASL: identity.SASL{Mechanism: identity.OAuthBearer, TokenURL: u, ClientID: "walpost", ClientSecret: identity.Secret(secret)}}
		err := k.Check(identity.Keys)
		if err == nil {
			err = ask(t, k, broker)
		}
		if err == nil || !strings.HasPrefix(err.Error(), "kafka.sasl.token_url: ") {
			t.Errorf("%s: %v", u, err)
		}
		cdctest.NoSecret(t, "an error", fmt.Sprint(err))
	}
}

// TestLoginThatWaits: a caller with a timeout that is shorter than the time for a token or a password learns what the
// login waits for. The result of the wait remains reported while other logins wait. A client that is closed meanwhile
// reports nothing.
func TestLoginThatWaits(t *testing.T) {
	t.Parallel()
	locked, _ := start(t, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "walpost", cdctest.Canary))
	oauth, cluster := start(t)
	bearers(cluster, 0, func(string) bool { return true })
	release := make(chan struct{})
	hangs := tokens(t, func(http.ResponseWriter, *http.Request) { <-release })
	drips := tokens(t, func(w http.ResponseWriter, _ *http.Request) {
		for {
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-release:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { close(release) })
	endpoint := func(url string) identity.SASL {
		return identity.SASL{Mechanism: identity.OAuthBearer, TokenURL: url, ClientID: "walpost", ClientSecret: cdctest.Canary}
	}
	for name, c := range map[string]struct {
		broker     string
		sasl       identity.SASL
		says, then string
	}{
		"an endpoint that hangs": {oauth, endpoint(hangs.URL), "kafka.sasl.token_url: " + hangs.URL + " has not answered yet: start it, or let connections through to it", hangs.URL + " has not answered within 8s"},
		"an endpoint that drips": {oauth, endpoint(drips.URL), "kafka.sasl.token_url: " + drips.URL + " has not answered yet: start it, or let connections through to it", drips.URL + " has not answered within 8s"},
		"a command for a token": {
			oauth,
			identity.SASL{Mechanism: identity.OAuthBearer, TokenCommand: "sleep 100"},
			"kafka.sasl.token_command: the command sleep has printed nothing yet: run it by hand", "the command sleep has printed nothing within 8s",
		},
		"a command for a password": {
			locked,
			identity.SASL{Mechanism: identity.ScramSHA512, Username: "walpost", PasswordCommand: "sleep 100"},
			"kafka.sasl.password_command: the command sleep has printed nothing yet: run it by hand", "the command sleep has printed nothing within 8s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			login := identity.NewLogin(identity.Kafka{SASL: c.sasl}, []string{c.broker}, identity.Keys, zerolog.Nop())
			waits := func() *kgo.Client {
				client, err := kgo.NewClient(append(login.Options(), kgo.SeedBrokers(c.broker), kgo.RequestRetries(0))...)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				_, err = client.SeedBrokers()[0].Request(ctx, kmsg.NewPtrMetadataRequest())
				if said := login.Explain(ctx, c.broker, err); said == nil || said.Error() != c.says {
					t.Errorf("got %v (%v), want %q", said, err, c.says)
				}
				return client
			}
			closed, from := waits(), time.Now()
			defer waits().Close()
			closed.Close()
			cdctest.Eventually(t, 15*time.Second, func() error {
				if err := login.Trouble(); err == nil || !strings.Contains(err.Error(), c.then) {
					if err != nil && err.Error() != c.says {
						t.Fatalf("meanwhile: %v", err)
					}
					return fmt.Errorf("trouble: %v", err)
				}
				return nil
			})
			if after := time.Since(from); after < 7*time.Second {
				t.Errorf("%q appears after %s", c.then, after)
			}
			host, port, _ := net.SplitHostPort(c.broker)
			n, _ := net.LookupPort("tcp", port)
			for _, late := range []error{context.DeadlineExceeded, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, context.Canceled} {
				login.OnBrokerConnect(kgo.BrokerMetadata{Host: host, Port: int32(n)}, 0, nil, fmt.Errorf("unable to dial: %w", late))
				if err := login.Explain(t.Context(), c.broker, os.ErrDeadlineExceeded); err == nil || !strings.Contains(err.Error(), c.then) {
					t.Errorf("after %v: %v", late, err)
				}
			}
		})
	}
}

// TestLastGoodOneIsRefused: Kafka refuses the last good token or password, and no newer one can be read. The error
// first names the reason why it cannot be read.
func TestLastGoodOneIsRefused(t *testing.T) {
	t.Parallel()
	const empty = " is empty: write the password or the token there"
	at := func(d time.Duration) (time.Time, string) {
		end := time.Now().Add(d).Truncate(time.Second)
		return end, end.UTC().Format(time.RFC3339)
	}
	for name, c := range map[string]struct {
		mechanism identity.Mechanism
		word      string
		over      bool   // Kafka refuses it after it has expired
		renewed   string // the text of the file then
		code      int16
		says      string // the error after the key and the file
		all       bool   // the error contains nothing else
	}{
		"a token that ends soon":          {identity.OAuthBearer, "SOON", false, "", kerr.IllegalSaslState.Code, empty + "; the last good one expires at SOON-AT", true},
		"a token that has ended":          {identity.OAuthBearer, "OVER", true, "", kerr.IllegalSaslState.Code, empty + "; the last good one has expired at OVER-AT", true},
		"a token that was not renewed":    {identity.OAuthBearer, "SOON", false, "SOON", kerr.IllegalSaslState.Code, "the token expires at SOON-AT, and there is no newer one: have a new one written or printed sooner; nothing is lost", true},
		"a token that says no end":        {identity.OAuthBearer, "opaque", false, "", kerr.SaslAuthenticationFailed.Code, empty + "; the last good one is used, and kafka at ", false},
		"a token that ends in an hour":    {identity.OAuthBearer, jwt(time.Now().Add(time.Hour)), false, "", kerr.SaslAuthenticationFailed.Code, "; the last good one is used, and kafka at ", false},
		"a password":                      {identity.Plain, "word", false, "", kerr.SaslAuthenticationFailed.Code, empty + "; the last good one is used, and kafka at ", false},
		"a token, refused before its end": {identity.OAuthBearer, "SOON", false, "SOON", kerr.SaslAuthenticationFailed.Code, "refuses the token of kafka.sasl.token_file", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Times begin here: a test that is parallel may wait for its turn.
			soon, soonAt := at(8 * time.Second)
			over, overAt := at(3 * time.Second)
			texts := strings.NewReplacer("SOON-AT", soonAt, "OVER-AT", overAt, "SOON", jwt(soon), "OVER", jwt(over))
			c.word, c.renewed, c.says = texts.Replace(c.word), texts.Replace(c.renewed), texts.Replace(c.says)
			broker, cluster := start(t)
			var code atomic.Int32
			control(cluster, func(*kmsg.SASLHandshakeRequest, *kmsg.SASLHandshakeResponse) {})
			control(cluster, func(_ *kmsg.SASLAuthenticateRequest, resp *kmsg.SASLAuthenticateResponse) {
				resp.ErrorCode = int16(code.Load())
			})
			file := write(t, c.word)
			k, key := identity.Kafka{SASL: identity.SASL{Mechanism: c.mechanism, TokenFile: file}}, "kafka.sasl.token_file"
			if c.mechanism == identity.Plain {
				k, key = identity.Kafka{SASL: identity.SASL{Mechanism: c.mechanism, Username: "walpost", PasswordFile: file}}, "kafka.sasl.password_file"
			}
			login := identity.NewLogin(k, []string{broker}, identity.Keys, zerolog.Nop())
			if err := asks(t, login, broker); err != nil {
				t.Fatal(err)
			}
			code.Store(int32(c.code))
			if err := os.WriteFile(file, []byte(c.renewed), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.over {
				cdctest.Eventually(t, 10*time.Second, func() error {
					if time.Now().Before(over) {
						return errors.New("the token has not ended yet")
					}
					return nil
				})
			}
			err := asks(t, login, broker)
			if err == nil || !strings.Contains(err.Error(), c.says) || c.all && (!strings.HasPrefix(err.Error(), key+": ") || !strings.HasSuffix(err.Error(), c.says)) ||
				c.renewed == "" && !strings.HasPrefix(err.Error(), key+": the file "+file+empty) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}
