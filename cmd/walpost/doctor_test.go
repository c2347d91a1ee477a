package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// TestDoctorPrintsItsFindingsInGroups: PostgreSQL, Kafka, and what lies between; means and run have a line each.
func TestDoctorPrintsItsFindingsInGroups(t *testing.T) {
	var out strings.Builder
	examination(&out, pipeline.Examination{Pipeline: "orders", Severity: cdc.Problem, Findings: []cdc.Finding{
		{Side: cdc.Between, Severity: cdc.Problem, Check: "slot_lost", Found: "the slot is lost", Means: "rows are missing", Run: "`walpost adopt`"},
		{Side: cdc.InKafka, Severity: cdc.Unknown, Check: "connection", Found: "none of k:9092 answers", Means: "rows wait", Run: "start Kafka"},
		{Side: cdc.InPostgreSQL, Severity: cdc.OK, Check: "wal_level", Found: "wal_level is logical"},
	}})
	want := `pipeline   orders

PostgreSQL
ok         wal_level: wal_level is logical

Kafka
unknown    connection: none of k:9092 answers
  means    rows wait
  run      start Kafka

between the two
problem    slot_lost: the slot is lost
  means    rows are missing
  run      ` + "`walpost adopt`" + `

found      1 problem, 0 warnings, 1 unknown, 0 notes, 1 ok
`
	if out.String() != want {
		t.Errorf("walpost doctor prints\n%s\nwant\n%s", &out, want)
	}
}

// TestDoctorsExitCode: the worst finding of all pipelines decides.
func TestDoctorsExitCode(t *testing.T) {
	for _, c := range []struct {
		severities []cdc.Severity
		want       app.ExitError
	}{
		{[]cdc.Severity{cdc.OK}, 0},
		{[]cdc.Severity{cdc.OK, cdc.Note}, 0},
		{[]cdc.Severity{cdc.Note, cdc.Warning}, 2},
		{[]cdc.Severity{cdc.Unknown, cdc.OK}, 2},
		{[]cdc.Severity{cdc.Unknown, cdc.Problem, cdc.OK}, 1},
	} {
		var all pipeline.Examinations
		for _, s := range c.severities {
			all = append(all, pipeline.Examination{Severity: s})
		}
		var code app.ExitError
		if err := diagnosis(all); err != nil && !errors.As(err, &code) || code != c.want {
			t.Errorf("%v: exit code %d, want %d", c.severities, code, c.want)
		}
	}
}

// TestDoctorOfSeveralPipelines: none of both servers answers. Each pipeline has its own list, with commands that name it; JSON is a list.
func TestDoctorOfSeveralPipelines(t *testing.T) {
	file := writeConfig(t, `{source: {url: "postgres://u@127.0.0.1:1/d"}, kafka: {brokers: ["127.0.0.1:1"], aggregate_types: [a]},
		pipelines: [{pipeline: a}, {pipeline: b, source: {slot: b}, kafka: {topic: "b.{aggregate_type}"}}]}`)
	doctor := func(args ...string) (string, error) {
		var out, warned strings.Builder
		err := run(t.Context(), append([]string{"-c", file, "doctor"}, args...), func(string) string { return "" }, &out, &warned)
		return out.String(), err
	}
	said, err := doctor()
	if !errors.Is(err, app.ExitError(2)) || strings.Count(said, "unknown    connection: ") != 4 || !strings.HasPrefix(said, "pipeline   a\n") || !strings.Contains(said, "\n\npipeline   b\n") {
		t.Errorf("%v:\n%s", err, said)
	}
	var all []pipeline.Examination
	if said, err = doctor("--json"); !errors.Is(err, app.ExitError(2)) || json.Unmarshal([]byte(said), &all) != nil || len(all) != 2 || all[1].Pipeline != "b" || all[1].Severity != cdc.Unknown {
		t.Errorf("%v:\n%s", err, said)
	}
	var one pipeline.Examination
	if said, err = doctor("--json", "-p", "b"); !errors.Is(err, app.ExitError(2)) || json.Unmarshal([]byte(said), &one) != nil || len(one.Findings) < 2 || one.Findings[0].Check != "connection" {
		t.Errorf("%v:\n%s", err, said)
	}
	file = writeConfig(t, `{sauce: {}}`)
	if said, err = doctor(); err == nil || said != "" || !strings.Contains(err.Error(), "sauce") {
		t.Errorf("a wrong key: %v:\n%s", err, said)
	}
}

// writeConfig writes a configuration file, and returns its name.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "walpost.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
