// Package inboxcmd has the operator's commands for the inboxes of a service.
//
// A program's command line embeds Parked and Replay. The struct that embeds one has a method ProvideInboxes, which kong
// calls for the commands below it.
package inboxcmd

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/walpost/walpost/cdc/inbox"
	"github.com/walpost/walpost/cmd/internal/app"
)

// Inboxes are the inboxes of one service.
type Inboxes struct {
	Program string   // the program's name on the command line
	Groups  []string // the consumer groups that the command line names: all if it names none
	// Open calls do with the configuration of a group's consumer, and closes its pool afterwards.
	Open   func(ctx context.Context, group string, do func(inbox.Config) error) error
	Stdout io.Writer
}

// open calls do with the operator of a group's inbox.
func (in *Inboxes) open(ctx context.Context, group string, do func(*inbox.Operator) error) error {
	return in.Open(ctx, group, func(cfg inbox.Config) error { return do(inbox.NewOperator(cfg, app.Operator())) })
}

// one calls do with the operator of the one group that the command line names.
func (in *Inboxes) one(ctx context.Context, do func(*inbox.Operator) error) error {
	if len(in.Groups) != 1 {
		return fmt.Errorf("name one group: --group with one of %s", strings.Join(in.Groups, ", "))
	}
	return in.open(ctx, in.Groups[0], do)
}
