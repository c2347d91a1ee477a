package faults

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// partitionsDropped runs fault 70: rows of three past days are inserted while their partitions are cleaned up.
func partitionsDropped(s *trial) {
	s.prepare(setup{init: []string{"--partition-by-day"}, quiet: true})
	today := time.Now().UTC()
	for back := 1; back <= 3; back++ {
		day := today.AddDate(0, 0, -back)
		s.Exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s 00:00+00') TO ('%s 00:00+00')",
			day.Format("outbox_20060102"), day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)))
	}
	s.Exec("ALTER TABLE outbox ALTER created_at SET DEFAULT clock_timestamp() - interval '1 day' * floor(random() * 4)")
	s.startLoad(cdctest.WriterConfig{})
	r := s.startStreaming()
	s.waitForCommits(50)
	for range 2 {
		if out, err := s.Run("cleanup", "--retention", "0s"); err != nil && !strings.Contains(err.Error(), "the relay lags") {
			s.t.Fatalf("cleanup: %v\n%s", err, out)
		}
	}
	r.Kill()
	s.waitForCommits(50) // these are not confirmed
	before := s.pastPartitions()
	if out, err := s.Run("cleanup", "--retention", "0s"); err == nil || s.pastPartitions() != before {
		s.t.Errorf("cleanup while the relay is away: %v, partitions of the past %s, then %s\n%s", err, before, s.pastPartitions(), out)
	}
	s.Exec("ALTER TABLE outbox ALTER created_at SET DEFAULT clock_timestamp()")
	r = s.startStreaming()
	cdctest.Eventually(s.t, time.Minute, func() error {
		if _, err := s.Run("cleanup", "--retention", "0s"); err != nil {
			return err
		}
		if s.pastPartitions() != "" {
			return errors.New("partitions are left: " + s.pastPartitions())
		}
		return nil
	})
	s.waitForCommits(50)
	s.endFault()
	s.finish()
	if strings.Contains(r.Log.String(), `"halted"`) {
		s.t.Error("the relay halted")
	}
}

// pastPartitions returns the partitions of past days.
func (s *trial) pastPartitions() string {
	s.t.Helper()
	return s.Query(`SELECT coalesce(string_agg(c.relname, ' ' ORDER BY c.relname), '') FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
		WHERE inhparent = 'outbox'::regclass AND c.relname ~ '_2' AND c.relname < $1`, time.Now().UTC().Format("outbox_20060102"))
}

// insertedAndDeleted runs fault 72, with a trigger for the service that would delete.
func insertedAndDeleted(s *trial) {
	s.prepare(setup{quiet: true})
	s.onEachRow("DELETE FROM outbox WHERE id = NEW.id")
	s.startLoad(cdctest.WriterConfig{})
	r := s.startStreaming()
	s.waitForCommits(100)
	r.Kill()
	s.waitForCommits(50)
	s.endFault()
	s.startStreaming()
	s.finish()
	if s.CountRows() != "0" {
		s.t.Errorf("%s rows are left", s.CountRows())
	}
}

// onEachRow runs a statement in the transaction of each row.
func (s *trial) onEachRow(plpgsql string) {
	s.t.Helper()
	cdctest.CreateOutbox(s.t, s.AdminURL, "outbox")
	s.Exec("CREATE FUNCTION per_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN " + plpgsql + "; RETURN NULL; END $$")
	s.Exec("CREATE TRIGGER per_row AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION per_row()")
}
