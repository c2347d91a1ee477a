package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
)

// Verdict sums a status up in one word.
type Verdict string

// The verdicts, from the best to the worst.
const (
	Flows        Verdict = "flows"         // rows reach Kafka, or would
	CannotTell   Verdict = "cannot_tell"   // PostgreSQL or Kafka could not be read
	NeedsSomeone Verdict = "needs_someone" // rows do not flow, dead letters are unresolved, or a gap is not replayed: an operator has to act
)

// Status is the state of a pipeline, as `walpost status` and GET /status show it. A field that is missing is zero, or not
// known.
type Status struct {
	Pipeline string  `json:"pipeline"`
	Verdict  Verdict `json:"verdict"`

	// These fields come from the relay of this process, and are missing if none runs in it.
	Role      cdc.Role  `json:"role,omitempty"`
	Reason    string    `json:"reason,omitempty"` // why it is not streaming
	Since     time.Time `json:"since,omitzero"`
	Published int64     `json:"published,omitempty"`     // rows since the process started
	Covered   string    `json:"covered_lsn,omitempty"`   // in the state record: everything at or below it is durable in Kafka
	Confirmed string    `json:"confirmed_lsn,omitempty"` // last confirmed to the slot by this process
	// KafkaStalled is true while Kafka has not answered for 5 s. Stalled is the reason why rows may be waiting and nothing moves.
	KafkaStalled bool   `json:"kafka_stalled,omitempty"`
	Stalled      string `json:"stalled,omitempty"`
	CommitsWait  string `json:"commits_wait,omitempty"` // why commits of the server wait for this relay

	// These fields come from PostgreSQL and Kafka.
	Slot          *Slot    `json:"slot,omitempty"` // missing for a polled table
	WALEnd        string   `json:"wal_end_lsn,omitempty"`
	LagBytes      *int64   `json:"lag_bytes,omitempty"`
	LagSeconds    *float64 `json:"lag_seconds,omitempty"` // age of the oldest WAL that is not confirmed
	RetainedBytes *int64   `json:"retained_wal_bytes,omitempty"`
	// WALPerHour is the recent rate at which the server writes WAL, in bytes an hour. SlotSeconds is the time in seconds
	// until the slot is lost at that rate, if nothing is confirmed meanwhile; it is missing if the server keeps all WAL for
	// the slot.
	WALPerHour  *int64     `json:"wal_bytes_per_hour,omitempty"`
	SlotSeconds *float64   `json:"slot_seconds_left,omitempty"`
	State       *cdc.State `json:"state,omitempty"`
	// Positions are where the WAL's rows are, from the end of the WAL back to the LSN from which the server keeps WAL.
	Positions []Position `json:"positions,omitempty"`
	// Decisions are those of operators, the oldest first. Gaps are the ranges of commits that a decision left behind and that
	// no replay has filled. A running relay reads both once a minute.
	Decisions   []cdc.Decision   `json:"decisions,omitempty"`
	Gaps        []cdc.Gap        `json:"gaps,omitempty"`
	DeadLetters *int             `json:"unresolved_dead_letters,omitempty"` // missing without poison.policy: dead_letter
	Backlog     *polling.Backlog `json:"backlog,omitempty"`                 // of a polled table
	Notes       []string         `json:"notes,omitempty"`                   // facts to know that do not stop the relay
	Blocked     []string         `json:"blocked"`                           // the causes that keep rows from flowing, each with what to do
	BlockedBy   []Blocker        `json:"blocked_by,omitempty"`              // the same causes, each in its parts

	halts bool // a halt is among the causes
}

// Blocker is a cause that keeps rows from flowing. A halt has all three parts; another cause is one sentence, in Found.
type Blocker struct {
	Found string `json:"found"`
	Means string `json:"means,omitempty"` // what is at risk
	Run   string `json:"run,omitempty"`   // what to do
}

// Place is the name of a position.
type Place string

// The places, in the order in which a row passes them.
const (
	AtWALEnd    Place = "wal_end"      // written by the server
	AtReceived  Place = "received"     // read by this process
	AtPublished Place = "published"    // durable in Kafka
	AtState     Place = "state_record" // in the state record, which is durable in Kafka
	AtConfirmed Place = "confirmed"    // confirmed to the slot
	AtRestart   Place = "restart"      // the server keeps the WAL from here on
)

// Position is an LSN up to which WAL has come to a place. The first two places are missing without a running relay.
type Position struct {
	Place   Place    `json:"place"`
	LSN     string   `json:"lsn"`
	Bytes   int64    `json:"bytes_behind"`             // to the end of the WAL
	Seconds *float64 `json:"seconds_behind,omitempty"` // age of the oldest WAL after it, at most; missing if it is not known
}

