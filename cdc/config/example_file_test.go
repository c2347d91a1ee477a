package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// optional is a line of the example that holds a default.
var optional = regexp.MustCompile(`(?m)^( *)#([a-z_]+: )`)

// TestExampleIsRead loads example.yaml as it is, and with every optional line uncommented: it holds every key, and the defaults.
func TestExampleIsRead(t *testing.T) {
	b, err := os.ReadFile("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	example := string(b)
	want := Default()
	want.Pipeline, want.Source.URL = "shop", "postgres://walpost@localhost:5432/shop"
	want.Kafka.Brokers, want.Kafka.AggregateTypes = []string{"localhost:9092"}, []string{"order"}
	whole := optional.ReplaceAllString(example, "$1$2")
	for name, text := range map[string]string{"as it is": example, "uncommented": whole} {
		cfg, err := parseOne(text, noEnv)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(cfg.Kafka.Rename) == 0 {
			cfg.Kafka.Rename = nil // {} says the same
		}
		cfg.loaded = nil
		if !reflect.DeepEqual(cfg, want) {
			t.Errorf("%s: read\n%+v, want\n%+v", name, cfg, want)
		}
	}
	if errs := mistakes([]byte(whole)); len(errs) > 0 {
		t.Errorf("uncommented: %v", errs)
	}
	keys, live := 0, 0
	eachKey(reflect.ValueOf(&want).Elem(), nil, func(path []string, _ reflect.Value, tag reflect.StructTag) {
		keys++
		name := strings.Join(path, ".")
		if _, ok := required[name]; ok {
			live++
		}
		if _, ok := required[name]; ok != strings.Contains(tag.Get("doc"), "required") {
			t.Errorf("%s: its doc says that it is required, or the example does, and the other does not", name)
		}
	})
	if lines := len(optional.FindAllString(example, -1)); lines != keys-live || live != len(required) {
		t.Errorf("the example has %d optional lines and %d required keys of %d, there are %d keys", lines, live, len(required), keys)
	}
}
