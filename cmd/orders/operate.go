package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cmd/internal/operate"
)

type parked struct {
	kafka
	Group string `placeholder:"GROUP" help:"Of which consumer group. A list is of all when none is named."`
	operate.Parked
}

type replay struct {
	kafka
	Group string `placeholder:"GROUP" help:"Which consumer group."`
	operate.Replay
}

func (c *cli) parked(ctx context.Context, command string, stdout io.Writer) error {
	if c.Parked.Group != "" || command != "parked list" {
		return c.operate(ctx, c.Parked.kafka, c.Parked.Group, func(cfg inbox.Config) error {
			return c.Parked.Run(ctx, command, "orders", inbox.NewOperator(cfg, operate.Who()), stdout)
		})
	}
	for _, name := range groupNames() {
		if !c.Parked.List.JSON {
			fmt.Fprintf(stdout, "group %s\n", name)
		}
		if err := c.operate(ctx, c.Parked.kafka, name, func(cfg inbox.Config) error {
			return c.Parked.Run(ctx, command, "orders", inbox.NewOperator(cfg, operate.Who()), stdout)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) replay(ctx context.Context, stdout io.Writer) error {
	if err := errors.Join(c.Replay.Check(), c.Replay.check()); err != nil {
		return err
	}
	return c.operate(ctx, c.Replay.kafka, c.Replay.Group, func(cfg inbox.Config) error {
		return c.Replay.Run(ctx, cfg.Group, inbox.NewOperator(cfg, operate.Who()), stdout)
	})
}

// operate works on a group's inbox as its consumer would fill it.
func (c *cli) operate(ctx context.Context, k kafka, name string, do func(inbox.Config) error) error {
	if name == "" {
		return fmt.Errorf("say of which group: --group with one of %s", strings.Join(groupNames(), ", "))
	}
	found, err := chosen([]string{name})
	if err := errors.Join(err, checkURL("--database-url (ORDERS_DATABASE_URL)", c.DatabaseURL)); err != nil {
		return err
	}
	pool, err := c.connect(ctx, found[0])
	if err != nil {
		return err
	}
	defer pool.Close()
	cfg, _ := found[0].inbox(k, shared{pool, prometheus.NewRegistry(), zerolog.Nop(), &notifications{}})
	return do(cfg)
}
