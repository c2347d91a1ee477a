package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cdc/polling"
	"github.com/walpost/walpost/cdc/postgres"
)

// Examination is what Examine has found, as `walpost doctor` shows it.
type Examination struct {
	Pipeline string        `json:"pipeline"`
	Severity cdc.Severity  `json:"severity"` // of the worst finding
	Findings []cdc.Finding `json:"findings"`
}

const (
	examineWithin = 10 * time.Second // for a question to both sides
	catchUpWithin = 3 * time.Second  // for a standby server that is a little behind
	longOpen      = time.Hour        // for a transaction
	clocksDiffer  = time.Minute
)

// severities are in the order from the best to the worst.
var severities = []cdc.Severity{cdc.OK, cdc.Note, cdc.Unknown, cdc.Warning, cdc.Problem}

// Examine asks PostgreSQL, Kafka, and compares the two, with the relay's own rights, for everything that a relay needs. It returns a
// finding for each check, also for one that passes. It changes nothing, takes neither slot nor transactional id, and disturbs no relay
// that runs. If one side does not answer, the findings of the other are complete. Before Init it says what Init will create.
func (p *Pipeline) Examine(ctx context.Context) Examination {
	e := Examination{Pipeline: p.cfg.Pipeline}
	p.kind.examine(ctx, &e)
	for i := range e.Findings {
		f := &e.Findings[i]
		f.Found, f.Means, f.Run = oneLine(f.Found), oneLine(f.Means), oneLine(f.Run)
	}
	e.Severity = cdc.OK
	for _, f := range e.Findings {
		e.Severity = worse(e.Severity, f.Severity)
	}
	return e
}

// oneLine returns a sentence in one line.
func oneLine(s string) string { return plain.Cut(strings.ReplaceAll(s, "\n", "; "), 2000) }

// worse returns the worse of two severities.
func worse(a, b cdc.Severity) cdc.Severity {
	return severities[max(slices.Index(severities, a), slices.Index(severities, b))]
}

// Examine examines all pipelines at once.
func (g Group) Examine(ctx context.Context) Examinations {
	all := make(Examinations, len(g))
	_ = g.each(func(i int) error { all[i] = g[i].Examine(ctx); return nil })
	return all
}

// Examinations are those of several pipelines.
type Examinations []Examination

// MarshalJSON writes one examination as an object, and several as a list.
func (e Examinations) MarshalJSON() ([]byte, error) { return oneOrList(e) }

// oneOrList writes one value as itself, and several as a list.
func oneOrList[T any](all []T) ([]byte, error) {
	if len(all) == 1 {
		return json.Marshal(all[0])
	}
	return json.Marshal(all)
}

// add adds findings.
func (e *Examination) add(findings ...cdc.Finding) { e.Findings = append(e.Findings, findings...) }

// found adds a finding about what lies between the two sides.
func (e *Examination) found(severity cdc.Severity, check, found, means, run string) {
	e.add(cdc.Finding{Side: cdc.Between, Severity: severity, Check: check, Found: found, Means: means, Run: run})
}

// has reports whether there is a finding of the check that is not ok.
func (e *Examination) has(check string) bool {
	return slices.ContainsFunc(e.Findings, func(f cdc.Finding) bool { return f.Check == check && f.Severity != cdc.OK })
}

// fails adds an error, unless a finding says it already: a HaltError in its parts, another error as a check without an answer.
func (e *Examination) fails(check string, err error) {
	b := blocker(err)
	if slices.ContainsFunc(e.Findings, func(f cdc.Finding) bool { return f.Found == b.Found }) {
		return
	}
	if errors.As(err, new(*cdc.HaltError)) {
		e.found(cdc.Problem, check, b.Found, b.Means, b.Run)
		return
	}
	found, run := cdc.Parted(err.Error())
	e.found(cdc.Unknown, check, found, "this check has got no answer", run)
}

// sides examines both sides at once.
func (p *Pipeline) sides(ctx context.Context, reads bool) (pg postgres.Examined, kf kafka.Examined) {
	var both sync.WaitGroup
	both.Go(func() { pg = p.source.Examine(ctx, reads) })
	both.Go(func() { kf = p.sink.Examine(ctx) })
	both.Wait()
	return pg, kf
}

const dryRun = "; with --dry-run it prints each step and its SQL, and changes nothing"

// notYet turns the findings that `walpost init` ends into notes.
func (e *Examination) notYet() {
	for i := range e.Findings {
		if f := &e.Findings[i]; f.Init && f.Severity != cdc.OK {
			f.Severity, f.Means, f.Run = cdc.Note, "", "not yet: `walpost init` does it"
		}
	}
}

