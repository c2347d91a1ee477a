package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

const (
	// commandWithin is how long a command may take to print a password or a token. It is shorter than the timeout of a
	// connection.
	commandWithin = 8 * time.Second
	// longestWord is the largest number of bytes of a password or a token: tokens of some services have several KiB.
	longestWord = 64 << 10
)

// readWord returns the one line of the file, without the line's end.
func readWord(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read the file: %w", err)
	}
	if info.Size() > longestWord {
		return "", fmt.Errorf("the file %s has %d bytes: that is no password and no token", path, info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the file: %w", err)
	}
	return word(string(text), "the file "+path)
}

// runForWord runs the command and returns the line that it prints. Spaces separate the command's words; no shell is
// used. The error does not contain the command's output, which can be a secret.
func runForWord(ctx context.Context, command string) (string, error) {
	words := strings.Fields(command)
	if len(words) == 0 {
		return "", errors.New("the command is empty")
	}
	ctx, cancel := context.WithTimeout(ctx, commandWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.WaitDelay = time.Second // a child of the command may keep its output open
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("the command %s has printed nothing within %s: run it by hand", words[0], commandWithin)
	case err != nil:
		return "", fmt.Errorf("the command %s: %w: run it by hand", words[0], err)
	case len(bytes.TrimSpace(out.Bytes())) == 0:
		return "", fmt.Errorf("the command %s printed nothing: run it by hand", words[0])
	case out.Len() > longestWord:
		return "", fmt.Errorf("the command %s printed %d bytes: that is no password and no token", words[0], out.Len())
	}
	return word(out.String(), "the command "+words[0])
}

// word returns the text if it is one line that is not empty.
func word(text, of string) (string, error) {
	text = strings.TrimRight(text, "\r\n")
	switch {
	case strings.TrimSpace(text) == "":
		return "", fmt.Errorf("%s is empty: write the password or the token there", of)
	case strings.ContainsAny(text, "\r\n\x00"):
		return "", fmt.Errorf("%s holds more than one line: write the password or the token alone", of)
	}
	return text, nil
}
