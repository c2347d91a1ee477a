package notify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The channels.
const (
	ChannelMail    = "mail"
	ChannelWebhook = "webhook"
)

// The statuses of a notification.
const (
	Pending    = "PENDING"
	Sent       = "SENT"
	Failed     = "FAILED"
	Suppressed = "SUPPRESSED"
)

// ErrNotFound is returned for a notification that does not exist.
var ErrNotFound = errors.New("there is no such notification")

// Notification is one message about an order, over one channel. Only Show and ByOrder set its content, the last four
// fields.
type Notification struct {
	ID          int64      `json:"id"`
	OrderID     uuid.UUID  `json:"orderId"`
	Channel     string     `json:"channel"`
	Kind        string     `json:"kind"` // confirmed, rejected or shipped
	EventID     uuid.UUID  `json:"eventId"`
	Recipient   string     `json:"recipient"`
	Language    string     `json:"language"`
	Format      string     `json:"format"` // html (together with text), text, or json
	Status      string     `json:"status"`
	Reason      string     `json:"reason,omitempty"`
	Attempts    int        `json:"attempts"`    // since it was last re-published
	Republished int        `json:"republished"` // how often it was re-published
	CreatedAt   time.Time  `json:"createdAt"`
	EndedAt     *time.Time `json:"endedAt,omitempty"`
	NextAttempt *time.Time `json:"nextAttemptAt,omitempty"` // of PENDING

	Subject string    `json:"subject,omitempty"`
	HTML    string    `json:"html,omitempty"`
	Text    string    `json:"text,omitempty"`
	History []Attempt `json:"history,omitempty"`
}

// Attempt is one try to send a notification.
type Attempt struct {
	BeganAt   time.Time  `json:"beganAt"`
	EndedAt   *time.Time `json:"endedAt,omitempty"`
	Recipient string     `json:"recipient"`
	Outcome   string     `json:"outcome"` // sent, deferred, refused; unknown while the attempt runs, and afterwards too if its sender died
	Answer    string     `json:"answer,omitempty"`
}

// Store keeps notifications in the orders database.
type Store struct{ pool *pgxpool.Pool }

// NewStore returns a Store that uses pool, which connects to the orders database. The caller closes pool.
func NewStore(pool *pgxpool.Pool) *Store { return &Store{pool} }

// Settings say which notifications a customer wants, and in which form.
type Settings struct {
	Kinds    map[string]bool `json:"kinds"`    // each kind, on or off
	Format   string          `json:"format"`   // html or text
	Language string          `json:"language"` // en or de
}

// settingsColumns reads a row of customer_notifications, or the defaults if there is no row.
const settingsColumns = `coalesce(s.confirmed, true), coalesce(s.rejected, true), coalesce(s.shipped, true), coalesce(s.format, 'html'), coalesce(s.language, 'en')`

func (s *Settings) scan(row pgx.Row, more ...any) error {
	var confirmed, rejected, shipped bool
	err := row.Scan(append([]any{&confirmed, &rejected, &shipped, &s.Format, &s.Language}, more...)...)
	s.Kinds = map[string]bool{"confirmed": confirmed, "rejected": rejected, "shipped": shipped}
	return err
}

// Settings returns the customer's settings, or the defaults.
func (s *Store) Settings(ctx context.Context, customer string) (Settings, error) {
	var set Settings
	err := set.scan(s.pool.QueryRow(ctx, `SELECT `+settingsColumns+` FROM (SELECT) AS one LEFT JOIN customer_notifications s ON s.customer_id = $1`, customer))
	if err != nil {
		return Settings{}, fmt.Errorf("read a customer's settings: %w", err)
	}
	return set, nil
}

// SetSettings changes the settings for later notifications. Notifications that are PENDING already do not change.
func (s *Store) SetSettings(ctx context.Context, customer string, set Settings) error {
	_, err := s.pool.Exec(ctx, `INSERT INTO customer_notifications (customer_id, confirmed, rejected, shipped, format, language) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (customer_id) DO UPDATE SET confirmed = $2, rejected = $3, shipped = $4, format = $5, language = $6, updated_at = clock_timestamp()`,
		customer, set.Kinds["confirmed"], set.Kinds["rejected"], set.Kinds["shipped"], set.Format, set.Language)
	if err != nil {
		return fmt.Errorf("write a customer's settings: %w", err)
	}
	return nil
}

const columns = `n.id, n.order_id, n.channel, n.kind, n.event_id, n.recipient, n.language, n.format, n.status, coalesce(n.reason, ''), n.attempts, n.republished,
	n.created_at, n.ended_at, CASE n.status WHEN 'PENDING' THEN n.next_attempt_at END`

func (n *Notification) fields(more ...any) []any {
	return append([]any{
		&n.ID, &n.OrderID, &n.Channel, &n.Kind, &n.EventID, &n.Recipient, &n.Language, &n.Format, &n.Status, &n.Reason, &n.Attempts, &n.Republished,
		&n.CreatedAt, &n.EndedAt, &n.NextAttempt,
	}, more...)
}

// Filter selects notifications of a channel.
type Filter struct {
	Channel string
	Status  string    // empty: any
	Since   time.Time // created at this time or later
	Limit   int       // the most notifications to return; the newest come first
}

