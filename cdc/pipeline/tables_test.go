package pipeline_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

var pageTable = regexp.MustCompile("(?s)\n## ([^\n]+)\n\n[^\n]+\n\n```sql\n(.*?)\n```\n\n```yaml\n(.*?)\n```\n\n```text\n(.*?)\n```\n")

// TestTablesOfThePage makes each table of the page, relays a row with the page's configuration, and compares the record with the page's.
func TestTablesOfThePage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "postgres", "TABLES.md"))
	if err != nil {
		t.Fatal(err)
	}
	tables := pageTable.FindAllStringSubmatch(string(page), -1)
	if len(tables) < 16 {
		t.Fatalf("the page has %d tables that are relayed", len(tables))
	}
	url, brokers := cdctest.Database(t), cdctest.Kafka(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for _, table := range tables {
		name, sql, yaml, want := table[1], table[2], table[3], table[4]
		t.Run(name, func(t *testing.T) {
			ddl, insert, _ := strings.Cut(sql, "\nINSERT ")
			if _, err := conn.Exec(t.Context(), ddl); err != nil {
				t.Fatal(err)
			}
			file, id := filepath.Join(t.TempDir(), "walpost.yaml"), cdctest.Name(t, "table")
			if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			slot := strings.ReplaceAll(id, "-", "_")
			env := map[string]string{
				"WALPOST_PIPELINE": id, "WALPOST_SOURCE_URL": url, "WALPOST_SOURCE_SLOT": slot, "WALPOST_SOURCE_PUBLICATION": slot,
				"WALPOST_KAFKA_BROKERS": strings.Join(brokers, ","), "WALPOST_KAFKA_REPLICATION": "1",
			}
			cfgs, err := config.Load(file, func(key string) string { return env[key] })
			if err != nil {
				t.Fatal(err)
			}
			p, err := pipeline.New(cfgs[0], pipeline.Options{})
			if err == nil {
				_, err = p.Init(t.Context(), pipeline.InitOptions{AdminURL: url})
			}
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(want, "\n")
			topic := strings.TrimPrefix(first, "topic ")
			if cfgs[0].Kafka.AnyType() {
				cdctest.CreateTopic(t, brokers, topic, 1)
			}
			stop := run(t.Context(), p)
			defer func() { _ = stop() }()
			if _, err := conn.Exec(t.Context(), "INSERT "+insert); err != nil {
				t.Fatal(err)
			}
			var got string
			cdctest.Consume(t, brokers, topic, 20*time.Second, func(records []*kgo.Record) bool {
				for _, r := range records {
					text, source := shown(r)
					if source == id {
						got = text
					}
				}
				return got != ""
			})
			if got != want {
				t.Errorf("\n got  %s\n want %s", got, want)
			}
		})
	}
}

// shown returns a record as the page shows it, and its source.
func shown(r *kgo.Record) (text, source string) {
	key, value := "no key", "no value"
	if r.Key != nil {
		key = "key " + string(r.Key)
	}
	if r.Value != nil {
		value = "value " + string(r.Value)
	}
	text = fmt.Sprintf("topic %s\n%s\n%s", r.Topic, key, value)
	for _, h := range r.Headers {
		switch h.Key {
		case "lsn", "seq", "created_at":
		case "source":
			source = string(h.Value)
		default:
			text += fmt.Sprintf("\nheader %s=%s", h.Key, h.Value)
		}
	}
	return text, source
}
