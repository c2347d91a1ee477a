package debezium

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// topicRouter turns a routed value into a topic as Kafka's RegexRouter does: if the regex matches the whole value, it
// replaces the first match in the value, which can be a shorter one; otherwise the value is the topic.
type topicRouter struct {
	whole, first *regexp.Regexp
	replacement  []piece
	lines        bool // the regex has $ or the like: values with line ends could match differently
	words        bool // the regex has \b: values beyond ASCII could match differently
	total        bool // the regex matches every value that can be a topic
}

// piece is a part of the replacement: text, or the group of this number.
type piece struct {
	text  string
	group int // negative: text
}

var (
	errLines = errors.New("the value has a line end, which $, ^ or \\Z of route.topic.regex treats differently in Java")
	errWords = errors.New(`the value has letters beyond ASCII, which \b of route.topic.regex treats differently in Java`)
)

// topic returns the topic of a value.
func (r *topicRouter) topic(v string) (string, error) {
	if r.lines && strings.ContainsAny(v, "\n\r\u0085\u2028\u2029") {
		return "", errLines
	}
	if r.words && strings.ContainsFunc(v, func(c rune) bool { return c >= utf8.RuneSelf }) {
		return "", errWords
	}
	if !r.whole.MatchString(v) {
		return v, nil
	}
	at := r.first.FindStringSubmatchIndex(v)
	if at == nil {
		return v, nil
	}
	b := []byte(v[:at[0]])
	for _, p := range r.replacement {
		switch {
		case p.group < 0:
			b = append(b, p.text...)
		case at[2*p.group] >= 0:
			b = append(b, v[at[2*p.group]:at[2*p.group+1]]...)
		}
	}
	return string(append(b, v[at[1]:]...)), nil
}

// everything matches regular expressions that match every line.
var everything = regexp.MustCompile(`^(\(\?s\))?(\((\?<\w+>)?\.[*]\)|\.[*])$`)

// newTopicRouter translates Java's regex and replacement.
func newTopicRouter(regex, replacement string) (*topicRouter, error) {
	t := translator{s: regex}
	body, _, err := t.alternatives(flags{})
	if err == nil && t.i < len(t.s) {
		err = t.fail("has a ) without its (")
	}
	if err != nil {
		return nil, fmt.Errorf("route.topic.regex %w", err)
	}
	r := &topicRouter{lines: t.lines, words: t.words, total: everything.MatchString(regex)}
	if r.whole, err = regexp.Compile(`\A(?:` + body + `)\z`); err == nil {
		r.first, err = regexp.Compile(body)
	}
	if err != nil {
		return nil, fmt.Errorf("route.topic.regex %q cannot be used here: %w; write it simpler", regex, err)
	}
	r.replacement, err = parseReplacement(replacement, t.names)
	return r, err
}

// parseReplacement reads Java's replacement string for a regex with these groups; the first is group 1.
func parseReplacement(s string, names []string) ([]piece, error) {
	var pieces []piece
	var plain []byte
	fail := func(format string, args ...any) ([]piece, error) {
		return nil, fmt.Errorf("route.topic.replacement %q "+format, append([]any{s}, args...)...)
	}
	group := func(n int) {
		if len(plain) > 0 {
			pieces = append(pieces, piece{string(plain), -1})
			plain = nil
		}
		pieces = append(pieces, piece{"", n})
	}
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i == len(s) {
				return fail(`ends in a backslash: write \\ for one`)
			}
			plain = append(plain, s[i])
		case '$':
			if i++; i == len(s) {
				return fail(`ends in $: write \$ for one`)
			}
			if s[i] == '{' {
				end := strings.IndexByte(s[i:], '}')
				if end < 0 {
					return fail("has ${ without }")
				}
				name := s[i+1 : i+end]
				n := slices.Index(names, name)
				if name == "" || n < 0 {
					return fail("names the group %q, which route.topic.regex does not have: write (?<%s>…) there, or one of its groups here%s", name, name, listed(names))
				}
				group(n + 1)
				i += end
				continue
			}
			n := int(s[i] - '0')
			if s[i] < '0' || s[i] > '9' {
				return fail(`has $ before %q: write ${name}, $1, or \$ for a dollar`, s[i])
			}
			if n > len(names) {
				return fail("names group %d, and route.topic.regex has %d: write a group that it has", n, len(names))
			}
			for i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9' && n*10+int(s[i+1]-'0') <= len(names) {
				i++
				n = n*10 + int(s[i]-'0')
			}
			group(n)
		default:
			plain = append(plain, s[i])
		}
	}
	if len(plain) > 0 {
		pieces = append(pieces, piece{string(plain), -1})
	}
	return pieces, nil
}

