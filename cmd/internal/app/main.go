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

// Run is a whole process as a function, so that tests can call it with their environment and outputs. It returns nil if
// the command succeeded, or stopped because ctx ended.
type Run func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error

// Main runs the process and exits. SIGINT and SIGTERM end ctx, with the signal as its cause; a second signal kills the
// process. Main prints an error with one line for each sentence, each after the program's name, and exits with the code
// 1.
func Main(run Run) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(exitCode(ctx, run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr), os.Stderr))
}

// ExitError is the error of a command that has already printed everything: Main prints nothing, and exits with this
// code.
type ExitError int

func (c ExitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// InterruptedError is the error of a command that a signal ended before its work was done. Main prints it and exits with
// 130, as a shell does for SIGINT, so that a script does not go on.
type InterruptedError struct{ Err error }

func (e *InterruptedError) Error() string { return "interrupted: " + e.Err.Error() }

func (e *InterruptedError) Unwrap() error { return e.Err }

// exitCode prints the error to stderr and returns the exit code.
func exitCode(ctx context.Context, err error, stderr io.Writer) int {
	if code := ExitError(0); errors.As(err, &code) {
		return int(code)
	}
	interrupted := errors.As(err, new(*InterruptedError))
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) && !interrupted {
		return 0
	}
	name := filepath.Base(os.Args[0])
	if interrupted {
		fmt.Fprintf(stderr, "%s: %s\n", name, err)
		return 130
	}
	if lines := apart(err); lines != nil && isTerminal(stderr) {
		fmt.Fprintf(stderr, "%s:%s\n", name, strings.Join(lines, "\n"))
		return 1
	}
	for _, line := range sentences(err) {
		fmt.Fprintf(stderr, "%s: %s\n", name, line)
	}
	return 1
}

// apart returns an error in lines for a terminal, each part on its own line. It returns nil if the error has no parts,
// or more text after them.
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

// terminalWidth is the length of a line for a terminal, in letters. Lines are broken at spaces only, so that a command
// can be copied.
const terminalWidth = 100

// wrap breaks a text at spaces. Lines after the first are indented by the length of the title.
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

// sentences returns a line for each error joined in err. pgx writes each address that it tried on an indented line:
// sentences appends these to the line before, each only once.
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

// Parse reads args into cli, a pointer to a struct with kong's tags. A flag that args do not set takes its value from
// the environment, by the name in its env tag. If args request help or the version, Parse prints it and returns no
// context.
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

// Among returns a Run that calls run with the names of all variables that have a value, because getenv cannot list
// them. environ is the environment, each entry name=value.
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

// Strays returns an error for each variable whose name is nearly one that a command of the program reads. It warns of
// other names that begin with the prefix. For healthcheck it checks nothing, because that command reads no
// configuration.
func Strays(command *kong.Context, prefix string, names []string, warn func(string)) error {
	if command.Selected().Name == "healthcheck" {
		return nil
	}
	unknown, err := misspelt.Variables(names, prefix, Variables(command), nil)
	Unread(unknown, fmt.Sprintf("`%s COMMAND --help` names the variables of a command", command.Model.Name), warn)
	return err
}

// Unread warns of variables that the program does not read, if there are any. where names the place that lists those
// that it reads.
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