func (w wal) examine(ctx context.Context, e *Examination) {
	pg, kf := w.sides(ctx, w.cfg.Cleanup.Every > 0 && w.cfg.Cleanup.URL == "")
	for i := range pg.Findings {
		pg.Findings[i].Init = pg.Findings[i].Init || pg.Refused
	}
	e.add(pg.Findings...)
	e.add(kf.Findings...)
	seen := w.compare(ctx, e, pg.Reached && !e.has("standby_server") && !e.has("slot_database"), kf.Reached)
	if pg.Refused && seen != nil && seen.State == nil {
		e.notYet()
		e.found(cdc.Problem, "prepared", fmt.Sprintf("there is no state record for pipeline %q, and PostgreSQL does not accept the relay's role", w.cfg.Pipeline),
			"the pipeline is not prepared yet; nothing is read or published", "run `walpost init` once, with an administrator's rights"+dryRun)
	}
	if kf.Reached {
		w.decided(ctx, e)
	}
	var state *cdc.State
	if seen != nil {
		state = seen.State
	}
	e.transactions(&pg, state, w.longOpen)
	for _, note := range kf.Partitions.Notes(state) {
		found, run := cdc.Parted(note)
		e.found(cdc.Note, "partitions", found, "records of a key may be in two partitions, or earlier ones are gone", run)
	}
	w.sizes(e, &pg, kf)
	w.certificates(e)
}

// decided reports the gaps that decisions have left, and the dead letters that wait for one.
func (w wal) decided(ctx context.Context, e *Examination) {
	ctx, cancel := context.WithTimeout(ctx, examineWithin)
	defer cancel()
	if decisions, err := w.sink.Decisions(ctx); err == nil { // compare reports an error
		for _, g := range cdc.Gaps(decisions) {
			e.found(cdc.Problem, "gap", fmt.Sprintf("rows committed in %s may be missing in Kafka", g.Range), "a decision has left them behind, and no replay has covered them", "run "+g.Run+"; if you know that none is missing, add --none-missing")
		}
	}
	if w.cfg.Poison.Policy != config.PolicyDeadLetter || e.has("dead_letter_topic") || e.has("acl") {
		return
	}
	switch n, err := w.sink.Unresolved().Count(ctx); {
	case err != nil:
		e.fails("dead_letters", err)
	case n > 0:
		e.found(cdc.Problem, "dead_letters", plain.Count(n, "dead letter is", "dead letters are")+" unresolved", "these rows were not published", "`walpost dlq list` says why")
	}
}

// compare compares the server with the state record, as far as both were reached. It returns nil if the state record could not be read.
func (w wal) compare(ctx context.Context, e *Examination, server, record bool) *survey {
	ctx, cancel := context.WithTimeout(ctx, examineWithin)
	defer cancel()
	stateErr := errNoAnswer
	peek := func(ctx context.Context, _ *cdc.Facts) (state *cdc.State, _ error) {
		if record {
			state, stateErr = w.sink.Peek(ctx)
		}
		return state, nil
	}
	var seen survey
	var err error
	if server {
		seen, err = read(ctx, w.source, peek)
	} else {
		seen.State, _ = peek(ctx, nil)
	}
	if record && stateErr != nil && !e.has("acl") && !e.has("state_topic") {
		e.fails("state_record", stateErr)
	}
	switch {
	case !server:
	case err != nil:
		e.fails("slot", err)
	default:
		w.facts(ctx, e, &seen, stateErr == nil)
	}
	if stateErr != nil {
		return nil
	}
	return &seen
}

// facts reports what the server's facts say, with the state record if it is known.
func (w wal) facts(ctx context.Context, e *Examination, seen *survey, known bool) {
	f := &seen.Facts
	if known {
		w.reconcile(ctx, e, seen)
	} else if f.Slot.Exists && f.Slot.Lost() {
		e.found(cdc.Problem, "slot_lost", fmt.Sprintf("replication slot %q is lost (wal_status %s)", f.Slot.Name, f.Slot.WALStatus),
			"rows committed after "+f.Slot.ConfirmedFlush.String()+" can no longer be streamed", "let Kafka answer, and run `walpost doctor` again: with the state record it says how to continue")
	}
	w.slot(e, seen)
	w.waiting(ctx, e, f)
	for _, note := range f.Notes {
		if !postgres.AboutClocks(note) {
			found, run := cdc.Parted(note)
			e.found(cdc.Note, "note", found, "an operator should know; it stops no row", run)
		}
	}
	w.clocks(e, f, seen.State)
}

