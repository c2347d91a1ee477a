package debezium

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// pair is one option of an input, with the value as it is written there.
type pair struct{ name, value string }

// pairs are the options of an input in their order, each name once.
type pairs []pair

// get returns the value of an option, and whether the input has it.
func (s pairs) get(name string) (value string, ok bool) {
	for i := range s {
		if s[i].name == name {
			return s[i].value, true
		}
	}
	return "", false
}

// set adds an option, or replaces its value: the last one of a file counts, as in Java.
func (s *pairs) set(name, value string) {
	for i := range *s {
		if (*s)[i].name == name {
			(*s)[i].value = value
			return
		}
	}
	*s = append(*s, pair{name, value})
}

// sort orders the options by their names.
func (s pairs) sort() { slices.SortFunc(s, func(a, b pair) int { return cmp.Compare(a.name, b.name) }) }

// names returns the names of the options in their order.
func (s pairs) names() []string {
	names := make([]string, len(s))
	for i := range s {
		names[i] = s[i].name
	}
	return names
}

// readProperties reads a .properties file by the rules of java.util.Properties: comments, continued lines, escapes, and
// =, : or white space between name and value. Bytes that are not UTF-8 are read as Latin-1. The error has one sentence
// for each wrong line, with its number and without its text, which may be a secret.
func readProperties(text string) (pairs, error) {
	if !utf8.ValidString(text) {
		latin := make([]rune, len(text))
		for i := range len(text) {
			latin[i] = rune(text[i])
		}
		text = string(latin)
	}
	var found pairs
	var errs []error
	lines := strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text), "\n")
	for i := 0; i < len(lines); i++ {
		at, line := i+1, strings.TrimLeft(lines[i], " \t\f")
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		for continued(line) {
			line = line[:len(line)-1]
			if i++; i == len(lines) {
				break
			}
			line += strings.TrimLeft(lines[i], " \t\f")
		}
		name, value := cutProperty(line)
		name, err := unescape(name)
		if err == nil {
			value, err = unescape(value)
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("line %d: %w", at, err))
		case name == "":
			errs = append(errs, fmt.Errorf("line %d: there is no name before the =: write name=value", at))
		case len(found) == mostOptions:
			return nil, errOptions
		default:
			found.set(name, value)
		}
	}
	return found, errors.Join(errs...)
}

// continued reports whether the line ends with an odd number of backslashes, so that the next line belongs to it.
func continued(line string) bool {
	return (len(line)-len(strings.TrimRight(line, `\`)))%2 == 1
}

// cutProperty splits a line at its first separator that has no backslash before it.
func cutProperty(line string) (name, value string) {
	end := len(line)
	for i := 0; i < len(line); i++ {
		if line[i] == '\\' {
			i++
			continue
		}
		if strings.IndexByte("=: \t\f", line[i]) >= 0 {
			end = i
			break
		}
	}
	value = strings.TrimLeft(line[end:], " \t\f")
	if value != "" && (value[0] == '=' || value[0] == ':') {
		value = strings.TrimLeft(value[1:], " \t\f")
	}
	return line[:end], value
}

// unescape returns the text with its escapes resolved.
func unescape(text string) (string, error) {
	if !strings.Contains(text, `\`) {
		return text, nil
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		i++
		switch text[i] {
		case 't':
			b.WriteByte('\t')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 'f':
			b.WriteByte('\f')
		case 'u':
			if i+4 >= len(text) {
				return "", errUnicode
			}
			n, err := strconv.ParseUint(text[i+1:i+5], 16, 16)
			if err != nil {
				return "", errUnicode
			}
			b.WriteRune(rune(n))
			i += 4
		default:
			b.WriteByte(text[i])
		}
	}
	return b.String(), nil
}

var errUnicode = errors.New(`after \u come four hexadecimal digits: correct them, or write the letter itself`)
