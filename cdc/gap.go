package cdc

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Missing describes the rows that an operator's decision left behind, by the times at which they were created.
type Missing struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	Run  string    `json:"run"` // the commands that publish those rows that are still in the table
}

// Gap is a range of commits whose rows may be missing in Kafka since a decision, because no later replay was complete
// for the time in which they were created.
type Gap struct {
	Range Range     `json:"range"`
	Since time.Time `json:"since"` // the time of the decision
	Run   string    `json:"run"`   // the commands that publish those rows that are still in the table
}

// LeftBehind returns the description of the rows that may be missing after a decision. open are the transactions whose
// rows can be replayed only after their end: the time range then ends a second later, so that only a replay which was
// run for these rows covers it.
func LeftBehind(st *State, f *Facts, open []Transaction) *Missing {
	m := &Missing{From: st.oldest(lastSeen(st).Add(-time.Minute)).UTC().Truncate(time.Second), To: f.Time.UTC().Add(time.Second).Truncate(time.Second), Run: replay(st, f)}
	if len(open) > 0 {
		var who []string
		for _, t := range open {
			who = append(who, t.String())
		}
		m.To = m.To.Add(time.Second)
		m.Run = fmt.Sprintf("%s, after the end of %s", ReplayUntilNow(st, f), strings.Join(who, " and "))
	}
	return m
}

// Gaps returns the gaps that decisions left and no later replay covered, the oldest first. The decisions are in the
// order in which they were taken.
func Gaps(decisions []Decision) (gaps []Gap) {
	for i, d := range decisions {
		if d.Missing == nil || covered(d.Missing, decisions[i+1:]) {
			continue
		}
		g := Gap{Since: d.Time, Run: d.Missing.Run}
		if cmp.Or(g.Range.From.Scan(d.From), g.Range.To.Scan(d.To)) != nil {
			g.Range = Range{} // another program wrote the decision
		}
		gaps = append(gaps, g)
	}
	return gaps
}

// covered reports whether complete replays, together, cover the whole time in which the missing rows were created.
func covered(m *Missing, decisions []Decision) bool {
	at := m.From
	for moved := true; moved && at.Before(m.To); {
		moved = false
		for _, d := range decisions {
			from, fromErr := time.Parse(time.RFC3339, d.From)
			to, toErr := time.Parse(time.RFC3339, d.To)
			if d.Complete && fromErr == nil && toErr == nil && !from.After(at) && to.After(at) {
				at, moved = to, true
			}
		}
	}
	return !at.Before(m.To)
}
