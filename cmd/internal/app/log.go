package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

func init() {
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
}

// NewLogger writes one JSON object a line to w, with the time in UTC to the millisecond. Format "console" writes for people's eyes
// and "json" for machines'; "" is console on a terminal and JSON elsewhere. Level is one of zerolog's from trace to error. Both
// are checked, and what is wrong with either is in the error.
func NewLogger(w io.Writer, level, format string) (zerolog.Logger, error) {
	var errs []error
	lvl, err := zerolog.ParseLevel(level)
	if err != nil || lvl < zerolog.TraceLevel || lvl > zerolog.ErrorLevel {
		errs = append(errs, fmt.Errorf("--log-level (LOG_LEVEL): %q is none of trace, debug, info, warn, error", level))
	}
	terminal := isTerminal(w)
	switch format {
	case "", "json", "console":
	default:
		errs = append(errs, fmt.Errorf("--log-format (LOG_FORMAT): %q is neither json nor console; leave it empty for console on a terminal and json elsewhere", format))
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

// errorParts are the fields with the parts of an error that has some, beside the error itself.
var errorParts = [...]string{"found", "means", "run"}

// errorBelow writes an event's error below it, not quoted as in JSON. An error that has parts is shown by these.
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

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
