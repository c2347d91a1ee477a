package main

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/console"
	"github.com/walpost/walpost/cdc/postgres"
)

var update = flag.Bool("update", false, "write the generated parts of README.md")

// TestReadmeIsGeneratedFromTheCode keeps the references in the README in step: go test ./cmd/walpost -run Readme -update
func TestReadmeIsGeneratedFromTheCode(t *testing.T) {
	const path = "../../README.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for name, want := range map[string]string{"configuration": cdc.ConfigReference(), "metrics": console.MetricsReference()} {
		before, rest, ok := strings.Cut(text, "<!-- generated: "+name+" -->\n")
		have, after, end := strings.Cut(rest, "<!-- end -->")
		if !ok || !end {
			t.Fatalf("README.md has no part for %s", name)
		}
		if have != want && !*update {
			t.Errorf("the %s reference in README.md is not the code's: run this test with -update", name)
		}
		text = before + "<!-- generated: " + name + " -->\n" + want + "<!-- end -->" + after
	}
	if ddl := strings.ReplaceAll(postgres.TableDDL(cdc.DefaultConfig().Source), `"`, ""); !strings.Contains(text, strings.Replace(ddl, "public.outbox", "outbox", 1)) {
		t.Errorf("the table in README.md is not the one that init makes:\n%s", ddl)
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
