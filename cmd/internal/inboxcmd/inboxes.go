// Package inboxcmd is the commands of an operator over the inboxes of a service.
//
// A command line embeds Parked and Replay, and the struct that embeds one has a method ProvideInboxes, which kong calls for the
// commands below it.
package inboxcmd

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cmd/internal/app"
)

// Inboxes are those of one service.
type Inboxes struct {
	Program string   // what people type before a command
	Groups  []string // the consumer groups that the command line names: all where it names none
	// Open calls do with the configuration of a group's consumer, and closes its pool afterwards.
	Open   func(ctx context.Context, group string, do func(inbox.Config) error) error
	Stdout io.Writer
}

func (in *Inboxes) open(ctx context.Context, group string, do func(*inbox.Operator) error) error {
	return in.Open(ctx, group, func(cfg inbox.Config) error { return do(inbox.NewOperator(cfg, app.Operator())) })
}

// one is open for the one group that the command line names.
func (in *Inboxes) one(ctx context.Context, do func(*inbox.Operator) error) error {
	if len(in.Groups) != 1 {
		return fmt.Errorf("say of which group: --group with one of %s", strings.Join(in.Groups, ", "))
	}
	return in.open(ctx, in.Groups[0], do)
}
