package main

import (
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
)

// TestWrongNameIsNeverLatched starts a relay once with a wrong name of each kind. It halts, publishes nothing and
// changes nothing, and the right configuration goes on by itself. So it is with every command.
func TestWrongNameIsNeverLatched(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.Exec("CREATE PUBLICATION other FOR TABLE outbox")
	s.Exec("CREATE TABLE outbox2 (LIKE outbox INCLUDING ALL)")
	for name, c := range map[string]struct {
		env  map[string]string
		says string
	}{
		"publication that does not exist": {map[string]string{"WALPOST_SOURCE_PUBLICATION": "walpots"}, `source.publication is "walpots", it was "walpost"`},
		"publication of something else":   {map[string]string{"WALPOST_SOURCE_PUBLICATION": "other"}, `source.publication is "other", it was "walpost"`},
		"table that does not exist":       {map[string]string{"WALPOST_SOURCE_TABLE": "public.outbux"}, `source.table is "public.outbux", it was "public.outbox"`},
		"table that is another":           {map[string]string{"WALPOST_SOURCE_TABLE": "public.outbox2"}, `source.table is "public.outbox2", it was "public.outbox"`},
		"two names":                       {map[string]string{"WALPOST_SOURCE_PUBLICATION": "x", "WALPOST_SOURCE_TABLE": "public.x"}, `source.publication is "x", it was "walpost", source.table is "public.x"`},
		"slot":                            {map[string]string{"WALPOST_SOURCE_SLOT": "walpots"}, `configured for slot "walpots"`},
		"column":                          {map[string]string{"WALPOST_SOURCE_COLUMNS_PAYLOAD": "boddy"}, `the table has no column "boddy"`},
	} {
		before := s.positions()
		was := map[string]string{}
		for key, value := range c.env {
			was[key] = s.Env[key]
			s.Env[key] = value
		}
		r := s.StartRelay()
		r.WaitForLog(20*time.Second, `"halted"`)
		if log := strings.ReplaceAll(r.Log.String(), `\"`, `"`); !strings.Contains(log, c.says) {
			t.Errorf("%s: the halt does not say %q: %s", name, c.says, log)
		}
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		if out := s.Status(); !strings.Contains(out, c.says) {
			t.Errorf("%s: status does not say %q:\n%s", name, c.says, out)
		}
		for _, args := range [][]string{{"init"}, {"init", "--remove", "--yes"}, {"skip", "--to", "0/1"}} {
			if name == "column" && args[0] == "init" && len(args) > 1 {
				continue // a pipeline can be taken away, with any columns
			}
			if out, err := s.Run(args...); err == nil {
				t.Errorf("%s: walpost %s went through:\n%s", name, strings.Join(args, " "), out)
			}
		}
		for key, value := range was {
			s.Env[key] = value
		}
		if after := s.positions(); after != before {
			t.Errorf("%s: changed\n%s\nto\n%s", name, before, after)
		}
	}
	if n := s.Query("SELECT string_agg(pubname, ' ' ORDER BY pubname) FROM pg_publication"); n != "other walpost" {
		t.Errorf("publications: %s", n)
	}
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	if out := s.Status(); !strings.Contains(out, "by nothing") {
		t.Errorf("status:\n%s", out)
	}
}

// TestChangedNameIsAdopted goes over to another publication on purpose, and then has a halt that was latched under the
// earlier name.
func TestChangedNameIsAdopted(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.Exec("ALTER PUBLICATION walpost RENAME TO orders")
	s.Env["WALPOST_SOURCE_PUBLICATION"] = "orders"
	if out := s.DryRun("adopt"); !strings.Contains(out, `source.publication is "orders", it was "walpost"`) {
		t.Errorf("adopt:\n%s", out)
	}
	s.MustRun("adopt")
	r := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	s.Exec("ALTER PUBLICATION orders SET (publish = 'update')")
	s.Env["WALPOST_SOURCE_CHECK_INTERVAL"] = "100ms"
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	r = s.StartRelay()
	r.WaitForLog(20*time.Second, "does not publish inserts")
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Exec("CREATE PUBLICATION later FOR TABLE outbox WITH (publish = 'insert')")
	s.Env["WALPOST_SOURCE_PUBLICATION"] = "later"
	for _, text := range []string{`source.publication is "later", it was "orders"`, "a halt was latched at", "orders does not publish inserts"} {
		if out := s.Status(); !strings.Contains(out, text) {
			t.Errorf("status does not say %q:\n%s", text, out)
		}
	}
	s.MustRun("adopt")
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
}

