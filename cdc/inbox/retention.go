package inbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

const (
	daysAhead           = 7 // partitions are created this many days ahead
	maintenanceInterval = time.Hour
	maintenanceRetry    = time.Minute
)

// days are the first and the last day that the inbox can remember: it rejects events of other days.
type days struct{ first, last int }

// knownDays returns the days for which the inbox has partitions. It creates the partitions if it does not know yet.
func (c *Consumer) knownDays(ctx context.Context) (days, error) {
	c.mu.Lock()
	known := c.days
	c.mu.Unlock()
	if known != (days{}) {
		return known, nil
	}
	return c.makeDays(ctx, nil)
}

// makeDays creates the partitions for the days to come. Unless keep is nil, it drops partitions older than keep days.
func (c *Consumer) makeDays(ctx context.Context, keep *int) (days, error) {
	var d days
	var dropped int
	if err := c.cfg.Pool.QueryRow(ctx, `SELECT first_day, last_day, dropped FROM inbox_maintain($1, $2)`, daysAhead, keep).
		Scan(&d.first, &d.last, &dropped); err != nil {
		return days{}, fmt.Errorf("create the inbox's partitions: %w", err)
	}
	if dropped > 0 {
		c.log.Info().Int("partitions", dropped).Str("first_day", date(d.first)).Msg("dropped inbox partitions that were older than the retention")
	}
	c.mu.Lock()
	c.days = d
	c.mu.Unlock()
	return d, nil
}

// maintain keeps the inbox's partitions ahead of time and within the retention.
func (c *Consumer) maintain(ctx context.Context) {
	for {
		wait := maintenanceInterval
		keep, err := c.keep(ctx)
		if err == nil {
			_, err = c.makeDays(ctx, keep)
		}
		if err != nil && ctx.Err() == nil {
			wait = maintenanceRetry
			c.log.Debug().Err(err).Msg("could not create or drop inbox partitions, trying again")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// keep returns the number of days that the inbox keeps, or nil if it keeps all: the topic must forget an event before
// the inbox does. The reason for keeping all is logged when it is first found, and when it changes.
func (c *Consumer) keep(ctx context.Context) (*int, error) {
	if c.cfg.Retention == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	admin := kadm.NewClient(c.client)
	configs, err := admin.DescribeTopicConfigs(ctx, c.cfg.Topic)
	if err != nil {
		return nil, fmt.Errorf("ask for the retention of topic %s: %w", c.cfg.Topic, err)
	}
	found, err := configs.On(c.cfg.Topic, nil)
	if err = errors.Join(err, found.Err); err != nil && !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
		return nil, fmt.Errorf("ask for the retention of topic %s: %w", c.cfg.Topic, err)
	}
	why := remembers(found.Configs, c.cfg.Retention, err)
	if why == "" {
		c.keepReason = ""
		days := int(c.cfg.Retention.Hours()) / 24
		return &days, nil
	}
	if why != c.keepReason {
		c.keepReason = why
		c.log.Info().Msg("the inbox forgets nothing: " + why)
	}
	return nil, nil
}

// remembers returns "" if the topic forgets its records before the inbox does. Otherwise it returns why the inbox must
// keep everything, with a remedy. Retention by size alone forgets nothing in a quiet topic, and compaction keeps the
// last record of each key.
func remembers(configs []kadm.Config, inbox time.Duration, denied error) string {
	if denied != nil {
		return "the topic's configuration may not be read, so how long it keeps its records is not known: " +
			"allow DESCRIBE_CONFIGS on the topic to this user, or set the inbox's retention to 0"
	}
	setting := func(key string) string {
		for _, entry := range configs {
			if entry.Key == key && entry.Value != nil {
				return *entry.Value
			}
		}
		return ""
	}
	if policy := setting("cleanup.policy"); policy != "" && !strings.Contains(policy, "delete") {
		return "the topic is compacted, so it always keeps the last record of each key"
	}
	ms, err := strconv.ParseInt(setting("retention.ms"), 10, 64)
	switch {
	case err != nil:
		return "the broker does not say how long the topic keeps its records (retention.ms): set the inbox's retention to 0"
	case ms < 0:
		return "the topic never deletes its records"
	case ms >= inbox.Milliseconds():
		return fmt.Sprintf("the topic keeps its records for %s, and the inbox would for %s: make the inbox's retention longer than the topic's, or the topic's retention.ms shorter",
			duration(ms), duration(inbox.Milliseconds()))
	}
	return ""
}

// duration returns a time in the largest unit that divides it.
func duration(ms int64) string {
	const day = 24 * 60 * 60 * 1000
	switch {
	case ms%day == 0 && ms > 0:
		return fmt.Sprintf("%d days", ms/day)
	case ms%3600_000 == 0 && ms > 0:
		return fmt.Sprintf("%d hours", ms/3600_000)
	default:
		return fmt.Sprintf("%d ms", ms)
	}
}
