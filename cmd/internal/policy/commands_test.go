package policy_test

import (
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
)

// commandLine holds the commands of a program, by their words, each with its flags.
type commandLine map[string]map[string]flagOf

// flagOf is one flag of a command.
type flagOf struct{ takesValue, required bool }

var (
	helpCommand  = regexp.MustCompile(`(?m)^  ([a-z][a-z -]*?)(?: [\[<-].*)?$`)
	helpFlag     = regexp.MustCompile(`(?m)^  (?:   |(-\w), )?\s*(--[a-z][a-z-]*)(=)?`)
	helpRequired = regexp.MustCompile(`--[a-z-]+`)
	helpOptional = regexp.MustCompile(`\[[^\]]*\]`)
)

// commandLines builds the programs and asks each command of each for its help.
func commandLines(t *testing.T) map[string]commandLine {
	t.Helper()
	dir, all := t.TempDir(), map[string]commandLine{}
	if out, err := exec.Command("go", "build", "-o", dir, module+"cmd/walpost", module+"cmd/orders", module+"cmd/inventory").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	help := func(program string, command ...string) string {
		out, err := exec.Command(filepath.Join(dir, program), append(command, "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v --help: %v\n%s", program, command, err, out)
		}
		return string(out)
	}
	for _, program := range []string{"walpost", "orders", "inventory"} {
		_, list, _ := strings.Cut(help(program), "\nCommands:\n")
		all[program] = commandLine{}
		for _, m := range helpCommand.FindAllStringSubmatch(list, -1) {
			text := help(program, strings.Fields(m[1])...)
			usage, _, _ := strings.Cut(text, "\n")
			required := helpRequired.FindAllString(helpOptional.ReplaceAllString(usage, ""), -1)
			flags := map[string]flagOf{}
			for _, f := range helpFlag.FindAllStringSubmatch(text, -1) {
				of := flagOf{takesValue: f[3] != "", required: slices.Contains(required, f[2])}
				flags[f[2]] = of
				if f[1] != "" {
					flags[f[1]] = of
				}
			}
			all[program][m[1]] = flags
		}
		if len(all[program]) < 5 {
			t.Fatalf("the help of %s names %d commands", program, len(all[program]))
		}
	}
	return all
}

// call is one call of a program of ours on a page.
type call struct {
	program string
	args    []string
	whole   bool // a block shows the whole call; a sentence may name a part of one
}

// wrong returns the reason for which the program would refuse a call, or "".
func (l commandLine) wrong(c call) string {
	value := map[string]bool{}
	for _, flags := range l {
		for name, f := range flags {
			value[name] = value[name] || f.takesValue
		}
	}
	var words, flags []string
	for i := 0; i < len(c.args); i++ {
		name, _, inline := strings.Cut(c.args[i], "=")
		if !strings.HasPrefix(name, "-") || name == "-" {
			words = append(words, name)
			continue
		}
		if flags = append(flags, name); value[name] && !inline {
			i++
		}
	}
	command := ""
	for n := len(words); n > 0 && command == ""; n-- {
		if of := strings.Join(words[:n], " "); l[of] != nil {
			command = of
		}
	}
	if command == "" {
		group := len(words) > 0 && slices.ContainsFunc(slices.Collect(maps.Keys(l)), func(of string) bool { return strings.HasPrefix(of, words[0]+" ") })
		switch {
		case !c.whole && group && len(words) == 1, len(words) == 0 && slices.Contains([]string{"", "--help", "--version"}, strings.Join(flags, " ")):
			return ""
		case len(words) == 0:
			for _, of := range l {
				if !slices.ContainsFunc(flags, func(f string) bool { _, ok := of[f]; return !ok }) {
					return ""
				}
			}
		}
		return "there is no such command"
	}
	for _, name := range flags {
		if _, ok := l[command][name]; !ok {
			return "it has no flag " + name
		}
	}
	for name, f := range l[command] {
		if c.whole && f.required && !slices.Contains(flags, name) {
			return "it needs " + name
		}
	}
	return ""
}

var (
	block    = regexp.MustCompile("(?ms)^( *)(?:\\d+\\. )?```([a-z]*)\n(.*?)^ *```")
	span     = regexp.MustCompile("`([^`]+)`")
	programs = regexp.MustCompile(`^(?:walpost|orders|inventory)$`)
	assigned = regexp.MustCompile(`^[A-Z_]+=`)
	here     = regexp.MustCompile(`<<'?(\w+)'?`)
)

// callsOf returns the calls of our programs that a page shows: in blocks of a shell, and in its sentences.
func callsOf(text string) (calls []call) {
	for _, b := range block.FindAllStringSubmatch(text, -1) {
		if b[2] == "console" || b[2] == "sh" {
			for _, line := range shellLines(b[3], b[2] == "console") {
				calls = append(calls, callsIn(line)...)
			}
		}
	}
	for _, s := range span.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
		words := strings.Fields(s[1])
		if len(words) > 1 && programs.MatchString(words[0]) && regexp.MustCompile(`^[a-z][a-z-]+$|^-`).MatchString(words[1]) {
			calls = append(calls, call{words[0], words[1:], false})
		}
	}
	return calls
}

