package e2e

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// CopyServer returns a server on a cold copy of another's data.
func CopyServer(t testing.TB, p *devenv.Postgres, cfg devenv.CopyConfig) *devenv.Postgres {
	t.Helper()
	c, err := p.Copy(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// StopServer stops a server in one of the modes of pg_ctl.
func StopServer(t testing.TB, p *devenv.Postgres, mode string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cdctest.Patience(30*time.Second))
	defer cancel()
	if err := p.Stop(ctx, mode); err != nil {
		t.Fatal(err)
	}
}

// StartServer starts a server that was stopped.
func StartServer(t testing.TB, p *devenv.Postgres) {
	t.Helper()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// NewOnOwnServer returns a pipeline on a server of this test alone, in the database shop.
func NewOnOwnServer(t testing.TB, program Program) (*Pipeline, *devenv.Postgres) {
	t.Helper()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	return NewOn(t, program, server.URL("shop"), cdctest.Kafka(t)), server
}

// MoveTo points the configuration at another server.
func (s *Pipeline) MoveTo(server *devenv.Postgres) {
	s.AdminURL = server.URL("shop")
	u, _ := url.Parse(s.Env["WALPOST_SOURCE_URL"])
	here, _ := url.Parse(s.AdminURL)
	u.Host = here.Host
	s.Env["WALPOST_SOURCE_URL"], s.Env["WALPOST_ADMIN_URL"] = u.String(), s.AdminURL
}

// Address returns a server's host and port.
func Address(t testing.TB, p *devenv.Postgres) string {
	t.Helper()
	u, err := url.Parse(p.URL("shop"))
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
