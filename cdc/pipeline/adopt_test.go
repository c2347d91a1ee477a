package pipeline_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/pipeline"
)

// TestRefusedAdoptionChangesNothing: an adoption that is refused at its start leaves neither a state topic nor a slot. One that is refused
// after it has created the slot leaves no slot.
func TestRefusedAdoptionChangesNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	conn, err := pgx.Connect(t.Context(), s.cfg.Source.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := kafka.NewSink(s.cfg, nil, zerolog.Nop()).Admin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	exec("SELECT pg_drop_replication_slot($1)", s.cfg.Source.Slot)
	p, err := pipeline.New(s.cfg, pipeline.Options{})
	if err != nil {
		t.Fatal(err)
	}
	refused := func(says string, o pipeline.AdoptOptions) {
		t.Helper()
		if _, err := p.Adopt(t.Context(), o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
		var slots int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", s.cfg.Source.Slot).Scan(&slots); err != nil || slots != 0 {
			t.Errorf("%d slots, %v", slots, err)
		}
	}
	exec("ALTER PUBLICATION walpost DROP TABLE outbox")
	refused("fix this first", pipeline.AdoptOptions{CreateSlot: true})
	exec("ALTER PUBLICATION walpost ADD TABLE outbox")
	hides := func(step pipeline.Step) {
		if strings.HasPrefix(step.What, "slot") && strings.Contains(step.What, "create") {
			exec("ALTER PUBLICATION walpost DROP TABLE outbox")
		}
	}
	refused("fix this first", pipeline.AdoptOptions{CreateSlot: true, Progress: hides})
	exec("ALTER PUBLICATION walpost ADD TABLE outbox")
	refused("does not exist", pipeline.AdoptOptions{})
	if err := admin.Delete(t.Context(), s.cfg.StateTopic()); err != nil {
		t.Fatal(err)
	}
	refused("does not exist", pipeline.AdoptOptions{})
	if missing, _, err := admin.Missing(t.Context(), admin.Topics()[0]); err != nil || !missing {
		t.Errorf("the state topic was made by an adoption that was refused: %v", err)
	}
}
