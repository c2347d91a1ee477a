package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// everywhere is what must be said of a pipeline in one state, wherever it is asked.
type everywhere struct {
	role  cdc.Role         // walpost_role and /status; "" where no relay runs
	ready bool             // /readyz
	live  pipeline.Verdict // /status
	asked pipeline.Verdict // `walpost status`, by its exit code too
	says  string           // in log, /readyz, /status and `walpost status`, where they say anything
}

// TestEverywhereTheSame brings pipelines into each state and asks log, /readyz, /status, `walpost status` and metrics.
func TestEverywhereTheSame(t *testing.T) {
	t.Parallel()
	flows, needs, cannot := pipeline.Flows, pipeline.NeedsSomeone, pipeline.CannotTell
	kafkaProxy := cdctest.StartKafkaProxy(t, cdctest.Kafka(t), nil)
	streaming := func(s *testbed) *e2e.Relay {
		s.MustRun("init")
		r := s.StartRelay()
		r.WaitForLog(30*time.Second, `"streaming"`)
		return r
	}
	stopped := func(s *testbed) {
		if err := streaming(s).Stop(); err != nil {
			s.T.Error(err)
		}
	}
	for name, c := range map[string]struct {
		polled bool
		proxy  *cdctest.Proxy // to Kafka
		bring  func(s *testbed) *e2e.Relay
		want   everywhere
	}{
		"streaming": {bring: streaming, want: everywhere{cdc.Streaming, true, flows, flows, ""}},
		"standing by": {bring: func(s *testbed) *e2e.Relay {
			streaming(s)
			return s.StartRelay()
		}, want: everywhere{cdc.Standby, true, flows, flows, ""}},
		"no relay": {bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			return nil
		}, want: everywhere{asked: needs, says: "no relay streams from the slot: start `walpost relay`"}},
		"a topic is missing": {bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			s.deleteTopic(s.Topic)
			return s.StartRelay()
		}, want: everywhere{cdc.Halted, false, needs, needs, "topic " + "%s" + " does not exist"}},
		"a row that cannot be published": {bring: func(s *testbed) *e2e.Relay {
			r := streaming(s)
			s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', 'k', 'x', '{}')`)
			return r
		}, want: everywhere{cdc.Halted, false, needs, needs, "its aggregate type \"invoice\" is not in kafka.aggregate_types"}},
		"the publication is changed": {bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			s.Exec("ALTER PUBLICATION walpost SET (publish = 'update')")
			return s.StartRelay()
		}, want: everywhere{cdc.Halted, false, needs, needs, "does not publish inserts"}},
		"the slot is gone": {bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			s.Exec("SELECT pg_drop_replication_slot($1)", s.Slot())
			return s.StartRelay()
		}, want: everywhere{cdc.Halted, false, needs, needs, "walpost adopt --create-slot"}},
		"PostgreSQL cannot be asked": {bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			s.Env["WALPOST_SOURCE_URL"] = "postgres://walpost@127.0.0.1:1/nothing"
			return s.StartRelay()
		}, want: everywhere{cdc.Retrying, false, cannot, cannot, "127.0.0.1:1"}},
		"Kafka does not answer, and rows wait": {proxy: kafkaProxy, bring: func(s *testbed) *e2e.Relay {
			r := streaming(s)
			kafkaProxy.Set(cdctest.Wire{Stalled: true}, cdctest.Wire{Stalled: true})
			s.InsertRows(3)
			return r
		}, want: everywhere{cdc.Streaming, false, needs, needs, ""}},
		"a dead letter": {bring: func(s *testbed) *e2e.Relay {
			s.Env["WALPOST_POISON_POLICY"] = "dead_letter"
			r := streaming(s)
			s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', 'k', 'x', '{}')`)
			r.WaitForMetric("walpost_dead_letters_unresolved", "1")
			return r
		}, want: everywhere{cdc.Streaming, true, needs, needs, ""}},
		"polled": {polled: true, bring: streaming, want: everywhere{cdc.Streaming, true, flows, flows, ""}},
		"polled, no relay, nothing waits": {polled: true, bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			return nil
		}, want: everywhere{asked: flows}},
		"polled, no relay, rows wait": {polled: true, bring: func(s *testbed) *e2e.Relay {
			stopped(s)
			s.InsertRows(3)
			return nil
		}, want: everywhere{asked: needs, says: "3 rows wait and no relay polls public.outbox"}},
		"polled, a failed row": {polled: true, bring: func(s *testbed) *e2e.Relay {
			s.Env["WALPOST_SOURCE_POLLING_ATTEMPTS"] = "1"
			r := streaming(s)
			s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'invoice', 'k', 'x', '{}')`)
			r.WaitForMetric("walpost_failed_rows", "1")
			return r
		}, want: everywhere{cdc.Streaming, true, needs, needs, "1 rows have failed"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestbed(t)
			switch {
			case c.polled:
				s = newPolledTestbed(t)
			case c.proxy != nil:
				s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(c.proxy.Brokers(), ",")
			}
			want := c.want
			if strings.Contains(want.says, "%s") {
				want.says = fmt.Sprintf(want.says, s.Topic)
			}
			r := c.bring(s)
			cdctest.Eventually(t, 80*time.Second, func() error { return agrees(s, r, want) })
		})
	}
}

// agrees returns nil where everybody says what is wanted.
func agrees(s *testbed, r *e2e.Relay, want everywhere) error {
	var problems []error
	wrong := func(where, what string) { problems = append(problems, fmt.Errorf("%s: %s", where, what)) }
	out, err := s.Run("status", "--json")
	var st pipeline.Status
	if jsonErr := json.Unmarshal([]byte(out), &st); jsonErr != nil {
		return fmt.Errorf("walpost status --json: %w: %s, %w", jsonErr, out, err)
	}
	code := app.ExitCode(0)
	errors.As(err, &code)
	exits := map[pipeline.Verdict]app.ExitCode{pipeline.Flows: 0, pipeline.NeedsSomeone: 1, pipeline.CannotTell: 2}
	if st.Verdict != want.asked || code != exits[want.asked] || !strings.Contains(strings.Join(st.Blocked, " "), want.says) {
		wrong("walpost status", fmt.Sprintf("exit code %d, %s", code, out))
	}
	if r == nil {
		return errors.Join(problems...)
	}
	for _, path := range []string{"/readyz", "/status", "/metrics"} {
		said, err := r.Ask(path)
		if err != nil {
			return err
		}
		right := strings.HasPrefix(said, "200")
		switch path {
		case "/readyz":
			right = right == want.ready && (want.ready || strings.Contains(said, want.says))
		case "/status":
			var st pipeline.Status
			_, body, _ := strings.Cut(said, " ")
			err := json.Unmarshal([]byte(body), &st)
			right = right && err == nil && st.Role == want.role && st.Verdict == want.live && strings.Contains(strings.Join(st.Blocked, " "), want.says)
		default:
			right = strings.Contains(said, fmt.Sprintf(`walpost_role{pipeline="%s",role="%s"} 1`, s.Name, want.role))
			said = ""
		}
		if !right {
			wrong(path, said)
		}
	}
	if log := strings.ReplaceAll(r.Log.String(), `\"`, `"`); !want.ready && !strings.Contains(log, want.says) {
		wrong("log", log)
	}
	return errors.Join(problems...)
}
