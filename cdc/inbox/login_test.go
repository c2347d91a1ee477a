package inbox_test

import (
	"crypto/tls"
	"errors"
	"fmt"
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
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
)

// TestConsumerLogsIn: a consumer whose token Kafka refuses names the configuration key in its error, and continues when
// the file is right. The operator's replay and rebuild log in like the consumer.
func TestConsumerLogsIn(t *testing.T) {
	t.Parallel()
	ca := cdctest.NewAuthority(t, "servers", time.Time{})
	pair := ca.Issue(t, cdctest.Certificate{Name: "kafka", Hosts: []string{"127.0.0.1"}})
	cert, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	var logins atomic.Int64
	cluster.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return req.ResponseKind(), nil, true
	})
	cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if logins.Add(1); !strings.Contains(string(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes), "auth=Bearer right\x01") {
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		}
		return resp, nil, true
	})
	token := filepath.Join(t.TempDir(), "token")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("right")
	f := newFixture(t, 1)
	f.brokers = cluster.ListenAddrs()
	login := func(log zerolog.Logger) *identity.Login {
		return identity.NewLogin(identity.Kafka{TLS: true, TLSCAFile: ca.File, SASL: identity.SASL{Mechanism: identity.OAuthBearer, TokenFile: token}}, f.brokers, identity.Flags("TEST_"), log)
	}
	if f.client, err = kgo.NewClient(append(login(zerolog.Nop()).Options(), kgo.SeedBrokers(f.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.client.Close)
	if _, err := kadm.NewClient(f.client).CreateTopic(t.Context(), 1, 1, nil, f.topic); err != nil {
		t.Fatal(err)
	}
	ids := newIDs(3)
	f.send(0, "k", ids...)

	put("wrong-c4nary")
	r := f.start(func(cfg *inbox.Config) { cfg.Login = login(cfg.Log) })
	const says = "refuses the token of --kafka-sasl-token-file (TEST_KAFKA_SASL_TOKEN_FILE)"
	eventually(t, func() error {
		if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
			return fmt.Errorf("ready: %v", err)
		}
		return nil
	})
	operator := func() *inbox.Operator {
		cfg := f.config()
		cfg.Login = login(zerolog.Nop())
		return inbox.NewOperator(cfg, "test")
	}
	if _, err := operator().Replay(t.Context(), inbox.ReplayOptions{}); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("replay with a wrong token: %v", err)
	}
	put("right")
	eventually(t, func() error {
		if n := len(f.effects("")); n != len(ids) {
			return fmt.Errorf("%d of %d events are applied", n, len(ids))
		}
		return r.Ready(t.Context())
	})
	r.stop()
	if n := strings.Count(r.log.String(), says); n != 1 || strings.Contains(r.log.String(), "c4nary") {
		t.Errorf("the log has the sentence %d times", n)
	}
	before := logins.Load()
	if plan, err := operator().Replay(t.Context(), inbox.ReplayOptions{}); err != nil || len(plan) != 1 || plan[0].Duplicates != len(ids) {
		t.Errorf("replay: %+v, %v", plan, err)
	}
	if logins.Load() == before {
		t.Error("the replay did not log in")
	}
}

// TestConsumerWhoseTokenDoesNotCome: while the token does not arrive, the consumer reports that from the first seconds
// on, and reports nothing else.
func TestConsumerWhoseTokenDoesNotCome(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	for _, key := range []kmsg.Key{kmsg.SASLHandshake, kmsg.SASLAuthenticate} {
		cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			return req.ResponseKind(), nil, true
		})
	}
	release := make(chan struct{})
	released := sync.OnceFunc(func() { close(release) })
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"access_token":"right"}`))
	}))
	t.Cleanup(endpoint.Close)
	t.Cleanup(released)
	f := newFixture(t, 1)
	f.brokers = cluster.ListenAddrs()
	if f.client, err = kgo.NewClient(kgo.SeedBrokers(f.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.client.Close)
	if _, err := kadm.NewClient(f.client).CreateTopic(t.Context(), 1, 1, nil, f.topic); err != nil {
		t.Fatal(err)
	}
	r := f.start(func(cfg *inbox.Config) {
		cfg.Login = identity.NewLogin(identity.Kafka{SASL: identity.SASL{Mechanism: identity.OAuthBearer, TokenURL: endpoint.URL, ClientID: "x", ClientSecret: "x"}}, f.brokers, identity.Keys, cfg.Log)
	})
	says := "kafka.sasl.token_url: " + endpoint.URL + " has not answered "
	right := func() error {
		if err := r.Ready(t.Context()); err == nil || !strings.HasPrefix(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			return fmt.Errorf("ready: %v", err)
		}
		return nil
	}
	began := time.Now()
	eventually(t, right)
	if after := time.Since(began); after > 7*time.Second || !strings.Contains(r.log.String(), says+"yet: ") {
		t.Errorf("after %s, the log:\n%s", after, r.log.String())
	}
	eventually(t, func() error { // longer than twice the endpoint's 8 s
		if err := right(); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) < 20*time.Second {
			return errors.New("not seen for long enough")
		}
		return nil
	})
	released()
	eventually(t, func() error { return r.Ready(t.Context()) })
	if n := strings.Count(r.log.String(), "retrying until it works"); n > 2 || strings.Contains(r.log.String(), "i/o timeout") {
		t.Errorf("the log has trouble %d times", n)
	}
}
