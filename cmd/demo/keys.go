package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// keyboard reads single keys from a terminal, or the first letter of each line of a pipe. Ctrl-C and Ctrl-D are q.
type keyboard struct {
	keys    chan byte
	given   bool   // false: nobody can press a key
	restore func() // gives the terminal back as it was; may be called more than once
}

// newKeyboard returns the keyboard of in. If in is neither a terminal nor a pipe, there are no keys.
func newKeyboard(ctx context.Context, in io.Reader, out *screen) (*keyboard, error) {
	k := &keyboard{keys: make(chan byte), restore: func() {}}
	next := lines(in)
	if file, ok := in.(*os.File); ok {
		info, err := file.Stat()
		switch fd := int(file.Fd()); {
		case term.IsTerminal(fd):
			before, err := term.MakeRaw(fd)
			if err != nil {
				return nil, fmt.Errorf("read single keys from the terminal: %w", err)
			}
			out.raw(true)
			k.restore = sync.OnceFunc(func() {
				_ = term.Restore(fd, before)
				out.raw(false)
			})
			next = single(in)
		case err != nil, info.Mode()&os.ModeNamedPipe == 0:
			return k, nil
		}
	}
	k.given = true
	// A read from a terminal cannot be ended, so nothing waits for this goroutine: it ends with the process.
	go func() {
		for {
			key, err := next()
			if err != nil {
				return
			}
			select {
			case k.keys <- key:
			case <-ctx.Done():
				return
			}
		}
	}()
	return k, nil
}

func single(in io.Reader) func() (byte, error) {
	const ctrlC, ctrlD = 3, 4
	var b [1]byte
	return func() (byte, error) {
		_, err := io.ReadFull(in, b[:])
		if b[0] == ctrlC || b[0] == ctrlD {
			b[0] = 'q'
		}
		return b[0], err
	}
}

func lines(in io.Reader) func() (byte, error) {
	scanner := bufio.NewScanner(in)
	return func() (byte, error) {
		for scanner.Scan() {
			if line := strings.TrimSpace(scanner.Text()); line != "" {
				return line[0], nil
			}
		}
		return 0, io.EOF
	}
}

// guard returns f, which gives the terminal back before a panic ends the process.
func (k *keyboard) guard(f func() error) func() error {
	return func() error {
		defer func() {
			if p := recover(); p != nil {
				k.restore()
				panic(p)
			}
		}()
		return f()
	}
}

// screen lets stdout and stderr write to a terminal in raw mode, which needs a carriage return at each line's end.
type screen struct {
	mu    sync.Mutex
	isRaw bool
}

func (s *screen) raw(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isRaw = is
}

// writer returns a writer to w for several goroutines.
func (s *screen) writer(w io.Writer) io.Writer { return &screenWriter{s, w} }

type screenWriter struct {
	*screen
	to io.Writer
}

// Fd returns the file descriptor below, so that a log on a terminal has colours. It returns an invalid one if there is none.
func (w *screenWriter) Fd() uintptr {
	if file, ok := w.to.(*os.File); ok {
		return file.Fd()
	}
	return ^uintptr(0)
}

func (w *screenWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := p
	if w.isRaw {
		text = bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))
	}
	if _, err := w.to.Write(text); err != nil {
		return 0, err
	}
	return len(p), nil
}