func listed(names []string) string {
	var known []string
	for _, n := range names {
		if n != "" {
			known = append(known, "${"+n+"}")
		}
	}
	if known == nil {
		return ""
	}
	return ": " + strings.Join(known, ", ")
}

// flags are the flags of Java's regex that are on.
type flags struct{ fold, dotAll, unixLines bool }

// translator reads a regex of Java and writes one of RE2 that matches the same. It refuses what has no exact counterpart.
type translator struct {
	s            string
	i            int
	names        []string // of the groups; empty: the group has no name
	lines, words bool
}

// fail returns an error that quotes the regex.
func (t *translator) fail(format string, args ...any) error {
	return fmt.Errorf("%q "+format, append([]any{t.s}, args...)...)
}

func (t *translator) unsupported(what, instead string) error {
	return t.fail("has %s, which walpost's regular expressions (RE2) cannot do: %s", what, instead)
}

func (t *translator) rest() string { return t.s[t.i:] }

// traits are facts about a part of a regex.
type traits struct{ empty, captures bool }

// alternatives reads a|b up to a ) or the end.
func (t *translator) alternatives(f flags) (string, traits, error) {
	var b strings.Builder
	var all traits
	for first := true; ; first = false {
		if !first {
			b.WriteByte('|')
		}
		s, of, after, err := t.sequence(f)
		if err != nil {
			return "", all, err
		}
		f = after // (?i) holds up to the end of its group, for later alternatives too
		b.WriteString(s)
		all.empty, all.captures = all.empty || of.empty, all.captures || of.captures
		if !strings.HasPrefix(t.rest(), "|") {
			return b.String(), all, nil
		}
		t.i++
	}
}

// sequence reads atoms with their quantifiers.
func (t *translator) sequence(f flags) (string, traits, flags, error) {
	var b strings.Builder
	all := traits{empty: true}
	for t.i < len(t.s) && t.s[t.i] != '|' && t.s[t.i] != ')' {
		if on, ok, err := t.flagsOnly(f); err != nil {
			return "", all, f, err
		} else if ok {
			f = on
			continue
		}
		if strings.HasPrefix(t.rest(), `\Q`) {
			t.i += 2
			word, _, closed := strings.Cut(t.rest(), `\E`)
			t.i += len(word)
			if closed {
				t.i += 2
			}
			for n := len(word); n > 0; {
				c, size := utf8.DecodeRuneInString(word)
				word, n = word[size:], n-size
				s := fold(c, f)
				if n == 0 {
					q, err := t.quantified(s, traits{})
					if err != nil {
						return "", all, f, err
					}
					s = q.text
					all.empty = all.empty && q.empty
				} else {
					all.empty = false
				}
				b.WriteString(s)
			}
			continue
		}
		s, of, err := t.atom(f)
		if err != nil {
			return "", all, f, err
		}
		q, err := t.quantified(s, of)
		if err != nil {
			return "", all, f, err
		}
		b.WriteString(q.text)
		all.empty, all.captures = all.empty && q.empty, all.captures || of.captures
	}
	return b.String(), all, f, nil
}

type quantity struct {
	text  string
	empty bool
}