// reconcile does what a session does at its start.
func (w wal) reconcile(ctx context.Context, e *Examination, seen *survey) {
	if err := seen.identify(ctx, w.source); err != nil {
		e.fails("server_identity", err)
		return
	}
	_, err := cdc.Reconcile(w.cfg.Pipeline, seen.State, seen.Facts)
	var halt *cdc.HaltError
	f := &seen.Facts
	switch {
	case err == nil && seen.State.Halt != nil && !f.Slot.Active:
		e.fails("halted", seen.State.Halt.Halt())
	case err == nil:
		e.found(cdc.OK, "state_record", fmt.Sprintf("the state record covers %s and fits slot, publication, table and server", seen.State.Covered), "", "")
	case !errors.As(err, &halt):
		e.fails("state_record", err)
	case seen.State == nil && !f.Slot.Exists:
		e.notYet()
		e.found(cdc.Problem, "prepared", halt.Found, halt.Means, halt.Run+dryRun)
	case f.Slot.Exists && f.Slot.Lost():
		e.fails("slot_lost", err)
	case !f.Slot.Exists:
		e.fails("slot_missing", err)
	case !halt.Latch && len(f.Hidden)+len(f.Unfit) > 0: // each is a finding already
	case halt.Latch && seen.State.Halt == nil:
		e.fails("changed", err)
	case halt.Latch:
		e.fails("halted", err)
	default:
		e.fails("state_record", err)
	}
}

// slot reports the slot's position, how long it lasts, and whether a relay reads it.
func (w wal) slot(e *Examination, seen *survey) {
	f := &seen.Facts
	if !f.Slot.Exists || f.Slot.Lost() {
		return
	}
	var st Status
	st.shows(seen)
	var wal rate
	if state := seen.State; state != nil && state.Checked > 0 {
		wal.saw(state.Checked, state.CheckedAt)
	}
	st.lasts(wal.saw(f.WALEnd, f.Time), f)
	for _, b := range st.BlockedBy {
		found, run := cdc.Parted(b.Found)
		e.found(cdc.Problem, "slot_time", found, "the server then removes WAL that was not delivered, and rows are missing in Kafka", run)
	}
	active := "no relay reads it"
	if f.Slot.Active {
		active = "a relay reads it"
	}
	e.found(cdc.OK, "slot", fmt.Sprintf("slot %s has confirmed %s, %s before the end of the WAL; %s", f.Slot.Name, f.Slot.ConfirmedFlush, plain.Size(*st.LagBytes), active), "", "")
	switch {
	case f.Slot.Active || e.has("halted"):
	case seen.State != nil && seen.State.Instance == "init":
		e.found(cdc.Warning, "relay", "no relay has read the slot yet", "rows wait in the slot", "start `walpost relay`")
	default:
		e.found(cdc.Warning, "relay", "no relay reads the slot", "rows wait in the slot, and the server keeps their WAL", "start `walpost relay`; if one runs, its log and /readyz say why it does not stream")
	}
}

// waiting reports what rows or commits wait for.
func (w wal) waiting(ctx context.Context, e *Examination, f *cdc.Facts) {
	if away := f.Away(); away.Found != "" {
		e.found(cdc.Problem, "standby_slot", away.Found, "no row is published until that standby has it", away.Run)
	} else if behind := w.behind(ctx, f); behind.Found != "" {
		e.found(cdc.Warning, "standby_slot", behind.Found, "rows are as late as that standby", behind.Run)
	} else if len(f.Standbys) > 0 {
		e.found(cdc.OK, "standby_slot", fmt.Sprintf("the %d slots of synchronized_standby_slots are not behind", len(f.Standbys)), "", "")
	}
	if f.Commits != nil {
		c := f.Commits.Finding()
		e.found(cdc.Problem, "synchronous_standby", c.Found, "with Kafka away no commit on the server returns", c.Run)
	} else {
		e.found(cdc.OK, "synchronous_standby", "no commit waits for the relay", "", "")
	}
	if found, run := patroni(f); found != "" {
		e.found(cdc.Warning, "patroni", found, "rows committed until the slot exists again are missing in Kafka", run)
	}
}

// behind returns which standbys do not receive within a few seconds what the server has written until now.
func (w wal) behind(ctx context.Context, f *cdc.Facts) cdc.Finding {
	end, now := f.WALEnd, *f
	for until := time.Now().Add(catchUpWithin); ; {
		behind := now.Behind(end)
		if behind.Found == "" || time.Now().After(until) {
			return behind
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return behind
		}
		var err error
		if now, err = w.source.Facts(ctx); err != nil {
			return behind
		}
	}
}

