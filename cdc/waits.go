package cdc

import (
	"cmp"
	"fmt"
	"strings"
)

// StandbySlot is a slot in synchronized_standby_slots: the server sends a row of a failover slot only when each of
// these slots has it.
type StandbySlot struct {
	Name    string
	Away    string // why no standby reads it; empty while one does
	Restart LSN    // how far its standby has received
}

// Walsender is the server process that owns the slot, as pg_stat_activity shows it. The zero value means that there
// is none.
type Walsender struct {
	PID  uint32
	Wait string // wait_event_type; empty while it computes
	For  string // wait_event
}

// busy reports whether it does something else than wait for WAL or for its client.
func (w *Walsender) busy() bool {
	return w.PID != 0 && w.Wait != "Activity" && w.Wait != "Client"
}

func (w *Walsender) String() string {
	if w.Wait == "" {
		return fmt.Sprintf("process %d, which computes", w.PID)
	}
	return fmt.Sprintf("process %d, which waits for %s (%s)", w.PID, w.For, w.Wait)
}

// StandbysAway returns a sentence with the standby slots that keep rows from being sent because no standby reads
// them, and what to do. It returns "" if there are none.
func (f *Facts) StandbysAway() string { return f.Away().String() }

// Away returns the same as a finding; without one, Found is "".
func (f *Facts) Away() Finding {
	return f.standbys(func(s *StandbySlot) string { return s.Away })
}

// StandbysBehind returns the same as StandbysAway, and also names the standbys that have not received everything up
// to lsn.
func (f *Facts) StandbysBehind(lsn LSN) string { return f.Behind(lsn).String() }

// Behind returns the same as StandbysBehind as a finding; without one, Found is "".
func (f *Facts) Behind(lsn LSN) Finding {
	return f.standbys(func(s *StandbySlot) string {
		if s.Away == "" && s.Restart < lsn {
			return "its standby has received the WAL up to " + s.Restart.String() + " only"
		}
		return s.Away
	})
}

func (f *Facts) standbys(why func(*StandbySlot) string) Finding {
	var named, keep []string
	for i := range f.Standbys {
		if s := &f.Standbys[i]; why(s) != "" {
			named = append(named, fmt.Sprintf("%q: %s", s.Name, why(s)))
		} else {
			keep = append(keep, s.Name)
		}
	}
	if named == nil {
		return Finding{}
	}
	return Finding{
		Found: fmt.Sprintf("PostgreSQL sends a row only when every slot in synchronized_standby_slots has it, and waits for %s; nothing is lost, and rows flow again when it has them", strings.Join(named, "; ")),
		Run:   fmt.Sprintf("start that standby, or take it out: `ALTER SYSTEM SET synchronized_standby_slots = '%s'` and `SELECT pg_reload_conf()`", strings.Join(keep, ", ")),
	}
}

// CommitWaitError reports that commits of the whole server wait for this relay, because synchronous_standby_names
// takes it for a standby.
type CommitWaitError struct {
	Names   string // the setting
	Relay   string // the relay's application_name, which it matches
	Surely  bool   // each commit waits; otherwise it depends on other standbys
	Without string // the setting without the relay
}

func (c *CommitWaitError) Error() string { return c.Finding().String() }

// Finding returns the error as a finding.
func (c *CommitWaitError) Finding() Finding {
	how := "every commit on this server waits"
	if !c.Surely {
		how = "depending on which other standbys are connected, commits on this server may have to wait"
	}
	return Finding{
		Found: fmt.Sprintf("%s until Kafka has what this relay reads: synchronous_standby_names is '%s' and matches the relay's application_name %q", how, c.Names, c.Relay),
		Run:   fmt.Sprintf("leave the relay out: `ALTER SYSTEM SET synchronous_standby_names = '%s'` and `SELECT pg_reload_conf()`", strings.ReplaceAll(c.Without, "'", "''")),
	}
}

// CommitsWait returns an error while commits wait for this relay, or may wait.
func (f *Facts) CommitsWait() error {
	if f.Commits == nil {
		return nil
	}
	return f.Commits
}

// StallError reports that rows may be waiting while nothing moves, and the cause, if it was found.
type StallError struct {
	Cause string // in one word; a stall with another cause is another stall
	Found string

	of string // distinguishes stalls with the same cause
}

func (s *StallError) Error() string { return s.Found }

// cause returns the stall of a session that stays at covered. end is the end of the WAL at the time of the last
// motion.
func (w *watcher) cause(f *Facts, covered, end LSN) *StallError {
	found := fmt.Sprintf("the WAL has grown from %s to %s, rows may be waiting, and nothing has moved for %.0f s: ", covered, f.WALEnd, stallAfter.Seconds()+1)
	say := func(cause, format string, args ...any) *StallError {
		return &StallError{Cause: cause, Found: found + fmt.Sprintf(format, args...), of: f.StandbysAway()}
	}
	behind := f.StandbysBehind(end)
	switch sender := &f.Walsender; {
	case w.shared.motion.stuck.Load():
		return say("kafka", "Kafka does not take the window; nothing is lost")
	case behind != "":
		return say("standby", "%s", behind)
	case f.Slot.ActivePID != w.pid:
		return say("gone", "the server no longer has a process for this relay's connection (it was process %d): the relay connects again when it finds the connection dead", w.pid)
	case sender.PID == 0:
		return say("unknown", "the walsender (process %d) sends nothing, and pg_stat_activity does not show why; nothing is lost", w.pid)
	case sender.busy():
		return say("transaction", "the walsender is at work (%s): it decodes a large transaction, perhaps of another application, or something blocks it; nothing is lost, and rows flow again when it has finished", sender)
	default:
		return say("silent", "the walsender (%s) sends nothing: the server's log may say why; `SELECT pg_terminate_backend(%d)` lets the relay connect again; nothing is lost", sender, sender.PID)
	}
}

// failedHere returns the stall of sessions that fail at the same place.
func failedHere(times int, at LSN, err error) *StallError {
	return &StallError{Cause: "failures", of: fmt.Sprint(times), Found: fmt.Sprintf("the session failed %d times in a row at %s, and nothing was delivered between: %s", times, at, cmp.Or(text(err), "no reason is known"))}
}
