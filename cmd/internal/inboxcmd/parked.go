package inboxcmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cdc/plain"
)

// Parked are the commands about events that could not be applied.
type Parked struct {
	List      parkedList    `cmd:"" help:"List parked events, gaps and blocked partitions, oldest first."`
	Show      parkedShow    `cmd:"" help:"Show one parked event as JSON, with its whole record (the value in base64)."`
	Redrive   parkedRedrive `cmd:"" help:"Apply parked events once, with their ids, after you have fixed the cause. Later events of the key that wait for one are applied after it, in order."`
	Drop      parkedDrop    `cmd:"" help:"Drop parked events and gaps: they will never be applied. A partition that halts at a dropped gap resumes."`
	Pass      parkedPass    `cmd:"" help:"Park or skip the event at which a partition is blocked, or pass the gap, which stays in the list. The partition resumes."`
	Decisions decisions     `cmd:"" help:"List the decisions of operators, newest first."`
}

type parkedList struct {
	All   bool  `help:"List redriven and dropped events, too."`
	After int64 `help:"List only events with a higher id."`
	Limit int   `default:"1000" help:"List at most this number of events."`
	JSON  bool  `name:"json" help:"Print JSON, one event a line."`
}

type parkedShow struct {
	ID int64 `arg:"" help:"Show the parked event with this id, from the list."`
}

// chosen are the arguments that redrive and drop have in common: which events they act on.
type chosen struct {
	IDs    []int64 `arg:"" optional:"" name:"id" help:"Act on the parked events with these ids, from the list."`
	All    bool    `help:"Act on all parked events."`
	DryRun bool    `help:"Try it, print the result, and undo it."`
}

func (c *chosen) check(program string) error {
	if (len(c.IDs) == 0) != c.All {
		return fmt.Errorf("name parked events by id, or write --all: `%s parked list` shows them", program)
	}
	return nil
}

type parkedRedrive struct {
	chosen
	Force bool `help:"Apply an event although earlier events of its key are parked or later ones were applied. This breaks the order of the key."`
}

type parkedDrop struct{ chosen }

type parkedPass struct {
	Partition int32        `arg:"" help:"Pass the event at which this partition is blocked."`
	Offset    int64        `arg:"" help:"Pass the event at this offset, from the list."`
	As        inbox.Policy `enum:"park_key,skip" default:"park_key" help:"Do this with the event: ${enum}."`
}

type decisions struct {
	Limit int `default:"100" help:"List at most this number of decisions."`
}

// Run lists the events of each group that the command line names.
func (l *parkedList) Run(ctx context.Context, in *Inboxes) error {
	for _, group := range in.Groups {
		if len(in.Groups) > 1 && !l.JSON {
			fmt.Fprintf(in.Stdout, "group %s\n", group)
		}
		if err := in.open(ctx, group, func(operator *inbox.Operator) error { return l.print(ctx, operator, in.Stdout) }); err != nil {
			return err
		}
	}
	return nil
}

func (l *parkedList) print(ctx context.Context, operator *inbox.Operator, stdout io.Writer) error {
	blocked, err := operator.Blocked(ctx)
	if err != nil {
		return err
	}
	list, err := operator.List(ctx, inbox.ListOptions{All: l.All, After: l.After, Limit: l.Limit})
	if err != nil {
		return err
	}
	if l.JSON {
		out := json.NewEncoder(stdout)
		for _, event := range list {
			if err := out.Encode(event); err != nil {
				return err
			}
		}
		return nil
	}
	for _, b := range blocked {
		by := "a record without an id"
		switch {
		case b.Gap:
			by = "a gap"
		case b.EventID != "":
			by = "event " + b.EventID
		}
		fmt.Fprintf(stdout, "partition %d is blocked at offset %d since %s, by %s: %s\n", b.Partition, b.Offset, b.Since.UTC().Format(time.RFC3339), by, plain.Line(b.Reason))
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tPLACE\tEVENT\tTYPE\tKEY\tSINCE\tSTATUS\tWHY")
	for _, e := range list {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, place(e), plain.Line(e.EventID), plain.Line(e.Type), plain.Line(e.Key), e.ParkedAt.UTC().Format(time.RFC3339), e.Status, plain.Line(e.Reason))
	}
	return table.Flush()
}

