package debezium

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// titles say what a verdict means, in the head of the file.
var titles = map[Verdict]string{
	Unsupported: "NOT SUPPORTED: what a consumer would see",
	Equivalent:  "equivalent: the key of walpost",
	TakenOver:   "taken over: the option below debezium",
	NoEffect:    "without effect here",
}

// YAML returns walpost's configuration file. Its head has, as comments, a line for each option of the input. It contains
// no secret.
func (i *Imported) YAML() []byte {
	var b bytes.Buffer
	count := map[Verdict]int{}
	for _, l := range i.Lines {
		count[l.Verdict]++
	}
	fmt.Fprintf(&b, "# walpost import: made from %s, which has %d options: %d taken over, %d equivalent, %d without effect here, %d not supported.\n",
		i.from, len(i.Lines), count[TakenOver], count[Equivalent], count[NoEffect], count[Unsupported])
	for _, v := range []Verdict{Unsupported, Equivalent, TakenOver, NoEffect} {
		if count[v] == 0 {
			continue
		}
		fmt.Fprintf(&b, "#\n# %s\n", titles[v])
		for _, l := range i.Lines {
			if l.Verdict == v {
				yamlComment(&b, "  "+l.Option+": "+l.Says)
			}
		}
	}
	if len(i.Notes) > 0 {
		fmt.Fprintf(&b, "#\n# notes\n")
		for _, n := range i.Notes {
			yamlComment(&b, "  "+n)
		}
	}
	fmt.Fprintf(&b, "\npipeline: %s\n", yamlScalar(i.Pipeline))
	fmt.Fprintf(&b, "source:\n  url: %s\n  slot: %s\n  publication: %s\n  table: %s\n", yamlScalar(i.url), yamlScalar(i.slot), yamlScalar(i.publish), yamlScalar(i.table))
	for _, h := range i.hints {
		b.WriteString("  ")
		yamlComment(&b, h)
	}
	brokers := make([]string, len(i.brokers))
	for j, broker := range i.brokers {
		brokers[j] = yamlScalar(broker)
	}
	fmt.Fprintf(&b, "kafka:\n  brokers: [%s]\n", strings.Join(brokers, ", "))
	b.WriteString("  create_topics: true\n")
	section := ""
	for _, k := range i.kafka {
		name, indent := k[0], "  "
		if of, rest, ok := strings.Cut(name, "."); ok {
			if of != section {
				fmt.Fprintf(&b, "  %s:\n", of)
				section = of
			}
			name, indent = rest, "    "
		}
		fmt.Fprintf(&b, "%s%s: %s\n", indent, name, yamlScalar(k[1]))
	}
	if i.delivery != "" {
		fmt.Fprintf(&b, "delivery: %s\n", i.delivery)
	}
	if i.poison != "" {
		fmt.Fprintf(&b, "poison:\n  policy: %s\n", i.poison)
	}
	fmt.Fprintf(&b, "debezium:\n")
	options := slices.Clone(i.debezium)
	slices.SortFunc(options, func(a, b pair) int { return cmp.Or(rank(a.name)-rank(b.name), cmp.Compare(a.name, b.name)) })
	for _, s := range options {
		fmt.Fprintf(&b, "  %s: %s\n", yamlScalar(s.name), yamlText(s.value))
	}
	return b.Bytes()
}

// rank returns the place of an option in the section: the router's first, then converters, then the connector's.
func rank(name string) int {
	switch {
	case slices.Contains(routerOptions, name):
		return 0
	case isConverter(name):
		return 1
	}
	return 2
}

// yamlComment writes a comment of one line.
func yamlComment(b *bytes.Buffer, text string) {
	b.WriteString("# ")
	for _, r := range text {
		if r == '\n' || r == '\r' || r == '\u0085' || r == '\u2028' || r == '\u2029' || r < ' ' && r != '\t' || r == 0x7f {
			r = '?'
		}
		b.WriteRune(r)
	}
	b.WriteByte('\n')
}

// yamlScalar returns a text as YAML, in quotes where it could be read as something else.
func yamlScalar(text string) string {
	if bare.MatchString(text) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(text)) || text == "true" {
		return text
	}
	return yamlText(text)
}

var bare = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.:/@=&?%+-]*[A-Za-z0-9/]$`)

// yamlText returns a text as YAML in double quotes.
func yamlText(text string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string can always be written
	return strings.TrimSuffix(b.String(), "\n")
}