// TestRecordWithoutNamesTakesThemOver has the record of an older walpost, which did not write down what was configured.
func TestRecordWithoutNamesTakesThemOver(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.RewriteStateRecord(func(st *cdc.State) { st.Configured = cdc.Configured{} })
	r := s.StartRelay()
	s.WaitForEvent(s.InsertRow())
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := s.StateRecord().Configured; got != (cdc.Configured{Publication: "walpost", Table: "public.outbox"}) {
		t.Errorf("the record names %+v", got)
	}
}

// TestOlderRecordLatchesNothingThatItDoesNotKnow: an older walpost wrote down neither names nor detours. A wrong name
// at the first start behind it, or a trigger that was always there, halts the relay, and the halt ends with its cause.
func TestOlderRecordLatchesNothingThatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := delivered(t)
	s.RewriteStateRecord(func(st *cdc.State) { st.Configured = cdc.Configured{} })
	halts := func(says string) {
		t.Helper()
		r := s.StartRelay()
		if sentence := haltSentence(r); !strings.Contains(sentence, says) {
			t.Errorf("the halt does not say %q: %s", says, sentence)
		}
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		if halt := s.StateRecord().Halt; halt != nil {
			t.Errorf("it is written down: %+v", halt)
		}
	}
	s.Env["WALPOST_SOURCE_PUBLICATION"] = "walpots"
	halts("walpots does not exist")
	s.Env["WALPOST_SOURCE_PUBLICATION"] = "walpost"
	s.Exec(`CREATE TABLE away (LIKE outbox); CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO away VALUES (NEW.*); RETURN NULL; END $$;
		CREATE TRIGGER away BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION away()`)
	halts("sends rows to another table")
	s.Exec("DROP TRIGGER away ON outbox")
	s.StartRelay()
	s.WaitForEvent(s.InsertRow())
}

// TestStrayVariables: a variable that is nearly ours ends each command, and others are told: by the relay in its log, in JSON.
func TestStrayVariables(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"WALPOST_PIPELINE": "orders", "WALPOST_SOURCE_URL": "postgres://u@h/d?sslmode=disable", "WALPOST_KAFKA_BROKERS": "h:1", "WALPOST_KAFKA_AGGREGATE_TYPES": "order",
		"WALPOST_HTTP": "nowhere", "LOG_FORMAT": "json", "LOG_LEVEL": "info",
	}
	said := func(stray, command string) string {
		t.Helper()
		var out strings.Builder
		environ := []string{stray + "=x", "WALPOST_EMPTY="}
		for name, value := range env {
			environ = append(environ, name+"="+value)
		}
		err := runAmong(environ)(t.Context(), []string{command}, func(name string) string { return env[name] }, &out, &out)
		return out.String() + "\n" + err.Error() // neither command can go on
	}
	for _, command := range []string{"init", "relay", "adopt"} {
		if got := said("WALPOST_KAFKA_BROKER", command); !strings.Contains(got, "environment WALPOST_KAFKA_BROKER: there is no such variable: did you mean WALPOST_KAFKA_BROKERS?") {
			t.Errorf("%s: %s", command, got)
		}
	}
	if got := said("WALPOST_COLOUR", "init"); strings.Count(got, "walpost: warning: nothing reads WALPOST_COLOUR: ") != 1 || strings.Contains(got, "did you mean") {
		t.Errorf("init: %s", got)
	}
	if got := said("WALPOST_COLOUR", "relay"); !strings.Contains(got, `"level":"warn"`) || !strings.Contains(got, `"message":"nothing reads WALPOST_COLOUR: `) {
		t.Errorf("relay: %s", got)
	}
}
