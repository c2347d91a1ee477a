package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// required holds the keys without a default, and the value that the example gives each.
var required = map[string]string{
	"pipeline":              "shop",
	"source.url":            "postgres://walpost@localhost:5432/shop",
	"kafka.brokers":         `["localhost:9092"]`,
	"kafka.aggregate_types": "[order]",
}

const exampleHead = `# An example of walpost's configuration, with every key.
#
# A line that begins with # and a space explains the key below it. A line that begins with # and a key holds that key's
# default: remove the # and change the value. The lines without a # are the ones that you must set.
#
# Each key can be set in the environment too, and the environment wins: WALPOST_SOURCE_URL sets source.url. Passwords are
# best there, or in a file that a key names.
`

const exampleEnd = `
# Several pipelines in one process: list them under the key pipelines, each with its own keys. The keys above are then the
# defaults of all of them. http, page, pprof and shutdown_timeout belong to the process.
# cdc/CONFIGURATION.md has an example.
`

// exampleWidth is the column at which Example wraps its comments.
const exampleWidth = 120

// Example returns a configuration file with every key: the required ones with an example value, and the others with
// their defaults, commented out.
func Example() string {
	var b strings.Builder
	b.WriteString(exampleHead)
	cfg := Default()
	var section []string
	eachKey(reflect.ValueOf(&cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		parents, indent := path[:len(path)-1], strings.Repeat("  ", len(path)-1)
		b.WriteString("\n")
		for i, name := range parents {
			if i >= len(section) || section[i] != name {
				fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", i), name)
				section = section[:min(i, len(section))]
			}
		}
		section = slices.Clone(parents)
		comment(&b, indent, cmp.Or(tag.Get("doc"), tag.Get("help")))
		name := path[len(path)-1]
		if value, ok := required[strings.Join(path, ".")]; ok {
			fmt.Fprintf(&b, "%s%s: %s\n", indent, name, value)
			return
		}
		fmt.Fprintf(&b, "%s#%s: %s\n", indent, name, exampleValue(v))
	})
	b.WriteString(exampleEnd)
	return b.String()
}

// comment writes a text as lines of comment.
func comment(b *strings.Builder, indent, text string) {
	line := indent + "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > exampleWidth {
			b.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

// exampleValue returns a default as YAML.
func exampleValue(v reflect.Value) string {
	switch {
	case v.Kind() == reflect.Slice && v.Len() == 0:
		return "[]"
	case v.Kind() == reflect.Map && v.Len() == 0:
		return "{}"
	case v.Kind() == reflect.String && v.Len() == 0:
		return `""`
	}
	return fmt.Sprint(v.Interface())
}
