package main

import (
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// partitioned is fault 33: each side of the relay is lost in each way; another relay takes over where the slot is what is lost.
func partitioned(s *scene) {
	s.build(set{options: "-c wal_sender_timeout=2s"})
	s.run()
	whole, gone := cdctest.Wire{}, cdctest.Wire{Swallowed: true}
	for _, p := range []*cdctest.Proxy{s.pg, s.kf} {
		s.grows(50)
		p.Cut() // a reset
		s.fixed()
		s.flows()
		for _, wires := range [][2]cdctest.Wire{{gone, gone}, {gone, whole}, {whole, gone}} {
			s.grows(20)
			p.Set(wires[0], wires[1])
			if p == s.pg && wires[0] == gone {
				// The server notices within wal_sender_timeout, and a relay elsewhere takes over.
				s.fixed()
				through := s.env["WALPOST_SOURCE_URL"]
				s.env["WALPOST_SOURCE_URL"] = strings.Replace(through, s.pg.Addr(), s.pgAddr, 1)
				heir := s.child()
				if took := time.Since(s.healed); took > 10*time.Second {
					s.t.Errorf("taken over after %s, wal_sender_timeout is 2 s", took)
				}
				s.flows()
				p.Set(whole, whole)
				if err := heir.stop(); err != nil {
					s.t.Fatal(err)
				}
				s.env["WALPOST_SOURCE_URL"] = through
			} else {
				time.Sleep(time.Second)
				p.Set(whole, whole)
			}
			s.fixed()
			s.flows()
		}
	}
	s.settle()
}

// fragmented is fault 34: bytes one by one, and every message split at every offset, from both sides.
func fragmented(s *scene) {
	// Each byte is a wake-up of a broker: 30 rows a second were more than a busy one could read, and the window took 36 s.
	s.build(set{load: cdctest.WriterConfig{Rate: 10, Body: 50}})
	s.run()
	for _, wire := range []cdctest.Wire{{Chunk: 1}, {Split: true}} {
		s.pg.Set(wire, wire)
		s.kf.Set(wire, wire)
		s.grows(150)
		s.flows()
	}
	s.pg.Set(cdctest.Wire{}, cdctest.Wire{})
	s.kf.Set(cdctest.Wire{}, cdctest.Wire{})
	s.fixed()
	s.once(s.settle())
}
