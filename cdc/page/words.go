package page

import (
	"fmt"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
)

// state says in a word and a sentence whether a pipeline works.
type state struct {
	Mood     string // good, idle, care or bad: for the colour
	Word     string
	Sentence string
}

// stateOf returns the state of a pipeline.
func stateOf(st *pipeline.Status) state {
	where := "the slot"
	if st.Backlog != nil {
		where = "the table"
	}
	switch st.Role {
	case cdc.Halted:
		return state{"bad", "Halted", "The relay publishes nothing until you decide."}
	case cdc.Retrying:
		return state{"care", "Trying again", "A session ended with an error. The relay starts the next one itself."}
	case cdc.Standby:
		return state{"idle", "Standing by", "Another relay delivers the rows. This one takes over when that one ends."}
	case cdc.Stopped:
		return state{"idle", "Stopped", "The relay has stopped."}
	case cdc.Streaming:
	default:
		return state{"idle", "Starting", "The relay has not begun to read rows."}
	}
	switch {
	case st.KafkaStalled:
		return state{"bad", "Waiting for Kafka", "Kafka does not take the rows. They wait in " + where + ", and nothing is lost."}
	case st.Stalled != "":
		return state{"bad", "Stalled", "Rows may be waiting, and nothing moves."}
	case st.Verdict == pipeline.NeedsSomeone:
		return state{"care", "Works, and needs you", "Rows flow from PostgreSQL to Kafka, and something below waits for you."}
	case st.Verdict == pipeline.CannotTell:
		return state{"care", "Not known", "The relay reads rows, but PostgreSQL or Kafka did not answer this page."}
	}
	return state{"good", "Works", "Rows flow from PostgreSQL to Kafka."}
}

// doing returns a role as what the relay is.
func doing(role cdc.Role) string {
	if role == cdc.Standby {
		return "standing by"
	}
	return string(role)
}

// behind returns how far a pipeline is behind, in seconds and in bytes or rows.
func behind(st *pipeline.Status) (seconds, amount string) {
	seconds, amount = "unknown", ""
	switch {
	case st.Backlog != nil && st.Backlog.Pending == 0:
		return "0 s", "no row waits"
	case st.Backlog != nil:
		return plain.Duration(secs(st.Backlog.OldestSeconds)), polling.Count(st.Backlog.Pending) + " rows wait"
	}
	if st.LagSeconds != nil {
		if seconds = plain.Duration(secs(*st.LagSeconds)); *st.LagSeconds < 0.001 {
			seconds = "0 s"
		}
	}
	if st.LagBytes != nil {
		amount = plain.Size(*st.LagBytes) + " of WAL"
	}
	return seconds, amount
}

// secs returns a number of seconds as a duration.
func secs(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// left returns when the slot can be lost.
func left(st *pipeline.Status) string {
	switch {
	case st.Slot == nil:
		return "a polled table has no slot"
	case st.Slot.Exists != nil && !*st.Slot.Exists:
		return "the slot does not exist"
	case st.Slot.WALStatus == "lost":
		return "the slot is lost"
	case st.Slot.Exists == nil:
		return "unknown"
	case st.Slot.SafeWALSize == nil:
		return "no limit"
	case st.SlotSeconds == nil:
		return "after " + plain.Size(*st.Slot.SafeWALSize) + " more of WAL"
	}
	return plain.Duration(secs(*st.SlotSeconds).Round(time.Minute))
}

// places are the names of positions, and what each means.
var places = map[pipeline.Place][2]string{
	pipeline.AtWALEnd:    {"end of the WAL", "written by PostgreSQL"},
	pipeline.AtReceived:  {"received", "read by this relay"},
	pipeline.AtPublished: {"published", "durable in Kafka"},
	pipeline.AtState:     {"state record", "where the next relay goes on"},
	pipeline.AtConfirmed: {"confirmed", "told to the slot"},
	pipeline.AtRestart:   {"restart", "PostgreSQL keeps the WAL from here on"},
}

// span is a piece of a sentence: text, or a command or name in backquotes.
type span struct {
	Code bool
	Text string
}

// longestText is the number of letters of a sentence that the page shows.
const longestText = 4000

// prose splits a sentence at its backquotes.
func prose(text string) (spans []span) {
	pieces := strings.Split(plain.Cut(text, longestText), "`")
	for i, piece := range pieces {
		code := i%2 == 1 && i < len(pieces)-1 // a single backquote is text
		if i%2 == 1 && !code {
			piece = "`" + piece
		}
		if piece != "" {
			spans = append(spans, span{code, piece})
		}
	}
	return spans
}

// lines splits a text at its line ends, because prose shows each as an escape.
func lines(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }

// number returns a number with a comma between groups of three digits.
func number[N int | int64](n N) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0 && s[at-1] != '-'; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// clock returns a time for people: 22:03:15 today, with the date otherwise.
func clock(t, now time.Time) string {
	t = t.UTC()
	if t.Format(time.DateOnly) == now.UTC().Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}
