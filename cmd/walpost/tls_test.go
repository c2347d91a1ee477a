package main

import (
	"net/url"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestRelayOverTLS streams under load through TLS with the server's certificate verified, where a read ends with a
// record.
func TestRelayOverTLS(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	authority := cdctest.NewAuthority(t, "authority", time.Time{})
	its := authority.Issue(t, cdctest.Certificate{Name: "postgres", Hosts: []string{"127.0.0.1"}})
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{Settings: map[string]string{"ssl": "on", "ssl_cert_file": its.CertFile, "ssl_key_file": its.KeyFile}})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	u, err := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {authority.File}}.Encode()
	s.Env["WALPOST_SOURCE_URL"] = u.String()
	s.MustRun("init")
	w := cdctest.StartWriter(t, cdctest.WriterConfig{URL: s.AdminURL, Events: 20_000})
	ledger := w.Wait()
	r := s.StartRelay()
	r.WaitForLog(20*time.Second, `"wire":"tcp, round trip `)
	if on := s.Query("SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)"); on != "true" {
		t.Fatal("the replication connection is not encrypted")
	}
	if report := s.CheckDelivered(ledger); report.Duplicates > 0 {
		t.Errorf("%d duplicates without a fault", report.Duplicates)
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
}
