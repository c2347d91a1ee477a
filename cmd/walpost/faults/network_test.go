package faults

import (
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
)

// partitioned runs fault 33: each side of the relay is lost in each way; another relay takes over if the connection to
// the slot is lost.
func partitioned(s *trial) {
	s.prepare(setup{options: "-c wal_sender_timeout=2s"})
	s.startStreaming()
	whole, gone := cdctest.Wire{}, cdctest.Wire{Swallowed: true}
	for _, p := range []*cdctest.Proxy{s.pgProxy, s.kafkaProxy} {
		s.waitForCommits(50)
		p.Cut() // a reset
		s.endFault()
		s.waitUntilDelivered()
		for _, wires := range [][2]cdctest.Wire{{gone, gone}, {gone, whole}, {whole, gone}} {
			s.waitForCommits(20)
			p.Set(wires[0], wires[1])
			if p == s.pgProxy && wires[0] == gone {
				// The server notices within wal_sender_timeout, and a relay on another host takes over.
				s.endFault()
				through := s.Env["WALPOST_SOURCE_URL"]
				s.Env["WALPOST_SOURCE_URL"] = strings.Replace(through, s.pgProxy.Addr(), s.pgAddress, 1)
				heir := s.startStreaming()
				if took := time.Since(s.faultEnded); took > cdctest.Patience(10*time.Second) {
					s.t.Errorf("taken over after %s, wal_sender_timeout is 2 s", took)
				}
				s.waitUntilDelivered()
				p.Set(whole, whole)
				if err := heir.Stop(); err != nil {
					s.t.Fatal(err)
				}
				s.Env["WALPOST_SOURCE_URL"] = through
			} else {
				time.Sleep(time.Second)
				p.Set(whole, whole)
			}
			s.endFault()
			s.waitUntilDelivered()
		}
	}
	s.finish()
}

// fragmented runs fault 34: bytes one by one, and every message split at every offset, from both sides.
func fragmented(s *trial) {
	// Each byte wakes a broker: a busy one could not read 30 rows a second, and the window took 36 s.
	s.prepare(setup{load: cdctest.WriterConfig{Rate: 10, Body: 50}})
	s.startStreaming()
	for _, wire := range []cdctest.Wire{{Chunk: 1}, {Split: true}} {
		s.pgProxy.Set(wire, wire)
		s.kafkaProxy.Set(wire, wire)
		s.waitForCommits(150)
		s.waitUntilDelivered()
	}
	s.pgProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.kafkaProxy.Set(cdctest.Wire{}, cdctest.Wire{})
	s.endFault()
	s.wantNoDuplicates(s.finish())
}