// List returns the notifications that f selects, the newest first.
func (s *Store) List(ctx context.Context, f Filter) ([]Notification, error) {
	rows, _ := s.pool.Query(ctx, `SELECT `+columns+` FROM notifications n
		WHERE channel = $1 AND ($2 = '' OR status = $2) AND created_at >= $3 ORDER BY id DESC LIMIT $4`, f.Channel, f.Status, f.Since, f.Limit)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n Notification, err error) {
		return n, row.Scan(n.fields()...)
	})
	if err != nil {
		return nil, fmt.Errorf("list notifications: %w", err)
	}
	return list, nil
}

// Show returns one notification of a channel with its content and attempts, or ErrNotFound.
func (s *Store) Show(ctx context.Context, channel string, id int64) (Notification, error) {
	found, err := s.whole(ctx, `n.channel = $1 AND n.id = $2`, channel, id)
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Notification{}, err
	}
	return found[0], nil
}

// ByOrder returns all notifications of an order over a channel, the oldest first.
func (s *Store) ByOrder(ctx context.Context, channel string, order uuid.UUID) ([]Notification, error) {
	return s.whole(ctx, `n.channel = $1 AND n.order_id = $2`, channel, order)
}

// whole returns notifications with their content and attempts, from one snapshot: it never shows an attempt that has
// ended together with a notification that does not know it.
func (s *Store) whole(ctx context.Context, where string, args ...any) (list []Notification, err error) {
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `SELECT `+columns+`, coalesce(n.subject, ''), coalesce(n.html, ''), coalesce(n.plain, ''), CASE n.format WHEN 'json' THEN n.event ELSE '' END
			FROM notifications n WHERE `+where+` ORDER BY n.id`, args...)
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (n Notification, err error) {
			var body string
			err = row.Scan(n.fields(&n.Subject, &n.HTML, &n.Text, &body)...)
			n.Text += body
			return n, err
		})
		for i := 0; err == nil && i < len(list); i++ {
			rows, _ := tx.Query(ctx, `SELECT began_at, ended_at, recipient, coalesce(outcome, 'unknown'), coalesce(answer, '')
				FROM notification_attempts WHERE notification_id = $1 ORDER BY id`, list[i].ID)
			list[i].History, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Attempt])
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read notifications: %w", err)
	}
	return list, nil
}

// Failed counts the notifications of a channel that are FAILED and were created at since or later.
func (s *Store) Failed(ctx context.Context, channel string, since time.Time) (n int, err error) {
	err = s.pool.QueryRow(ctx, `SELECT count(*) FROM notifications WHERE channel = $1 AND status = 'FAILED' AND created_at >= $2`, channel, since).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count failed notifications: %w", err)
	}
	return n, nil
}

// republishBatch is the number of rows that one statement of Republish changes.
const republishBatch = 100

// RepublishOptions select the FAILED notifications that Republish makes PENDING again.
type RepublishOptions struct {
	Channel  string
	Since    time.Time      // created at this time or later
	Limit    int            // the most notifications; the oldest come first
	Every    time.Duration  // notifications that were refused are selected only Every·2^republished after that; 0: at once
	Progress func(done int) // optional; called with the number done after each batch
}

// Republish makes notifications PENDING again, with all their attempts, in batches. A SENT notification stays SENT.
func (s *Store) Republish(ctx context.Context, opts RepublishOptions) (done int, err error) {
	for last := int64(0); done < opts.Limit; {
		var n int
		err := s.pool.QueryRow(ctx, `
			WITH again AS (
				UPDATE notifications SET status = 'PENDING', reason = NULL, final = false, attempts = 0, republished = republished + 1,
				       next_attempt_at = clock_timestamp(), ended_at = NULL
				WHERE id IN (
					SELECT id FROM notifications
					WHERE channel = $1 AND status = 'FAILED' AND created_at >= $2 AND id > $3
					  AND ($4::interval = '0' OR NOT final OR ended_at + $4::interval * (2 ^ least(republished, 20)) < clock_timestamp())
					ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED)
				RETURNING id)
			SELECT count(*), coalesce(max(id), 0) FROM again`, opts.Channel, opts.Since, last, opts.Every, min(republishBatch, opts.Limit-done)).Scan(&n, &last)
		if err != nil {
			return done, fmt.Errorf("re-publish: %w", err)
		}
		if n == 0 {
			break
		}
		done += n
		if opts.Progress != nil {
			opts.Progress(done)
		}
	}
	return done, nil
}

// count is the number of a channel's notifications in one status, and the age of the oldest PENDING one.
type count struct {
	channel, status string
	n               int64
	oldest          float64
}

func (s *Store) counts(ctx context.Context) ([]count, error) {
	rows, _ := s.pool.Query(ctx, `SELECT channel, status, count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
		FROM notifications GROUP BY channel, status`)
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c count, err error) {
		return c, row.Scan(&c.channel, &c.status, &c.n, &c.oldest)
	})
}

// clean returns text from outside in a form that a column, a log and a terminal accept.
func clean(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	if runes := []rune(text); len(runes) > most {
		text = string(slices.Concat(runes[:most], []rune("…")))
	}
	return text
}