// quantified reads the quantifier behind an atom.
func (t *translator) quantified(s string, of traits) (quantity, error) {
	if t.i == len(t.s) {
		return quantity{s, of.empty}, nil
	}
	from, loop, least := t.i, false, 1
	switch t.s[t.i] {
	case '*', '+':
		loop = true
		if t.s[t.i] == '*' {
			least = 0
		}
		t.i++
	case '?':
		t.i++
		least = 0
	case '{':
		end := strings.IndexByte(t.rest(), '}')
		if end < 0 {
			return quantity{}, t.fail("has { without }: write \\{ for a brace")
		}
		low, high, ranged := strings.Cut(t.s[t.i+1:t.i+end], ",")
		n, err := strconv.Atoi(low)
		most := n
		if ranged && high != "" {
			var err2 error
			most, err2 = strconv.Atoi(high)
			err = errors.Join(err, err2)
		}
		if err != nil || n < 0 || most < n {
			return quantity{}, t.fail("has %q, which is no repetition: write {2}, {2,} or {2,3}, or \\{ for a brace", t.s[t.i:t.i+end+1])
		}
		if most > 1000 || n > 1000 {
			return quantity{}, t.unsupported(fmt.Sprintf("the repetition %s", t.s[t.i:t.i+end+1]), "write at most 1000, or *")
		}
		least, loop = n, ranged && high == ""
		if most > 1 {
			loop = true
		}
		t.i += end + 1
	default:
		return quantity{s, of.empty}, nil
	}
	if strings.HasPrefix(t.rest(), "+") {
		return quantity{}, t.unsupported("a possessive quantifier, "+t.s[from:t.i+1], "write "+t.s[from:t.i]+" if the regex matches the same without giving back")
	}
	q := t.s[from:t.i]
	if strings.HasPrefix(t.rest(), "?") {
		q += "?"
		t.i++
	}
	if t.i < len(t.s) && strings.IndexByte("*+?{", t.s[t.i]) >= 0 {
		return quantity{}, t.fail("has a quantifier behind a quantifier: put the first part into (?:…)")
	}
	if loop && of.empty && of.captures {
		return quantity{}, t.unsupported("a repeated group that can match nothing", "write it so that each repetition matches at least one character")
	}
	return quantity{s + q, of.empty || least == 0}, nil
}

// flagsOnly reads (?i) or (?-i), which hold up to the end of the group.
func (t *translator) flagsOnly(f flags) (flags, bool, error) {
	if !strings.HasPrefix(t.rest(), "(?") {
		return f, false, nil
	}
	end := strings.IndexAny(t.rest()[2:], ":)<=!>")
	if end <= 0 || t.rest()[2+end] != ')' {
		return f, false, nil
	}
	f, err := t.setFlags(f, t.rest()[2:2+end])
	t.i += 2 + end + 1
	return f, true, err
}

func (t *translator) setFlags(f flags, word string) (flags, error) {
	on := true
	for _, c := range word {
		switch c {
		case '-':
			on = false
		case 'i':
			f.fold = on
		case 's':
			f.dotAll = on
		case 'd':
			f.unixLines = on
		case 'm':
			t.lines = true
		case 'x':
			return f, t.unsupported("the flag x (comments)", "leave out the flag, and the white space")
		case 'u', 'U':
			return f, t.unsupported(fmt.Sprintf("the flag %c (Unicode)", c), "write the letters of both cases, and the classes, one by one")
		default:
			return f, t.fail("has (?%s, which Java does not know", word)
		}
	}
	return f, nil
}

// atom reads one character, class or group.
func (t *translator) atom(f flags) (string, traits, error) {
	switch c := t.s[t.i]; c {
	case '(':
		return t.group(f)
	case '[':
		set, err := t.class(f)
		if err != nil {
			return "", traits{}, err
		}
		return set.String(), traits{}, nil
	case '.':
		t.i++
		switch {
		case f.dotAll:
			return `(?s:.)`, traits{}, nil
		case f.unixLines:
			return `[^\n]`, traits{}, nil
		}
		return `[^\n\r\x{85}\x{2028}\x{2029}]`, traits{}, nil
	case '^':
		t.i++
		return `\A`, traits{empty: true}, nil
	case '$':
		t.i, t.lines = t.i+1, true
		return `\z`, traits{empty: true}, nil
	case '*', '+', '?':
		return "", traits{}, t.fail("has %c without anything before it: write \\%c for the character", c, c)
	case '{':
		return "", traits{}, t.fail("has { without anything before it: write \\{ for the character")
	case '\\':
		s, of, err := t.escape(f)
		return s, of, err
	}
	c, size := utf8.DecodeRuneInString(t.rest())
	t.i += size
	return fold(c, f), traits{}, nil
}

