package inbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

const (
	daysAhead           = 7 // days for which there are partitions before they come
	maintenanceInterval = time.Hour
	maintenanceRetry    = time.Minute
)

// days are those the inbox can remember: events of other days it refuses.
type days struct{ first, last int }

// knownDays makes the days to come, if they are not known yet.
func (c *Consumer) knownDays(ctx context.Context) (days, error) {
	c.mu.Lock()
	known := c.days
	c.mu.Unlock()
	if known != (days{}) {
		return known, nil
	}
	return c.makeDays(ctx, nil)
}

// makeDays makes the days to come and, unless keep is nil, drops those that are older than so many.
func (c *Consumer) makeDays(ctx context.Context, keep *int) (days, error) {
	var d days
	var dropped int
	if err := c.cfg.Pool.QueryRow(ctx, `SELECT first_day, last_day, dropped FROM inbox_maintain($1, $2)`, daysAhead, keep).
		Scan(&d.first, &d.last, &dropped); err != nil {
		return days{}, fmt.Errorf("make the inbox's partitions: %w", err)
	}
	if dropped > 0 {
		c.log.Info().Int("partitions", dropped).Str("first_day", date(d.first)).Msg("inbox partitions older than the retention dropped")
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
			c.log.Debug().Err(err).Msg("inbox not maintained, trying again")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// keep is how many days the inbox keeps, nil for all: the topic must forget an event before the inbox does.
func (c *Consumer) keep(ctx context.Context) (*int, error) {
	if c.cfg.Retention == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	topic, err := topicRetention(ctx, kadm.NewClient(c.client), c.cfg.Topic)
	if err != nil {
		return nil, err
	}
	if topic < 0 || topic >= c.cfg.Retention {
		c.log.Warn().Dur("topic", topic).Dur("inbox", c.cfg.Retention).
			Msg("nothing is dropped from the inbox: its retention must be longer than the topic's (retention.ms)")
		return nil, nil
	}
	days := int(c.cfg.Retention.Hours()) / 24
	return &days, nil
}

// topicRetention is negative for a topic that keeps its records for ever.
func topicRetention(ctx context.Context, admin *kadm.Client, topic string) (time.Duration, error) {
	configs, err := admin.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("ask for the retention of topic %s: %w", topic, err)
	}
	config, err := configs.On(topic, nil)
	if err = errors.Join(err, config.Err); err != nil {
		return 0, fmt.Errorf("ask for the retention of topic %s: %w", topic, err)
	}
	for _, entry := range config.Configs {
		if entry.Key == "retention.ms" && entry.Value != nil {
			ms, err := strconv.ParseInt(*entry.Value, 10, 64)
			if err != nil || ms < 0 {
				return -1, nil
			}
			return time.Duration(min(ms, int64(1<<62/time.Millisecond))) * time.Millisecond, nil
		}
	}
	return -1, nil
}
