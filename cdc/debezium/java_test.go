package debezium

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// refusedInJava lists constructs of Java's regular expressions for which newTopicRouter returns an error, although Java
// takes them.
var refusedInJava = []string{"++", "(?=", "(?<!", "\\1", "\\k<", "(?>", "\\R", "\\X", "\\G", "(?x)", "(?u)", "javaLowerCase", "InGreek", "IsAlphabetic", "(a*)*", "(a|b*)+", "a{1001}", "{100}"}

// TestTopicsAreJavas compares topics with those that java.util.regex makes of 1,000 random regular expressions, and of
// those that people write: testdata/java/regex.json. A regex that RE2 cannot do is an error.
func TestTopicsAreJavas(t *testing.T) {
	var recorded []struct {
		Regex, Replacement string
		Error              bool
		Topics             map[string]string // of the values that match
	}
	var values []string
	for file, into := range map[string]any{"regex.json": &recorded, "values.json": &values} {
		data, err := os.ReadFile("testdata/java/" + file)
		if err == nil {
			err = json.Unmarshal(data, into)
		}
		if err != nil {
			t.Fatal(file, err)
		}
	}
	refused, uncertain, compared := 0, 0, 0
	for _, r := range recorded {
		router, err := newTopicRouter(r.Regex, r.Replacement)
		switch {
		case r.Error && err == nil:
			t.Errorf("%s, %s: Java refuses it", r.Regex, r.Replacement)
			continue
		case err != nil:
			named := slices.ContainsFunc(refusedInJava, func(c string) bool { return strings.Contains(r.Regex, c) })
			if !r.Error && !named && !strings.Contains(err.Error(), "that can match nothing") && !strings.Contains(err.Error(), "quantifier behind a quantifier") && !strings.Contains(err.Error(), "without anything before it") && !strings.Contains(err.Error(), "possessive") && !strings.Contains(err.Error(), "with the flag i") {
				t.Errorf("%s, which Java takes: %v", r.Regex, err)
			}
			refused++
			continue
		}
		of := values
		if len(r.Topics) == 1 && r.Topics["ab"] != "" {
			of = []string{"ab"}
		}
		for _, v := range of {
			want, matches := r.Topics[v]
			if !matches {
				want = v
			}
			got, err := router.topic(v)
			if err != nil {
				uncertain++
				continue
			}
			if compared++; got != want {
				t.Errorf("%s of %q: %q, want %q", r.Regex, v, got, want)
			}
		}
	}
	if t.Logf("%d compared, %d refused, %d uncertain", compared, refused, uncertain); refused > len(recorded)/3 {
		t.Errorf("%d of %d are refused", refused, len(recorded))
	}
}

// TestNumbersAreJavas compares numbers with Double.toString and Float.toString of Java 17: testdata/java/floats.txt.
func TestNumbersAreJavas(t *testing.T) {
	f, err := os.Open("testdata/java/floats.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		for i, want := range strings.Fields(lines.Text()) {
			n, err := strconv.ParseFloat(want, 64-32*i)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(appendFloat(nil, n, i == 1)); got != want {
				t.Errorf("%s is written as %s", want, got)
			}
		}
	}
}

// FuzzTopic translates any regex, and routes a value by it: it must not panic, and RE2 must take what it translates.
func FuzzTopic(f *testing.F) {
	f.Add(`(?<routedByValue>.*)`, `outbox.event.${routedByValue}`, "User")
	f.Add(`[\p{L}-z&&\x{1F600}]{2,}+`, `$1\`, "a\n")
	f.Fuzz(func(t *testing.T, regex, replacement, v string) {
		r, err := newTopicRouter(regex, replacement)
		if err != nil {
			if strings.Contains(err.Error(), "cannot be used here") && !strings.Contains(err.Error(), "repeat") && !strings.Contains(err.Error(), "too large") && !strings.Contains(err.Error(), "nest") {
				t.Errorf("%q: %v", regex, err)
			}
			return
		}
		_, _ = r.topic(v)
	})
}

// FuzzExpand expands any text: it must not panic, and what becomes a struct must be JSON again.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{`{"a":[{"b":1},{"c":[1.5e3,null]}],"d":"\ud83d"}`, `[{}]`, `{"a":1} x`, `{"":1}`} {
		f.Add([]byte(s))
	}
	e := newExpander(&Options{payload: "payload", keepEmpty: true, keepNull: true})
	f.Fuzz(func(t *testing.T, payload []byte) {
		s, v, ok, err := e.expand(payload)
		if err != nil || !ok {
			return
		}
		if b := appendJSON(nil, v, s, false); !json.Valid(b) {
			t.Errorf("%q becomes %q", payload, b)
		}
		if b := s.describe(); !json.Valid(b) {
			t.Errorf("%q is described by %q", payload, b)
		}
		appendText(nil, v, s)
	})
}

// FuzzValues reads any text as each type that this package reads: it must not panic.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"2024-02-29 01:02:03.4+00", "0044-03-15 BC", "12:00:00+05:30", "1 year -2 mons +03:04:05", `{a,"b\"",NULL}`, `"a"=>"b", "c"=>NULL`, "-12.50e3", `\x00ff`, "101", "infinity"} {
		f.Add(s)
	}
	var readers []func([]byte) (value, error)
	for _, times := range known["time.precision.mode"].values {
		for _, set := range []func(*column, naming, reading){
			func(c *column, n naming, r reading) { temporalDate(c, n, r, times) },
			func(c *column, n naming, r reading) { temporalTime(c, n, r, times, 3) },
			func(c *column, n naming, r reading) { temporalTimestamp(c, n, r, times, 6) },
		} {
			c := &column{schema: &schema{}}
			set(c, func(k kind, _ string) { c.kind = k }, func(read func([]byte) (value, error)) { readers = append(readers, read) })
		}
	}
	readers = append(readers, readHstore, readTimetz, readIntervalMicros, readIntervalText, readBits, readInteger,
		func(t []byte) (value, error) { return readZoned(t, 3) },
		func(t []byte) (value, error) { return readBytea(t, chars, nil) },
		func(t []byte) (value, error) { return readArray(t, &column{schema: &schema{}, raw: true}) },
		numeric(&schema{}, -1, "precise"), numeric(&schema{}, 10<<16|2+4, "string"))
	f.Fuzz(func(_ *testing.T, s string) {
		for _, read := range readers {
			if len(s) < 100 { // numbers with long exponents take long
				_, _ = read([]byte(s))
			}
		}
	})
}
