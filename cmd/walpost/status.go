package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
)

type statusCmd struct {
	JSON bool `name:"json" help:"Print JSON: one object, or a list of them where the file has several pipelines."`

	Watch interval `help:"Show the status again every 2 seconds, or every 5 with --watch=5s, until SIGINT: on a terminal in place, elsewhere one after the other, with --json one line for each look. Several pipelines are a table. Exit code 0 after SIGINT."`
}

func (c *statusCmd) Run(p *process) error {
	cfgs, group, err := p.group()
	if err != nil {
		return err
	}
	if c.Watch > 0 {
		return p.watch(time.Duration(c.Watch), c.JSON, cfgs, group)
	}
	all := group.Status(p.ctx)
	if err := show(p, c.JSON, cfgs, all, status); err != nil {
		return err
	}
	return outcome(all)
}

// outcome returns the exit code of the worst verdict: 0 rows flow, 2 cannot tell, 1 somebody is needed.
func outcome(all pipeline.Statuses) error {
	return exit(
		slices.ContainsFunc(all, func(s pipeline.Status) bool { return s.Verdict == pipeline.NeedsSomeone }),
		slices.ContainsFunc(all, func(s pipeline.Status) bool { return s.Verdict != pipeline.Flows }),
	)
}

// limit returns how much more WAL the server keeps for the slot, and how long that lasts; "" where there is no limit.
func limit(s *pipeline.Status) string {
	switch {
	case s.Slot.SafeWALSize == nil:
		return ""
	case s.SlotSeconds == nil:
		return fmt.Sprintf("the slot can be lost after %s more of WAL", plain.Size(*s.Slot.SafeWALSize))
	}
	left := plain.Duration(time.Duration(*s.SlotSeconds * float64(time.Second)).Round(time.Minute))
	return fmt.Sprintf("the slot can be lost after %s more of WAL, which takes %s at %s an hour", plain.Size(*s.Slot.SafeWALSize), left, plain.Size(*s.WALPerHour))
}

// status prints the status of one pipeline, a line for each fact. A halt takes three lines: blocked, means and run.
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
		if b.Rejected > 0 {
			oldest += fmt.Sprintf("; %d were rejected and are tried again", b.Rejected)
		}
		if b.HeldKeys > 0 {
			held = fmt.Sprintf(", held keys: %d", b.HeldKeys)
		}
		row("pending", "%s rows%s", polling.Count(b.Pending), oldest)
		row("failed", "%s rows%s", polling.Count(b.Failed), held)
	case s.Slot == nil:
		row("pending", "unknown: the table could not be read")
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
		row("lag", "%s and %s behind the end of the WAL at %s", plain.Size(*s.LagBytes), seconds, s.WALEnd)
		row("retained", "the server keeps %s of WAL for the slot, from %s", plain.Size(*s.RetainedBytes), s.Slot.RestartLSN)
		if l := limit(&s); l != "" {
			row("limit", "%s", l)
		}
	case s.Slot.Exists != nil:
		row("slot", "%s: does not exist", s.Slot.Name)
	default:
		row("slot", "%s: unknown: PostgreSQL could not be read", s.Slot.Name)
	}
	switch {
	case s.Slot == nil:
	case s.State != nil:
		row("state", "covered %s, last row %s/%d, epoch %d by %s, %s", s.State.Covered, s.State.CommitLSN, s.State.Ordinal,
			s.State.Epoch, s.State.Instance, s.State.Time.Format(time.RFC3339))
	default:
		row("state", "no record, or Kafka could not be read")
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
	for _, g := range s.Gaps {
		row("gap", "rows committed in %s may be missing in Kafka: run %s; if you know that none is missing, add --none-missing", g.Range, g.Run)
	}
	if len(s.Blocked) == 0 {
		row("blocked", "by nothing")
	}
	for _, b := range s.BlockedBy {
		for _, part := range [][2]string{{"blocked", b.Found}, {"means", b.Means}, {"run", b.Run}} {
			if part[1] != "" {
				row(part[0], "%s", strings.ReplaceAll(part[1], "\n", "; "))
			}
		}
	}
}
