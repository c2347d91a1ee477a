package cdc

import (
	"fmt"
	"slices"
	"time"
)

// PollingConfig is how the outbox table is asked for what is pending. A batch is at most window.rows and window.bytes.
type PollingConfig struct {
	Interval     time.Duration  `yaml:"interval" doc:"polling: how often the table is asked while little comes"`
	Order        string         `yaml:"order" doc:"polling: key: one relay at a time, rows of a key in the order of their insertion; none: any number of relays share the rows, in no order"`
	AfterPublish string         `yaml:"after_publish" doc:"polling: mark a row that was published, or delete it"`
	Attempts     int            `yaml:"attempts" doc:"polling: so often a row is tried that is itself at fault, before it is set to failed; Kafka being away is no attempt"`
	Backoff      time.Duration  `yaml:"backoff" doc:"polling: time before the second attempt, doubled for each further one, up to 1m"`
	Words        PollingWords   `yaml:"words"`
	Columns      PollingColumns `yaml:"columns"`
}

// What order and after_publish can be.
const (
	OrderKey      = "key"
	OrderNone     = "none"
	MarkPublished = "mark"
	DeleteRow     = "delete"
)

// PollingWords are what stands in the status column.
type PollingWords struct {
	Pending string `yaml:"pending" doc:"polling: status of a row that is to be published, the column's default"`
	Sent    string `yaml:"sent" doc:"polling: status of a row that was published"`
	Failed  string `yaml:"failed" doc:"polling: status of a row that was refused so often; it holds later rows of its key back until walpost dlq redrive or drop"`
	Dropped string `yaml:"dropped" doc:"polling: status of a row that walpost dlq drop gave up"`
}

// All are the words, each one's key with it.
func (w *PollingWords) All() [][2]string {
	return [][2]string{{"pending", w.Pending}, {"sent", w.Sent}, {"failed", w.Failed}, {"dropped", w.Dropped}}
}

// PollingColumns names the columns that polling needs beside those of the event.
type PollingColumns struct {
	Transaction string `yaml:"transaction" doc:"polling: xid8, DEFAULT pg_current_xact_id(), before position in the table: a number is drawn by a transaction that can be seen"`
	Position    string `yaml:"position" doc:"polling: bigint identity, the order of the rows"`
	Status      string `yaml:"status" doc:"polling: text, DEFAULT source.polling.words.pending"`
	ProcessedAt string `yaml:"processed_at" doc:"polling: timestamptz, when the row was published, failed or dropped"`
	RetryCount  string `yaml:"retry_count" doc:"polling: integer, how often the row was refused"`
	LastError   string `yaml:"last_error" doc:"polling: text, why"`
}

func (c *PollingColumns) all() [][2]string {
	return [][2]string{
		{"transaction", c.Transaction},
		{"position", c.Position},
		{"status", c.Status},
		{"processed_at", c.ProcessedAt},
		{"retry_count", c.RetryCount},
		{"last_error", c.LastError},
	}
}

func defaultPolling() PollingConfig {
	return PollingConfig{
		Interval: time.Second, Order: OrderKey, AfterPublish: MarkPublished, Attempts: 5, Backoff: time.Second,
		Words: PollingWords{Pending: "PENDING", Sent: "SENT", Failed: "FAILED", Dropped: "DROPPED"},
		Columns: PollingColumns{
			Transaction: "transaction_id", Position: "position", Status: "status", ProcessedAt: "processed_at",
			RetryCount: "retry_count", LastError: "last_error",
		},
	}
}

func (c *Config) validatePolling(bad func(format string, args ...any)) {
	p := &c.Source.Polling
	switch c.Source.Kind {
	case WAL:
		return
	case Polling:
	default:
		bad("source.kind: %q: write wal or polling", c.Source.Kind)
		return
	}
	if c.Delivery == ExactlyOnce {
		bad("delivery: exactly_once needs source.kind: wal: a row is marked in PostgreSQL, not in Kafka's transaction, so that a crash between the two repeats it")
	}
	if c.Poison.Policy == DeadLetterPolicy {
		bad("poison.policy: dead_letter is for source.kind: wal: with polling a row that is refused stays in the table")
	}
	if c.Cleanup.Every > 0 && p.AfterPublish == DeleteRow {
		bad("cleanup.every: there is nothing to clean up with source.polling.after_publish: delete: leave it out")
	}
	if d := p.Interval; d < 10*time.Millisecond || d > time.Hour {
		bad("source.polling.interval: %s: must be between 10ms and 1h", d)
	}
	if !slices.Contains([]string{OrderKey, OrderNone}, p.Order) {
		bad("source.polling.order: %q: write key or none", p.Order)
	}
	if !slices.Contains([]string{MarkPublished, DeleteRow}, p.AfterPublish) {
		bad("source.polling.after_publish: %q: write mark or delete", p.AfterPublish)
	}
	if p.Attempts < 1 || p.Attempts > 1000 {
		bad("source.polling.attempts: %d: between 1 and 1000", p.Attempts)
	}
	if d := p.Backoff; d < time.Millisecond || d > time.Minute {
		bad("source.polling.backoff: %s: between 1ms and 1m", d)
	}
	distinct("source.polling.words", bad, p.Words.All())
	distinct("source.polling.columns", bad, p.Columns.all())
}

// distinct wants each to be there and no two to be the same.
func distinct(of string, bad func(format string, args ...any), values [][2]string) {
	var seen []string
	for _, v := range values {
		key, value := v[0], v[1]
		if value == "" || len(value) > 63 {
			bad("%s.%s: %q: a name of 1 to 63 bytes is needed", of, key, value)
		} else if slices.Contains(seen, value) {
			bad("%s.%s: %q stands for another of them already: give each its own", of, key, value)
		}
		seen = append(seen, value)
	}
}

// Backlog is what waits in a polled table.
type Backlog struct {
	Pending  int64 `json:"pending"`
	Refused  int64 `json:"refused"` // of those pending: they are tried again
	Failed   int64 `json:"failed"`
	HeldKeys int64 `json:"held_keys"` // keys that wait for a failed row
	// OldestSeconds is for how long the oldest pending row has been there, where the table has created_at.
	OldestSeconds float64 `json:"oldest_pending_seconds"`
	// Horizon is the oldest transaction that may still commit rows before the newest pending one; nil without one.
	Horizon *Horizon `json:"horizon,omitempty"`
}

// Horizon is the open transaction that rows of a polled table wait for. Its Seconds are at least how long rows have been waiting, where
// its own age may not be seen.
type Horizon struct{ Transaction }

func (h *Horizon) String() string {
	return fmt.Sprintf("rows wait for %s: it may still commit some that come before them: end it (%s)", h.Transaction, h.End())
}