// patroni returns what Patroni will do to the slot, and what prevents it; "" if it does nothing.
func patroni(f *cdc.Facts) (found, run string) {
	if f.Slot.Patroni == "" {
		return "", ""
	}
	return "Patroni runs this server, and drops a slot that its configuration does not name", fmt.Sprintf("before you stop the relay, name the slot with `patronictl edit-config`, slots: {%s}", f.Slot.Patroni)
}

// clocks compares the clocks of this machine, of the database server, and of the broker where it shows its own.
func (w wal) clocks(e *Examination, f *cdc.Facts, state *cdc.State) {
	apart := false
	if note := postgres.ClockNote(w.now(), f.Time); note != "" {
		apart = true
		found, run := cdc.Parted(note)
		means, run, _ := strings.Cut(run, ": ")
		e.found(cdc.Warning, "clocks", found, means, run+": chronyc tracking or timedatectl says what a machine's clock follows")
	}
	if state == nil || state.Appended.IsZero() || state.Time.IsZero() {
		if !apart {
			e.found(cdc.OK, "clocks", "the clocks of this machine and of the database server agree; Kafka shows no clock (the state topic has the timestamps of its writers)", "", "")
		}
		return
	}
	off, how := state.Appended.Sub(state.Time), "ahead of"
	if off < 0 {
		off, how = -off, "behind"
	}
	if off >= clocksDiffer {
		e.found(cdc.Warning, "clocks", fmt.Sprintf("the Kafka broker's clock was %s %s the relay's when it wrote the newest state record", plain.Duration(off), how),
			"Kafka rejects records from more than an hour ahead, and deletes records that seem older than the topic's retention", "set the clocks: chronyc tracking or timedatectl says what a machine's clock follows")
	} else if !apart {
		e.found(cdc.OK, "clocks", "the clocks of this machine, the database server and the Kafka broker agree", "", "")
	}
}

// transactions reports the transactions that have been open for long. The state record has a time for those whose age the relay's role may
// not see.
func (e *Examination) transactions(pg *postgres.Examined, state *cdc.State, long time.Duration) {
	var unseen, old int
	for _, t := range pg.Open {
		if since, known := openSince(state, t.XID); t.Seconds == 0 && t.Database == pg.Database && known {
			t.Seconds = max(time.Since(since).Seconds(), 1e-3)
		}
		if t.Seconds == 0 {
			unseen++
		}
		if t.Seconds < long.Seconds() || t.Seconds == 0 {
			continue
		}
		old++
		e.add(cdc.Finding{
			Side: cdc.InPostgreSQL, Severity: cdc.Warning, Check: "open_transaction", Found: fmt.Sprintf("%s, in database %s", t, t.Database),
			Means: "PostgreSQL keeps the WAL since its begin for the slot, a new slot waits for its end, and polling waits for it",
			Run:   fmt.Sprintf("end it, if it was forgotten (in database %s): %s", t.Database, t.End()),
		})
	}
	switch {
	case unseen > 0:
		e.add(cdc.Finding{
			Side: cdc.InPostgreSQL, Severity: cdc.Note, Check: "open_transaction", Found: fmt.Sprintf("%d transactions are open, and the relay's role may not see since when", unseen),
			Means: "one that is open for hours keeps WAL for the slot", Run: "look as an administrator: SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start; a member of pg_read_all_stats sees it",
		})
	case old == 0 && pg.Asked:
		e.add(cdc.Finding{Side: cdc.InPostgreSQL, Severity: cdc.OK, Check: "open_transaction", Found: fmt.Sprintf("no transaction has been open for %s", plain.Duration(long))})
	}
}

// openSince returns a time before which a transaction of the pipeline's database had written nothing, according to the state record. One
// that the record does not have has written nothing before the record's last look.
func openSince(state *cdc.State, xid string) (since time.Time, known bool) {
	if state == nil {
		return since, false
	}
	if since, known = state.Open[xid]; !known {
		since = state.CheckedAt
	}
	return since, !since.IsZero()
}

// recordRoom is more than the bytes that a record has besides a payload: its key, its headers and the batch.
const recordRoom = 4 << 10

