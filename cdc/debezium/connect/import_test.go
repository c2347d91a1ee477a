//go:build debezium

package connect_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/debezium/connect"
)

// TestImportAndCheck imports running connectors, and compares the records that the real Debezium writes for the rows with
// those that the imported configuration would write.
func TestImportAndCheck(t *testing.T) {
	walpost := e2e.Build(t, "../../../cmd/walpost", "-race=false")()
	if t.Failed() {
		t.FailNow()
	}
	brokers := connect.FakeKafka(t)
	worker := connect.Start(t, connect.Config{Brokers: brokers})
	const insert = "org.apache.kafka.connect.transforms.InsertHeader"
	for name, c := range map[string]struct {
		over map[string]string
		says string // what import says is not supported
		ends string // the end of what --check prints
	}{
		"strings": {
			over: map[string]string{"transforms.outbox.table.fields.additional.placement": "type:header:eventType,n:header"},
			ends: "120 are equal, 0 differ\n",
		},
		"json": {
			over: map[string]string{
				"key.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter": "org.apache.kafka.connect.json.JsonConverter",
				"header.converter": "org.apache.kafka.connect.json.JsonConverter", "transforms.outbox.table.expand.json.payload": "true",
				"transforms.outbox.table.fields.additional.placement": "type:envelope,n:envelope:number,at:header",
			},
			ends: "120 are equal, 0 differ\n",
		},
		"another header": {
			over: map[string]string{
				"transforms": "outbox,origin", "transforms.origin.type": insert, "transforms.origin.header": "origin", "transforms.origin.value.literal": "shop",
			},
			says: "transforms.origin.type: InsertHeader, after the router: the headers that it adds are missing\n",
			ends: "0 are equal, 120 differ\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			at, exec := table(t)
			exec(`ALTER TABLE outbox ADD n bigint, ADD at timestamptz`)
			slot := cdctest.SlotName(t, "checked")
			exec(`SELECT pg_create_logical_replication_slot('` + slot + `', 'pgoutput')`)
			prefix := cdctest.Name(t, "checked")
			over := map[string]string{"slot.name": slot, "topic.prefix": prefix, "transforms.outbox.route.topic.replacement": prefix + ".${routedByValue}"}
			for option, value := range c.over {
				over[option] = value
			}
			worker.Deploy(prefix, connect.Connector(at, over))
			defer worker.Delete(prefix)
			exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload, n, at)
				SELECT 'order', 'order-' || i % 40, 'OrderPlaced', jsonb_build_object('number', i, 'words', jsonb_build_array('a', 'ü')), nullif(i, 7), now() FROM generate_series(1, 120) i`)
			cdctest.Consume(t, brokers, prefix+".order", time.Minute, cdctest.AtLeast(120))

			env := map[string]string{}
			run := func(code int, args ...string) string {
				t.Helper()
				cmd := e2e.Program{Path: walpost}.Command(args...)
				for name, value := range env {
					cmd.Env = append(cmd.Env, name+"="+value)
				}
				out, _ := cmd.CombinedOutput()
				if got := cmd.ProcessState.ExitCode(); got != code {
					t.Errorf("walpost %s: exit code %d, want %d:\n%s", args, got, code, out)
				}
				t.Logf("walpost %s\n%s", strings.Join(args, " "), out)
				return string(out)
			}
			code := 0
			if c.says != "" {
				code = 1
			}
			printed := run(code, "import", "--connect-url", worker.URL(), "--connector", prefix, "--brokers", strings.Join(brokers, ","))
			if !strings.Contains(printed, c.says) || strings.Contains(printed, "Debezium 3.3 and later") { // Connect tells the version
				t.Errorf("it does not say %q, or it does not know the version", c.says)
			}
			file := filepath.Join(t.TempDir(), "walpost.yaml")
			if err := os.WriteFile(file, []byte(printed), 0o600); err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(at)
			if err != nil {
				t.Fatal(err)
			}
			env["WALPOST_SOURCE_URL"] = u.String()
			checked := run(code, "-c", file, "import", "--check")
			if want := fmt.Sprintf("compared 120 records, the newest of each partition of %s.order: %s", prefix, c.ends); !strings.HasSuffix(checked, want) {
				t.Errorf("it does not end with %q", want)
			}
		})
	}
}
