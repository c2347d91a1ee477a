package policy_test

import (
	"cmp"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/inventory"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/notify"
)

var update = flag.Bool("update", false, "write the generated parts of pages")

// catalogue is a registry that only lists the metrics that are registered.
type catalogue struct {
	rows   []string
	labels map[string][]string // by metric
}

var description = regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]*)", unit: "[^"]*", constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)

func (c *catalogue) Register(collector prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 100)
	collector.Describe(descs)
	close(descs)
	for d := range descs {
		m := description.FindStringSubmatch(d.String())
		c.rows = append(c.rows, fmt.Sprintf("| `%s` | %s |\n", m[1], m[2]))
		if c.labels == nil {
			c.labels = map[string][]string{}
		}
		for label := range strings.SplitSeq(m[3]+","+m[4], ",") {
			name, _, _ := strings.Cut(label, "=")
			c.labels[m[1]] = append(c.labels[m[1]], name)
		}
	}
	return nil
}

func (c *catalogue) MustRegister(collectors ...prometheus.Collector) {
	for _, collector := range collectors {
		_ = c.Register(collector)
	}
}

func (c *catalogue) Unregister(prometheus.Collector) bool { return false }

// metrics returns the metrics of all processes.
func metrics(t *testing.T) (c catalogue) {
	t.Helper()
	cfg := config.Default()
	cfg.Pipeline, cfg.Source.URL, cfg.Kafka.Brokers, cfg.Kafka.AggregateTypes = "p", "postgres://127.0.0.1:1/none", []string{"127.0.0.1:1"}, []string{"a"}
	if _, err := pipeline.New(cfg, pipeline.Options{Registerer: &c}); err != nil {
		t.Fatal(err)
	}
	store, err := orders.Open(t.Context(), cdctest.PoolConfig(t, "postgres://127.0.0.1:1/none"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	orders.Routes(http.NewServeMux(), store, &c, zerolog.Nop())
	inventory.NewMetrics(&c)
	inbox.NewMetrics(prometheus.WrapRegistererWith(prometheus.Labels{"group": "g"}, &c), "orders_inbox")
	notify.NewMetrics(&c, nil)
	app.Instrument(&c, nil)
	slices.Sort(c.rows)
	return c
}

func (c *catalogue) table() string {
	return "| metric | what it is |\n|---|---|\n" + strings.Join(c.rows, "")
}

// identityTable returns the settings of Kafka, as keys and as flags.
func identityTable(v reflect.Type, key, flag string) string {
	var b strings.Builder
	for field := range v.Fields() {
		key, flag := key+field.Tag.Get("yaml"), flag+cmp.Or(field.Tag.Get("name"), field.Tag.Get("prefix"))
		if field.Type.Kind() == reflect.Struct {
			b.WriteString(identityTable(field.Type, key+".", flag))
			continue
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", key, flag, field.Tag.Get("help"))
	}
	return b.String()
}

var granted = regexp.MustCompile(`^(GRANT .+ TO ):service; -- (.+)$`)

// servicesTable returns the rights of the services' roles, as migrate grants them.
func servicesTable(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| who | right | what for |\n|---|---|---|\n")
	for _, role := range []struct{ who, file, name string }{
		{"orders", "orders/rights.sql", "orders_service"}, {"inventory", "inventory/rights.sql", "inventory_service"}, {"reader", "inventory/reader.sql", "inventory_reader"},
	} {
		text, err := os.ReadFile(filepath.Join("..", "..", "..", "sql", role.file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "--") {
				continue
			}
			m := granted.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("sql/%s: %q grants nothing, or does not say what for", role.file, line)
			}
			fmt.Fprintf(&b, "| %s | `%s%s` | %s |\n", role.who, m[1], role.name, m[2])
		}
	}
	return b.String()
}

// TestGeneratedPartsOfPages compares the generated parts of pages with the code: go test ./cmd/internal/policy -run
// Generated -update
func TestGeneratedPartsOfPages(t *testing.T) {
	all := metrics(t)
	inStep(t, "cdc/CONFIGURATION.md", map[string]string{"configuration": config.Reference()})
	inStep(t, "cdc/METRICS.md", map[string]string{"metrics": all.table()})
	inStep(t, "cdc/identity/README.md", map[string]string{
		"kafka":    "| key | flag | what it is |\n|---|---|---|\n" + identityTable(reflect.TypeFor[identity.Kafka](), "kafka.", "--kafka-"),
		"services": servicesTable(t),
	})
	ddl := strings.ReplaceAll(postgres.TableDDL(config.Default().Source), `"`, "")
	inStep(t, "cdc/postgres/TABLES.md", map[string]string{"table": "```sql\n" + strings.Replace(ddl, "public.outbox", "outbox", 1) + ";\n```\n"})
	wholeFile(t, "cdc/config/example.yaml", config.Example())
}

// wholeFile compares a generated file with the text that it must hold, or writes it.
func wholeFile(t *testing.T, file, want string) {
	t.Helper()
	path := filepath.Join("..", "..", "..", file)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not the code's: run this test with -update", file)
	}
}

// inStep compares the generated parts of a page with the texts that they must hold, or writes them.
func inStep(t *testing.T, page string, parts map[string]string) {
	t.Helper()
	path := filepath.Join("..", "..", "..", page)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for name, want := range parts {
		before, rest, ok := strings.Cut(text, "<!-- generated: "+name+" -->\n")
		have, after, end := strings.Cut(rest, "<!-- end -->")
		if !ok || !end {
			t.Fatalf("%s has no part for %s", page, name)
		}
		if have != want && !*update {
			t.Errorf("the part %s of %s is not the code's: run this test with -update", name, page)
		}
		text = before + "<!-- generated: " + name + " -->\n" + want + "<!-- end -->" + after
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
