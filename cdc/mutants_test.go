package cdc

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutant is a mistake in the engine, and the seed whose history finds it. A seed depends on the engine's timing: when the
// engine changes, WALPOST_MUTANT_SEARCH=1 looks for new ones and prints them.
type mutant struct {
	name string
	file string
	was  string // must occur in the file exactly once
	is   string
	seed uint64
}

var mutants = []mutant{
	{"confirms the start of a commit", "tracker.go", "\treturn t.covers(m.LSN), t.passed(m.LSN)\n}\n\n// covers", "\treturn t.covers(t.tx.Commit), t.passed(m.LSN)\n}\n\n// covers", 1},
	{"drops at covered instead of below", "tracker.go", "return r.Commit >= t.covered, nil", "return r.Commit > t.covered, nil", 1},
	{"drops the whole transaction of the last row", "tracker.go", "if r.Compare(t.last) <= 0 {", "if r.Commit <= t.last.Commit {", 1},
	{"does not count a row that it drops", "tracker.go", "\tif r.Compare(t.last) <= 0 {\n", "\tif r.Compare(t.last) <= 0 {\n\t\tt.tx.Ordinal--\n", 1},
	{"takes another history for its own", "tracker.go", "awaited: st.Ordinal > 0 && confirmed <= st.CommitLSN,", "awaited: false && confirmed <= st.CommitLSN,", 251},
	{"confirms a keepalive with rows in flight", "reader.go", "\t\t\t\tif w.covered, err = r.tracker.keepalive(m); err != nil {\n", "\t\t\t\tr.shared.confirmed.Store(uint64(m.LSN))\n\t\t\t\tif w.covered, err = r.tracker.keepalive(m); err != nil {\n", 1},
	{"confirms before the flush", "publisher.go", "\tstall := time.AfterFunc(", "\tif st != nil {\n\t\tp.shared.confirmed.Store(uint64(st.Covered))\n\t}\n\tstall := time.AfterFunc(", 1},
	{"confirms what no state record covers", "publisher.go", "\tif !once {\n\t\tp.checkpointer.done(rows, covered, time.Now())\n", "\tif !once {\n\t\tp.checkpointer.done(rows, covered, time.Now())\n\t\tp.shared.confirmed.Store(uint64(p.checkpointer.next.Covered))\n", 1},
	{"writes down a window before it is durable", "publisher.go", "\tif once { // the record", "\tif true { // the record", 110},
	{"leaves the state record out of the transaction", "publisher.go", "due || records == nil || p.cfg.ExactlyOnce {", "due || records == nil {", 10},
	{"goes on after a failed window", "publisher.go", "\t\t\tp.shrink()\n\t\t\treturn err\n", "\t\t\tp.shrink()\n\t\t\treturn nil\n", 1},
	{"forgets a dead letter", "poison.go", "\trec.Row, rec.Rejected = row, rejected\n", "\trec.Row, rec.Rejected = row, rejected\n\trec.Topic = \"\"\n", 1},
	{"stops without writing down what it did", "publisher.go", "if due || (draining && p.checkpointer.moved()) {", "if due {", 10},
	{"lets covered go back", "checkpointer.go", "c.next.Covered = max(c.next.Covered, covered)", "c.next.Covered = covered", 2},
	{"fences before it owns the slot", "session.go", "\tif err := s.stream.Start(ctx); err != nil {", "\tif p, err := r.sink.Open(ctx); err == nil {\n\t\tp.Close()\n\t}\n\tif err := s.stream.Start(ctx); err != nil {", 1},
	{"reads the state before it fences", "session.go", "\tif s.client, err = r.sink.Open(ctx); err != nil {\n\t\treturn nil, err\n\t}\n\tif err := failpoint.Hit(\"after_open\"); err != nil {\n\t\treturn nil, err\n\t}\n\t// 5. The state record, never before 4.\n\tst, err := s.client.State(ctx)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n", "\t// 5. The state record, never before 4.\n\tst, err := r.sink.Peek(ctx)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n\tif s.client, err = r.sink.Open(ctx); err != nil {\n\t\treturn nil, err\n\t}\n\tif err := failpoint.Hit(\"after_open\"); err != nil {\n\t\treturn nil, err\n\t}\n", 2055},
	{"reads what it compares before the state", "session.go", "\t// 5. The state record, never before 4.\n\tst, err := s.client.State(ctx)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n\t// 6. Everything compared with it is read now, after it.\n\tif s.facts, err = r.facts(ctx, s.id); err != nil {\n\t\treturn nil, err\n\t}\n", "\tif s.facts, err = r.facts(ctx, s.id); err != nil {\n\t\treturn nil, err\n\t}\n\t// 5. The state record, never before 4.\n\tst, err := s.client.State(ctx)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n", 1693},
	{"reconciles with a slot it has lost", "session.go", "s.facts.Slot.Exists && s.facts.Slot.ActivePID != s.id.PID", "false && s.facts.Slot.ActivePID != s.id.PID", 5420},
	{"writes under another session's epoch", "session.go", "= st.Epoch+1, r.instance", "= max(st.Epoch, 1), r.instance", 1},
	{"does not look at the timeline", "reconcile.go", "\tif end, _ := f.branch(st.Timeline); st.Timeline != f.Timeline {\n\t\tnext.failover(f.Timeline, end)\n\t}\n", "\tnext.Timeline = f.Timeline\n", 2},
	{"filters above the end of a timeline", "reconcile.go", "\tif s.CommitLSN >= end {\n\t\ts.CommitLSN, s.Ordinal, s.LastXID = 0, 0, 0\n", "\tif false {\n\t\ts.CommitLSN, s.Ordinal, s.LastXID = 0, 0, 0\n", 2},
	{"ignores a slot ahead of the state", "reconcile.go", "if slot.ConfirmedFlush > next.Covered {", "if false {", 9},
	{"ignores a state ahead of the server", "reconcile.go", "\tcase shared(st, f) > f.WALEnd:", "\tcase false:", 39},
	{"ignores what happened to the publication", "reconcile.go", "if !same(st.Fingerprint, f.Fingerprint) && !unknown(st, f) {", "if false {", 36},
}

