package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walpost/walpost/cdc"
)

// sender is a walsender of the server.
type sender struct {
	PID     uint32 `json:"pid"`
	Name    string `json:"application_name"`
	Sync    string `json:"sync_state"` // empty if the relay's role may not see it
	Logical bool   `json:"logical"`
}

// standbySlot is a row of pg_replication_slots that synchronized_standby_slots may name.
type standbySlot struct {
	Name         string `json:"slot_name"`
	Type         string `json:"slot_type"`
	Active       bool   `json:"active"`
	Restart      string `json:"restart_lsn"`
	WALStatus    string `json:"wal_status"`
	Invalidation string `json:"invalidation_reason"`
}

// waits reads what the server makes this relay wait for, and whether commits wait for the relay. An ordinary role can
// see all of it except sync_state.
func (s *Source) waits(ctx context.Context, conn *pgx.Conn, f *cdc.Facts) error {
	var failover bool
	var standbys, names string
	var slots, senders []byte
	err := conn.QueryRow(ctx, `
		SELECT coalesce(current_setting('synchronized_standby_slots', true), ''), current_setting('synchronous_standby_names'),
		       coalesce((SELECT (to_jsonb(s) ->> 'failover')::bool FROM pg_replication_slots s WHERE slot_name = $1), false),
		       coalesce((SELECT jsonb_agg(s) FROM pg_replication_slots s
		                 WHERE strpos(current_setting('synchronized_standby_slots', true), slot_name) > 0), '[]'),
		       coalesce((SELECT jsonb_agg(jsonb_build_object('pid', r.pid, 'application_name', r.application_name, 'sync_state', r.sync_state, 'logical', s.slot_type = 'logical'))
		                 FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid), '[]'),
		       coalesce(w.pid, 0), coalesce(w.wait_event_type, ''), coalesce(w.wait_event, '')
		FROM (SELECT 1) one LEFT JOIN pg_stat_activity w ON w.pid = nullif($2, 0)`,
		s.cfg.Slot, int32(f.Slot.ActivePID),
	).Scan(&standbys, &names, &failover, &slots, &senders, &f.Walsender.PID, &f.Walsender.Wait, &f.Walsender.For)
	if errors.As(err, new(*pgconn.PgError)) {
		return nil // a server that hides its views: positions still show a stall, but not its cause
	}
	if err != nil {
		return classify("ask what the slot waits for", err)
	}
	var have []standbySlot
	if err := json.Unmarshal(slots, &have); err != nil {
		return fmt.Errorf("read the standbys' slots: %w", err)
	}
	if failover {
		f.Standbys = standbySlots(standbys, have)
	}
	var all []sender
	if err := json.Unmarshal(senders, &all); err != nil {
		return fmt.Errorf("read the walsenders: %w", err)
	}
	// Until its walsender exists, the relay assumes the name that it asks for.
	me := sender{Name: truncated(s.application)}
	others := slices.DeleteFunc(all, func(o sender) bool {
		if o.PID == f.Slot.ActivePID {
			me = o
		}
		return o.PID == f.Slot.ActivePID || o.Name == "pg_basebackup"
	})
	f.Commits = commitWait(names, me, others)
	return nil
}

// truncated returns a name as the server keeps it, in 63 bytes.
func truncated(name string) string { return strings.ToValidUTF8(name[:min(len(name), 63)], "") }

// standbySlots returns the slots that synchronized_standby_slots names, with the problem of each.
func standbySlots(setting string, have []standbySlot) (slots []cdc.StandbySlot) {
	for _, name := range identifiers(setting) {
		slot := cdc.StandbySlot{Name: name}
		i := slices.IndexFunc(have, func(s standbySlot) bool { return s.Name == name })
		switch {
		case i < 0:
			slot.Away = "there is no such slot"
		case have[i].Type != "physical":
			slot.Away = "it is a logical slot, and PostgreSQL can only wait for a standby's physical slot"
		case have[i].WALStatus == "lost" || have[i].Invalidation != "":
			slot.Away = "it was invalidated (" + cmp.Or(have[i].Invalidation, "its WAL is lost") + ") and cannot be used again"
		case !have[i].Active:
			slot.Away = "it is inactive, no standby reads from it"
		}
		if i >= 0 {
			slot.Restart, _ = cdc.ParseLSN(have[i].Restart) // none while nothing was reserved
		}
		slots = append(slots, slot)
	}
	return slots
}

