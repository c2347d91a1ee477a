package app

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Completion is the command that prints a script for a shell's completion of commands, flags and their values.
type Completion struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"Print the script of this shell: ${enum}."`
}

// Run prints the script.
func (c *Completion) Run(ctx *kong.Context) error {
	text := bashScript(ctx.Model)
	switch c.Shell {
	case "zsh":
		text = "#compdef " + ctx.Model.Name + "\nautoload -U +X bashcompinit && bashcompinit\n" + text
	case "fish":
		text = fishScript(ctx.Model)
	}
	_, err := io.WriteString(ctx.Stdout, text)
	return err
}

// place is a command, or the program, with what can stand after it.
type place struct {
	path  string // dlq list
	help  string
	below []*kong.Node
	flags []*kong.Flag
	words []string // values of its arguments
}

// places returns the program and its commands, those below a command after it.
func places(node *kong.Node, path string) (all []place) {
	here := place{path: path, help: node.Help}
	for _, flags := range node.AllFlags(true) {
		here.flags = append(here.flags, flags...)
	}
	for _, arg := range node.Positional {
		here.words = append(here.words, choices(arg)...)
	}
	all = append(all, here)
	for _, child := range node.Children {
		if child.Type == kong.CommandNode && !child.Hidden {
			all[0].below = append(all[0].below, child)
			all = append(all, places(child, strings.TrimSpace(path+" "+child.Name))...)
		}
	}
	return all
}

// choices returns the values of an enum; none for another value.
func choices(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return slices.DeleteFunc(v.EnumSlice(), func(s string) bool { return s == "" })
}

// names returns the flag as it is written: --config -c, or --follow --no-follow.
func names(f *kong.Flag) (all []string) {
	all = append(all, "--"+f.Name)
	if f.Tag != nil && f.Tag.Negatable != "" {
		all = append(all, "--no-"+f.Name)
	}
	if f.Short != 0 {
		all = append(all, "-"+string(f.Short))
	}
	return all
}

// bashScript returns the script of bash. A place where it knows no word is left to the shell, which completes names of files.
func bashScript(app *kong.Application) string {
	var commands, words, values strings.Builder
	for _, p := range places(app.Node, "") {
		var all []string
		for _, child := range p.below {
			all = append(all, child.Name)
			fmt.Fprintf(&commands, "|%q", strings.TrimSpace(p.path+" "+child.Name))
		}
		all = append(all, p.words...)
		var free []string // flags with a value that is no enum
		for _, f := range p.flags {
			all = append(all, names(f)...)
			for _, name := range names(f) {
				at := fmt.Sprintf("%q", p.path+":"+name)
				if known := choices(f.Value); len(known) > 0 {
					fmt.Fprintf(&values, "  %s) words=%q ;;\n", at, strings.Join(known, " "))
				} else if !f.IsBool() {
					free = append(free, at)
				}
			}
		}
		if len(free) > 0 {
			fmt.Fprintf(&values, "  %s) words=\"\" ;;\n", strings.Join(free, "|"))
		}
		fmt.Fprintf(&words, "    %q) words=%q ;;\n", p.path, strings.Join(all, " "))
	}
	function := "_" + app.Name
	return fmt.Sprintf(`%[1]s() {
  local word at="" words="" cur="${COMP_WORDS[COMP_CWORD]}" prev="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${at:+$at }${COMP_WORDS[i]}"
    case "$word" in
    %[2]s) at="$word" ;;
    esac
  done
  prev="${COMP_WORDS[COMP_CWORD - 1]}"
  if [ "$cur" = "=" ]; then
    cur=""
  elif [ "$prev" = "=" ] && [ "$COMP_CWORD" -gt 1 ]; then
    prev="${COMP_WORDS[COMP_CWORD - 2]}"
  fi
  case "$at:$prev" in
%[3]s  *)
    case "$at" in
%[4]s    esac
    ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F %[1]s %[5]s
`, function, strings.TrimPrefix(commands.String(), "|"), values.String(), words.String(), app.Name)
}

// fishScript returns the script of fish.
func fishScript(app *kong.Application) string {
	var b strings.Builder
	all := places(app.Node, "")
	at := "__" + app.Name + "_at"
	fmt.Fprintf(&b, "function %s\n    set -l at\n    for word in (commandline -opc)[2..-1]\n        switch (string trim -- \"$at $word\")\n            case", at)
	for _, p := range all[1:] {
		b.WriteString(" " + quoted(p.path))
	}
	b.WriteString("\n                set at (string trim -- \"$at $word\")\n        end\n    end\n    test \"$at\" = \"$argv[1]\"\nend\n")
	for _, p := range all {
		when := fmt.Sprintf("complete -c %s -n %s", app.Name, quoted(at+" "+quoted(p.path)))
		for _, child := range p.below {
			fmt.Fprintf(&b, "%s -f -a %s -d %s\n", when, child.Name, quoted(brief(child.Help)))
		}
		for _, word := range p.words {
			fmt.Fprintf(&b, "%s -f -a %s\n", when, quoted(word))
		}
		for _, f := range p.flags {
			fmt.Fprintf(&b, "%s -l %s", when, f.Name)
			if f.Short != 0 {
				fmt.Fprintf(&b, " -s %c", f.Short)
			}
			if !f.IsBool() {
				b.WriteString(" -r")
				if values := choices(f.Value); len(values) > 0 {
					fmt.Fprintf(&b, " -f -a %s", quoted(strings.Join(values, " ")))
				}
			}
			fmt.Fprintf(&b, " -d %s\n", quoted(brief(f.Help)))
			if f.Tag != nil && f.Tag.Negatable != "" {
				fmt.Fprintf(&b, "%s -l no-%s\n", when, f.Name)
			}
		}
	}
	return b.String()
}

// brief returns the first sentence of a help text, without what it explains after a colon.
func brief(help string) string {
	help, _, _ = strings.Cut(help, ". ")
	help, _, _ = strings.Cut(help, ": ")
	return strings.TrimSuffix(help, ".")
}

// quoted returns a text in fish's quotes.
func quoted(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
