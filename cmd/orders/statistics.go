package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cmd/internal/app"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/statistics"
)

type statisticsCmd struct {
	Show    statisticsShow    `cmd:"" help:"Show the sales, per day and product."`
	Rebuild statisticsRebuild `cmd:"" help:"Count the whole topic again. The group may run: it waits meanwhile and resumes afterwards. Readers see the old figures until the rebuild is done."`
}

type statisticsShow struct {
	Day  string `placeholder:"DAY" help:"Only this day, as in 2026-11-22, in UTC."`
	From string `placeholder:"DAY" help:"The first day; by default 30 days are shown."`
	To   string `placeholder:"DAY" help:"The last day; by default today."`
	JSON bool   `name:"json" help:"Print JSON, as GET /statistics returns it."`
}

type statisticsRebuild struct {
	kafka
	Partial bool `help:"Also rebuild from a topic that no longer has its first events."`
}

// Run counts the whole topic again.
func (r *statisticsRebuild) Run(ctx context.Context, p *process) error {
	if err := r.check(); err != nil {
		return err
	}
	progress := app.NewProgress(p.stderr)
	return p.inbox(ctx, r.kafka, statistics.Group, func(cfg inbox.Config) error {
		done, err := statistics.Rebuild(ctx, cfg, app.Operator(), inbox.RebuildOptions{Partial: r.Partial, Progress: func(done, of int64) {
			progress.At(done, of, "records")
		}})
		progress.Close()
		if errors.Is(err, inbox.ErrCut) {
			return fmt.Errorf("%w: nothing was changed; --partial rebuilds from the events that are left", err)
		}
		if err != nil {
			return fmt.Errorf("%w: nothing was changed, run it again", err)
		}
		fmt.Fprintf(p.stdout, "%d events counted, %d copies of them skipped, %d of other types\n", done.Applied, done.Duplicates, done.Others)
		if done.Cut {
			fmt.Fprintln(p.stdout, "the topic has lost its first events, so orders paid before are not counted: `orders statistics show` prints the first counted day")
		}
		if n := done.Excluded + done.Rejected; n > 0 {
			fmt.Fprintf(p.stdout, "%d events were left out: %d are parked or dropped (orders parked list --group %s), %d cannot be counted\n", n, done.Excluded, statistics.Group, done.Rejected)
		}
		return nil
	})
}

// Run shows the sales.
func (show *statisticsShow) Run(ctx context.Context, p *process) error {
	from, to, err := orders.ParseDays(cmp.Or(show.Day, show.From), cmp.Or(show.Day, show.To))
	if err := errors.Join(err, checkURL(databaseURL, p.cli.DatabaseURL)); err != nil {
		return err
	}
	database := identity.NewPostgres(databaseURL, p.cli.DatabaseURL, zerolog.Nop())
	pool, err := database.Pool(ctx)
	if err != nil {
		return err
	}
	store, err := orders.Open(ctx, pool)
	if err != nil {
		return fmt.Errorf("%s: %w", databaseURL, err)
	}
	defer store.Close()
	found, err := store.Statistics(ctx, from, to)
	if err != nil {
		return database.Explain(err)
	}
	if show.JSON {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(found)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DAY\tSKU\tORDERS\tQUANTITY\tREVENUE\tRETURNED\tQUANTITY\tREVENUE\tCURRENCY")
	for _, s := range found.Statistics {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%d\t%d\t%s\t%s\n", s.Day, s.SKU, s.Orders, s.Quantity, s.Revenue, s.ReturnedOrders, s.ReturnedQuantity, s.ReturnedRevenue, s.Currency)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if found.Since != nil {
		fmt.Fprintf(p.stdout, "since %s only: the topic had lost its first events when the statistics were rebuilt\n", *found.Since)
	}
	return nil
}
