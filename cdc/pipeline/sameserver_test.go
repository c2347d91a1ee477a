package pipeline_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestInitAsksWhereTheRelayIsLed: source.url and the administrator's URL may name different servers. Init reports a mistake in one of them
// before it creates anything.
func TestInitAsksWhereTheRelayIsLed(t *testing.T) {
	brokers, admin := cdctest.Kafka(t), cdctest.Database(t)
	other := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	name := conn.Config().Database
	elsewhere, err := pgx.Connect(t.Context(), other.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = elsewhere.Close(t.Context()) }()
	if _, err := elsewhere.Exec(t.Context(), "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `CREATE TABLE "eVents" (id uuid);
		CREATE TABLE streamed (id uuid, aggregate_type text, aggregate_id text, event_type text, payload jsonb); CREATE PUBLICATION elsewhere FOR TABLE streamed`); err != nil {
		t.Fatal(err)
	}
	change := func(text string, change func(*url.URL)) string {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	for _, kind := range []config.Kind{config.KindWAL, config.KindPolling} {
		for what, c := range map[string]struct{ source, admin, says, err, table string }{
			"another server":   {other.URL(name), admin, "", "source.url and --admin-url (WALPOST_ADMIN_URL) lead to different servers", ""},
			"no server":        {change(admin, func(u *url.URL) { u.Host = "127.0.0.1:1" }), admin, "warning: source.url: PostgreSQL at 127.0.0.1:1 does not answer", "", ""},
			"no TLS":           {change(admin, func(u *url.URL) { u.RawQuery = "sslmode=require" }), admin, "takes no TLS: switch it on there (ssl = on), or write sslmode=disable", "", ""},
			"another database": {admin, change(admin, func(u *url.URL) { u.Path = "/postgres" }), "init works there, because source.url names it; --admin-url (WALPOST_ADMIN_URL) names postgres", "", ""},
			"as it should be":  {admin, admin, "", "", ""},
			"a streamed one":   {admin, admin, "", "", "streamed"},
			"another case":     {admin, admin, "", "source.table: there is no table public.Events: did you mean public.eVents?", "Events"},
		} {
			t.Run(string(kind)+"/"+what, func(t *testing.T) {
				cfg := config.Default()
				cfg.Pipeline = cdctest.Name(t, "led")
				slot := strings.ReplaceAll(cfg.Pipeline, "-", "_")
				cfg.Source.Kind, cfg.Source.URL, cfg.Source.Slot, cfg.Source.Publication, cfg.Source.Table = kind, c.source, slot, slot, "public."+slot
				if c.table != "" {
					cfg.Source.Table = "public." + c.table
				}
				cfg.Kafka.Brokers, cfg.Kafka.Replication, cfg.Kafka.AggregateTypes = brokers, 1, []string{"thing"}
				p, err := pipeline.New(cfg, pipeline.Options{})
				if err != nil {
					t.Fatal(err)
				}
				steps, err := p.Init(t.Context(), pipeline.InitOptions{AdminURL: c.admin})
				if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
					t.Errorf("got %v, want %q", err, c.err)
				}
				said := fmt.Sprint(steps)
				if streams := "warning: publication elsewhere"; strings.Contains(said, streams) != (c.table == "streamed" && kind == config.KindPolling) {
					t.Errorf("init says %s, and of a table that somebody streams %q", said, streams)
				}
				if c.says != "" && !strings.Contains(said, c.says) || c.says == "" && strings.Contains(said, "source.url") {
					t.Errorf("init says %s, want %q", said, c.says)
				}
				var made bool
				if err := conn.QueryRow(t.Context(), "SELECT to_regclass($1) IS NOT NULL", strings.Replace(cfg.Source.Table, "Events", `"Events"`, 1)).Scan(&made); err != nil || made == (c.err != "") {
					t.Errorf("the table was made: %t, %v", made, err)
				}
			})
		}
	}
}
