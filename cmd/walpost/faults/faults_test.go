package faults

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
)

// update writes the results of a run of TestFaults into the table; cells of faults that did not run stay.
var update = flag.Bool("update", false, "TestFaults: write the results into cdc/FAULTS.md")

// newCluster starts three real brokers; see the build tag brokers.
var newCluster = func(*testing.T) func() any { return nil }

const faultsFile = "../../../cdc/FAULTS.md"

// modes has the values of the configuration's delivery.
var modes = []config.Delivery{config.AtLeastOnce, config.ExactlyOnce}

// fault is a line of the table: the fault, the required result, and the test that runs it in one mode.
type fault struct {
	number int
	name   string
	does   string // the fault, and the result for rows, order, duplicates and positions
	run    func(*trial)
	tags   string // build tags that the test needs
	slow   bool   // runs only if it is named, and in the long form
}

func (f *fault) path() string { return fmt.Sprintf("%d_%s", f.number, f.name) }

// quick reports whether -short runs the fault too: a hand-over between relays, an answer that is lost, and a halt.
func (f *fault) quick() bool { return f.number == 4 || f.number == 9 || f.number == 25 }

func (f *fault) command() string {
	if f.tags != "" {
		return fmt.Sprintf("go test -tags %s ./cmd/walpost/faults -run 'TestFaults/%s'", f.tags, f.path())
	}
	return fmt.Sprintf("go test ./cmd/walpost/faults -run 'TestFaults/%s'", f.path())
}

// cell is one result. The table shows green, red or not run, and nothing else.
type cell struct {
	result string
	back   time.Duration // until rows flowed again; 0 if that depends on a person
}

const (
	green  = "green"
	red    = "red"
	notRun = "not run"
)

