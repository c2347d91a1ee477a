package notify

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

const (
	maxAttempts = 5
	workers     = 4 // parallel sends: a server that stalls does not delay all others at once
	idle        = time.Second
	waitAgain   = 10 * time.Second // until the catalog is queried again for a mail
	grace       = 10 * time.Second // for a send that is in progress when the process stops
	recordTime  = 30 * time.Second // for storing the outcome of a send while the database fails
)

// The outcomes of an attempt.
const (
	outcomeSent     = "sent"
	outcomeDeferred = "deferred"
	outcomeRefused  = "refused"
)

// A Channel sends notifications: a *Mail or a *Webhook.
type Channel interface {
	name() string
	// prepare completes the content. After an errWaits the notification stays PENDING, after any other error it
	// becomes FAILED.
	prepare(ctx context.Context, n *task) error
	// deliver makes one attempt and returns the answer. The error is a *refusal if another attempt would get the
	// same answer. Neither answer nor error contains a secret.
	deliver(ctx context.Context, n *task) (answer string, err error)
}

// refusal is a final answer: another attempt would get the same.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// task is a notification that a sender has leased.
type task struct {
	Notification
	event []byte
	lease string // the owner of the lease
}

// SenderConfig configures a Sender. A field without a default is required.
type SenderConfig struct {
	Store   *Store
	Channel Channel
	Metrics *Metrics
	Log     zerolog.Logger

	Rate       int           // the most attempts of this process in a minute; 0: no limit
	Backoff    time.Duration // the average wait before the second attempt; 0: 5 s
	Lease      time.Duration // how long a notification belongs to one sender; 0: 2 minutes
	RetryEvery time.Duration // between two rounds that re-publish FAILED notifications; 0: 5 minutes
	RetryAge   time.Duration // older notifications are re-published only by `orders mail retry`; 0: 24 hours
}

// Sender sends a channel's notifications. Any number of them may run at once, in any number of processes.
type Sender struct {
	cfg   SenderConfig
	log   zerolog.Logger
	owner string
	seq   int
	waits atomic.Bool // a mail waits for the catalog
}

// NewSender returns a Sender that sends nothing before Run.
func NewSender(cfg SenderConfig) *Sender {
	if cfg.Backoff == 0 {
		cfg.Backoff = 5 * time.Second
	}
	if cfg.Lease == 0 {
		cfg.Lease = 2 * time.Minute
	}
	if cfg.RetryEvery == 0 {
		cfg.RetryEvery = 5 * time.Minute
	}
	if cfg.RetryAge == 0 {
		cfg.RetryAge = 24 * time.Hour
	}
	host, _ := os.Hostname()
	return &Sender{cfg: cfg, log: cfg.Log.With().Str("channel", cfg.Channel.name()).Logger(), owner: fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:8])}
}

