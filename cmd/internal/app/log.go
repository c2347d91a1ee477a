package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
	"golang.org/x/term"
)

func init() {
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
}

// NewLogger returns a logger that writes to w, with the time in UTC to the millisecond. With the format "json" it
// writes one JSON object a line, with "console" lines for people; "" is console on a terminal and JSON elsewhere. Level
// is one of zerolog's from trace to error. The error contains the mistakes of both.
func NewLogger(w io.Writer, level, format string) (zerolog.Logger, error) {
	var errs []error
	lvl, err := zerolog.ParseLevel(level)
	if err != nil || lvl < zerolog.TraceLevel || lvl > zerolog.ErrorLevel {
		errs = append(errs, fmt.Errorf("--log-level (LOG_LEVEL): %q: write trace, debug, info, warn or error", level))
	}
	terminal := isTerminal(w)
	switch format {
	case "", "json", "console":
	default:
		errs = append(errs, fmt.Errorf("--log-format (LOG_FORMAT): %q: write json or console, or leave it empty for console on a terminal and json elsewhere", format))
	}
	if len(errs) > 0 {
		return zerolog.Nop(), errors.Join(errs...)
	}
	if format == "console" || format == "" && terminal {
		w = zerolog.ConsoleWriter{
			Out: w, NoColor: !terminal, TimeFormat: "15:04:05.000", TimeLocation: time.UTC,
			FieldsExclude: append(errorParts[:], zerolog.ErrorFieldName), FormatExtra: errorBelow,
		}
	}
	return zerolog.New(w).Level(lvl).With().Timestamp().Logger(), nil
}

// errorParts are the fields with an error's parts, if it has some. The field of the error itself has the whole text.
var errorParts = [...]string{"found", "means", "run"}

// errorBelow writes an event's error below the event, without the quotes of JSON. If the error has parts, it writes
// these.
func errorBelow(event map[string]any, line *bytes.Buffer) error {
	apart := false
	for _, part := range errorParts {
		if text, ok := event[part].(string); ok {
			apart = true
			line.WriteString("\n" + strings.Join(wrap("  "+part+": ", text), "\n"))
		}
	}
	if text, ok := event[zerolog.ErrorFieldName].(string); ok && !apart {
		line.WriteString("\n" + strings.Join(wrap("  error: ", text), "\n"))
	}
	return nil
}

// Terminal returns the size of a terminal in letters and lines. ok is false if w is none.
func Terminal(w io.Writer) (width, height int, ok bool) {
	if !isTerminal(w) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(w.(interface{ Fd() uintptr }).Fd()))
	return width, height, err == nil && width > 0 && height > 0
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr }) // an *os.File, or what writes to one
	return ok && isatty.IsTerminal(f.Fd())
}
