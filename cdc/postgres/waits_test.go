package postgres

import (
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
)

// TestCommitsThatWaitForTheRelay: every form of synchronous_standby_names, with different connected standbys.
func TestCommitsThatWaitForTheRelay(t *testing.T) {
	t.Parallel()
	a, b, logical := sender{PID: 2, Name: "a"}, sender{PID: 3, Name: "b"}, sender{PID: 4, Name: "debezium", Logical: true}
	for _, c := range []struct {
		setting string
		others  []sender
		sync    string
		waits   string // no, can, surely
		without string
	}{
		{"", nil, "", "no", ""},
		{"a", nil, "", "no", ""},
		{"walpost", nil, "", "no", ""},
		{"*", nil, "", "surely", ""},
		{"*", nil, "sync", "surely", ""},
		{"*", nil, "async", "no", ""}, // another role's walsender: the role may see it
		{"*", []sender{a}, "", "can", `FIRST 1 ("a")`},
		{"*", []sender{a}, "sync", "surely", `FIRST 1 ("a")`},
		{"*", []sender{a}, "potential", "can", `FIRST 1 ("a")`},
		{"*", []sender{logical}, "", "can", ""},
		{`"WALPOST orders"`, []sender{a}, "", "surely", `FIRST 1 ("a")`},
		{`a, "walpost orders"`, nil, "", "surely", ""},
		{`a, "walpost orders"`, []sender{a}, "", "can", `FIRST 1 ("a")`},
		{`"walpost orders", a`, []sender{a}, "", "surely", `FIRST 1 ("a")`},
		{`2 (a, "walpost orders", b)`, []sender{a, b}, "", "surely", `FIRST 2 ("a", "b")`},
		{`FIRST 2 (a, b, *)`, []sender{a, b}, "", "can", `FIRST 2 ("a", "b")`},
		{`first 2(a,b,*)`, []sender{a}, "", "surely", `FIRST 1 ("a", "b")`},
		{`ANY 1 (*)`, nil, "", "surely", ""},
		{`ANY 1 (*)`, []sender{a}, "", "can", `ANY 1 ("a")`},
		{`any 2 (*)`, []sender{a}, "quorum", "surely", `ANY 1 ("a")`},
		{`ANY 2 (*)`, []sender{a, b}, "", "can", `ANY 2 ("a", "b")`},
		{`ANY 1 ("walpost orders", a)`, []sender{a}, "", "can", `ANY 1 ("a")`},
		{`ANY 1 (a, b)`, []sender{a}, "", "no", ""},
		{`"any", "*"`, nil, "", "surely", ""}, // to PostgreSQL a quoted star is a star too
		{`"a""b", " walpost orders"`, nil, "", "no", ""},
	} {
		got, without := "no", ""
		if w := commitWait(c.setting, sender{PID: 1, Name: "walpost orders", Sync: c.sync, Logical: true}, c.others); w != nil {
			got, without = map[bool]string{true: "surely", false: "can"}[w.Surely], w.Without
			if c.others != nil && strings.Contains(w.Error(), "''") != (without == "") {
				t.Errorf("%s: %s", c.setting, w)
			}
		}
		if got != c.waits || without != c.without {
			t.Errorf("%q beside %v (%s): %s, ended by %q; want %s, %q", c.setting, c.others, c.sync, got, without, c.waits, c.without)
		}
	}
}

// TestStandbySlotsThatAreWaitedFor: each slot is named with its problem, and the setting without these slots is
// right.
func TestStandbySlotsThatAreWaitedFor(t *testing.T) {
	t.Parallel()
	f := cdc.Facts{Standbys: standbySlots(`good, SB1 ,"missing",old,mine, behind`, []standbySlot{
		{Name: "good", Type: "physical", Active: true, Restart: "0/200"},
		{Name: "behind", Type: "physical", Active: true, Restart: "0/100"},
		{Name: "sb1", Type: "physical", Restart: "0/100"},
		{Name: "old", Type: "physical", WALStatus: "lost"},
		{Name: "mine", Type: "logical", Active: true},
	})}
	for _, text := range []string{
		`"sb1": it is inactive`, `"missing": there is no such slot`, `"old": it was invalidated`, `"mine": it is a logical slot`, "synchronized_standby_slots = 'good, behind'",
	} {
		if said := f.StandbysAway(); !strings.Contains(said, text) {
			t.Errorf("%q is not in: %s", text, said)
		}
	}
	if said := f.StandbysBehind(0x150); !strings.Contains(said, `"behind": its standby has received the WAL up to 0/100 only`) || !strings.Contains(said, "= 'good'") {
		t.Error(said)
	}
	if f.Standbys = f.Standbys[:1]; f.StandbysAway()+f.StandbysBehind(0x200) != "" {
		t.Error("a standby that is there keeps rows back")
	}
	if got := standbySlots("", nil); got != nil {
		t.Error(got)
	}
}