// shellLines returns the lines of a block that a shell reads: all of them, or, with prompts, those after "$ ". It joins
// lines that end in a backslash with the next one, and leaves out the text of a here document.
func shellLines(block string, prompts bool) (lines []string) {
	joins, end := false, ""
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if end != "" {
			if line == end {
				end = ""
			}
			continue
		}
		text, prompt := strings.CutPrefix(line, "$ ")
		if prompts && !prompt && !joins {
			continue
		}
		more := strings.HasSuffix(text, `\`)
		text = strings.TrimSuffix(text, `\`)
		if m := here.FindStringSubmatch(text); m != nil {
			end = m[1]
		}
		if joins {
			lines[len(lines)-1] += " " + text
		} else {
			lines = append(lines, text)
		}
		joins = more
	}
	return lines
}

// callsIn returns the calls of our programs in a line of a shell.
func callsIn(line string) (calls []call) {
	for _, words := range shellCommands(line) {
		for len(words) > 0 && (assigned.MatchString(words[0]) || slices.Contains([]string{"do", "then", "if", "export", "time", "sudo"}, words[0])) {
			words = words[1:]
		}
		if c, ok := ours(words); ok {
			calls = append(calls, c)
		}
	}
	return calls
}

// ours returns the call of one of our programs that a simple command makes: directly, by go run, or in a container.
func ours(words []string) (call, bool) {
	if len(words) == 0 {
		return call{}, false
	}
	if programs.MatchString(path.Base(words[0])) {
		return call{path.Base(words[0]), words[1:], true}, true
	}
	if len(words) > 2 && words[0] == "go" && words[1] == "run" {
		name, found := strings.CutPrefix(words[2], "./cmd/")
		return call{name, words[3:], true}, found && programs.MatchString(name)
	}
	if len(words) < 4 || words[0] != "docker" || words[1] != "compose" {
		return call{}, false
	}
	for i, word := range words[3:] {
		rest := words[3+i+1:]
		program := map[bool]string{true: "orders"}[strings.HasPrefix(word, "orders") || strings.HasPrefix(word, "consumer-")]
		switch {
		case words[2] == "exec" && strings.HasPrefix(word, "/") && programs.MatchString(word[1:]):
			return call{word[1:], rest, true}, true
		case words[2] != "run":
			continue
		case word == "relay" || word == "walpost-init":
			program = "walpost"
		case strings.HasPrefix(word, "inventory"):
			program = "inventory"
		}
		if program != "" {
			return call{program, rest, true}, len(rest) > 0
		}
	}
	return call{}, false
}

// shellCommands splits a line into its simple commands, and these into words. It knows as much of a shell as pages
// need: quotes, comments, and operators between commands. It leaves redirections out.
func shellCommands(line string) (commands [][]string) {
	var words []string
	word, has, quote := "", false, rune(0)
	flush := func() {
		if has && word != "2" {
			words = append(words, word)
		}
		word, has = "", false
	}
	end := func() {
		flush()
		if len(words) > 0 {
			commands = append(commands, words)
		}
		words = nil
	}
	for i, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, has = r, true
		case r == ' ':
			flush()
		case r == '#' && !has:
			end()
			return commands
		case r == ';' || r == '|' || r == '&' || r == '(' || r == ')':
			end()
		case r == '<' && strings.HasPrefix(line[i:], "<<"), r == '>':
			end()
			if rest := strings.IndexAny(line[i:], ";|&"); rest >= 0 {
				return append(commands, shellCommands(line[i+rest:])...)
			}
			return commands
		default:
			word, has = word+string(r), true
		}
	}
	end()
	return commands
}

// TestPagesNameCommandsThatExist looks up every command of ours, and every flag, that a page shows or names.
func TestPagesNameCommandsThatExist(t *testing.T) {
	cdctest.Long(t, "builds the programs and asks every command for its help")
	known, seen := commandLines(t), map[string]int{}
	for page, text := range tracked(t, "*.md", ":!"+changelog) {
		for _, c := range callsOf(string(text)) {
			seen[c.program]++
			if wrong := known[c.program].wrong(c); wrong != "" {
				t.Errorf("%s: %s %s: %s", page, c.program, strings.Join(c.args, " "), wrong)
			}
		}
	}
	if seen["walpost"] < 50 || seen["orders"] < 5 || seen["inventory"] < 3 {
		t.Errorf("only these were found: %v", seen)
	}
}

// TestCallsOfPages shows which calls callsOf finds, and which it leaves out.
func TestCallsOfPages(t *testing.T) {
	page := "Run `walpost dlq list`, `walpost <pipeline>` or `orders`.\n" +
		"```console\n$ A=b walpost -c walpost.yaml init \\\n    --admin-url 'postgres://x' # comment\norders is an answer\n" +
		"$ docker compose exec -T postgres psql -U postgres orders <<'SQL'\n$ walpost not this\nSQL\n" +
		"$ orders serve --relay 2> orders.log &\n$ docker compose run --rm relay status | head; curl -s x\n```\n" +
		"```sql\nwalpost\n```\n1. ```sh\n   go run ./cmd/inventory parked list && /walpost version\n   ```\n"
	var got []string
	for _, c := range callsOf(page) {
		got = append(got, c.program+" "+strings.Join(c.args, " "))
	}
	want := []string{
		"walpost -c walpost.yaml init --admin-url postgres://x", "orders serve --relay", "walpost status", "inventory parked list", "walpost version", "walpost dlq list",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}