// identifiers splits a setting that is a list of SQL names.
func identifiers(list string) (names []string) {
	for _, t := range syncTokens(list) {
		switch {
		case t.quoted:
			names = append(names, t.text)
		case t.text != ",":
			names = append(names, strings.ToLower(t.text))
		}
	}
	return names
}

// syncToken is a token of synchronous_standby_names.
type syncToken struct {
	text   string
	quoted bool
}

// is compares without regard to case, as PostgreSQL does for keywords; a quoted name is not a keyword.
func (t syncToken) is(keyword string) bool { return !t.quoted && strings.EqualFold(t.text, keyword) }

func syncTokens(s string) (tokens []syncToken) {
	for s = strings.TrimLeft(s, " \t\n\r\f\v"); s != ""; s = strings.TrimLeft(s, " \t\n\r\f\v") {
		switch {
		case s[0] == '"':
			var name strings.Builder
			for s = s[1:]; s != ""; s = s[1:] {
				if s[0] == '"' {
					if s = s[1:]; !strings.HasPrefix(s, `"`) {
						break
					}
				}
				name.WriteByte(s[0])
			}
			tokens = append(tokens, syncToken{name.String(), true})
		case strings.IndexByte(",()", s[0]) >= 0:
			tokens = append(tokens, syncToken{s[:1], false})
			s = s[1:]
		default:
			n := strings.IndexAny(s, " \t\n\r\f\v,()\"")
			if n < 0 {
				n = len(s)
			}
			tokens = append(tokens, syncToken{s[:n], false})
			s = s[n:]
		}
	}
	return tokens
}

// syncStandbys is the parsed synchronous_standby_names.
type syncStandbys struct {
	any     bool // ANY: the fastest ones; otherwise the first of those that are connected
	number  int
	members []syncToken
}

// parseSync parses synchronous_standby_names in all its forms: `a, b`, `2 (a, b)`, `FIRST 2 (a, b)`, `ANY 2 (a, b)`.
func parseSync(setting string) (s syncStandbys) {
	s.number = 1
	tokens := syncTokens(setting)
	if i := slices.IndexFunc(tokens, func(t syncToken) bool { return t.text == "(" && !t.quoted }); i > 0 {
		s.any = tokens[0].is("ANY")
		s.number, _ = strconv.Atoi(tokens[i-1].text)
		tokens = tokens[i+1:]
	}
	for _, t := range tokens {
		if t.quoted || strings.IndexByte(",()", t.text[0]) < 0 {
			s.members = append(s.members, t)
		}
	}
	return s
}

// priority returns a standby's place in the list, from 1 on; 0 if it is not in it.
func (s *syncStandbys) priority(application string) int {
	return 1 + slices.IndexFunc(s.members, func(t syncToken) bool {
		return t.text == "*" || strings.EqualFold(t.text, application)
	})
}

// commitWait returns an error if commits wait for the relay, with the setting that ends that. If sync_state is not
// visible, it computes the answer from the connected standbys.
func commitWait(setting string, me sender, others []sender) *cdc.CommitWaitError {
	s := parseSync(setting)
	mine := s.priority(me.Name)
	if mine == 0 || me.Sync == "async" {
		return nil
	}
	rivals := 0 // standbys that the server may accept instead of the relay
	var standbys []string
	for _, o := range others {
		if p := s.priority(o.Name); p > 0 && (s.any || p <= mine) {
			rivals++
		}
		if !o.Logical && !slices.Contains(standbys, o.Name) {
			standbys = append(standbys, o.Name)
		}
	}
	w := &cdc.CommitWaitError{Names: setting, Relay: me.Name, Surely: rivals < s.number || me.Sync == "sync"}
	if number := min(s.number, len(standbys)); number > 0 {
		for _, m := range s.members { // also one that is away: it comes back
			if named := func(name string) bool { return strings.EqualFold(name, m.text) }; m.text != "*" && !named(me.Name) && !slices.ContainsFunc(standbys, named) {
				standbys = append(standbys, m.text)
			}
		}
		method := map[bool]string{true: "ANY", false: "FIRST"}[s.any]
		for i, name := range standbys {
			standbys[i] = Ident(name)
		}
		w.Without = fmt.Sprintf("%s %d (%s)", method, number, strings.Join(standbys, ", "))
	}
	return w
}
