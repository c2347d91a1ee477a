//go:build chromium

package browser_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
)

// TestRealRelay looks at a real relay, with PostgreSQL and Kafka, while one after the other fails. The page is loaded once for each relay
// and never by hand.
func TestRealRelay(t *testing.T) {
	t.Parallel()
	s, server := e2e.NewOnOwnServer(t, e2e.Program{Path: e2e.Build(t, "../../../cmd/walpost")()})
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	s.Env["WALPOST_HTTP"] = fmt.Sprintf("127.0.0.1:%d", port)
	s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
	cdctest.CreateTopic(t, s.Brokers, s.Topic, 3)
	s.MustRun("init")
	postgres, kafka := cdctest.StartProxy(t, e2e.Address(t, server), nil), cdctest.StartKafkaProxy(t, s.Brokers, nil)
	through := s.Copy()
	through.Env["WALPOST_SOURCE_URL"], through.Env["WALPOST_KAFKA_BROKERS"] = postgres.URL(t, s.Env["WALPOST_SOURCE_URL"]), strings.Join(kafka.Brokers(), ",")
	relay := through.SpawnRelay()
	relay.Get(t, "/status")
	b := newTab(t, form{width: 1280})
	b.open("http://" + s.Env["WALPOST_HTTP"] + "/")
	hang := cdctest.Wire{Stalled: true}

	b.untilSays("#state", "Works")
	b.untilSays("#events", "There is no event in the topics.")
	id := s.InsertRow()
	b.untilSays("#events", id)
	b.untilSays("#state", "1 since the start")

	kafka.Set(hang, hang)
	s.InsertRow()
	b.untilSays("#state", "Waiting for Kafka")
	b.untilSays("#todo", "kafka does not answer")
	kafka.Set(cdctest.Wire{}, cdctest.Wire{})
	b.untilSays("#state", "Works")

	s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', '<script>alert(1)</script>', 'x', '{}')`)
	b.untilSays("#letters", "kafka.aggregate_types")
	b.untilSays("#letters", "<script>alert(1)</script>")
	b.untilSays("#state", "Works, and needs you")
	b.untilSays("#todo", "walpost dlq list")
	b.harmless()

	postgres.Set(hang, hang)
	b.untilSays("#slot", "unknown")
	other := newTab(t, form{width: 1280})
	begin := time.Now()
	other.open("http://" + s.Env["WALPOST_HTTP"] + "/")
	if took := time.Since(begin); took > cdctest.Patience(4*time.Second) {
		t.Errorf("while PostgreSQL hangs, the page takes %s", took)
	}
	other.untilSays("#todo", "PostgreSQL")
	other.clean()
	postgres.Set(cdctest.Wire{}, cdctest.Wire{})
	b.untilSays("#state", "Works")

	s.Exec("ALTER PUBLICATION walpost DROP TABLE public.outbox")
	b.untilSays("#state", "Halted")
	b.untilSays("#todo", "ADD TABLE")
	b.untilSays("#todo", "walpost adopt")
	b.untilSays("#todo", "walpost replay --from ")

	relay.Kill()
	b.until("!document.getElementById('link').hidden")
	s.Exec("ALTER PUBLICATION walpost ADD TABLE public.outbox")
	s.MustRun("adopt")
	s.WaitUntilFree(20 * time.Second)
	s.Exec("SELECT pg_drop_replication_slot('" + s.Slot() + "')")
	through.SpawnRelay()
	b.untilSays("#todo", "does not exist")
	b.untilSays("#todo", "walpost adopt --create-slot")
	b.untilSays("#state", "Halted")
	b.until("document.getElementById('link').hidden")
	b.axe("a real relay that has halted")
	b.clean("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
}
