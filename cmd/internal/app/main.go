package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/alecthomas/kong"

	"github.com/walpost/walpost/cdc/misspelt"
	"github.com/walpost/walpost/cdc/version"
)

// Run is a whole process as a function: tests call it with an environment and outputs of their own. It returns nil when it did
// what it was asked for, stopping because ctx ended included.
type Run func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error

// Main runs the process and exits. SIGINT and SIGTERM end ctx, with the signal as its cause; a second signal kills. An error is
// printed one line per sentence, each with the program's name in front, and the exit code is 1.
func Main(run Run) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(exitCode(ctx, run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr), os.Stderr))
}

// ExitError is the error of a command that has said all it has to say: nothing is printed, and the process exits with it.
type ExitError int

func (c ExitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func exitCode(ctx context.Context, err error, stderr io.Writer) int {
	if code := ExitError(0); errors.As(err, &code) {
		return int(code)
	}
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return 0
	}
	name := filepath.Base(os.Args[0])
	if lines := apart(err); lines != nil && isTerminal(stderr) {
		fmt.Fprintf(stderr, "%s:%s\n", name, strings.Join(lines, "\n"))
		return 1
	}
	for _, line := range sentences(err) {
		fmt.Fprintf(stderr, "%s: %s\n", name, line)
	}
	return 1
}

// apart is an error of parts in lines for a terminal, each part on its own; nil where the error has no parts, or is more than them.
func apart(err error) (lines []string) {
	var parts interface {
		error
		Parts() [][2]string
	}
	if !errors.As(err, &parts) || !strings.HasSuffix(err.Error(), parts.Error()) {
		return nil
	}
	before := strings.TrimSuffix(strings.TrimSuffix(err.Error(), parts.Error()), ": ")
	if strings.Contains(before, "\n") {
		return nil
	}
	if before != "" {
		before = " " + before
	}
	lines = append(lines, before)
	for _, part := range parts.Parts() {
		lines = append(lines, wrap("  "+part[0]+": ", part[1])...)
	}
	return lines
}

// terminalWidth is what lines for a terminal are wrapped at, in letters. A command is broken at spaces only, and can be copied.
const terminalWidth = 100

// wrap breaks a text at spaces. Lines behind the first are indented as far as the title.
func wrap(title, text string) (lines []string) {
	line := title
	for word := range strings.FieldsSeq(text) {
		if strings.TrimSpace(line) != strings.TrimSpace(title) && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > terminalWidth {
			lines, line = append(lines, line), strings.Repeat(" ", len(title))
		}
		if strings.HasSuffix(line, " ") || line == "" {
			line += word
		} else {
			line += " " + word
		}
	}
	return append(lines, line)
}

// sentences is a line for each error joined in err. pgx tells each address it tried on an indented line: these go into the line they
// belong to, and once each.
func sentences(err error) []string {
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		more, indented := strings.CutPrefix(line, "\t")
		switch last := len(lines) - 1; {
		case !indented || last < 0:
			lines = append(lines, line)
		case !strings.HasSuffix(lines[last], more):
			lines[last] += " " + more
		}
	}
	return lines
}

// Parse reads args into cli, a pointer to a struct with kong's tags. A flag that args do not set takes the value getenv has for
// its env tag, where there is one. The context is nil when args ask for help or the version, which is then printed.
func Parse(name, description string, cli any, args []string, getenv func(string) string, stdout, stderr io.Writer) (*kong.Context, error) {
	helped := false
	environment := kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		for _, env := range flag.Envs {
			if v := getenv(env); v != "" {
				return v, nil
			}
		}
		return nil, nil
	})
	parser, err := kong.New(cli, kong.Name(name), kong.Description(description), kong.Writers(stdout, stderr), kong.Vars{"version": name + " " + version.Build()},
		kong.Resolvers(environment), kong.UsageOnError(), kong.Exit(func(int) { helped = true }))
	if err != nil {
		return nil, fmt.Errorf("describe the command line: %w", err)
	}
	command, err := parser.Parse(args)
	switch {
	case helped:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%w (see %s --help)", err, name)
	}
	return command, nil
}

// Among makes a Run of one that gets the names of the variables that have a value, too: getenv knows only single ones. environ is the
// environment, name=value each.
func Among(environ []string, run func(ctx context.Context, args, names []string, getenv func(string) string, stdout, stderr io.Writer) error) Run {
	var names []string
	for _, variable := range environ {
		if name, value, _ := strings.Cut(variable, "="); value != "" {
			names = append(names, name)
		}
	}
	return func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
		return run(ctx, args, names, getenv, stdout, stderr)
	}
}

// Strays returns an error about variables whose name is nearly one that a command of the program reads. It warns of others that begin with
// the prefix. healthcheck answers in any environment.
func Strays(command *kong.Context, prefix string, names []string, warn func(string)) error {
	if command.Selected().Name == "healthcheck" {
		return nil
	}
	unknown, err := misspelt.Variables(names, prefix, Variables(command), nil)
	Unread(unknown, fmt.Sprintf("`%s COMMAND --help` names the variables of a command", command.Model.Name), warn)
	return err
}

// Unread warns of variables that nothing reads, if there are any, and says where those are that something does.
func Unread(names []string, where string, warn func(string)) {
	if len(names) > 0 {
		warn(fmt.Sprintf("nothing reads %s: %s", strings.Join(names, ", "), where))
	}
}

// Variables returns the names of the variables that the program's flags read.
func Variables(command *kong.Context) (names []string) {
	_ = kong.Visit(command.Model, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			names = append(names, flag.Envs...)
		}
		return next(nil)
	})
	return names
}
