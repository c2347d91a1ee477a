package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
)

const (
	rds      = `CREATE ROLE rds_superuser NOLOGIN; CREATE ROLE rds_replication NOLOGIN; GRANT rds_superuser TO boss; GRANT rds_replication TO boss WITH ADMIN OPTION`
	relay    = `CREATE ROLE relay LOGIN PASSWORD 'secret'`
	replicas = `ALTER ROLE relay REPLICATION`
)

// TestInitOnAGuardedServer: providers and versions differ in what an administrator without superuser may do. init
// does what it may; what it may not do, it reports with a way out before it creates anything.
func TestInitOnAGuardedServer(t *testing.T) {
	cdctest.Long(t, "starts a server that refuses")
	t.Parallel()
	server, exec := postgres.Guarded(t)
	since16 := server.Major() >= 16
	for _, c := range []struct {
		name    string
		prepare []string // boss may create roles, and owns the database
		kind    config.Kind
		source  string // the user of source.url, if not relay
		plans   string // SQL that the plan contains
		refused []string
		slot    bool // the slot is created, and read by the relay
	}{
		{name: "RDS, no role", prepare: []string{rds}, plans: `GRANT rds_replication TO "relay"`},
		{name: "RDS, a role without the right", prepare: []string{rds, relay}, plans: `GRANT rds_replication TO "relay"`},
		{name: "RDS, a member that does not inherit", prepare: []string{rds, relay, `ALTER ROLE relay NOINHERIT; GRANT rds_replication TO relay`}, plans: ""},
		{name: "RDS, a member of a member", prepare: []string{rds, relay, `CREATE ROLE streamers; GRANT rds_replication TO streamers; GRANT streamers TO relay`}, plans: ""},
		{name: "RDS's roles in a dump, restored by a superuser", prepare: []string{rds, relay, `ALTER ROLE boss SUPERUSER; GRANT rds_replication TO relay`}, plans: `ALTER ROLE "relay" REPLICATION`, slot: true},
		{name: "Yandex", prepare: []string{`CREATE ROLE mdb_admin; CREATE ROLE mdb_replication; GRANT mdb_replication TO boss WITH ADMIN OPTION`}, plans: `GRANT mdb_replication TO "relay"`},
		{name: "RDS without the admin option", prepare: []string{`CREATE ROLE rds_superuser; CREATE ROLE rds_replication; ALTER ROLE boss NOCREATEROLE`}, refused: []string{`GRANT rds_replication TO "relay"`, "Amazon RDS"}},
		{name: "an administrator that replicates", prepare: []string{`ALTER ROLE boss REPLICATION; CREATE ROLE supabase_admin SUPERUSER`}, plans: `CREATE ROLE "relay" LOGIN REPLICATION`, slot: true, refused: map[bool][]string{false: {"on Supabase", "name a role in source.url that has it already (boss)"}}[since16]},
		{name: "the administrator's own role", prepare: []string{`ALTER ROLE boss REPLICATION; CREATE ROLE doadmin`}, source: "boss", slot: true},
		{name: "nobody may", prepare: []string{`CREATE ROLE cloudsqlsuperuser`}, refused: []string{`CREATE ROLE "relay" LOGIN REPLICATION`, "on Google Cloud SQL", "source.kind: polling"}},
		{name: "the relay's role makes the slot", prepare: []string{relay, replicas}, slot: true},
		{name: "the relay's role takes on another", prepare: []string{relay, replicas, `CREATE ROLE app; GRANT app TO relay; ALTER ROLE relay SET role = 'app'`}, slot: true},
		{name: "the server keeps its identity to itself", prepare: []string{relay, replicas, `REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC`}, slot: true},
		{name: "no CREATE on the database", prepare: []string{relay, replicas, `ALTER DATABASE shop OWNER TO postgres; GRANT ALL ON SCHEMA public TO boss`}, refused: []string{`GRANT CREATE ON DATABASE "shop" TO "boss"`}},
		{name: "no CREATE on the schema", prepare: []string{relay, replicas, `ALTER DATABASE shop OWNER TO postgres; GRANT CREATE ON DATABASE shop TO boss; ALTER SCHEMA public OWNER TO postgres; REVOKE CREATE ON SCHEMA public FROM PUBLIC`}, refused: []string{`GRANT CREATE ON SCHEMA "public" TO "boss"`}},
		{name: "somebody else's table", prepare: []string{relay, replicas, `CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text, payload jsonb)`}, refused: []string{`GRANT "postgres" TO "boss"`}},
		{name: "no CONNECT for all", prepare: []string{relay, replicas, `REVOKE CONNECT ON DATABASE shop FROM PUBLIC`}, plans: `GRANT CONNECT ON DATABASE "shop" TO "relay"`, slot: true},
		{name: "no USAGE for all", prepare: []string{relay, replicas, `REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE ALL ON DATABASE shop FROM PUBLIC`}, plans: `GRANT USAGE ON SCHEMA "public" TO "relay"`, slot: true},
		{name: "another password", prepare: []string{relay, replicas, `ALTER ROLE relay PASSWORD 'other'; ALTER ROLE boss SUPERUSER`}, plans: `ALTER ROLE "relay" PASSWORD :password`, slot: true},
		{name: "another password, and no right to change it", prepare: []string{relay, replicas, `ALTER ROLE relay PASSWORD 'other'; ALTER ROLE boss NOCREATEROLE`}, refused: []string{"PostgreSQL refuses the password of source.url, and the role of --admin-url (WALPOST_ADMIN_URL) may not change it"}},
		{name: "another password, of an administrator", prepare: []string{relay, `ALTER ROLE relay SUPERUSER PASSWORD 'other'`}, refused: []string{"init does not change an administrator's password"}},
		{name: "polling with another password", prepare: []string{relay, `ALTER ROLE relay PASSWORD NULL; GRANT relay TO boss WITH ADMIN OPTION`}, kind: config.KindPolling, plans: `ALTER ROLE "relay" PASSWORD :password`},
		{name: "polling, no USAGE for all", prepare: []string{relay, `REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE ALL ON DATABASE shop FROM PUBLIC`}, kind: config.KindPolling, plans: `GRANT USAGE ON SCHEMA "public" TO "relay"`},
		{name: "polling, no CREATEROLE", prepare: []string{`ALTER ROLE boss NOCREATEROLE`}, kind: config.KindPolling, refused: []string{`CREATE ROLE "relay" LOGIN`, "name an existing role in source.url"}},
		{name: "polling", kind: config.KindPolling, plans: `CREATE ROLE "relay" LOGIN`},
		{name: "polling somebody else's table", prepare: []string{relay, `CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_type text, aggregate_id text, event_type text, payload jsonb)`}, kind: config.KindPolling, refused: []string{`GRANT "postgres" TO "boss"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec("postgres", "CREATE ROLE boss LOGIN CREATEROLE PASSWORD 'secret'", "CREATE DATABASE shop OWNER boss")
			defer func() {
				exec("postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots", "DROP DATABASE shop WITH (FORCE)")
				exec("postgres", `DO $$ DECLARE r name; BEGIN FOR r IN SELECT rolname FROM pg_roles WHERE rolname <> 'postgres' AND rolname !~ '^pg_' LOOP EXECUTE format('DROP OWNED BY %I', r); END LOOP;
					FOR r IN SELECT rolname FROM pg_roles WHERE rolname <> 'postgres' AND rolname !~ '^pg_' LOOP EXECUTE format('DROP ROLE %I', r); END LOOP; END $$`)
			}()
			exec("shop", append([]string{"ALTER SCHEMA public OWNER TO boss"}, c.prepare...)...)
			cfg := config.Default().Source
			cfg.Kind, cfg.URL = c.kind, server.URLFor("relay", "secret", "shop")
			if c.kind == "" {
				cfg.Kind = config.KindWAL
			}
			if c.source != "" {
				cfg.URL = server.URLFor(c.source, "secret", "shop")
			}
			s := postgres.NewSource("test", cfg, zerolog.Nop())
			admin, err := s.Admin(t.Context(), server.URLFor("boss", "secret", "shop"))
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close(context.Background())
			before := catalog(t, server)
			plan := func() ([]postgres.Step, error) { return admin.Plan(t.Context(), postgres.PlanOptions{Delete: true}) }
			if cfg.Kind == config.KindPolling {
				plan = func() ([]postgres.Step, error) {
					return polling.NewOutbox("test", cfg, zerolog.Nop()).Plan(t.Context(), admin)
				}
			}
			steps, err := plan()
			if len(c.refused) > 0 {
				for _, says := range c.refused {
					if err == nil || !strings.Contains(err.Error(), says) {
						t.Errorf("got %v, want %s", err, says)
					}
				}
				if err != nil && (strings.Contains(err.Error(), "walpost init` makes it") || strings.Contains(err.Error(), "the relay cannot stream")) {
					t.Errorf("it is not about the relay: %v", err)
				}
				if now := catalog(t, server); now != before {
					t.Errorf("something was left behind: %s, before %s", now, before)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if now := catalog(t, server); now != before {
				t.Errorf("a plan left something behind: %s, before %s", now, before)
			}
			var sql []string
			for _, s := range steps {
				sql = append(sql, s.SQL...)
			}
			if all := strings.Join(sql, "\n"); !strings.Contains(all, c.plans) || c.plans == "" && strings.Contains(all, "ROLE") {
				t.Errorf("want %q in the plan:\n%s", c.plans, all)
			}
			if err := admin.Do(t.Context(), steps...); err != nil {
				t.Fatal(err)
			}
			again, err := plan()
			for _, step := range again {
				if len(step.SQL) > 0 {
					t.Errorf("after init there is left to do: %v", step)
				}
			}
			if err != nil {
				t.Errorf("init again: %v", err)
			}
			if cfg.Kind == config.KindPolling {
				if _, err := polling.NewOutbox("test", cfg, zerolog.Nop()).Backlog(t.Context()); err != nil {
					t.Errorf("the relay's own look: %v", err)
				}
				return
			}
			table, err := s.Preflight(t.Context())
			if err != nil {
				t.Errorf("the relay's own look: %v", err)
			}
			if !c.slot {
				return
			}
			if err := admin.CreateSlot(t.Context()); err != nil {
				t.Fatal(err)
			}
			if facts, err := admin.Facts(t.Context()); err != nil || !facts.Slot.Exists {
				t.Errorf("facts %+v, %v", facts, err)
			}
			theirs, err := admin.Identify(t.Context(), 0)
			ours, ownErr := s.Identify(t.Context(), 0)
			if err != nil || ownErr != nil || theirs.SystemID == "" || theirs.SystemID != ours.SystemID || theirs.Timeline != ours.Timeline {
				t.Errorf("the server is %+v (%v) to the administrator and %+v (%v) to the relay", theirs, err, ours, ownErr)
			}
			stream, _, err := s.Connect(t.Context(), table)
			if err == nil {
				err = stream.Start(t.Context())
				_ = stream.Close()
			}
			if err != nil {
				t.Errorf("the relay does not stream: %v", err)
			}
			cdctest.Eventually(t, 10*time.Second, func() error { return admin.DropSlot(t.Context()) })
		})
	}
	t.Run("one step of the plan is refused", func(t *testing.T) {
		exec("postgres", "CREATE ROLE boss LOGIN CREATEROLE PASSWORD 'secret'", "CREATE DATABASE shop OWNER boss", relay)
		defer exec("postgres", "DROP DATABASE shop WITH (FORCE)", "DROP ROLE boss, relay")
		exec("shop", "ALTER SCHEMA public OWNER TO boss")
		cfg := config.Default().Source
		cfg.URL = server.URLFor("relay", "secret", "shop")
		admin, err := postgres.NewSource("test", cfg, zerolog.Nop()).Admin(t.Context(), server.URLFor("boss", "secret", "shop"))
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close(context.Background())
		before := catalog(t, server)
		err = admin.Do(t.Context(), postgres.Step{What: "first", SQL: []string{"CREATE TABLE first ()", "CREATE ROLE second"}}, postgres.Step{What: "third", SQL: []string{"CREATE SCHEMA pg_third"}})
		if err == nil || !strings.HasPrefix(err.Error(), "third: ") || catalog(t, server) != before {
			t.Errorf("%v, and left is %s, before %s", err, catalog(t, server), before)
		}
		exec("shop", "CREATE TABLE outbox ()", "ALTER TABLE outbox OWNER TO boss")
		holder, err := pgx.Connect(t.Context(), server.URLFor("boss", "secret", "shop"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = holder.Close(context.Background()) }()
		if _, err := holder.Exec(t.Context(), "SET application_name = 'nightly report'; BEGIN; SELECT * FROM outbox"); err != nil {
			t.Fatal(err)
		}
		err = admin.Do(t.Context(), postgres.Step{What: "change it", SQL: []string{"CREATE ROLE second", "ALTER TABLE outbox ADD COLUMN x int"}})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (nightly report as boss", holder.PgConn().PID())) {
			t.Errorf("a lock that does not come: %v", err)
		}
	})
}

// catalog lists everything that init could leave behind.
func catalog(t *testing.T, server *devenv.Postgres) (all string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL("shop"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	err = conn.QueryRow(t.Context(), `SELECT concat_ws(' ', (SELECT string_agg(rolname || rolreplication || rolcanlogin, ',' ORDER BY 1) FROM pg_roles),
		(SELECT string_agg(relname || coalesce(relacl::text, ''), ',' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace), (SELECT string_agg(pubname, ',') FROM pg_publication),
		(SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_auth_members), (SELECT datacl FROM pg_database WHERE datname = 'shop'))`).Scan(&all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
