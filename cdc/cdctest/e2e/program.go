package e2e

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// Program says how a test runs walpost.
type Program struct {
	// Main runs walpost in the test's process: the function of its package. If it is nil, all commands run in separate
	// processes.
	Main func(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error
	Path string   // of the binary
	Vars []string // of the binary's environment, KEY=value, in addition to the test's environment and the configuration
}

// Command returns the binary's command, not yet started.
func (p Program) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.Path, args...)
	cmd.Env = append(os.Environ(), p.Vars...)
	return cmd
}

// run runs a command to its end, or until ctx ends. The error of a separate process is its output on standard error.
func (p Program) run(ctx context.Context, args []string, env map[string]string, out io.Writer) error {
	if p.Main != nil {
		return p.Main(ctx, args, func(key string) string { return env[key] }, out, out)
	}
	cmd := exec.CommandContext(ctx, p.Path, args...)
	cmd.Env = append(os.Environ(), p.Vars...)
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var said cdctest.Log
	cmd.Stdout, cmd.Stderr = out, io.MultiWriter(out, &said)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); err != nil {
		return errors.Join(err, errors.New(strings.TrimSpace(said.String())))
	}
	return nil
}

// Build returns a function that builds the command in a directory, with flags of go build, and returns the binary's
// path. The first call builds. The binary has the race detector if the test has it, unless a flag says -race=false, and
// is deleted when the test ends.
func Build(t testing.TB, dir string, flags ...string) func() string {
	t.Helper()
	absolute, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), filepath.Base(absolute)) // errors begin with the binary's name
	build := sync.OnceValue(func() error {
		if err := dependOnSources(); err != nil {
			return err
		}
		args := append([]string{"build", "-o", path}, raceFlags...)
		cmd := exec.Command("go", append(args, flags...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.Join(err, errors.New(string(out)))
		}
		return nil
	})
	return func() string {
		if err := build(); err != nil {
			t.Errorf("go build %s in %s: %v", strings.Join(flags, " "), dir, err)
		}
		return path
	}
}

// dependOnSources reads all of the module's source files: go test takes a result from its cache unless a file changed
// that the test itself has read.
func dependOnSources() error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return err
	}
	return filepath.WalkDir(strings.TrimSpace(string(root)), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if err == nil && filepath.Ext(path) == ".go" {
			_, err = os.Stat(path)
		}
		return err
	})
}