// group reads a group.
func (t *translator) group(f flags) (string, traits, error) {
	rest := t.rest()
	open, captures := "(?:", false
	switch {
	case strings.HasPrefix(rest, "(?<=") || strings.HasPrefix(rest, "(?<!"):
		return "", traits{}, t.unsupported("a lookbehind, "+rest[:4]+"…)", "match the text before it and use a group")
	case strings.HasPrefix(rest, "(?=") || strings.HasPrefix(rest, "(?!"):
		return "", traits{}, t.unsupported("a lookahead, "+rest[:3]+"…)", "write the regex without it, or write the topic into another column and name that in route.by.field")
	case strings.HasPrefix(rest, "(?>"):
		return "", traits{}, t.unsupported("an atomic group, (?>…)", "write (?:…) if the regex matches the same without it")
	case strings.HasPrefix(rest, "(?<"):
		end := strings.IndexByte(rest, '>')
		if end < 0 || !groupName(rest[3:end]) {
			return "", traits{}, t.fail("has a group whose name is none for Java: write letters and digits, a letter first: (?<name>…)")
		}
		name := rest[3:end]
		if slices.Contains(t.names, name) {
			return "", traits{}, t.fail("has two groups with the name %s: name them differently", name)
		}
		t.names, t.i, captures, open = append(t.names, name), t.i+end+1, true, "("
	case strings.HasPrefix(rest, "(?:"):
		t.i += 3
	case strings.HasPrefix(rest, "(?"):
		end := strings.IndexByte(rest, ':')
		if end < 0 {
			return "", traits{}, t.fail("has (? that Java does not know: write \\( for a parenthesis")
		}
		var err error
		if f, err = t.setFlags(f, rest[2:end]); err != nil {
			return "", traits{}, err
		}
		t.i += end + 1
	default:
		t.names, t.i, captures, open = append(t.names, ""), t.i+1, true, "("
	}
	body, of, err := t.alternatives(f)
	if err != nil {
		return "", of, err
	}
	if !strings.HasPrefix(t.rest(), ")") {
		return "", of, t.fail("has ( without its ): write \\( for a parenthesis")
	}
	t.i++
	of.captures = of.captures || captures
	return open + body + ")", of, nil
}