// sizes compares the largest record that the topics take with the rows of the table.
func (p *Pipeline) sizes(e *Examination, pg *postgres.Examined, kf kafka.Examined) {
	if !pg.Reached || e.has("standby_server") || e.has("table_missing") {
		return
	}
	largest := pg.Largest
	for _, name := range slices.Sorted(maps.Keys(kf.Takes)) {
		takes := int64(kf.Takes[name])
		most := int64(p.cfg.Source.MaxRowBytes)
		if largest.Table > 0 {
			most = min(most, largest.Table)
		}
		poison := "such a row is a poison row, and halts the relay (poison.policy)"
		if p.cfg.Poison.Policy == config.PolicyDeadLetter {
			poison = "such a row becomes a dead letter (poison.policy)"
		}
		switch {
		case largest.Bytes+recordRoom > takes:
			e.found(cdc.Problem, "topic_limit", fmt.Sprintf("topic %s takes records of up to %s, and of %d rows of %s the largest payload has %s", name, plain.Size(takes), largest.Rows, p.cfg.Source.Table, plain.Size(largest.Bytes)),
				poison, p.sink.RaiseLimit(name, largest.Bytes+max(largest.Bytes, recordRoom))+"; and kafka.max_request_bytes must allow it")
		case most+recordRoom > takes:
			e.found(cdc.Note, "topic_limit", fmt.Sprintf("topic %s takes records of up to %s, and source.max_row_bytes lets rows of %s in", name, plain.Size(takes), plain.Size(most)),
				"a larger row than the topic takes: "+poison, "keep such rows out with a CHECK on the payload, or "+p.sink.RaiseLimit(name, most+recordRoom))
		default:
			e.found(cdc.OK, "topic_limit", fmt.Sprintf("topic %s takes every row that %s can hold", name, p.cfg.Source.Table), "", "")
		}
	}
}

// certificates reports the client certificates that end soon.
func (p *Pipeline) certificates(e *Examination) {
	for _, of := range []certified{p.sink, p.source} {
		for key, end := range of.Certificates() {
			side := cdc.InKafka
			if of == certified(p.source) {
				side = cdc.InPostgreSQL
			}
			f := cdc.Finding{Side: side, Severity: cdc.OK, Check: "certificate", Found: fmt.Sprintf("the certificate of %s is valid until %s", key, end.UTC().Format(time.RFC3339))}
			if end.Sub(p.now()) < certificateEnds {
				f.Severity, f.Means, f.Run = cdc.Warning, "with an expired certificate no connection opens", "write a renewed one to the file of "+key+": the relay reads it at its next connection"
			}
			e.add(f)
		}
	}
}

const certificateEnds = 7 * 24 * time.Hour

func (p polled) examine(ctx context.Context, e *Examination) {
	pg, kf := p.sides(ctx, true)
	e.add(pg.Findings...)
	if pg.Reached && !e.has("standby_server") {
		p.backlog(ctx, e)
	}
	e.add(kf.Findings...)
	if e.has("table_missing") || slices.ContainsFunc(e.Findings, func(f cdc.Finding) bool { return f.Check == "polling_table" && f.Init }) && e.has("topic_missing") || pg.Refused && e.has("topic_missing") {
		for i := range e.Findings {
			e.Findings[i].Init = e.Findings[i].Init || pg.Refused && e.Findings[i].Check == "connection"
		}
		e.notYet()
		e.found(cdc.Problem, "prepared", "the table or the topics are not prepared for polling", "the pipeline is not prepared yet; nothing is read or published", "run `walpost init` once, with an administrator's rights"+dryRun)
	}
	e.transactions(&pg, nil, p.longOpen)
	p.sizes(e, &pg, kf)
	p.certificates(e)
}

// backlog checks the table, and reports what its rows wait for.
func (p polled) backlog(ctx context.Context, e *Examination) {
	ctx, cancel := context.WithTimeout(ctx, examineWithin)
	defer cancel()
	found, err := p.table.Examine(ctx)
	if err != nil {
		e.fails("table", err)
		return
	}
	e.add(found...)
	if e.has("polling_table") || e.has("columns") || e.has("table_missing") || e.has("table_rights") || e.has("row_security") || e.has("polling_words") {
		return
	}
	b, err := p.table.Backlog(ctx)
	if err != nil {
		e.fails("backlog", err)
		return
	}
	var st Status
	st.backs(&b)
	for _, why := range st.BlockedBy {
		found, run := cdc.Parted(why.Found)
		e.found(cdc.Problem, "backlog", found, "later rows of the same keys, or all rows, wait", run)
	}
	pid, err := p.source.Poller(ctx)
	switch {
	case err != nil:
		e.fails("relay", err)
	case pid == 0:
		e.found(cdc.Warning, "relay", fmt.Sprintf("no relay polls %s, and %s rows wait", p.cfg.Source.Table, polling.Count(b.Pending)), "nothing is published", "start `walpost relay`; if one runs, its log and /readyz say why it does not poll")
	default:
		e.found(cdc.OK, "relay", fmt.Sprintf("a relay polls %s; %s rows are pending", p.cfg.Source.Table, polling.Count(b.Pending)), "", "")
	}
}
