package cdc

import "strings"

// Finding is the result of one check of PostgreSQL, of Kafka, or of what lies between the two.
type Finding struct {
	Side     Side     `json:"side"`
	Severity Severity `json:"severity"`
	Check    string   `json:"check"` // a short name that stays the same: wal_level
	Found    string   `json:"found"`
	Means    string   `json:"means,omitempty"` // why it matters
	Run      string   `json:"run,omitempty"`   // the SQL, the command or the key that ends it

	Init bool `json:"-"` // `walpost init` creates what is missing
}

// Side says where a check looks.
type Side string

// The sides.
const (
	InPostgreSQL Side = "postgresql"
	InKafka      Side = "kafka"
	Between      Side = "between"
)

// Severity says what a finding asks of an operator.
type Severity string

// The severities, from the best to the worst. Unknown is a check that has got no answer.
const (
	OK      Severity = "ok"
	Note    Severity = "note"
	Unknown Severity = "unknown"
	Warning Severity = "warning"
	Problem Severity = "problem"
)

// String returns what was found and what to run as one sentence.
func (f Finding) String() string {
	if f.Run == "" {
		return f.Found
	}
	return f.Found + ": " + f.Run
}

// Sentences returns the findings as one text.
func Sentences(findings []Finding) string {
	all := make([]string, len(findings))
	for i, f := range findings {
		all[i] = f.String()
	}
	return strings.Join(all, "; ")
}

// Parted returns the parts of a sentence that ends with what to do, after a colon: source.url: there is no host "x": name the right
// host. A key in front and text in brackets do not count. Run is empty if the sentence has one part.
func Parted(sentence string) (found, run string) {
	begin, depth := 0, 0
	if key, _, ok := strings.Cut(sentence, ": "); ok && !strings.Contains(key, " ") {
		begin = len(key) + 2
	}
	for i := begin; i < len(sentence)-1; i++ {
		switch {
		case sentence[i] == '(':
			depth++
		case sentence[i] == ')':
			depth--
		case depth == 0 && sentence[i:i+2] == ": ":
			return sentence[:i], sentence[i+2:]
		}
	}
	return sentence, ""
}
