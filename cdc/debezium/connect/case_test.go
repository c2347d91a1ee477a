//go:build debezium

package connect_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"
)

// caseFile is an input, and what Debezium made of it.
type caseFile struct {
	About   string            `json:"about"`
	Config  map[string]string `json:"config"`
	DDL     []string          `json:"ddl"` // parts of one text
	Before  []string          `json:"before,omitempty"`
	SQL     []string          `json:"sql"`
	Expect  *int              `json:"expect,omitempty"`
	Outcome string            `json:"outcome"`
	Error   string            `json:"error,omitempty"`
	Cause   string            `json:"cause,omitempty"`
	Log     []string          `json:"log,omitempty"`
	Records []caseRecord      `json:"records"`
}

// caseRecord is a record of a case. Key, Value and the second part of a header are texts as wire returns them.
type caseRecord struct {
	Topic     string               `json:"topic"`
	Partition int32                `json:"partition"`
	Key       json.RawMessage      `json:"key"`
	Value     json.RawMessage      `json:"value"`
	Timestamp json.RawMessage      `json:"timestamp"`
	Headers   [][2]json.RawMessage `json:"headers"`
}

type jsonText = json.RawMessage

// compact returns v as JSON on one line, without HTML's escapes.
func compact(v any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSpace(b.Bytes())
}

// wire returns the JSON of bytes: null, a string if they are printable, or what describes them.
func wire(b []byte) json.RawMessage {
	switch {
	case b == nil:
		return compact(nil)
	case len(b) > 20_000:
		sum := sha256.Sum256(b)
		return compact(struct {
			Length int    `json:"length"`
			SHA256 string `json:"sha256"`
		}{len(b), hex.EncodeToString(sum[:])})
	case utf8.Valid(b) && !strings.ContainsFunc(string(b), func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' }):
		return compact(string(b))
	default:
		return compact(map[string]string{"base64": base64.StdEncoding.EncodeToString(b)})
	}
}

// newCaseRecord returns a record's description. A timestamp between the two times is the connector's clock.
func newCaseRecord(r *kgo.Record, from, to time.Time) caseRecord {
	c := caseRecord{Topic: r.Topic, Partition: r.Partition, Key: wire(r.Key), Value: wire(r.Value), Timestamp: compact("clock"), Headers: [][2]json.RawMessage{}}
	if r.Timestamp.Before(from) || r.Timestamp.After(to) {
		c.Timestamp = compact(r.Timestamp.UnixMilli())
	}
	for _, h := range r.Headers {
		value := wire(h.Value)
		if h.Key == "__debezium.context.runId" {
			value = compact(map[string]string{"any": "uuid of the run"})
		}
		c.Headers = append(c.Headers, [2]json.RawMessage{compact(h.Key), value})
	}
	return c
}

// text returns the file's text: a header on one line, everything else indented.
func (c caseFile) text() []byte {
	if c.Records == nil {
		c.Records = []caseRecord{}
	}
	var out bytes.Buffer
	if err := json.Indent(&out, compact(c), "", "  "); err != nil {
		panic(err)
	}
	// Join the two parts of each header again.
	lines := strings.Split(out.String(), "\n")
	var b strings.Builder
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		const header = "        ["
		if line == header {
			end := i + slices.IndexFunc(lines[i:], func(l string) bool { return l == "        ]" || l == "        ]," })
			var parts bytes.Buffer
			if err := json.Compact(&parts, []byte(strings.TrimSuffix(strings.Join(lines[i:end+1], ""), ","))); err != nil {
				panic(err)
			}
			line = "        " + parts.String()
			if strings.HasSuffix(lines[end], ",") {
				line += ","
			}
			i = end
		}
		b.WriteString(line + "\n")
	}
	return []byte(b.String())
}

// contract returns the part of the file that is the same in each run: the outcome, and the records. A null key has any
// partition.
func (c caseFile) contract() string {
	var records []string
	for _, r := range c.Records {
		if string(r.Key) == "null" {
			r.Partition = -1
		}
		var small bytes.Buffer
		if err := json.Compact(&small, compact(r)); err != nil {
			panic(err)
		}
		records = append(records, small.String())
	}
	if slices.ContainsFunc(c.Records, func(r caseRecord) bool { return string(r.Key) == "null" }) {
		slices.Sort(records)
	}
	return fmt.Sprintf("%s\n%s\n", c.Outcome, strings.Join(records, "\n"))
}

// sorted sorts records by topic, partition and offset.
func sorted(records []*kgo.Record) {
	slices.SortFunc(records, func(a, b *kgo.Record) int {
		return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
}