// adapterMutants are mistakes in the adapter, which the simulated Kafka replaces in the engine's histories. The test
// that finds each one uses the real protocol.
var adapterMutants = []struct {
	mutant
	test string
}{
	{mutant{"calls a window durable when its promises are resolved, however", "kafka/publisher.go", "	if p.err != nil {", "	if p.err != nil && p.promised < expected {", 0}, "TestEveryPromiseIsChecked"},
	{mutant{"commits what is left of a window", "kafka/publisher.go", "_ = p.client.EndTransaction(ctx, kgo.TryAbort)", "_ = p.client.EndTransaction(ctx, kgo.TryCommit)", 0}, "TestWindowThatFailsInPartIsAborted"},
	{mutant{"does not fence", "kafka/publisher.go", "producer, _, err := p.client.ProducerID(ctx)", "producer, err := int64(1), ctx.Err()", 0}, "TestFrozenRelayIsFenced"},
}

// TestMutants builds the engine with each mistake in it, and runs the history that finds it. If a mutant survives, no
// test checks the promise that it breaks.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: it builds the engine with each mistake")
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			search := os.Getenv("WALPOST_MUTANT_SEARCH") != ""
			// nearly always the first finds it: if two goroutines are ready, the scheduler decides which runs first
			seeds := 5_000
			if search {
				m.seed, seeds = 1, 20_000
			}
			said, killed := m.run(t, ".", "TestSimulation", seeds)
			switch {
			case !killed:
				t.Errorf("survived %d histories in each mode", seeds)
			case search:
				_, seed, _ := strings.Cut(said, "WALPOST_SIM_SEED=")
				seed, _, _ = strings.Cut(seed, ",")
				t.Logf("seed %s", seed)
			case !strings.Contains(said, "violate"):
				t.Errorf("red, but not by a violation:\n%s", said)
			}
		})
	}
}

func TestAdapterMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: it builds the adapter with each mistake")
	}
	for _, m := range adapterMutants {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if said, killed := m.run(t, "./"+filepath.Dir(m.file), m.test, 0); !killed || !strings.Contains(said, "--- FAIL: "+m.test) {
				t.Errorf("survived %s:\n%s", m.test, said)
			}
		})
	}
}

// run builds and runs a test over the mutated file.
func (m *mutant) run(t *testing.T, pkg, test string, seeds int) (said string, killed bool) {
	t.Helper()
	source, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), m.was); n != 1 {
		t.Fatalf("%s holds %d times %q: the engine has changed, change the mutant with it", m.file, n, m.was)
	}
	dir := t.TempDir()
	mutated := filepath.Join(dir, filepath.Base(m.file))
	original, err := filepath.Abs(m.file)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{mutated: []byte(strings.Replace(string(source), m.was, m.is, 1)), filepath.Join(dir, "overlay.json"): overlay} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", filepath.Join(dir, "overlay.json"), "-vet=off", "-ldflags=-s -w", "-count=1", "-run", "^"+test+"$", pkg)
	cmd.Env = append(os.Environ(), fmt.Sprintf("WALPOST_SIM_SEED=%d", m.seed), fmt.Sprintf("WALPOST_SIM_SEEDS=%d", seeds), "WALPOST_MUTANT_SEARCH=")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "[build failed]") {
		t.Fatalf("does not build:\n%s", out)
	}
	return string(out), err != nil
}
