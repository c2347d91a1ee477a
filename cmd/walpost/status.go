package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cmd/internal/app"
)

type statusCmd struct {
	JSON bool `name:"json" help:"As JSON: one pipeline's, or a list of them."`
}

func (c *statusCmd) Run(p *process) error {
	cfgs, err := p.configs()
	if err != nil {
		return err
	}
	group, err := pipeline.NewGroup(cfgs, pipeline.Options{})
	if err != nil {
		return err
	}
	all := group.Status(p.ctx)
	if c.JSON {
		enc := json.NewEncoder(p.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(all); err != nil {
			return err
		}
		return outcome(all)
	}
	for i, st := range all {
		if i > 0 {
			p.say("")
		}
		status(sentences{p.stdout, &cfgs[i]}, st)
	}
	return outcome(all)
}

// outcome returns the exit code of a status: that of the pipeline whose verdict is the worst.
func outcome(all pipeline.Statuses) error {
	code := app.ExitError(0)
	for _, s := range all {
		switch {
		case s.Verdict == pipeline.NeedsSomeone:
			return app.ExitError(1)
		case s.Verdict != pipeline.Flows:
			code = 2
		}
	}
	if code == 0 {
		return nil
	}
	return code
}

// limit says how much more WAL the server keeps for the slot, and how long that lasts; "" where there is no limit.
func limit(s *pipeline.Status) string {
	switch {
	case s.Slot.SafeWALSize == nil:
		return ""
	case s.SlotSeconds == nil:
		return fmt.Sprintf("%s more of WAL, and the slot can be lost", size(*s.Slot.SafeWALSize))
	}
	left := time.Duration(*s.SlotSeconds * float64(time.Second)).Round(time.Minute)
	return fmt.Sprintf("%s more of WAL, in %s at %s an hour, and the slot can be lost", size(*s.Slot.SafeWALSize), left, size(*s.WALPerHour))
}

// status prints how a pipeline stands.
func status(out io.Writer, s pipeline.Status) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("pipeline", "%s", s.Pipeline)
	switch {
	case s.Backlog != nil:
		b := s.Backlog
		oldest, held := "", ""
		if b.Pending > 0 {
			oldest = fmt.Sprintf(", the oldest for %.3g s", b.OldestSeconds)
		}
		if b.Refused > 0 {
			oldest += fmt.Sprintf("; %d were refused and are tried again", b.Refused)
		}
		if b.HeldKeys > 0 {
			held = fmt.Sprintf(", keys held back: %d", b.HeldKeys)
		}
		row("pending", "%s rows%s", polling.Count(b.Pending), oldest)
		row("failed", "%s rows%s", polling.Count(b.Failed), held)
	case s.Slot == nil:
		row("pending", "not seen")
	case s.Slot.Exists != nil && *s.Slot.Exists:
		active := "not active"
		if s.Slot.Active {
			active = "active"
		}
		row("slot", "%s: %s, confirmed %s, wal_status %s", s.Slot.Name, active, s.Slot.ConfirmedFlush, s.Slot.WALStatus)
		seconds := "an unknown time"
		if s.LagSeconds != nil {
			seconds = fmt.Sprintf("%.3g s", *s.LagSeconds)
		}
		row("lag", "%s and %s behind the end of the WAL at %s", size(*s.LagBytes), seconds, s.WALEnd)
		row("retained", "%s of WAL is kept for the slot, from %s", size(*s.RetainedBytes), s.Slot.RestartLSN)
		if l := limit(&s); l != "" {
			row("limit", "%s", l)
		}
	default:
		row("slot", "%s: not seen", s.Slot.Name)
	}
	switch {
	case s.Slot == nil:
	case s.State != nil:
		row("state", "covered %s, last row %s/%d, epoch %d by %s, %s", s.State.Covered, s.State.CommitLSN, s.State.Ordinal,
			s.State.Epoch, s.State.Instance, s.State.Time.Format(time.RFC3339))
	default:
		row("state", "no record seen")
	}
	if s.DeadLetters != nil {
		row("poison", "%d unresolved dead letters (`walpost dlq list`)", *s.DeadLetters)
	}
	if s.State != nil && s.State.Phantoms != nil {
		row("phantoms", "%s: %s", s.State.Phantoms.At.Format(time.RFC3339), s.State.Phantoms)
	}
	for _, d := range s.Decisions {
		row("decision", "%s %s by %s: %s", d.Time.Format(time.RFC3339), d.Command, d.By, d.What)
	}
	for _, n := range s.Notes {
		row("note", "%s", n)
	}
	if len(s.Blocked) == 0 {
		row("blocked", "by nothing")
	}
	for _, b := range s.Blocked {
		row("blocked", "%s", strings.ReplaceAll(b, "\n", "; "))
	}
}
