package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/sql"
)

// TestMain is also the walpost process that tests start and kill.
func TestMain(m *testing.M) {
	if os.Getenv("WALPOST_TEST_KFAKE") != "" {
		kfakeMain()
	}
	if os.Getenv("WALPOST_TEST_MAIN") != "" {
		app.Main(run)
	}
	setMemoryLimit = func(int64) int64 { return 0 }
	cdctest.Main(m)
}

// program runs commands in the test's process. What must be killed is the test's own binary.
var program = e2e.Program{Main: run, Path: os.Args[0], Vars: []string{"WALPOST_TEST_MAIN=1"}}

// testbed is an end-to-end pipeline, with what only the tests of the command need.
type testbed struct{ *e2e.Pipeline }

const endToEnd = "an end-to-end test"

// newTestbed returns a testbed for a test that -short leaves out; newStory returns one for the few tests that it runs.
func newTestbed(t testing.TB) *testbed {
	t.Helper()
	cdctest.Long(t, endToEnd)
	return newStory(t)
}

func newStory(t testing.TB) *testbed {
	t.Helper()
	return &testbed{e2e.New(t, program)}
}

func newTestbedOn(t testing.TB, admin string, brokers []string) *testbed {
	t.Helper()
	cdctest.Long(t, endToEnd)
	return &testbed{e2e.NewOn(t, program, admin, brokers)}
}

func newTestbedOnOwnServer(t testing.TB) (*testbed, *devenv.Postgres) {
	t.Helper()
	cdctest.Long(t, endToEnd)
	p, server := e2e.NewOnOwnServer(t, program)
	return &testbed{p}, server
}

func newPolledTestbed(t testing.TB) *testbed {
	t.Helper()
	cdctest.Long(t, endToEnd)
	return newPolledStory(t)
}

func newPolledStory(t testing.TB) *testbed {
	t.Helper()
	return &testbed{e2e.NewPolled(t, program)}
}

func newPoisonTestbed(t testing.TB, policy string) *testbed {
	t.Helper()
	cdctest.Long(t, endToEnd)
	return &testbed{e2e.NewForPoison(t, program, policy)}
}

// migrateOrders makes the orders database.
func (s *testbed) migrateOrders() {
	s.T.Helper()
	if err := sql.Migrate(s.T.Context(), sql.Orders, s.AdminURL, s.URLFor("orders_"+strings.ReplaceAll(s.Name, "-", "_"), cdctest.Canary), io.Discard); err != nil {
		s.T.Fatal(err)
	}
}

// contains returns nil when the text holds the other, and otherwise an error for Eventually.
func contains(text, other string) error {
	if !strings.Contains(text, other) {
		return fmt.Errorf("it does not say %q: %s", other, text)
	}
	return nil
}
