package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cmd/internal/operate"
	"github.com/walpost/walpost/orders"
	"github.com/walpost/walpost/orders/statistics"
)

type statisticsCommands struct {
	Show struct {
		Day  string `placeholder:"DAY" help:"This day alone, as in 2026-11-22, in UTC."`
		From string `placeholder:"DAY" help:"The first day; 30 days when not given."`
		To   string `placeholder:"DAY" help:"The last day; today when not given."`
		JSON bool   `name:"json" help:"As GET /statistics answers."`
	} `cmd:"" help:"Show what was sold, per day and product."`
	Rebuild struct {
		kafka
		Partial bool `help:"Rebuild from a topic that no longer has its first events, too."`
	} `cmd:"" help:"Count the whole topic again. The group may run: it waits meanwhile and goes on behind it; readers see the old figures until it is done."`
}

func (c *cli) statistics(ctx context.Context, command string, stdout, stderr io.Writer) error {
	if command == "statistics show" {
		return c.showStatistics(ctx, stdout)
	}
	r := &c.Statistics.Rebuild
	if err := r.check(); err != nil {
		return err
	}
	told := time.Now()
	return c.operate(ctx, r.kafka, statistics.Group, func(cfg inbox.Config) error {
		done, err := statistics.Rebuild(ctx, cfg, operate.Who(), r.Partial, func(done, of int64) {
			if time.Since(told) > time.Second {
				told = time.Now()
				fmt.Fprintf(stderr, "%d of %d records\n", done, of)
			}
		})
		if errors.Is(err, inbox.ErrCut) {
			return fmt.Errorf("%w: nothing was changed; --partial rebuilds from what is there", err)
		}
		if err != nil {
			return fmt.Errorf("%w: nothing was changed, run it again", err)
		}
		fmt.Fprintf(stdout, "%d events counted, %d copies of them skipped, %d of other types\n", done.Applied, done.Duplicates, done.Others)
		if done.Cut {
			fmt.Fprintln(stdout, "the topic has lost its beginning, and with it the orders paid before: `orders statistics show` says since when they are counted")
		}
		if n := done.Aside + done.Refused; n > 0 {
			fmt.Fprintf(stdout, "%d events were left out: %d parked or dropped (orders parked list --group %s), %d cannot be counted\n", n, done.Aside, statistics.Group, done.Refused)
		}
		return nil
	})
}

func (c *cli) showStatistics(ctx context.Context, stdout io.Writer) error {
	show := c.Statistics.Show
	if show.Day != "" {
		show.From, show.To = show.Day, show.Day
	}
	from, to, err := orders.ParseDays(show.From, show.To)
	if err := errors.Join(err, checkURL("--database-url (ORDERS_DATABASE_URL)", c.DatabaseURL)); err != nil {
		return err
	}
	store, err := orders.Open(ctx, c.DatabaseURL)
	if err != nil {
		return fmt.Errorf("--database-url (ORDERS_DATABASE_URL): %w", err)
	}
	defer store.Close()
	found, err := store.Statistics(ctx, from, to)
	if err != nil {
		return err
	}
	if show.JSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(found)
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DAY\tSKU\tORDERS\tQUANTITY\tREVENUE\tRETURNED\tQUANTITY\tREVENUE\tCURRENCY")
	for _, s := range found.Statistics {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%s\t%d\t%d\t%s\t%s\n", s.Day, s.SKU, s.Orders, s.Quantity, s.Revenue, s.ReturnedOrders, s.ReturnedQuantity, s.ReturnedRevenue, s.Currency)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if found.Since != nil {
		fmt.Fprintf(stdout, "since %s only: the topic had lost its beginning when they were rebuilt\n", *found.Since)
	}
	return nil
}