// Run sends until ctx ends. Then it finishes the sends in progress, for at most 10 s, and returns nil.
func (s *Sender) Run(ctx context.Context) error {
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, stop) })()
	var hands sync.WaitGroup
	defer hands.Wait()
	hands.Go(func() { s.republish(ctx) })

	free := make(chan struct{}, workers)
	var trouble bool
	var last time.Time
	for ctx.Err() == nil {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		if s.cfg.Rate > 0 && !sleep(ctx, time.Until(last.Add(time.Minute/time.Duration(s.cfg.Rate)))) {
			return nil
		}
		n, err := s.lease(sending) // not ctx: a cancelled query may still lease a notification, and then no sender has it
		if err != nil != trouble {
			if trouble = err != nil; trouble {
				s.log.Warn().Err(err).Msg("the orders database cannot be used; retrying until it answers")
			} else {
				s.log.Info().Msg("the orders database answers again")
			}
		}
		if n == nil {
			<-free
			if !sleep(ctx, min(idle, s.cfg.Backoff)) {
				return nil
			}
			continue
		}
		last = time.Now()
		hands.Go(func() {
			defer func() { <-free }()
			s.send(sending, n)
		})
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// lease leases the notification that has been due longest to this sender, and returns nil if none is due.
func (s *Sender) lease(ctx context.Context) (*task, error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	s.seq++
	n := &task{lease: fmt.Sprintf("%s/%d", s.owner, s.seq)}
	err := s.cfg.Store.pool.QueryRow(ctx, `
		UPDATE notifications n SET lease_owner = $2, lease_until = clock_timestamp() + $3::interval
		WHERE id = (
			SELECT id FROM notifications
			WHERE channel = $1 AND status = 'PENDING' AND next_attempt_at <= clock_timestamp() AND (lease_until IS NULL OR lease_until <= clock_timestamp())
			ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
		RETURNING `+columns+`, coalesce(subject, ''), coalesce(html, ''), coalesce(plain, ''), event`,
		s.cfg.Channel.name(), n.lease, s.cfg.Lease).Scan(n.fields(&n.Subject, &n.HTML, &n.Text, &n.event)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lease a notification: %w", err)
	}
	return n, nil
}

// send makes one attempt and stores its outcome. If the outcome cannot be stored, the notification is sent again when
// its lease expires.
func (s *Sender) send(ctx context.Context, n *task) {
	log := s.log.With().Int64("notification", n.ID).Stringer("order_id", n.OrderID).Stringer("event_id", n.EventID).Str("kind", n.Kind).Logger()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Lease/2) // so that no other sender leases it meanwhile
	defer cancel()
	err := s.cfg.Channel.prepare(ctx, n)
	if waits := errors.Is(err, errWaits); s.waits.Swap(waits) != waits {
		if waits {
			s.log.Warn().Err(err).Msg("mails wait until the catalog answers")
		} else {
			s.log.Info().Msg("the catalog answers again")
		}
	}
	if err != nil {
		s.record(ctx, log, func(ctx context.Context) error { return s.unprepared(ctx, n, err) })
		if !errors.Is(err, errWaits) {
			log.Warn().Err(err).Msg("the notification cannot be sent")
		}
		return
	}
	attempt, err := s.begin(ctx, n)
	if err != nil {
		log.Warn().Err(err).Msg("the attempt could not be counted in the database, so it is made later")
		_ = s.unprepared(ctx, n, fmt.Errorf("%w for its attempt to be counted: %w", errWaits, err)) // if this fails too, the notification is due again when its lease expires
		return
	}
	if attempt == 0 {
		return // another sender has leased it, or it has no attempts left
	}
	answer, err := s.cfg.Channel.deliver(ctx, n)
	outcome := outcomeSent
	if err != nil {
		outcome, answer = outcomeDeferred, err.Error()
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			outcome = outcomeRefused
		}
	}
	answer = clean(answer, 500)
	s.record(ctx, log, func(ctx context.Context) error { return s.end(ctx, n, attempt, outcome, answer) })
	s.cfg.Metrics.attempts.WithLabelValues(s.cfg.Channel.name(), outcome).Inc()
	log.Info().Int("attempt", n.Attempts+1).Str("outcome", outcome).Msg("attempt made") // the answer is only in the database: it may name the recipient
}

// record stores an outcome, and retries while the database is away: after a 250 this prevents that the mail is sent
// twice.
func (s *Sender) record(ctx context.Context, log zerolog.Logger, write func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	const firstPause = 50 * time.Millisecond
	for pause := firstPause; ; pause = min(2*pause, time.Second) {
		err := write(ctx)
		if err == nil {
			return
		}
		if pause == firstPause {
			log.Warn().Err(err).Stringer("within", recordTime).Msg("the outcome cannot be stored, trying again")
		}
		if !sleep(ctx, pause) {
			log.Error().Err(err).Msg("the outcome could not be stored: the notification is due again when its lease expires")
			return
		}
	}
}

// unprepared lets the notification wait, or makes it FAILED.
func (s *Sender) unprepared(ctx context.Context, n *task, cause error) error {
	status, again := Failed, time.Duration(0)
	if errors.Is(cause, errWaits) {
		status, again = Pending, min(waitAgain, 2*s.cfg.Backoff)
	}
	_, err := s.cfg.Store.pool.Exec(ctx, `
		UPDATE notifications SET status = $3, reason = $4, final = $3 = 'FAILED', ended_at = CASE $3 WHEN 'FAILED' THEN clock_timestamp() END,
		       next_attempt_at = clock_timestamp() + $5::interval, lease_owner = NULL, lease_until = NULL
		WHERE id = $1 AND lease_owner = $2`, n.ID, n.lease, status, clean(cause.Error(), 500), again)
	return err
}

