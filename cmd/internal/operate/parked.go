package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/walpost/walpost/cdc/inbox"
)

// Parked are the commands about events that could not be applied.
type Parked struct {
	List      parkedList    `cmd:"" help:"List parked events and blocked partitions, oldest first."`
	Show      parkedShow    `cmd:"" help:"Show one whole, as JSON, with its record (the value in base64)."`
	Redrive   parkedRedrive `cmd:"" help:"Apply parked events, once, under their own ids. What waits behind one goes with it, in order."`
	Drop      parkedDrop    `cmd:"" help:"Give parked events up: they will never be applied."`
	Pass      parkedPass    `cmd:"" help:"Have the event at which a partition is blocked parked or skipped."`
	Decisions decisions     `cmd:"" help:"List what operators have done, newest first."`
}

type parkedList struct {
	All   bool  `help:"The redriven and dropped too."`
	After int64 `help:"Only those with a higher id."`
	Limit int   `default:"1000" help:"At most so many."`
	JSON  bool  `name:"json" help:"As JSON, one a line."`
}

type parkedShow struct {
	ID int64 `arg:"" help:"Id of a parked event, from the list."`
}

// chosen is what redrive and drop have in common.
type chosen struct {
	IDs    []int64 `arg:"" optional:"" name:"id" help:"Ids of parked events, from the list."`
	All    bool    `help:"All of them."`
	DryRun bool    `help:"Try it, say what would be done, and keep nothing."`
}

func (c *chosen) check(program string) error {
	if (len(c.IDs) == 0) != c.All {
		return fmt.Errorf("name parked events by id, or say --all: `%s parked list` shows them", program)
	}
	return nil
}

type parkedRedrive struct {
	chosen
	Force bool `help:"Also where earlier events of the key are parked or later ones were applied: the order of the key is broken."`
}

type parkedDrop struct{ chosen }

type parkedPass struct {
	Partition int32        `arg:"" help:"The blocked partition."`
	Offset    int64        `arg:"" help:"Where it is blocked, from the list."`
	As        inbox.Policy `enum:"park_key,skip" default:"park_key" help:"What becomes of the event: ${enum}."`
}

type decisions struct {
	Limit int `default:"100" help:"At most so many."`
}

// Who is logged in here, for the records of decisions.
func Who() string {
	by := "unknown"
	if who, err := user.Current(); err == nil {
		by = who.Username
	}
	if host, err := os.Hostname(); err == nil {
		by += "@" + host
	}
	return by
}

// Run does what the command line chose, as kong names it ("parked list"). program is what people type before it.
func (p *Parked) Run(ctx context.Context, command, program string, operator *inbox.Operator, stdout io.Writer) error {
	switch command {
	case "parked list":
		return p.List.run(ctx, operator, stdout)
	case "parked show <id>":
		event, err := operator.Show(ctx, p.Show.ID)
		if err != nil {
			return err
		}
		out := json.NewEncoder(stdout)
		out.SetIndent("", "  ")
		return out.Encode(event)
	case "parked pass <partition> <offset>":
		if err := operator.Pass(ctx, p.Pass.Partition, p.Pass.Offset, p.Pass.As); err != nil {
			return fmt.Errorf("%w (%s parked list)", err, program)
		}
		_, err := fmt.Fprintf(stdout, "partition %d goes on behind offset %d within seconds\n", p.Pass.Partition, p.Pass.Offset)
		return err
	case "parked decisions":
		return p.Decisions.run(ctx, operator, stdout)
	case "parked drop", "parked drop <id>":
		if err := p.Drop.check(program); err != nil {
			return err
		}
		events, err := operator.Drop(ctx, p.Drop.IDs, p.Drop.All, p.Drop.DryRun)
		return report(stdout, program, events, err, p.Drop.DryRun)
	default:
		if err := p.Redrive.check(program); err != nil {
			return err
		}
		events, err := operator.Redrive(ctx, p.Redrive.IDs, p.Redrive.All, p.Redrive.Force, p.Redrive.DryRun)
		return report(stdout, program, events, err, p.Redrive.DryRun)
	}
}

func (l *parkedList) run(ctx context.Context, operator *inbox.Operator, stdout io.Writer) error {
	blocked, err := operator.Blocked(ctx)
	if err != nil {
		return err
	}
	list, err := operator.List(ctx, l.All, l.After, l.Limit)
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
		fmt.Fprintf(stdout, "partition %d is blocked at offset %d since %s, by event %s: %s\n", b.Partition, b.Offset, b.Since.UTC().Format(time.RFC3339), b.EventID, b.Reason)
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tPLACE\tEVENT\tTYPE\tKEY\tSINCE\tSTATUS\tWHY")
	for _, e := range list {
		fmt.Fprintf(table, "%d\t%d/%d\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.Partition, e.Offset, e.EventID, e.Type, e.Key, e.ParkedAt.UTC().Format(time.RFC3339), e.Status, e.Reason)
	}
	return table.Flush()
}

func (d *decisions) run(ctx context.Context, operator *inbox.Operator, stdout io.Writer) error {
	list, err := operator.Decisions(ctx, d.Limit)
	if err != nil {
		return err
	}
	for _, one := range list {
		fmt.Fprintf(stdout, "%s  %s  %s: %s\n", one.At.UTC().Format(time.RFC3339), one.By, one.Command, one.What)
	}
	return nil
}

func report(stdout io.Writer, program string, events []inbox.Done, err error, dryRun bool) error {
	stay := 0
	for _, e := range events {
		if e.Err != nil {
			stay++
			fmt.Fprintf(stdout, "stays      %d, event %s of %s: %v\n", e.ID, e.EventID, e.Key, e.Err)
			continue
		}
		fmt.Fprintf(stdout, "%-9s  %d, event %s of %s\n", e.Did, e.ID, e.EventID, e.Key)
	}
	if dryRun {
		fmt.Fprintln(stdout, "dry run: nothing was kept")
	}
	if err == nil && stay > 0 {
		err = fmt.Errorf("%d parked events stay: fix what refuses them and redrive again, or give them up with `%s parked drop`", stay, program)
	}
	return err
}
