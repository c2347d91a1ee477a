package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/identity"
)

// rotation is a relay under load, and a service's pool, whose certificates and passwords are renewed.
type rotation struct {
	*testbed
	relay *e2e.Relay
	pool  *pgxpool.Pool
	role  string
	last  string // walsender
}

// renewed ends the relay's connection, and waits until both have a new one.
func (r *rotation) renewed(what string) {
	r.T.Helper()
	r.cut()
	r.streams(what, 20*time.Second)
}

// cut ends the relay's connection.
func (r *rotation) cut() {
	r.T.Helper()
	r.last = r.Query("SELECT max(pg_terminate_backend(pid)::int * pid)::text FROM pg_stat_replication")
}

// streams waits until the relay streams over another connection, and the pool has one, too.
func (r *rotation) streams(what string, within time.Duration) {
	r.T.Helper()
	cdctest.Eventually(r.T, within, func() error {
		if r.Query("SELECT count(*)::text FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE ssl AND state = 'streaming' AND pid <> "+r.last) != "1" {
			return errors.New(what + ": the relay does not stream")
		}
		return nil
	})
	r.pool.Reset()
	if err := r.pool.Ping(r.T.Context()); err != nil {
		r.T.Errorf("%s: the pool: %v", what, err)
	}
}

// logged waits for a line of the relay's log that is about what the new one of something lacks.
func (r *rotation) logged(key, says string) {
	r.T.Helper()
	cdctest.Eventually(r.T, 10*time.Second, func() error {
		for line := range strings.Lines(r.relay.Log.String()) {
			if strings.Contains(line, `"key":"source.url: `+key+`"`) && strings.Contains(line, says) {
				return nil
			}
		}
		return fmt.Errorf("the log says nothing of %s and %s", key, says)
	})
}

// TestRelayOverTLS streams under load through TLS with both certificates verified, where a read ends with a record. Then authority,
// certificates and password are renewed, each wrong first: nothing is lost, nothing comes twice, and the relay is never restarted.
func TestRelayOverTLS(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first, next := cdctest.NewAuthority(t, "first", time.Time{}), cdctest.NewAuthority(t, "next", time.Time{})
	server := cdctest.Certificate{Name: "postgres", Hosts: []string{"127.0.0.1"}}
	its := first.Issue(t, server)
	hba := filepath.Join(filepath.Dir(its.CertFile), "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("host all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	pg := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{
		"ssl": "on", "ssl_cert_file": its.CertFile, "ssl_key_file": its.KeyFile, "ssl_ca_file": first.File, "hba_file": hba,
	}})
	if err := pg.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	r := &rotation{testbed: newTestbedOn(t, pg.URL("shop"), cdctest.Kafka(t))}
	u, err := url.Parse(r.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	r.role = u.User.Username()
	own := first.Issue(t, cdctest.Certificate{Name: r.role})
	roots, word := write("ca.crt", read(first.File)), write("word", "first\n")
	u.User = url.User(r.role)
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {roots}, "sslcert": {own.CertFile}, "sslkey": {own.KeyFile}, "password_file": {word}}.Encode()
	r.Env["WALPOST_SOURCE_URL"] = u.String()
	r.MustRun("init")
	config, err := identity.NewPostgres("--database-url", u.String(), zerolog.Nop()).Pool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		t.Fatal(err)
	}
	defer r.pool.Close()

	cdctest.StartWriter(t, cdctest.WriterConfig{URL: r.AdminURL, Events: 20_000}).Wait()
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: r.AdminURL, Rate: 50})
	r.last = "0"
	r.relay = r.StartRelay()
	r.relay.WaitForLog(20*time.Second, `"wire":"tcp, round trip `)
	r.streams("at first", 20*time.Second)

	// The authority: a file that is none, one with both, the server's new certificate.
	write("ca.crt", "garbage")
	r.renewed("an authority's file that is none")
	r.logged("sslrootcert", "holds no certificate")
	write("ca.crt", read(first.File)+read(next.File))
	next.Issue(t, server).Replace(t, its)
	r.Exec("ALTER SYSTEM SET ssl_ca_file = '" + next.File + "'") // whose own is refused from here on
	r.logged("sslrootcert", "is good again, and used")

	// The client's: one that is none, one whose key has not come, both.
	keep := read(own.CertFile)
	if err := os.WriteFile(own.CertFile, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.renewed("a certificate that is none")
	r.logged("sslcert and sslkey", "holds no certificate")
	if err := os.WriteFile(own.CertFile, []byte(keep), 0o600); err != nil {
		t.Fatal(err)
	}
	next.Issue(t, cdctest.Certificate{Name: r.role}).Replace(t, own)
	r.Exec("SELECT pg_reload_conf()")
	r.renewed("new certificates on both sides, and the first authority is nobody's")

	// The password: a file that is empty, the server's comes first, the file's after it.
	write("word", "")
	r.renewed("an empty password file")
	r.logged("password", "is empty")
	r.Exec(`ALTER ROLE "` + r.role + `" PASSWORD 'next'`)
	r.cut()
	const wrong = "the password or token of password_file is wrong or has expired"
	cdctest.Eventually(t, 20*time.Second, func() error {
		said, err := r.relay.Ask("/readyz")
		return errors.Join(err, contains(said, "503"), contains(said, wrong), contains(r.relay.Log.String(), wrong))
	})
	write("word", "next\n")
	r.streams("the new password", 20*time.Second) // no halt, whose next try comes after 30 s

	if cdctest.LongForm() { // the next try of a halt comes after half a minute
		r.Exec(`ALTER ROLE "` + r.role + `" NOLOGIN`)
		r.cut()
		cdctest.Eventually(t, 20*time.Second, func() error {
			said, err := r.relay.Ask("/readyz")
			return errors.Join(err, contains(said, "503"), contains(said, "LOGIN"))
		})
		r.Exec(`ALTER ROLE "` + r.role + `" LOGIN`)
		r.streams("a role that was locked", 40*time.Second)
	}
	if report := r.CheckDelivered(w.Stop()); report.Duplicates > 0 {
		t.Errorf("%d duplicates", report.Duplicates)
	}
	if err := r.relay.Stop(); err != nil {
		t.Error(err)
	}
}
