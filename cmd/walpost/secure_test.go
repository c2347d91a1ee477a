//go:build brokers

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/inbox/schema"
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

// put replaces a file at once, as whoever renews secrets should.
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
	var del []kadm.DeleteSCRAM
	var set []kadm.UpsertSCRAM
	for _, m := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} {
		if password == "" {
			del = append(del, kadm.DeleteSCRAM{User: user, Mechanism: m})
		} else {
			set = append(set, kadm.UpsertSCRAM{User: user, Mechanism: m, Iterations: 4096, Password: password})
		}
	}
	altered, err := k.admin.AlterUserSCRAMs(k.t.Context(), del, set)
	if err == nil {
		err = altered.Error()
	}
	if err != nil {
		k.t.Fatal(err)
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
func (k *secureKafka) pipeline(user string, env map[string]string, whos ...string) *testbed {
	k.t.Helper()
	s := newTestbedOn(k.t, cdctest.Database(k.t), []string{k.plain})
	k.as(s, env)
	k.allow(s, user, whos...)
	return s
}

// as has walpost connect with these variables, while the test itself reads topics as the administrator.
func (k *secureKafka) as(s *testbed, env map[string]string) {
	maps.Copy(s.Env, env)
	if _, other := env["WALPOST_KAFKA_BROKERS"]; !other {
		s.Env["WALPOST_KAFKA_BROKERS"] = k.sasl
	}
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

// login is what one way of logging in takes.
func (k *secureKafka) secured(more ...string) map[string]string {
	env := map[string]string{"WALPOST_KAFKA_TLS": "true", "WALPOST_KAFKA_TLS_CA_FILE": k.authority.File}
	for _, m := range more {
		key, value, _ := strings.Cut(m, "=")
		env["WALPOST_KAFKA_"+key] = value
	}
	return env
}