// begin counts an attempt before it is made and stores the content to send. It returns 0 if no attempt may be made.
func (s *Sender) begin(ctx context.Context, n *task) (attempt int64, err error) {
	if n.Attempts >= maxAttempts { // the sender of the last attempt did not store its outcome
		_, err := s.cfg.Store.pool.Exec(ctx, `
			UPDATE notifications SET status = 'FAILED', reason = 'the sender ended during the last attempt: whether it arrived is unknown',
			       ended_at = clock_timestamp(), lease_owner = NULL, lease_until = NULL
			WHERE id = $1 AND lease_owner = $2`, n.ID, n.lease)
		return 0, err
	}
	err = s.cfg.Store.pool.QueryRow(ctx, `
		WITH begun AS (
			UPDATE notifications SET attempts = attempts + 1, reason = NULL, lease_until = clock_timestamp() + $3::interval,
			       subject = nullif($4, ''), html = nullif($5, ''), plain = nullif($6, '')
			WHERE id = $1 AND lease_owner = $2 AND lease_until > clock_timestamp() AND status = 'PENDING' RETURNING id)
		INSERT INTO notification_attempts (notification_id, recipient) SELECT id, $7 FROM begun RETURNING id`,
		n.ID, n.lease, s.cfg.Lease, n.Subject, n.HTML, n.Text, n.Recipient).Scan(&attempt)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return attempt, err
}

// end stores the outcome of an attempt. A success is stored even after the lease has expired, because the notification
// was sent.
func (s *Sender) end(ctx context.Context, n *task, attempt int64, outcome, answer string) error {
	return pgx.BeginFunc(ctx, s.cfg.Store.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE notification_attempts SET ended_at = clock_timestamp(), outcome = $2, answer = $3 WHERE id = $1`, attempt, outcome, answer)
		if err != nil {
			return err
		}
		switch made := n.Attempts + 1; {
		case outcome == outcomeSent:
			_, err = tx.Exec(ctx, `UPDATE notifications SET status = 'SENT', reason = NULL, final = false, ended_at = clock_timestamp(), lease_owner = NULL, lease_until = NULL
				WHERE id = $1 AND status <> 'SENT'`, n.ID)
		case outcome == outcomeRefused || made >= maxAttempts:
			reason := "refused: " + answer
			if outcome != outcomeRefused {
				reason = fmt.Sprintf("%d attempts, the last: %s", made, answer)
			}
			_, err = tx.Exec(ctx, `UPDATE notifications SET status = 'FAILED', reason = $3, final = $4, ended_at = clock_timestamp(), lease_owner = NULL, lease_until = NULL
				WHERE id = $1 AND lease_owner = $2`, n.ID, n.lease, reason, outcome == outcomeRefused)
		default:
			_, err = tx.Exec(ctx, `UPDATE notifications SET next_attempt_at = clock_timestamp() + $3::interval, lease_owner = NULL, lease_until = NULL
				WHERE id = $1 AND lease_owner = $2`, n.ID, n.lease, s.backoff(made))
		}
		return err
	})
}

// backoff returns a random time from half to one and a half of a value that doubles with each attempt made.
func (s *Sender) backoff(made int) time.Duration {
	d := s.cfg.Backoff << (made - 1)
	return d/2 + mathrand.N(d)
}

// republish makes FAILED notifications PENDING again, with all their attempts, in rounds.
func (s *Sender) republish(ctx context.Context) {
	for sleep(ctx, s.cfg.RetryEvery) {
		done, err := s.cfg.Store.Republish(ctx, RepublishOptions{
			Channel: s.cfg.Channel.name(), Since: time.Now().Add(-s.cfg.RetryAge), Limit: maxRound, Every: s.cfg.RetryEvery,
		})
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Warn().Err(err).Msg("failed notifications could not be re-published; the next round tries again")
		case done > 0:
			s.log.Info().Int("notifications", done).Msg("failed notifications re-published")
		}
	}
}

// maxRound limits the notifications of one round, so that a round ends.
const maxRound = 100_000
