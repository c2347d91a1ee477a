package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestRemoveTakesOnlyWhatIsThisPipelinesAlone has four pipelines with one role: two in one database with one publication, one in another
// database, and one that polls. Each removal leaves what the others need, and says who needs it. The last one leaves nothing.
func TestRemoveTakesOnlyWhatIsThisPipelinesAlone(t *testing.T) {
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	brokers := cdctest.Kafka(t)
	for _, name := range []string{"shop", "stock"} {
		if err := server.CreateDatabase(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	pipeline := func(database string) *stage {
		s := stageOn(t, server.URL(database), brokers)
		s.env["WALPOST_SOURCE_URL"] = s.as("walpost", "s3cret")
		return s
	}
	orders, audit, stock, polled := pipeline("shop"), pipeline("shop"), pipeline("stock"), pipeline("stock")
	polled.env["WALPOST_SOURCE_KIND"] = "polling"
	polled.env["WALPOST_SOURCE_TABLE"] = "public.polled"
	for _, s := range []*stage{orders, audit, stock, polled} {
		s.must("init")
	}
	there := func(s *stage) map[string]string {
		return map[string]string{
			"slot":        s.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", slot(s)),
			"publication": s.query("SELECT count(*)::text FROM pg_publication"),
			"role":        s.query("SELECT count(*)::text FROM pg_roles WHERE rolname = 'walpost'"),
		}
	}
	is := func(s *stage, slots, publications, roles string) {
		t.Helper()
		if got, want := there(s), (map[string]string{"slot": slots, "publication": publications, "role": roles}); !maps.Equal(got, want) {
			t.Errorf("there are %v, want %v", got, want)
		}
	}
	if _, err := orders.walpost("init", "--remove"); err == nil {
		t.Fatal("--remove did not ask")
	}
	is(orders, "1", "1", "1")

	for _, c := range []struct {
		s                          *stage
		says                       []string
		slots, publications, roles string
	}{
		{orders, []string{"publication walpost: left as it is: slot " + slot(audit), "role walpost: left as it is: slot ", slot(audit) + " (database shop)", slot(stock) + " (database stock)"}, "0", "1", "1"},
		{audit, []string{"publication walpost: drop it", "role walpost: left as it is: slot " + slot(stock)}, "0", "0", "1"},
		{stock, []string{"publication walpost: drop it", "role walpost: left as it is: 1 other objects"}, "0", "0", "1"}, // polled's rights on its table
		{polled, []string{"role walpost: drop it"}, "0", "0", "0"},
	} {
		dry := c.s.must("init", "--remove", "--yes", "--dry-run")
		out := c.s.must("init", "--remove", "--yes")
		for _, text := range c.says {
			if !strings.Contains(out, text) || !strings.Contains(dry, text) {
				t.Errorf("init --remove and its dry run do not say %q:\n%s\n%s", text, out, dry)
			}
		}
		is(c.s, c.slots, c.publications, c.roles)
	}
	orders.must("init") // and it can be made again
}

// TestRemoveLeavesWhatOthersUse tries each other use of role and publication by itself.
func TestRemoveLeavesWhatOthersUse(t *testing.T) {
	t.Parallel()
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := stageOn(t, server.URL("shop"), cdctest.Kafka(t))
	role := "relay_" + slot(s)
	s.must("init")
	connection := func(name string) (end func()) {
		u := s.env["WALPOST_SOURCE_URL"] + "&application_name=" + name
		if !strings.Contains(s.env["WALPOST_SOURCE_URL"], "?") {
			u = s.env["WALPOST_SOURCE_URL"] + "?application_name=" + name
		}
		conn := connectTo(t, u)
		return func() { _ = conn.Close(t.Context()) }
	}
	for name, c := range map[string]struct {
		use  func() (end func())
		says string
	}{
		"a session of another program": {func() func() { return connection("reporting") }, "it is connected as reporting"},
		"a member": {func() func() {
			s.exec("CREATE ROLE reader; GRANT " + role + " TO reader")
			return func() { s.exec("DROP ROLE reader") }
		}, "role reader is a member of it"},
		"an object that it owns": {func() func() {
			s.exec("CREATE TABLE theirs (); ALTER TABLE theirs OWNER TO " + role)
			return func() { s.exec("DROP TABLE theirs") }
		}, "1 other objects of the server belong to it"},
		"another table in the publication": {func() func() {
			s.exec("CREATE TABLE theirs (); ALTER PUBLICATION walpost ADD TABLE theirs")
			return func() { s.exec("DROP TABLE theirs") }
		}, "publication walpost: left as it is: it carries public.theirs, too"},
	} {
		end := c.use()
		if out := s.must("init", "--remove", "--yes", "--dry-run"); !strings.Contains(out, c.says) {
			t.Errorf("%s: init --remove does not say %q:\n%s", name, c.says, out)
		}
		end()
	}
	// What may not be removed leaves everything.
	s.exec("CREATE ROLE clerk LOGIN CREATEROLE PASSWORD 'pw'")
	s.refuses("must be owner of publication walpost", "init", "--remove", "--yes", "--admin-url", s.as("clerk", "pw"))
	if n := s.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", slot(s)); n != "1" || s.state() == nil {
		t.Error("an administrator without rights has removed slot or state record")
	}
	// A configuration with somebody else's slot removes nothing.
	other := stageOn(t, s.admin, s.brokers)
	other.env["WALPOST_SOURCE_SLOT"] = slot(s)
	other.refuses("may be another pipeline's", "init", "--remove", "--yes")
	if n := s.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", slot(s)); n != "1" {
		t.Error("the slot of another pipeline is gone")
	}
}
