package walpost

import (
	"context"
	"errors"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/postgres"
)

// keepSmall cleans up every cleanup.every while the relay streams, which says that there is no gap to be replayed.
func (r *Relay) keepSmall(ctx context.Context) {
	log := r.log.With().Str("pipeline", r.cfg.Pipeline).Str("table", r.cfg.Source.Table).Logger()
	tick := time.NewTicker(r.cfg.Cleanup.Every)
	defer tick.Stop()
	said := ""
	// What would refuse every time is told at the start, and not only when it is time to clean up.
	if cleaner, err := r.cleaner(ctx); err == nil {
		cleaner.Close(context.WithoutCancel(ctx))
	} else if errors.Is(err, postgres.ErrUnseen) || errors.Is(err, postgres.ErrZone) {
		said = err.Error()
		log.Warn().Err(err).Msg("cleanup")
		r.Cleaned(0, 0, err)
	}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if role, _ := r.Role(); role != cdc.Streaming {
			r.Cleaned(0, 0, nil) // who streams knows
			continue
		}
		done, err := r.clean(ctx)
		r.Cleaned(done.Rows, len(done.Dropped), err)
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

func (r *Relay) cleaner(ctx context.Context) (*postgres.Cleaner, error) {
	key, url := r.cfg.CleanupURL()
	return postgres.NewSource(r.cfg.Pipeline, r.cfg.Source).Cleaner(ctx, key, url)
}

func (r *Relay) clean(ctx context.Context) (postgres.Cleaned, error) {
	cleaner, err := r.cleaner(ctx)
	if err != nil {
		return postgres.Cleaned{}, err
	}
	defer cleaner.Close(context.WithoutCancel(ctx))
	return cleaner.Clean(ctx, r.cfg.Cleanup.Retention, false)
}
