package main

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cmd/internal/inboxcmd"
)

type parkedCmd struct {
	kafka
	Group string `placeholder:"GROUP" help:"The consumer group. Without it, list shows all groups."`
	inboxcmd.Parked
}

// ProvideInboxes is called by kong for the subcommands of parked.
func (c *parkedCmd) ProvideInboxes(p *process) *inboxcmd.Inboxes { return p.inboxes(c.kafka, c.Group) }

type replayCmd struct {
	kafka
	Group string `placeholder:"GROUP" help:"The consumer group."`
	inboxcmd.Replay
}

// ProvideInboxes is called by kong for Run, which replayCmd inherits from Replay.
func (c *replayCmd) ProvideInboxes(p *process) (*inboxcmd.Inboxes, error) {
	return p.inboxes(c.kafka, c.Group), errors.Join(c.Check(), c.check())
}

func (p *process) inboxes(k kafka, group string) *inboxcmd.Inboxes {
	asked := groupNames()
	if group != "" {
		asked = []string{group}
	}
	return &inboxcmd.Inboxes{
		Program: "orders", Groups: asked, Stdout: p.stdout,
		Open: func(ctx context.Context, group string, do func(inbox.Config) error) error {
			return p.inbox(ctx, k, group, do)
		},
	}
}

// inbox calls do with the configuration of a group's consumer.
func (p *process) inbox(ctx context.Context, k kafka, name string, do func(inbox.Config) error) error {
	found, err := chosen([]string{name})
	if err := errors.Join(err, checkURL("--database-url (ORDERS_DATABASE_URL)", p.cli.DatabaseURL)); err != nil {
		return err
	}
	pool, err := found[0].connect(ctx, identity.NewPostgres(databaseURL, p.cli.DatabaseURL, zerolog.Nop()))
	if err != nil {
		return err
	}
	defer pool.Close()
	err = do(found[0].config(k, shared{pool, k.login(zerolog.Nop()), prometheus.NewRegistry(), zerolog.Nop(), ""}))
	return identity.NewPostgres(databaseURL, p.cli.DatabaseURL, zerolog.Nop()).Explain(err)
}
