package pipeline

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
	"github.com/walpost/walpost/cdc/route"
)

// Cleanup takes rows out of the outbox that are delivered and older than cleanup.retention.
func Cleanup(ctx context.Context, cfg config.Config, adminURL string, dryRun bool, out io.Writer, opts ...kgo.Opt) error {
	source := postgres.NewSource(cfg.Pipeline, cfg.Source)
	if cfg.Source.Kind == config.KindWAL {
		if err := noGap(ctx, cfg, source, opts...); err != nil {
			return err
		}
	}
	key, url := cfg.CleanupURL()
	if adminURL != "" {
		key, url = "--admin-url", adminURL
	}
	cleaner, err := source.Cleaner(ctx, key, url)
	if err != nil {
		return err
	}
	defer cleaner.Close(ctx)
	done, err := cleaner.Clean(ctx, cfg.Cleanup.Retention, dryRun)
	fmt.Fprintln(out, summary(done, cfg, dryRun))
	return err
}

// noGap refuses while the relay is halted, or would be: what may be missing in Kafka is replayed from the table.
func noGap(ctx context.Context, cfg config.Config, source *postgres.Source, opts ...kgo.Opt) error {
	st, facts, err := standing(ctx, source.Facts, kafka.NewSink(cfg, route.Topics(cfg.Kafka), opts...).Peek)
	if err != nil {
		return err
	}
	stream, id, err := source.Connect(ctx, 0)
	if err != nil {
		return err
	}
	_ = stream.Close()
	facts.Identity = id
	if _, err := cdc.Reconcile(cfg.Pipeline, st, facts); err != nil {
		return fmt.Errorf("nothing was deleted: rows of the table may be needed for a replay: %w", err)
	}
	return nil
}

func summary(done postgres.Cleaned, cfg config.Config, dryRun bool) string {
	would := ""
	if dryRun {
		would = " would be"
	}
	said := fmt.Sprintf("%s: %d rows older than %s%s deleted", cfg.Source.Table, done.Rows, cfg.Cleanup.Retention, would)
	for _, part := range []struct {
		what  string
		names []string
	}{{"made", done.Made}, {"dropped", done.Dropped}, {"kept, in use or not all of it delivered", done.Kept}} {
		if len(part.names) > 0 {
			said += fmt.Sprintf("; partitions%s %s: %s", would, part.what, strings.Join(part.names, ", "))
		}
	}
	return said
}
