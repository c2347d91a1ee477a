package main

import (
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
)

type whereCmd struct {
	ID      string        `arg:"" help:"Find the event with this id, or the events with this key (order id)."`
	ReadURL string        `name:"read-url" env:"WALPOST_READ_URL" help:"Connect to PostgreSQL with this URL, as a role that may SELECT from the outbox table. The relay's role may not. The default is WALPOST_ADMIN_URL, or source.url where that is empty."`
	Since   time.Duration `help:"Read the topics back to this long ago, 24h for example. The default is the time when the event was written."`
	JSON    bool          `name:"json" help:"Print JSON."`
}

func (c *whereCmd) Run(p *process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	o := pipeline.WhereOptions{ID: c.ID, Since: c.Since}
	if o.ReadURL = p.ownURL(cfg, "READ_URL", c.ReadURL); o.ReadURL != "" {
		o.ReadKey = "--read-url (WALPOST_READ_URL)"
	} else if o.ReadURL = p.ownURL(cfg, "ADMIN_URL", p.getenv("WALPOST_ADMIN_URL")); o.ReadURL != "" {
		o.ReadKey = "WALPOST_ADMIN_URL"
	}
	t, err := pl.Where(p.ctx, o)
	if err != nil {
		return err
	}
	if !c.JSON {
		p.trace(t)
		return nil
	}
	return p.json(t)
}

// trace prints where the events are.
func (p *process) trace(t *pipeline.Trace) {
	for _, e := range t.Events {
		if e.Answer == pipeline.Unknown && t.WALEnd == "" {
			p.say("%s: not found\n  the table has no such event or key, and neither have its topics since then", plain.Line(e.EventID))
			continue
		}
		if e.Answer == pipeline.Unknown {
			p.say("%s: not found", plain.Line(e.EventID))
			p.say("  the outbox's topics have no such event or key since then, and no dead letter has it; the slot is %s behind the end of the WAL (%s)", plain.Size(t.Behind), t.WALEnd)
			continue
		}
		p.say("event %s, %s of key %s", plain.Line(e.EventID), plain.Line(e.Type), plain.Line(e.Key))
		for i, at := range e.Places {
			how := "published"
			if i > 0 {
				how = "again"
			}
			if at.Redriven {
				how += ", redriven"
			}
			position := fmt.Sprintf("lsn %s, seq %s; ", at.LSN, at.Seq)
			if at.Replayed {
				how += ", by `walpost replay`"
			}
			if at.LSN == "" {
				position = ""
			}
			p.say("  %s: topic %s, partition %d, offset %d; %s%s", how, at.Topic, at.Partition, at.Offset, position, at.Time.Format(time.RFC3339Nano))
		}
		if e.Times > 1 {
			p.say("  %d times: consumers drop repeats by the header id", e.Times)
		}
		if d := e.DeadLetter; d != nil {
			p.say("  dead-lettered: %s; since %s (`walpost dlq show %s`)", plain.Line(d.Reason), d.Time.Format(time.RFC3339), plain.Line(d.Key))
		}
		if r := e.Row; r != nil {
			p.say("  in the table: %s%s%s", r.Status, since(r.ProcessedAt), tried(r))
			if r.Behind != "" {
				p.say("  it waits for the earlier event %s of its key (`walpost where %s`)", plain.Line(r.Behind), plain.Line(r.Behind))
			}
			continue
		}
		switch e.Answer {
		case pipeline.NotYet:
			p.say("  not yet: everything up to %s is delivered, and the row was committed after it, within the next %s of WAL (`walpost status` shows what blocks)", t.Confirmed, plain.Size(t.Behind))
		case pipeline.Gone:
			p.say("  not in Kafka: everything up to %s is delivered, and its commit is at or below that: the topic's retention deleted the record, the row was written before the slot was created, or `walpost skip` gave it up", t.Confirmed)
		}
	}
	for _, n := range t.Notes {
		p.say("%s", n)
	}
	p.say("read %d records of %d partitions, from %s on", t.Read.Records, t.Read.Partitions, t.From.Format(time.RFC3339))
}

func since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + t.UTC().Format(time.RFC3339Nano)
}

func tried(r *polling.RowStatus) string {
	if r.RetryCount == 0 {
		return ""
	}
	return fmt.Sprintf(", rejected %d times, last: %s", r.RetryCount, plain.Line(r.LastError))
}