// TestFaults runs every line of the fault table in both modes.
func TestFaults(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	results := map[string]map[config.Delivery]cell{}
	if *update {
		t.Cleanup(func() {
			table := readTable(t)
			for path, cells := range results {
				if table[path] == nil {
					table[path] = map[config.Delivery]cell{}
				}
				maps.Copy(table[path], cells)
			}
			if err := os.WriteFile(faultsFile, []byte(render(table)), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	built := newBinaries(t)
	// A plain `go test ./...` stays under five minutes: it runs each line that is not slow, in one of the modes.
	asked := flag.Lookup("test.run").Value.String() != ""
	// .ci/versions runs each line in one mode per version, and in both modes over all versions.
	major, _ := strconv.Atoi(os.Getenv("WALPOST_TEST_POSTGRES"))
	one, shift := os.Getenv("WALPOST_TEST_ONE_MODE") != "", major/2%2
	for _, f := range faults {
		if f.run == nil {
			continue // its build tag is not set
		}
		t.Run(f.path(), func(t *testing.T) {
			t.Parallel()
			if !asked && !f.quick() {
				cdctest.Long(t, "it does a few of the faults")
			}
			for i, m := range modes {
				polling := strings.Contains(f.name, "poll") // polling is always at least once
				if polling && m != config.AtLeastOnce || !asked && (!polling && i != f.number%2 || f.slow && !cdctest.LongForm()) {
					continue
				}
				if one && !polling && (i+shift)%2 != f.number%2 {
					continue
				}
				t.Run(string(m), func(t *testing.T) {
					t.Parallel()
					s := &trial{t: t, mode: m, binaries: built, result: green}
					t.Cleanup(func() {
						if t.Failed() {
							s.result = red
						}
						mu.Lock()
						defer mu.Unlock()
						if results[f.path()] == nil {
							results[f.path()] = map[config.Delivery]cell{}
						}
						results[f.path()][m] = cell{s.result, s.recovery}
					})
					f.run(s)
				})
			}
		})
	}
}

// TestFaultTable compares file and tests: the same lines with the same texts and commands, and no red cell.
func TestFaultTable(t *testing.T) {
	if *update { // texts and commands
		if err := os.WriteFile(faultsFile, []byte(render(readTable(t))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(faultsFile)
	if err != nil {
		t.Fatal(err)
	}
	if want := render(readTable(t)); string(text) != want {
		t.Errorf("cdc/FAULTS.md is not what the tests say: go test ./cmd/walpost/faults -run TestFaults -update")
	}
	if strings.Contains(string(text), "| "+red+" |") {
		t.Error("cdc/FAULTS.md has a red cell")
	}
	seen := map[int]bool{}
	for _, f := range faults {
		if seen[f.number] {
			t.Errorf("two faults have the number %d", f.number)
		}
		seen[f.number] = true
	}
}

var tableLine = regexp.MustCompile("^\\| (\\d+) .* \\| (green|red|not run) \\| (green|red|not run) \\| (.*) \\| `.*TestFaults/([^']*)'` \\|$")

// readTable returns the results in the file.
func readTable(t *testing.T) map[string]map[config.Delivery]cell {
	t.Helper()
	text, err := os.ReadFile(faultsFile)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	table := map[string]map[config.Delivery]cell{}
	for line := range strings.Lines(string(text)) {
		m := tableLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		cells := map[config.Delivery]cell{}
		backs := strings.Split(m[4], " / ")
		for i, of := range modes {
			c := cell{result: m[2+i]}
			if i < len(backs) {
				c.back, _ = time.ParseDuration(strings.ReplaceAll(backs[i], " ", ""))
			}
			cells[of] = c
		}
		table[m[5]] = cells
	}
	return table
}

const tableHead = `# The fault table

For the reader who asks what a fault does to the events. Each line is a fault: what happens to rows, order, duplicates and positions, the result
in both modes of ` + "`delivery`" + `, the time until rows flow again, and the command that repeats it. The tests write this page from their
own run, on a real PostgreSQL, and fail while a cell is red.

In both modes every run checks that

- nothing committed is missing in Kafka, nothing else is in Kafka, and payloads are byte for byte the committed ones;
- the first appearances of events follow PostgreSQL's own commit order, per partition and per key;
- at any instant everything at or below ` + "`confirmed_flush_lsn`" + ` is in Kafka;
- with at-least-once, events that come twice are one contiguous run; with exactly-once, a read_committed consumer sees no event twice.

For that, each run compares the topics with a ledger that is written in the events' own transactions, and with the order in which PostgreSQL
decodes the commits. *Back after* is the time from the end of the fault until everything committed by then was delivered and confirmed
(at-least-once / exactly-once). It is – where a person decides.

` + "`go test ./cmd/walpost/faults -run TestFaults -update`" + ` writes all lines, a line's command with ` + "`-update`" + ` writes that line. ` + "`go test ./...`" + `
runs the faults that are not slow, each in one mode; ` + "`.ci/run faults`" + ` runs all.

A fault keeps its number. The first faults of the project end at 46. Faults that were found later begin at 50, those of other kinds of outbox
(partitions, polling) at 70. The numbers between are free.

| fault | at-least-once | exactly-once | back after | command |
|---|---|---|---|---|
`

func render(table map[string]map[config.Delivery]cell) string {
	var b strings.Builder
	b.WriteString(tableHead)
	for _, f := range slices.SortedFunc(slices.Values(faults), func(a, b fault) int { return cmp.Compare(a.number, b.number) }) {
		cells := table[f.path()]
		result := func(m config.Delivery) string { return cmp.Or(cells[m].result, notRun) }
		back := func(m config.Delivery) string {
			if d := cells[m].back; d > 0 {
				return fmt.Sprintf("%.1f s", d.Seconds())
			}
			return "–"
		}
		fmt.Fprintf(&b, "| %d %s | %s | %s | %s / %s | `%s` |\n", f.number, f.does, result(config.AtLeastOnce), result(config.ExactlyOnce), back(config.AtLeastOnce), back(config.ExactlyOnce), f.command())
	}
	return b.String()
}