// kafkaAway is the cause of rows that wait for Kafka, where the client knows no better one.
const kafkaAway = "kafka does not answer: look into its brokers' logs"

// Slot is the replication slot.
type Slot struct {
	Name           string `json:"name"`
	Exists         *bool  `json:"exists,omitempty"` // missing if PostgreSQL could not be read
	Active         bool   `json:"active"`
	ConfirmedFlush string `json:"confirmed_flush_lsn,omitempty"`
	RestartLSN     string `json:"restart_lsn,omitempty"`
	WALStatus      string `json:"wal_status,omitempty"`
	SafeWALSize    *int64 `json:"safe_wal_size,omitempty"` // bytes that may be written before the slot can be lost; missing without a limit
}

// Status returns the pipeline's status. If Run has been called, the status has the facts that Run knows, and Status asks
// PostgreSQL and Kafka for the others. Otherwise it asks both sides for everything, with the relay's rights. Blocked has
// the questions that got no answer.
func (p *Pipeline) Status(ctx context.Context) Status {
	if p.ran.Load() {
		return p.metrics.status()
	}
	st := Status{Pipeline: p.cfg.Pipeline, Verdict: Flows, Blocked: []string{}}
	p.kind.survey(ctx, &st)
	return st
}

// blocked adds an error, and reports whether there was one. An error that is no halt is a question without an answer.
func (s *Status) blocked(err error) bool {
	switch {
	case err == nil:
		return false
	case errors.As(err, new(*cdc.HaltError)):
		s.needsSomeone(err)
		s.halts = true
	default:
		s.add(err)
		if s.Verdict == Flows {
			s.Verdict = CannotTell
		}
	}
	return true
}

// needsSomeone adds a cause that an operator has to look at, and sets the verdict.
func (s *Status) needsSomeone(err error) {
	s.add(err)
	s.Verdict = NeedsSomeone
}

// blockedBy adds a cause that keeps rows from flowing; "" is none.
func (s *Status) blockedBy(why string) {
	if why != "" {
		s.needsSomeone(errors.New(why))
	}
}

// add adds a cause once.
func (s *Status) add(err error) {
	if !slices.Contains(s.Blocked, err.Error()) {
		s.Blocked = append(s.Blocked, err.Error())
		s.BlockedBy = append(s.BlockedBy, blocker(err))
	}
}

// blocker returns an error in its parts, if it is a halt. An error that holds more than one halt stays one sentence.
func blocker(err error) Blocker {
	var halt *cdc.HaltError
	if !errors.As(err, &halt) {
		return Blocker{Found: err.Error()}
	}
	before, whole := strings.CutSuffix(err.Error(), halt.Error())
	if !whole || strings.Contains(before, "\n") {
		return Blocker{Found: err.Error()}
	}
	parts := halt.Parts()
	return Blocker{Found: before + parts[0][1], Means: parts[1][1], Run: parts[2][1]}
}

// decided fills in the operators' decisions, and the gaps that they left.
func (s *Status) decided(decisions []cdc.Decision) {
	if s.Decisions, s.Gaps = decisions, cdc.Gaps(decisions); len(s.Gaps) > 0 {
		s.Verdict = NeedsSomeone
	}
}

// puts fills in the number of unresolved dead letters.
func (s *Status) puts(unresolved int) {
	if s.DeadLetters = &unresolved; unresolved > 0 {
		s.blockedBy(plain.Count(unresolved, "dead letter is", "dead letters are") + " unresolved: `walpost dlq list` says why")
	}
}

// stands fills in the slot's position and the amounts of WAL.
func (s *Status) stands(f *cdc.Facts) {
	slot := f.Slot
	s.WALEnd = f.WALEnd.String()
	s.Slot = &Slot{Name: slot.Name, Exists: &slot.Exists, Active: slot.Active}
	if !slot.Exists {
		return
	}
	s.Slot.WALStatus, s.Slot.ConfirmedFlush, s.Slot.RestartLSN = slot.WALStatus, slot.ConfirmedFlush.String(), slot.RestartLSN.String()
	s.Slot.SafeWALSize = slot.SafeWALSize
	lag, retained := max(0, int64(f.WALEnd)-int64(slot.ConfirmedFlush)), max(0, int64(f.WALEnd)-int64(slot.RestartLSN))
	s.LagBytes, s.RetainedBytes = &lag, &retained
}

