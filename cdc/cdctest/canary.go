package cdctest

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
)

// Canary is the password of every role and login of the tests. No output of a program may contain it: a Log and the
// harness look for it, in the forms of canary.txt, and so does .ci/run in the output of the tests.
const Canary = "kanarienvogel7"

//go:embed canary.txt
var canaryForms string

// leaks are the lines with the Canary that Logs have received. Main fails the run because of them.
var leaks struct {
	mu   sync.Mutex
	seen []string
}

// Leak returns the line of text that contains the Canary, or "".
func Leak(text string) string {
	for form := range strings.Lines(canaryForms) {
		form = strings.TrimSuffix(form, "\n")
		if at := strings.Index(text, form); at >= 0 {
			start := strings.LastIndexByte(text[:at], '\n') + 1
			line, _, _ := strings.Cut(text[start:], "\n")
			return line
		}
	}
	return ""
}

// NoSecret fails the test if text, the output of of, contains the Canary.
func NoSecret(t testing.TB, of, text string) {
	t.Helper()
	if line := Leak(text); line != "" {
		t.Errorf("%s shows a secret: %s", of, line)
	}
}

// As returns a URL like admin for another role, whose password is the Canary.
func As(admin, role string) string {
	u, err := url.Parse(admin)
	if err != nil {
		panic(err)
	}
	u.User = url.UserPassword(role, Canary)
	return u.String()
}

// note stores a leak for Main.
func note(line string) {
	leaks.mu.Lock()
	defer leaks.mu.Unlock()
	leaks.seen = append(leaks.seen, line)
}

// leaked prints the stored leaks, and reports whether there were any.
func leaked() bool {
	leaks.mu.Lock()
	defer leaks.mu.Unlock()
	for _, line := range leaks.seen {
		fmt.Fprintln(os.Stderr, "a log shows a secret:", line)
	}
	return len(leaks.seen) > 0
}

// Run is a program in the form of a function.
type Run = func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error

// Watch returns a program that runs like run and fails the run of the tests if its outputs or its error contain the
// Canary.
func Watch(run Run) Run {
	return func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
		said := new(Log)
		err := run(ctx, args, getenv, io.MultiWriter(stdout, said), io.MultiWriter(stderr, said))
		fmt.Fprintln(said, err)
		return err
	}
}

// BadURLs returns URLs that no program can use. Each contains the Canary in a place where an error that quotes the URL
// shows it.
func BadURLs(scheme string) []string {
	return []string{
		scheme + "://user:" + Canary + "@host:port/name",
		scheme + "://user:" + Canary + "@:x",
		scheme + "://user:" + Canary + "@[",
		scheme + "://user:" + Canary + "%zz@host/name",
		scheme + "://user:" + Canary + "/more@host:5432/name",
		scheme + "://user:a/" + Canary + ":more@host:5432/name",
		scheme + "://" + Canary + "@host:port/name",
		scheme + "://user@host:port/name?password=" + Canary,
		scheme + "://user@host:1/name?sslmode=none&password=" + Canary,
		scheme + "://user@host:1/name?sslmode=none&sslpassword=" + Canary,
		scheme + "://user@host:1/name?connect_timeout=soon&password=" + Canary,
		"host=host port=x password='it is " + Canary + "'",
		`host=host port=x password='it\'s ` + Canary + `'`,
		"host=host port=x password = " + Canary,
		"host=host port=x password=\t" + Canary,
		"host=host port=x password=a\\ " + Canary,
		"host=host port=x sslpassword=" + Canary,
		"host=host port=x PASSWORD=" + Canary,
		"password='" + Canary,
		Canary,
	}
}
