package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
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
		return enc.Encode(all)
	}
	for i, st := range all {
		if i > 0 {
			p.say("")
		}
		status(sentences{p.stdout, &cfgs[i]}, st)
	}
	return nil
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
		row("pending", "%d rows%s", b.Pending, oldest)
		row("failed", "%d rows%s", b.Failed, held)
	case s.Slot == nil:
		row("pending", "not seen")
	case s.Slot.Exists:
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