// waits fills in the server's notes, and the reasons why it makes rows or commits wait.
func (s *Status) waits(f *cdc.Facts) {
	s.Notes = f.Notes
	s.blockedBy(f.StandbysAway())
	if err := f.CommitsWait(); err != nil {
		s.blockedBy(err.Error())
	}
}

const (
	forYears = 100 * 365 * 24 * 3600 // seconds; more is the same to anybody, and no time.Duration holds it
	soonLost = 6 * time.Hour         // the alert SlotWillBeLost has the same limit
	longLate = time.Minute
	moreWAL  = "raise max_slot_wal_keep_size, if the disk has room (`ALTER SYSTEM SET max_slot_wal_keep_size = …` and `SELECT pg_reload_conf()`), and find out why the relay is late"
)

// lasts fills in how fast the server writes WAL, and how long the slot lasts at that rate. It uses the lag, so call lags first.
func (s *Status) lasts(perSecond float64, f *cdc.Facts) {
	if f.Slot.WALStatus == "unreserved" {
		s.blockedBy("the slot is lost at the server's next checkpoint, which removes WAL that the slot still needs (wal_status unreserved): " + moreWAL)
	}
	if perSecond <= 0 {
		return
	}
	perHour := int64(perSecond * 3600)
	s.WALPerHour = &perHour
	left, limited := secondsLeft(perSecond, &f.Slot)
	if !limited {
		return
	}
	s.SlotSeconds = &left
	if left < soonLost.Seconds() && s.LagSeconds != nil && *s.LagSeconds > longLate.Seconds() {
		s.blockedBy(fmt.Sprintf("the slot can be lost in %s, at the server's rate of WAL: %s", time.Duration(left*float64(time.Second)).Round(time.Minute), moreWAL))
	}
}

// secondsLeft returns the seconds until a slot can be lost, at a rate of WAL in bytes a second, if nothing is confirmed. It
// reports false if there is no limit, or the server writes no WAL.
func secondsLeft(perSecond float64, slot *cdc.SlotFacts) (float64, bool) {
	if slot.SafeWALSize == nil || perSecond <= 0 {
		return 0, false
	}
	return min(max(0, float64(*slot.SafeWALSize))/perSecond, forYears), true
}

// backs fills in the backlog of a polled table, and what it waits for.
func (s *Status) backs(b *polling.Backlog) {
	s.Backlog = b
	if b.Horizon != nil {
		s.blockedBy(b.Horizon.String())
	}
	if b.Failed > 0 {
		s.blockedBy(failed(b))
	}
}

// failed returns the sentence about rows that have failed.
func failed(b *polling.Backlog) string {
	rows, hold := polling.Count(b.Failed)+" rows have", "hold"
	if b.Failed == 1 {
		rows, hold = "1 row has", "holds"
	}
	return rows + " failed and " + hold + " " + plain.Count(b.HeldKeys, "key", "keys") + " back: `walpost dlq list` says why"
}

// positions returns the positions, of which the first two are those of this process, or 0. behind returns the age of the oldest WAL after an
// LSN, if it is known.
func (s *Status) positions(f *cdc.Facts, received, published cdc.LSN, behind func(cdc.LSN) *time.Duration) (all []Position) {
	var state cdc.LSN
	if s.State != nil {
		state = s.State.Covered
	}
	for _, p := range []struct {
		place Place
		lsn   cdc.LSN
	}{
		{AtWALEnd, f.WALEnd}, {AtReceived, received}, {AtPublished, published}, {AtState, state}, {AtConfirmed, f.Slot.ConfirmedFlush}, {AtRestart, f.Slot.RestartLSN},
	} {
		if p.lsn == 0 {
			continue
		}
		at := Position{Place: p.place, LSN: p.lsn.String(), Bytes: max(0, int64(f.WALEnd)-int64(p.lsn))}
		if d := behind(p.lsn); d != nil {
			seconds := d.Seconds()
			at.Seconds = &seconds
		}
		if lag := s.LagSeconds; lag != nil && p.lsn >= f.Slot.ConfirmedFlush && (at.Seconds == nil || *at.Seconds > *lag) {
			at.Seconds = lag // nothing after the confirmed position is older
		}
		all = append(all, at)
	}
	return all
}

// records fills in the state record.
func (s *Status) records(state *cdc.State) {
	if s.State = state; state != nil {
		s.Covered = state.Covered.String()
	}
}

// lags fills in the age of the oldest WAL that is not confirmed, if it is known.
func (s *Status) lags(behind time.Duration, known bool) {
	if s.LagSeconds = nil; known {
		seconds := behind.Seconds()
		s.LagSeconds = &seconds
	}
}
