package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/postgres"
)

// CleanupOptions are the options of Cleanup.
type CleanupOptions struct {
	AdminURL string // URL of a role that may delete rows; empty: cleanup.url, or source.url
	DryRun   bool
	Progress Progress // is called with the blocks of the table that are read
}

// Cleanup deletes outbox rows that are delivered and older than cleanup.retention. With an error it returns the rows and
// partitions that it deleted before the error.
func (p *Pipeline) Cleanup(ctx context.Context, o CleanupOptions) (postgres.Cleaned, error) {
	if err := p.kind.gap(ctx); err != nil {
		return postgres.Cleaned{}, err
	}
	who := p.cleaner()
	who.Progress = func(done, total int64) { o.Progress.at(done, total, "blocks of the table") }
	if o.AdminURL != "" {
		who.Key, who.URL = "--admin-url (WALPOST_ADMIN_URL)", o.AdminURL
	}
	return p.clean(ctx, who, o.DryRun)
}

// cleaner returns the role that cleans up according to the configuration.
func (p *Pipeline) cleaner() postgres.CleanerOptions {
	o := postgres.CleanerOptions{Marks: p.kind.marks()}
	o.Key, o.URL = p.cfg.CleanupURL()
	return o
}

// clean deletes old delivered rows once.
func (p *Pipeline) clean(ctx context.Context, who postgres.CleanerOptions, dryRun bool) (postgres.Cleaned, error) {
	cleaner, err := p.source.Cleaner(ctx, who)
	if err != nil {
		return postgres.Cleaned{}, err
	}
	defer cleaner.Close(context.WithoutCancel(ctx))
	return cleaner.Clean(ctx, p.cfg.Cleanup.Retention, dryRun)
}

// keepSmall cleans up every cleanup.every while the relay streams: then no gap needs a replay of rows that it would delete.
func (p *Pipeline) keepSmall(ctx context.Context) {
	log := p.log.With().Str("pipeline", p.cfg.Pipeline).Str("table", p.cfg.Source.Table).Logger()
	tick := time.NewTicker(p.cfg.Cleanup.Every)
	defer tick.Stop()
	said := ""
	// A cause that would make every cleanup fail is reported at the start, and not only when the first cleanup is due.
	who := p.cleaner()
	if cleaner, err := p.source.Cleaner(ctx, who); err == nil {
		cleaner.Close(context.WithoutCancel(ctx))
	} else if errors.Is(err, postgres.ErrUnseen) || errors.Is(err, postgres.ErrZone) {
		said = err.Error()
		log.Warn().Err(err).Msg("cleanup")
		p.metrics.cleaned(0, 0, err)
	}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if role, _ := p.Role(); role != cdc.Streaming {
			p.metrics.cleaned(0, 0, nil) // the relay that streams reports it
			continue
		}
		done, err := p.clean(ctx, who, false)
		p.metrics.cleaned(done.Rows, len(done.Dropped), err)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil && err.Error() != said: // a cause that repeats is not news
			said = err.Error()
			log.Warn().Err(err).Msg("cleanup")
		}
		if done.Rows > 0 || len(done.Made)+len(done.Dropped) > 0 {
			log.Info().Int64("rows", done.Rows).Strs("dropped", done.Dropped).Strs("made", done.Made).Msg("cleanup")
		}
	}
}
