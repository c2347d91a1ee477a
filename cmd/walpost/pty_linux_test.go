package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/walpost/walpost/cdc/cdctest"
)

// onTerminal starts walpost on a terminal of 60 letters and 12 lines, and returns what that shows.
func onTerminal(t *testing.T, env []string, args ...string) (*exec.Cmd, *screen) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { _ = ptmx.Close() })
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 12, Col: 60})
	}
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()
	cmd := program.Command(args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &screen{}
	go func() { _, _ = io.Copy(s, ptmx) }()
	return cmd, s
}

// TestWatchOnARealTerminal: SIGINT ends the process with the code 0, and the terminal is as it was.
func TestWatchOnARealTerminal(t *testing.T) {
	t.Parallel()
	env := []string{"WALPOST_PIPELINE=orders", "WALPOST_SOURCE_URL=postgres://walpost@127.0.0.1:1/orders", "WALPOST_KAFKA_BROKERS=127.0.0.1:1", "WALPOST_KAFKA_AGGREGATE_TYPES=order", "NO_COLOR="}
	cmd, s := onTerminal(t, env, "status", "--watch=100ms")
	cdctest.Eventually(t, time.Minute, func() error { return contains(s.String(), yellow+"verdict    cannot tell"+usual) })
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("SIGINT: %v", err)
	}
	cdctest.Eventually(t, time.Minute, func() error { return contains(s.String(), showCursor+mainScreen) })
	if said := s.String(); !strings.HasPrefix(said, otherScreen+hideCursor) || !strings.HasSuffix(said, showCursor+mainScreen) {
		t.Errorf("the terminal is not as it was: %q", said)
	}
	for line := range strings.SplitSeq(s.String(), "\r\n") {
		for _, code := range []string{otherScreen, mainScreen, hideCursor, showCursor, home, endOfLine, endOfScreen, yellow, usual} {
			line = strings.ReplaceAll(line, code, "")
		}
		if n := len([]rune(line)); n > 120 { // the end of a look and the head of the next
			t.Errorf("a line of %d letters: %q", n, line)
		}
	}
}
