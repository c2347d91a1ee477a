package main

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// completions are what a shell offers after a line: some words that it must offer, and some that it must not.
var completions = []struct {
	line       string
	must, none []string
}{
	{"walpost ", []string{"relay", "status", "take-over", "completion", "config"}, []string{"list", "redrive"}},
	{"walpost sta", []string{"status"}, []string{"relay", "tail"}},
	{"walpost -c walpost.yaml dlq ", []string{"list", "show", "redrive", "drop"}, []string{"relay", "check"}},
	{"walpost dlq redrive --a", []string{"--all"}, []string{"--yes", "list"}},
	{"walpost status --w", []string{"--watch"}, []string{"--json"}},
	{"walpost tail --no", []string{"--no-follow"}, []string{"--last"}},
	{"walpost config ", []string{"check", "show", "example"}, []string{"relay"}},
	{"walpost completion ", []string{"bash", "zsh", "fish"}, []string{"relay"}},
	{"walpost completion b", []string{"bash"}, []string{"zsh"}},
}

// completionScript returns what walpost prints for a shell.
func completionScript(t *testing.T, shell string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"completion", shell}, func(string) string { return "" }, &out, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// inShell runs a script, and returns the first word of each line that it prints.
func inShell(t *testing.T, script string, command ...string) (words []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cdctest.Patience(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Dir = strings.NewReader(script), t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
	for line := range strings.Lines(string(out)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		words = append(words, word)
	}
	return words
}

func offers(t *testing.T, shell, line string, words, must, none []string) {
	t.Helper()
	for _, word := range must {
		if !slices.Contains(words, word) {
			t.Errorf("%s: %q: it does not offer %s: %v", shell, line, word, words)
		}
	}
	for _, word := range none {
		if slices.Contains(words, word) {
			t.Errorf("%s: %q: it offers %s: %v", shell, line, word, words)
		}
	}
}

// TestCompletionInBash has bash complete lines with the script.
func TestCompletionInBash(t *testing.T) {
	t.Parallel()
	script := completionScript(t, "bash")
	var all strings.Builder
	all.WriteString("set -u\n" + script)
	for _, c := range completions {
		words := strings.Fields(c.line)
		if strings.HasSuffix(c.line, " ") {
			words = append(words, "''")
		}
		all.WriteString("COMP_WORDS=(" + strings.Join(words, " ") + "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _walpost; printf '%s\\n' \"${COMPREPLY[@]:-}\" END\n")
	}
	words := inShell(t, all.String(), "bash", "--norc")
	for _, c := range completions {
		end := slices.Index(words, "END")
		offers(t, "bash", c.line, words[:end], c.must, c.none)
		words = words[end+1:]
	}
}

// TestCompletionInFish has fish complete lines with the script.
func TestCompletionInFish(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("fish"); err != nil {
		t.Skip("fish is not installed: apt-get install fish")
	}
	script := completionScript(t, "fish")
	for _, c := range completions {
		words := inShell(t, script+"complete -C '"+c.line+"'\n", "fish", "--no-config")
		offers(t, "fish", c.line, words, c.must, c.none)
	}
}

// TestCompletionInZsh has zsh complete a line on a terminal with the script.
func TestCompletionInZsh(t *testing.T) {
	t.Parallel()
	script := completionScript(t, "zsh")
	if !strings.HasPrefix(script, "#compdef walpost\n") {
		t.Errorf("zsh does not load it: %.40q", script)
	}
	if _, err := exec.LookPath("zsh"); err != nil {
		t.Skip("zsh is not installed: apt-get install zsh")
	}
	// A second zsh, on a terminal, gets the line and a TAB. It lists what it offers.
	drive := `zmodload zsh/zpty
zpty z 'PS1= zsh -f -i'
zpty -w z 'unsetopt zle_bracketed_paste; autoload -U compinit; compinit -u -D; source ./script; LISTMAX=1000; print READY'
zpty -r z out '*READY*READY*'
zpty -w -n z 'walpost dlq '$'\t\t'
zpty -r z out '*redrive*'
print -r -- $out
zpty -d z
`
	words := inShell(t, "cat > script <<'END_OF_SCRIPT'\n"+script+"END_OF_SCRIPT\n"+drive, "zsh", "-f")
	if all := strings.Join(words, " "); !strings.Contains(all, "redrive") || strings.Contains(all, "adopt") {
		t.Errorf("zsh: it offers %v", words)
	}
}
