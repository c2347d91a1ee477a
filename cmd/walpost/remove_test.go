package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestRemoveTakesOnlyWhatIsThisPipelinesAlone has four pipelines with one role: two in one database with one
// publication, one in another database, and one that polls. Each removal leaves what the others need, and says who
// needs it. The last one leaves nothing.
func TestRemoveTakesOnlyWhatIsThisPipelinesAlone(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	brokers := cdctest.Kafka(t)
	for _, name := range []string{"shop", "stock"} {
		if err := server.CreateDatabase(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	pipeline := func(database string) *testbed {
		s := newTestbedOn(t, server.URL(database), brokers)
		s.Env["WALPOST_SOURCE_URL"] = s.URLFor("walpost", cdctest.Canary)
		return s
	}
	orders, audit, stock, polled := pipeline("shop"), pipeline("shop"), pipeline("stock"), pipeline("stock")
	polled.Env["WALPOST_SOURCE_KIND"] = "polling"
	polled.Env["WALPOST_SOURCE_TABLE"] = "public.polled"
	for _, s := range []*testbed{orders, audit, stock, polled} {
		s.MustRun("init")
	}
	there := func(s *testbed) map[string]string {
		return map[string]string{
			"slot":        s.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()),
			"publication": s.Query("SELECT count(*)::text FROM pg_publication"),
			"role":        s.Query("SELECT count(*)::text FROM pg_roles WHERE rolname = 'walpost'"),
		}
	}
	is := func(s *testbed, slots, publications, roles string) {
		t.Helper()
		if got, want := there(s), (map[string]string{"slot": slots, "publication": publications, "role": roles}); !maps.Equal(got, want) {
			t.Errorf("there are %v, want %v", got, want)
		}
	}
	if _, err := orders.Run("init", "--remove"); err == nil {
		t.Fatal("--remove did not ask")
	}
	is(orders, "1", "1", "1")

	for _, c := range []struct {
		s                          *testbed
		says                       []string
		slots, publications, roles string
	}{
		{orders, []string{"publication walpost: not dropped: slot " + audit.Slot(), "role walpost: not dropped: slot ", audit.Slot() + " (database shop)", stock.Slot() + " (database stock)"}, "0", "1", "1"},
		{audit, []string{"publication walpost: drop it", "role walpost: not dropped: slot " + stock.Slot()}, "0", "0", "1"},
		{stock, []string{"publication walpost: drop it", "role walpost: not dropped: 1 other objects"}, "0", "0", "1"}, // polled's rights on its table
		{polled, []string{"role walpost: drop it"}, "0", "0", "0"},
	} {
		dry := c.s.MustRun("init", "--remove", "--yes", "--dry-run")
		out := c.s.MustRun("init", "--remove", "--yes")
		for _, text := range c.says {
			if !strings.Contains(out, text) || !strings.Contains(dry, text) {
				t.Errorf("init --remove and its dry run do not say %q:\n%s\n%s", text, out, dry)
			}
		}
		is(c.s, c.slots, c.publications, c.roles)
	}
	orders.MustRun("init") // and it can be made again
}

// TestRemoveLeavesWhatOthersUse tries each other use of role and publication by itself.
func TestRemoveLeavesWhatOthersUse(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, endToEnd)
	server := cdctest.OwnPostgres(t, devenv.PostgresConfig{})
	if err := server.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	s := newTestbedOn(t, server.URL("shop"), cdctest.Kafka(t))
	role := "relay_" + s.Slot()
	s.MustRun("init")
	connection := func(name string) (end func()) {
		u := s.Env["WALPOST_SOURCE_URL"] + "&application_name=" + name
		if !strings.Contains(s.Env["WALPOST_SOURCE_URL"], "?") {
			u = s.Env["WALPOST_SOURCE_URL"] + "?application_name=" + name
		}
		conn := e2e.ConnectTo(t, u)
		return func() { _ = conn.Close(t.Context()) }
	}
	for name, c := range map[string]struct {
		use  func() (end func())
		says string
	}{
		"a session of another program": {func() func() { return connection("reporting") }, "it is connected as reporting"},
		"a member": {func() func() {
			s.Exec("CREATE ROLE reader; GRANT " + role + " TO reader")
			return func() { s.Exec("DROP ROLE reader") }
		}, "role reader is a member of it"},
		"an object that it owns": {func() func() {
			s.Exec("CREATE TABLE theirs (); ALTER TABLE theirs OWNER TO " + role)
			return func() { s.Exec("DROP TABLE theirs") }
		}, "1 other objects of the server belong to it"},
		"another table in the publication": {func() func() {
			s.Exec("CREATE TABLE theirs (); ALTER PUBLICATION walpost ADD TABLE theirs")
			return func() { s.Exec("DROP TABLE theirs") }
		}, "publication walpost: not dropped: it also carries public.theirs"},
	} {
		end := c.use()
		if out := s.MustRun("init", "--remove", "--yes", "--dry-run"); !strings.Contains(out, c.says) {
			t.Errorf("%s: init --remove does not say %q:\n%s", name, c.says, out)
		}
		end()
	}
	// What may not be removed leaves everything.
	s.Exec("CREATE ROLE clerk LOGIN CREATEROLE PASSWORD 'pw'")
	s.MustRefuse("must be owner of publication walpost", "init", "--remove", "--yes", "--admin-url", s.URLFor("clerk", cdctest.Canary))
	if n := s.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); n != "1" || s.StateRecord() == nil {
		t.Error("an administrator without rights has removed slot or state record")
	}
	// A configuration with somebody else's slot removes nothing.
	other := newTestbedOn(t, s.AdminURL, s.Brokers)
	other.Env["WALPOST_SOURCE_SLOT"] = s.Slot()
	other.MustRefuse("may belong to another pipeline", "init", "--remove", "--yes")
	if n := s.Query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = $1", s.Slot()); n != "1" {
		t.Error("the slot of another pipeline is gone")
	}
}