func groupName(s string) bool {
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// escape reads what follows a backslash outside a class.
func (t *translator) escape(f flags) (string, traits, error) {
	if t.i+1 == len(t.s) {
		return "", traits{}, t.fail(`ends in a backslash: write \\ for one`)
	}
	empty := func(s string) (string, traits, error) {
		t.i += 2
		return s, traits{empty: true}, nil
	}
	switch c := t.s[t.i+1]; c {
	case 'A':
		return empty(`\A`)
	case 'z':
		return empty(`\z`)
	case 'Z':
		t.lines = true
		return empty(`\z`)
	case 'b', 'B':
		if strings.HasPrefix(t.s[t.i:], `\b{g}`) {
			return "", traits{}, t.unsupported(`\b{g}`, "leave it out")
		}
		t.words = true
		return empty(`\` + string(c))
	case 'G':
		return "", traits{}, t.unsupported(`\G`, `write \A`)
	case 'R':
		return "", traits{}, t.unsupported(`\R`, `write (?:\r\n|[\n\r])`)
	case 'X':
		return "", traits{}, t.unsupported(`\X`, "write . for one character")
	case 'k', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return "", traits{}, t.unsupported(`the backreference \`+string(c), "write both parts out, or write the topic into another column and name that in route.by.field")
	}
	set, err := t.escaped(f)
	if err != nil {
		return "", traits{}, err
	}
	return set.String(), traits{}, nil
}

// set is a set of characters.
type set struct{ ranges [][2]rune }

func (s *set) add(low, high rune) { s.ranges = append(s.ranges, [2]rune{low, high}) }

// fold adds the other case of ASCII letters, as Java does without the flag u.
func (s *set) fold() {
	for _, r := range slices.Clone(s.ranges) {
		for c := max(r[0], 'A'); c <= min(r[1], 'Z'); c++ {
			s.add(c+32, c+32)
		}
		for c := max(r[0], 'a'); c <= min(r[1], 'z'); c++ {
			s.add(c-32, c-32)
		}
	}
}

// negate turns the set into all other characters.
func (s *set) negate() {
	slices.SortFunc(s.ranges, func(a, b [2]rune) int { return int(a[0] - b[0]) })
	var others [][2]rune
	next := rune(0)
	for _, r := range s.ranges {
		if r[0] > next {
			others = append(others, [2]rune{next, r[0] - 1})
		}
		next = max(next, r[1]+1)
	}
	if next <= unicode.MaxRune {
		others = append(others, [2]rune{next, unicode.MaxRune})
	}
	s.ranges = others
}

func (s *set) String() string {
	if len(s.ranges) == 1 && s.ranges[0][0] == s.ranges[0][1] {
		return quoted(s.ranges[0][0])
	}
	if len(s.ranges) == 0 {
		return `[^\x{0}-\x{10FFFF}]`
	}
	var b strings.Builder
	b.WriteByte('[')
	for _, r := range s.ranges {
		if fmt.Fprintf(&b, `\x{%X}`, r[0]); r[1] != r[0] {
			fmt.Fprintf(&b, `-\x{%X}`, r[1])
		}
	}
	b.WriteByte(']')
	return b.String()
}

func quoted(c rune) string {
	if c >= utf8.RuneSelf || unicode.IsControl(c) {
		return fmt.Sprintf(`\x{%X}`, c)
	}
	return regexp.QuoteMeta(string(c))
}

func fold(c rune, f flags) string {
	s := set{[][2]rune{{c, c}}}
	if f.fold {
		s.fold()
	}
	return s.String()
}

// Java's classes of one letter.
var letterClasses = map[byte][][2]rune{
	'd': {{'0', '9'}},
	'w': {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
	's': {{'\t', '\r'}, {' ', ' '}},
	'h': {{'\t', '\t'}, {' ', ' '}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x180E, 0x180E}, {0x2000, 0x200A}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}},
	'v': {{'\n', '\r'}, {0x85, 0x85}, {0x2028, 0x2029}},
}

// Java's POSIX classes, which are ASCII.
var posixClasses = map[string][][2]rune{
	"Lower": {{'a', 'z'}}, "Upper": {{'A', 'Z'}}, "ASCII": {{0, 0x7F}}, "Alpha": {{'A', 'Z'}, {'a', 'z'}}, "Digit": {{'0', '9'}},
	"Alnum": {{'0', '9'}, {'A', 'Z'}, {'a', 'z'}}, "Punct": {{'!', '/'}, {':', '@'}, {'[', '`'}, {'{', '~'}}, "Graph": {{'!', '~'}},
	"Print": {{' ', '~'}}, "Blank": {{'\t', '\t'}, {' ', ' '}}, "Cntrl": {{0, 0x1F}, {0x7F, 0x7F}},
	"XDigit": {{'0', '9'}, {'A', 'F'}, {'a', 'f'}}, "Space": {{'\t', '\r'}, {' ', ' '}},
}

// escaped reads an escape that stands for one character or for a set of them.
func (t *translator) escaped(f flags) (*set, error) {
	t.i++
	c := t.s[t.i]
	t.i++
	lower := c | 0x20
	if ranges, ok := letterClasses[lower]; ok {
		s := &set{slices.Clone(ranges)}
		if c != lower {
			s.negate()
		}
		return s, nil
	}
	one := func(r rune) (*set, error) {
		s := &set{[][2]rune{{r, r}}}
		if f.fold {
			s.fold()
		}
		return s, nil
	}
	digits := func(n, base int) (rune, bool) {
		if t.i+n > len(t.s) {
			return 0, false
		}
		v, err := strconv.ParseUint(t.s[t.i:t.i+n], base, 32)
		if err == nil {
			t.i += n
		}
		return rune(v), err == nil
	}
	switch c {
	case 'p', 'P':
		return t.property(f, c == 'P')
	case 't':
		return one('\t')
	case 'n':
		return one('\n')
	case 'r':
		return one('\r')
	case 'f':
		return one('\f')
	case 'a':
		return one('\a')
	case 'e':
		return one(0x1B)
	case 'c':
		if t.i == len(t.s) {
			return nil, t.fail(`has \c without a character`)
		}
		t.i++
		return one(rune(t.s[t.i-1] ^ 64))
	case '0':
		n := 0
		for n < 3 && t.i+n < len(t.s) && t.s[t.i+n] >= '0' && t.s[t.i+n] <= '7' && (n < 2 || t.s[t.i] <= '3') {
			n++
		}
		if r, ok := digits(n, 8); ok {
			return one(r)
		}
		return nil, t.fail(`has \0 without octal digits`)
	case 'x':
		if strings.HasPrefix(t.rest(), "{") {
			end := strings.IndexByte(t.rest(), '}')
			t.i++
			if r, ok := digits(end-1, 16); end > 1 && ok && r <= unicode.MaxRune {
				t.i++
				return one(r)
			}
			return nil, t.fail(`has \x{ without a character's number`)
		}
		if r, ok := digits(2, 16); ok {
			return one(r)
		}
		return nil, t.fail(`has \x without two hexadecimal digits`)
	case 'u':
		r, ok := digits(4, 16)
		if ok && r >= 0xD800 && r <= 0xDBFF && strings.HasPrefix(t.rest(), `\u`) {
			t.i += 2
			low, ok := digits(4, 16)
			if ok && low >= 0xDC00 && low <= 0xDFFF {
				return one(0x10000 + (r-0xD800)<<10 + low - 0xDC00)
			}
			return nil, t.unsupported("half of a surrogate pair", "write the character")
		}
		if !ok || r >= 0xD800 && r <= 0xDFFF {
			return nil, t.fail(`has \u without a character's number: write \u and four hexadecimal digits`)
		}
		return one(r)
	case 'N':
		return nil, t.unsupported(`\N{…}`, "write the character")
	case 'Q', 'E':
		return nil, t.unsupported(`\`+string(c)+" at this place", "quote each character with a backslash")
	}
	if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '1' && c <= '9' {
		return nil, t.fail(`has \%c, which Java does not know: write \\ for a backslash`, c)
	}
	t.i--
	r, size := utf8.DecodeRuneInString(t.rest())
	t.i += size
	return one(r)
}

// property reads \p{…} behind the p.
func (t *translator) property(f flags, negative bool) (*set, error) {
	if t.i == len(t.s) {
		return nil, t.fail(`has \p without a name`)
	}
	name := t.s[t.i : t.i+1]
	if name == "{" {
		end := strings.IndexByte(t.rest(), '}')
		if end < 0 {
			return nil, t.fail(`has \p{ without }`)
		}
		name = t.s[t.i+1 : t.i+end]
		t.i += end + 1
	} else {
		t.i++
	}
	s := &set{}
	ranges, ascii := posixClasses[name]
	switch {
	case ascii && f.fold && (name == "Lower" || name == "Upper"):
		s.ranges = slices.Clone(posixClasses["Alpha"])
	case ascii:
		s.ranges = slices.Clone(ranges)
	default:
		table := unicodeTable(name)
		if table == nil {
			return nil, t.unsupported(`\p{`+name+"}", "write the characters as a class, [a-z] for example")
		}
		if f.fold && (table == unicode.Lu || table == unicode.Ll || table == unicode.Lt) {
			return nil, t.unsupported(`\p{`+name+"} with the flag i", "write [a-zA-Z]")
		}
		for _, r := range table.R16 {
			spread(s, rune(r.Lo), rune(r.Hi), rune(r.Stride))
		}
		for _, r := range table.R32 {
			spread(s, rune(r.Lo), rune(r.Hi), rune(r.Stride))
		}
	}
	if negative {
		s.negate()
	}
	return s, nil
}

func spread(s *set, low, high, stride rune) {
	if stride == 1 {
		s.add(low, high)
		return
	}
	for c := low; c <= high; c += stride {
		s.add(c, c)
	}
}

// unicodeTable returns the characters of a category or script; nil if Go does not know it by Java's name.
func unicodeTable(name string) *unicode.RangeTable {
	key, of, keyed := strings.Cut(name, "=")
	switch {
	case keyed && (key == "gc" || key == "general_category"):
		return unicode.Categories[of]
	case keyed && (key == "sc" || key == "script"):
		return unicode.Scripts[of]
	case keyed:
		return nil
	}
	if t := unicode.Categories[strings.TrimPrefix(name, "Is")]; t != nil {
		return t
	}
	if rest, ok := strings.CutPrefix(name, "Is"); ok {
		return unicode.Scripts[rest]
	}
	return nil
}

// class reads [...], with classes in it and intersections.
func (t *translator) class(f flags) (*set, error) {
	t.i++
	negative := false
	if strings.HasPrefix(t.rest(), "^") {
		t.i, negative = t.i+1, true
	}
	var all *set // of the intersections so far
	s := &set{}
	for first := true; ; first = false {
		if t.i == len(t.s) {
			return nil, t.fail("has [ without its ]: write \\[ for the character")
		}
		switch {
		case t.s[t.i] == ']' && !first:
			t.i++
			if all != nil {
				s = all.and(s)
			}
			if negative {
				s.negate()
			}
			return s, nil
		case t.s[t.i] == '[':
			inner, err := t.class(f)
			if err != nil {
				return nil, err
			}
			s.ranges = append(s.ranges, inner.ranges...)
			continue
		case strings.HasPrefix(t.rest(), "&&"):
			if t.i += 2; first || len(s.ranges) == 0 || strings.HasPrefix(t.rest(), "&") || strings.HasPrefix(t.rest(), "]") {
				return nil, t.fail("has && at the edge of a class: write the characters that are left as one class")
			}
			if all != nil {
				s = all.and(s)
			}
			all, s = s, &set{}
			continue
		}
		low, single, err := t.member(f)
		if err != nil {
			return nil, err
		}
		if rest := t.rest(); single < 0 || len(rest) < 2 || rest[0] != '-' || rest[1] == ']' || rest[1] == '[' {
			s.ranges = append(s.ranges, low.ranges...)
			continue
		}
		t.i++
		_, high, err := t.member(flags{})
		if err != nil {
			return nil, err
		}
		if high < single {
			return nil, t.fail("has a range in a class that ends before it begins")
		}
		r := set{[][2]rune{{single, high}}}
		if f.fold {
			r.fold()
		}
		s.ranges = append(s.ranges, r.ranges...)
	}
}

// and returns the characters that are in both sets.
func (s *set) and(other *set) *set {
	both := &set{slices.Clone(s.ranges)}
	both.negate()
	not := &set{slices.Clone(other.ranges)}
	not.negate()
	both.ranges = append(both.ranges, not.ranges...)
	both.negate()
	return both
}

// member reads one member of a class: its set, and the character if it is one; negative if it is a set.
func (t *translator) member(f flags) (*set, rune, error) {
	if t.s[t.i] == '\\' {
		if t.i+1 == len(t.s) {
			return nil, -1, t.fail("has [ without its ]")
		}
		plain := *t
		s, err := plain.escaped(flags{})
		if err != nil {
			return nil, -1, err
		}
		single := rune(-1)
		if len(s.ranges) == 1 && s.ranges[0][0] == s.ranges[0][1] {
			single = s.ranges[0][0]
		}
		s, err = t.escaped(f)
		return s, single, err
	}
	c, size := utf8.DecodeRuneInString(t.rest())
	t.i += size
	s := &set{[][2]rune{{c, c}}}
	if f.fold {
		s.fold()
	}
	return s, c, nil
}