// place returns partition and offset, or partition and offsets of a gap.
func place(e inbox.Parked) string {
	if e.EndOffset > e.Offset+1 {
		return fmt.Sprintf("%d/%d-%d", e.Partition, e.Offset, e.EndOffset-1)
	}
	return fmt.Sprintf("%d/%d", e.Partition, e.Offset)
}

// named returns the name of a parked event for people: id and key, or the place of a gap.
func named(e inbox.Parked) string {
	if e.EndOffset > 0 {
		return "the gap " + place(e)
	}
	return fmt.Sprintf("event %s of %s", plain.Line(e.EventID), plain.Line(e.Key))
}

// Run prints one event.
func (s *parkedShow) Run(ctx context.Context, in *Inboxes) error {
	return in.one(ctx, func(operator *inbox.Operator) error {
		event, err := operator.Show(ctx, s.ID)
		if err != nil {
			return err
		}
		out := json.NewEncoder(in.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(event)
	})
}

// Run applies events.
func (r *parkedRedrive) Run(ctx context.Context, in *Inboxes) error {
	if err := r.check(in.Program); err != nil {
		return err
	}
	return in.one(ctx, func(operator *inbox.Operator) error {
		events, err := operator.Redrive(ctx, inbox.RedriveOptions{IDs: r.IDs, All: r.All, Force: r.Force, DryRun: r.DryRun})
		return r.report(in, events, err)
	})
}

// Run gives events up.
func (d *parkedDrop) Run(ctx context.Context, in *Inboxes) error {
	if err := d.check(in.Program); err != nil {
		return err
	}
	return in.one(ctx, func(operator *inbox.Operator) error {
		events, err := operator.Drop(ctx, inbox.DropOptions{IDs: d.IDs, All: d.All, DryRun: d.DryRun})
		return d.report(in, events, err)
	})
}

// Run lets a blocked partition resume.
func (p *parkedPass) Run(ctx context.Context, in *Inboxes) error {
	return in.one(ctx, func(operator *inbox.Operator) error {
		if err := operator.Pass(ctx, p.Partition, p.Offset, p.As); err != nil {
			return fmt.Errorf("%w (%s parked list)", err, in.Program)
		}
		_, err := fmt.Fprintf(in.Stdout, "partition %d resumes after offset %d within seconds\n", p.Partition, p.Offset)
		return err
	})
}

// Run lists decisions.
func (d *decisions) Run(ctx context.Context, in *Inboxes) error {
	return in.one(ctx, func(operator *inbox.Operator) error {
		list, err := operator.Decisions(ctx, d.Limit)
		if err != nil {
			return err
		}
		for _, one := range list {
			fmt.Fprintf(in.Stdout, "%s  %s  %s: %s\n", one.At.UTC().Format(time.RFC3339), one.By, one.Command, one.What)
		}
		return nil
	})
}

// report prints the result for each event. It returns err, or an error if events stay parked.
func (c *chosen) report(in *Inboxes, events []inbox.Done, err error) error {
	stay := 0
	for _, e := range events {
		if e.Err != nil {
			stay++
			fmt.Fprintf(in.Stdout, "stays      %d, %s: %v\n", e.ID, named(e.Parked), e.Err)
			continue
		}
		fmt.Fprintf(in.Stdout, "%-9s  %d, %s\n", e.Did, e.ID, named(e.Parked))
	}
	if c.DryRun {
		fmt.Fprintln(in.Stdout, "dry run: nothing was changed")
	}
	if err == nil && stay > 0 {
		err = fmt.Errorf("%d parked events stay: fix the cause and redrive them again, or drop them with `%s parked drop`", stay, in.Program)
	}
	return err
}
