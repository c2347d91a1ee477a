package cdctest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Sampler checks during a test that nothing was confirmed too early (I8): it first reads the slot's
// confirmed_flush_lsn, then the commits up to there, and then Kafka, where all of their events must be.
type Sampler struct {
	SamplerConfig
	t       testing.TB
	client  *kgo.Client
	cancel  context.CancelFunc
	turn    sync.Mutex // held while a sample is taken, and while paused
	paused  atomic.Bool
	ended   chan struct{}
	mu      sync.Mutex
	samples int
	early   Finding

	conn    *pgx.Conn // nil before the first use, and after an error
	seen    map[uuid.UUID]bool
	next    map[string]map[int32]int64 // the first offset not read
	checked int                        // commits whose events are all known to be in Kafka
	sampled pglogrepl.LSN              // what was confirmed at the last sample
}

// SamplerConfig names the database, slot and topics. The sampler connects to PostgreSQL and the brokers directly, not
// through a proxy. While one of them is away there are no samples.
type SamplerConfig struct {
	URL     string
	Slot    string
	Oracle  *Oracle
	Brokers []string
	Topics  []string
	// TransactionalID is the relay's transactional id, if it has one. A transaction counts as soon as its commit is
	// decided, also while its markers are being written and read_committed does not show it yet.
	TransactionalID string
}

// StartSampler starts a sampler.
func StartSampler(t testing.TB, cfg SamplerConfig) *Sampler {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Sampler{
		SamplerConfig: cfg, t: t, cancel: cancel, ended: make(chan struct{}),
		seen: map[uuid.UUID]bool{}, next: map[string]map[int32]int64{},
	}
	s.client = newClient(t, cfg.Brokers, append(consumeAll(cfg.Topics[0]), kgo.ConsumeTopics(cfg.Topics...), kgo.MetadataMaxAge(time.Second))...)
	go func() {
		defer close(s.ended)
		// The server decodes WAL for each sample, other tests' WAL too: a sampler rests three times as long as a sample took.
		for pause := 50 * time.Millisecond; sleep(ctx, pause); {
			s.turn.Lock()
			began := time.Now()
			_ = s.sample(ctx, decodedWithin) // PostgreSQL or Kafka may be away
			pause = max(50*time.Millisecond, 3*time.Since(began))
			s.turn.Unlock()
		}
		s.rest()
	}()
	t.Cleanup(s.stop)
	return s
}

func (s *Sampler) stop() {
	s.cancel()
	s.Resume() // a test that failed while paused did not resume it
	<-s.ended
}

// Stop ends the sampler and takes a last sample. It fails the test if that is not possible or if an event was confirmed too
// early, and returns the number of samples.
func (s *Sampler) Stop() (samples int) {
	s.t.Helper()
	s.stop()
	// For a moment the server may still decode for the sample that stop has interrupted.
	Eventually(s.t, decodedWithin, func() error { return s.sample(s.t.Context(), Patience(decodedWithin)) })
	s.rest()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.early.err("confirmed before it was in Kafka (I8)"); err != nil {
		s.t.Error(err)
	}
	return s.samples
}

// Pause closes the sampler's connection until Resume: a server in a smart shutdown waits for its clients.
func (s *Sampler) Pause() {
	s.turn.Lock()
	s.paused.Store(true)
	s.rest()
}

// Resume ends a Pause, if there was one.
func (s *Sampler) Resume() {
	if s.paused.Swap(false) {
		s.turn.Unlock()
	}
}

// Samples returns the number of samples so far that found newly confirmed commits.
func (s *Sampler) Samples() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.samples
}

// sample takes one sample within the given time, or none if nothing was confirmed since the last. It returns an error if
// PostgreSQL or Kafka does not answer.
func (s *Sampler) sample(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	confirmed, err := s.confirmed(ctx)
	if err != nil || confirmed == s.sampled {
		return err
	}
	commits, err := s.Oracle.Commits(ctx)
	if err != nil {
		return err
	}
	due := s.checked
	for due < len(commits) && commits[due].End <= confirmed {
		due++
	}
	if due == s.checked {
		s.sampled = confirmed
		return nil
	}
	if err := s.read(ctx); err != nil {
		return err
	}
	if s.lacks(commits[s.checked:due]) && s.TransactionalID != "" {
		if decided, err := s.decided(ctx); err != nil || decided {
			return err
		}
		if err := s.read(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples++
	for _, c := range commits[s.checked:due] {
		for _, id := range c.IDs {
			if !s.seen[id] {
				s.early.add("event %s of transaction %d, which ends at %s; confirmed is %s", id, c.XID, c.End, confirmed)
			}
		}
	}
	s.checked, s.sampled = due, confirmed
	return nil
}

func (s *Sampler) lacks(commits []Commit) bool {
	return slices.ContainsFunc(commits, func(c Commit) bool {
		return slices.ContainsFunc(c.IDs, func(id uuid.UUID) bool { return !s.seen[id] })
	})
}

// decided reports whether the transaction's markers are being written.
func (s *Sampler) decided(ctx context.Context) (bool, error) {
	described, err := kadm.NewClient(s.client).DescribeTransactions(ctx, s.TransactionalID)
	if err != nil {
		return false, err
	}
	d := described[s.TransactionalID]
	return d.State == "PrepareCommit", d.Err
}

func (s *Sampler) rest() {
	if s.conn != nil {
		_ = s.conn.Close(context.Background())
		s.conn = nil
	}
}

func (s *Sampler) confirmed(ctx context.Context) (lsn pglogrepl.LSN, err error) {
	if s.conn == nil {
		if s.conn, err = pgx.Connect(ctx, s.URL); err != nil {
			return 0, err
		}
	}
	var text string
	if err := s.conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1`, s.Slot).Scan(&text); err != nil {
		s.rest()
		return 0, err
	}
	return pglogrepl.ParseLSN(text)
}

// read reads the topics up to their current end.
func (s *Sampler) read(ctx context.Context) error {
	ends, err := kadm.NewClient(s.client).ListCommittedOffsets(ctx, s.Topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return err
	}
	behind := func() (behind bool) {
		ends.Each(func(end kadm.ListedOffset) { behind = behind || s.next[end.Topic][end.Partition] < end.Offset })
		return behind
	}
	for behind() {
		fetches := s.client.PollFetches(ctx)
		fetches.EachRecord(func(r *kgo.Record) {
			if s.next[r.Topic] == nil {
				s.next[r.Topic] = map[int32]int64{}
			}
			s.next[r.Topic][r.Partition] = r.Offset + 1
			if id, _, err := headers(r, false); err == nil && !r.Attrs.IsControl() {
				s.seen[id] = true
			}
		})
		if ctx.Err() != nil { // after the records, because polled records are not polled again
			return fmt.Errorf("read to the end: %w", ctx.Err())
		}
	}
	return nil
}
