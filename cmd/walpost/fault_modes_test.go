package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// partitionsDropped is fault 70: rows of three days past are written and their partitions cleaned up at the same time.
func partitionsDropped(s *scene) {
	s.build(set{init: []string{"--partition-by-day"}, quiet: true})
	today := time.Now().UTC()
	for back := 1; back <= 3; back++ {
		day := today.AddDate(0, 0, -back)
		s.exec(fmt.Sprintf("CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s 00:00+00') TO ('%s 00:00+00')",
			day.Format("outbox_20060102"), day.Format(time.DateOnly), day.AddDate(0, 0, 1).Format(time.DateOnly)))
	}
	s.exec("ALTER TABLE outbox ALTER created_at SET DEFAULT clock_timestamp() - interval '1 day' * floor(random() * 4)")
	s.watch(cdctest.WriterConfig{})
	r := s.child()
	s.grows(50)
	for range 2 {
		if out, err := s.walpost("cleanup", "--retention", "0s"); err != nil && !strings.Contains(err.Error(), "the relay lags") {
			s.t.Fatalf("cleanup: %v\n%s", err, out)
		}
	}
	r.kill()
	s.grows(50) // these are not confirmed
	before := s.past()
	if out, err := s.walpost("cleanup", "--retention", "0s"); err == nil || s.past() != before {
		s.t.Errorf("cleanup while the relay is away: %v, partitions of the past %s, then %s\n%s", err, before, s.past(), out)
	}
	s.exec("ALTER TABLE outbox ALTER created_at SET DEFAULT clock_timestamp()")
	r = s.child()
	cdctest.Eventually(s.t, time.Minute, func() error {
		if _, err := s.walpost("cleanup", "--retention", "0s"); err != nil {
			return err
		}
		if s.past() != "" {
			return errors.New("partitions are left: " + s.past())
		}
		return nil
	})
	s.grows(50)
	s.fixed()
	s.settle()
	if strings.Contains(r.log.String(), `"halted"`) {
		s.t.Error("the relay halted")
	}
}

// past are the partitions of days past.
func (s *scene) past() string {
	s.t.Helper()
	return s.query(`SELECT coalesce(string_agg(c.relname, ' ' ORDER BY c.relname), '') FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
		WHERE inhparent = 'outbox'::regclass AND c.relname ~ '_2' AND c.relname < $1`, time.Now().UTC().Format("outbox_20060102"))
}

// insertedAndDeleted is fault 72, with a trigger for the service that would delete.
func insertedAndDeleted(s *scene) {
	s.build(set{quiet: true})
	s.perRow("DELETE FROM outbox WHERE id = NEW.id")
	s.watch(cdctest.WriterConfig{})
	r := s.child()
	s.grows(100)
	r.kill()
	s.grows(50)
	s.fixed()
	s.run()
	s.settle()
	if s.rows() != "0" {
		s.t.Errorf("%s rows are left", s.rows())
	}
}

// perRow does something in the transaction of each row.
func (s *scene) perRow(plpgsql string) {
	s.t.Helper()
	cdctest.CreateOutbox(s.t, s.admin, "outbox")
	s.exec("CREATE FUNCTION per_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN " + plpgsql + "; RETURN NULL; END $$")
	s.exec("CREATE TRIGGER per_row AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION per_row()")
}
