package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/kafka"
)

// mostChecked is the largest number of a new server's rows that an adoption looks for in Kafka.
const mostChecked = 100_000

// drained looks in Kafka for the newest rows of a new server's table, which the relay may not have delivered from the old server. It
// returns what it found and what it could not check, a line each. It returns an error if rows are neither in Kafka nor in the slot.
func (d *decision) drained(ctx context.Context, o AdoptOptions) (said []string, err error) {
	since := d.State.InDoubt()
	whether := fmt.Sprintf("it is not known whether %s has rows, written since %s, that the old server did not deliver", d.cfg.Source.Table, since.UTC().Format(time.RFC3339))
	if o.AdminURL == "" {
		return []string{whether + ": give --admin-url with a role that may read the table"}, nil
	}
	admin, err := d.source.Admin(ctx, o.AdminURL)
	if err != nil {
		return nil, err
	}
	defer admin.Close(ctx)
	table, err := admin.Retained(ctx, since, time.Now().Add(24*time.Hour))
	if err != nil {
		return []string{whether + ": " + err.Error()}, nil
	}
	var ids []string // in the order of the table
	enough := errors.New("enough")
	if err := table.Each(ctx, func(row *cdc.Row) error {
		if ids = append(ids, string(row.ID)); len(ids) == mostChecked {
			return enough
		}
		return nil
	}); errors.Is(err, enough) {
		said = append(said, fmt.Sprintf("%s: only the first %d rows were checked", whether, mostChecked))
	} else if err != nil {
		return nil, err
	}
	var waiting []string // read after the table, so that no row that was written meanwhile is missed
	if !d.Facts.Slot.Lost() {
		if err := d.pg.EachWaiting(ctx, func(id string) { waiting = append(waiting, id) }); err != nil {
			return nil, err
		}
	}
	there, err := d.known(ctx, slices.Concat(ids, waiting), since)
	if err != nil {
		return nil, err
	}
	twice := 0
	for _, id := range waiting {
		if there[id] {
			twice++
		}
		there[id] = true
	}
	if len(waiting) > 0 {
		said = append(said, fmt.Sprintf("%d rows wait in slot %s, and the relay will publish them; %d of them are in Kafka already, and arrive twice", len(waiting), d.cfg.Source.Slot, twice))
	}
	missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return there[id] })
	if len(missing) == 0 {
		return append(said, fmt.Sprintf("each of the %d rows of %s that were written since %s is in Kafka, or waits in the slot", len(ids), d.cfg.Source.Table, since.UTC().Format(time.RFC3339))), nil
	}
	found := fmt.Sprintf("%d rows of %s are neither in Kafka nor in a slot: from event %s to event %s", len(missing), d.cfg.Source.Table, missing[0], missing[len(missing)-1])
	replay := fmt.Sprintf("`walpost replay --from %s --to now`", since.UTC().Format(time.RFC3339))
	if o.LeftBehind {
		return append(said, found+"; "+replay+" publishes them"), nil
	}
	made := ""
	if d.Facts.Slot.Lost() {
		made = fmt.Sprintf("; if services write to this server already, create the slot first: %s, and leave --create-slot out", d.pg.CreateSlotSQL())
	}
	return nil, fmt.Errorf("nothing was changed: %s: the old server was not drained. Point source.url at it and run the relay until `walpost status` shows a lag of 0 B; if the old server is gone, %s publishes these rows from the table; then run this again%s. If you do not need these rows, --left-behind adopts the server without them",
		found, replay, made)
}

// known returns those of the ids whose events are published or dead letters.
func (d *decision) known(ctx context.Context, ids []string, since time.Time) (map[string]bool, error) {
	wanted, there := make(map[string]bool, len(ids)), map[string]bool{}
	if len(ids) == 0 {
		return there, nil
	}
	for _, id := range ids {
		wanted[id] = true
	}
	topics, err := d.sink.Topics(ctx, d.router().Pattern())
	if err != nil {
		return nil, err
	}
	places, _, err := d.sink.Search(ctx, kafka.Search{Topics: topics, From: since.Add(-clockMargin), Match: func(id, _ string) bool { return wanted[id] }})
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		there[p.ID] = true
	}
	letters, err := d.sink.Entries(ctx)
	for i := range letters {
		if l := letters[i].Letter; l != nil && wanted[string(l.Row.ID)] {
			there[string(l.Row.ID)] = true
		}
	}
	return there, err
}
