package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

type replayCmd struct {
	AdminURL string `name:"admin-url" env:"WALPOST_ADMIN_URL" help:"Connect to PostgreSQL with this URL, as a role that may read the outbox table. The relay's role may not."`
	From     string `required:"" placeholder:"TIME" help:"Publish rows that were created (created_at) at or after this time: 2026-11-22T08:00:00Z."`
	To       string `required:"" placeholder:"TIME" help:"Publish rows that were created before this time, or now."`
	DryRun   bool   `help:"Print how many rows would be published and rejected, and publish nothing."`

	NoneMissing bool `help:"Publish nothing, and write down your decision that Kafka has every row of this time, so that walpost status no longer shows its gap."`
}

func (c *replayCmd) Run(p *process) error {
	if c.NoneMissing {
		return c.noneMissing(p)
	}
	cfg, err := p.config()
	url, missing := p.adminURL(cfg, c.AdminURL, "replay reads the outbox table")
	if err := errors.Join(err, missing); err != nil {
		return err
	}
	o := pipeline.ReplayOptions{AdminURL: url, DryRun: c.DryRun}
	if o.From, o.To, err = c.times(time.Now()); err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	began, progress := false, app.NewProgress(p.stderr)
	o.Progress = func(r pipeline.Replayed) {
		if began {
			progress.At(r.Published+int64(r.Rejected), r.Rows, "rows")
			return
		}
		began = true
		progress.Begin()
		c.found(p, cfg, o, r)
	}
	r, err := pl.Replay(p.ctx, o)
	progress.Close()
	switch {
	case err == nil && c.DryRun:
		rejections(p, r)
		p.say("nothing was published (--dry-run): %d rows would be published, and %d rejected", r.Published, r.Rejected)
	case began && (err == nil || r.Published > 0 || r.Rejected > 0):
		rejections(p, r)
		if r.Published == 0 {
			p.say("nothing was published: if rows of that time are missing in Kafka, they were deleted from the table, or their created_at is another time")
			break
		}
		p.say("%d rows were published again, the last one created at %s", r.Published, r.Last)
	}
	return err
}

// rejections prints the first rows that cannot be published under this configuration, each with the reason.
func rejections(p *process, r pipeline.Replayed) {
	for _, rejected := range r.Rejections {
		p.say("rejected: row %q: %s", rejected.EventID, rejected.Reason)
	}
}

// noneMissing writes down that no row of the time range is missing.
func (c *replayCmd) noneMissing(p *process) error {
	from, to, err := c.times(time.Now())
	if err != nil {
		return err
	}
	pl, err := p.pipeline()
	if err != nil {
		return err
	}
	if c.DryRun {
		p.say("nothing was written down (--dry-run)")
		return nil
	}
	if err := pl.NoneMissing(p.ctx, from, to); err != nil {
		return err
	}
	p.say("done: walpost status no longer counts rows that were created from %s to %s as missing", from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	return nil
}

// times returns the times of --from and --to.
func (c *replayCmd) times(now time.Time) (from, to time.Time, err error) {
	from, err = time.Parse(time.RFC3339, c.From)
	if to = now.Add(time.Minute).UTC().Truncate(time.Second); c.To != "now" { // the writers' clocks may be ahead
		var toErr error
		to, toErr = time.Parse(time.RFC3339, c.To)
		err = errors.Join(err, toErr)
	}
	switch {
	case err != nil:
		err = errors.New("--from, --to: write times as RFC 3339, 2026-11-22T08:00:00Z for example")
	case !from.Before(to):
		err = fmt.Errorf("--from %s is not before --to %s", c.From, c.To)
	}
	return from, to, err
}

// found prints how many rows the time range has, and how many of them were delivered before, as far as the state record shows it.
func (*replayCmd) found(p *process, cfg config.Config, o pipeline.ReplayOptions, r pipeline.Replayed) {
	p.say("%d rows were created from %s to %s and are still in %s", r.Rows, o.From.UTC().Format(time.RFC3339), o.To.UTC().Format(time.RFC3339), cfg.Source.Table)
	switch {
	case cfg.Source.Kind == config.KindPolling:
		p.say("rows that were published before arrive twice, and so do pending rows, which the relay publishes as well: consumers drop repeats by the header id")
	case r.Delivered.IsZero():
		p.say("it is not known how many of them Kafka has already; a replay publishes these again, and consumers drop the second copy by the header id")
	default:
		p.say("Kafka may have up to %d of them already, because they were created before the last delivered row (committed %s); a replay publishes these again, and consumers drop the second copy by the header id",
			r.Before, r.Delivered.UTC().Format(time.RFC3339))
	}
}
