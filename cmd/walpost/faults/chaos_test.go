package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// TestChaos runs one random fault after another, in both modes, for as long as WALPOST_CHAOS says (10m; a few seconds
// without it), and prints the seed of its choices; WALPOST_CHAOS_SEED repeats them.
func TestChaos(t *testing.T) {
	t.Parallel()
	cdctest.Long(t, "random faults for some seconds")
	lasts, seed := 5*time.Second, rand.Uint64()
	if text := os.Getenv("WALPOST_CHAOS"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("WALPOST_CHAOS: %v", err)
		}
	}
	if text := os.Getenv("WALPOST_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("WALPOST_CHAOS_SEED: %v", err)
		}
	}
	fmt.Printf("WALPOST_CHAOS=%s WALPOST_CHAOS_SEED=%d\n", lasts, seed)
	built := newBinaries(t)
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			(&trial{t: t, mode: m, binaries: built}).disturbAtRandom(lasts, seed)
		})
	}
}

// soak runs fault 42.
func soak(s *trial) { s.disturbAtRandom(5*time.Second, rand.Uint64()) }

// disturbAtRandom starts two relays and disturbs them, PostgreSQL and both networks. At the end, one more relay must
// find everything correct.
func (s *trial) disturbAtRandom(lasts time.Duration, seed uint64) {
	s.t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s.prepare(setup{server: true, options: "-c wal_sender_timeout=2s", env: map[string]string{"WALPOST_QUEUE_TIMEOUT": "2s", "WALPOST_WINDOW_ROWS": "500"}})
	var mu sync.Mutex
	lose := map[kmsg.Key]int{}
	s.kafkaProxy = cdctest.StartKafkaProxy(s.t, s.Brokers, func(f cdctest.Frame) cdctest.Verdict {
		mu.Lock()
		defer mu.Unlock()
		if f.FromServer && lose[kmsg.Key(f.API)] > 0 {
			lose[kmsg.Key(f.API)]--
			return cdctest.Lose
		}
		return cdctest.Pass
	})
	s.Env["WALPOST_KAFKA_BROKERS"] = strings.Join(s.kafkaProxy.Brokers(), ",")
	s.mayMisplace = true // another relay may replace a frozen one: see fault 3
	relays := []*e2e.Relay{s.SpawnRelay(), s.SpawnRelay()}
	s.relays = append(s.relays, relays...)
	pause := func(most time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(most)))) }
	wire := func() cdctest.Wire {
		return []cdctest.Wire{{}, {Stalled: true}, {Swallowed: true}, {Chunk: 1}, {Split: true}, {Bandwidth: 100_000}, {Delay: 200 * time.Millisecond}}[rng.IntN(7)]
	}
	disturb := func(p *cdctest.Proxy) string {
		toServer, toClient := wire(), wire()
		p.Set(toServer, toClient)
		pause(3 * time.Second)
		p.Set(cdctest.Wire{}, cdctest.Wire{})
		return fmt.Sprintf("network: %+v, %+v", toServer, toClient)
	}
	counts := map[string]int{}
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		i := rng.IntN(2)
		var what string
		switch rng.IntN(9) {
		case 0:
			what = "kill"
			relays[i].Kill()
			relays[i] = s.SpawnRelay()
		case 1:
			what = "stop"
			_ = relays[i].Stop()
			relays[i] = s.SpawnRelay()
		case 2:
			what = "freeze"
			relays[i].Signal(syscall.SIGSTOP)
			pause(4 * time.Second)
			relays[i].Signal(syscall.SIGCONT)
		case 3:
			what = []string{"fast", "immediate"}[rng.IntN(2)]
			s.stopPostgres(what)
			s.startPostgres()
		case 4:
			what = "postgres, " + disturb(s.pgProxy)
		case 5:
			what = "kafka, " + disturb(s.kafkaProxy)
		case 6:
			what = "answers lost"
			mu.Lock()
			lose[[]kmsg.Key{kmsg.Produce, kmsg.EndTxn, kmsg.InitProducerID, kmsg.Metadata, kmsg.Fetch}[rng.IntN(5)]] += 1 + rng.IntN(3)
			mu.Unlock()
		case 7:
			what = "kafka down"
			s.kafkaProxy.Down()
			pause(3 * time.Second)
			s.kafkaProxy.Up()
		case 8:
			what = "connections cut"
			s.pgProxy.Cut()
			s.kafkaProxy.Cut()
		}
		kind, _, _ := strings.Cut(what, ":")
		counts[kind]++
		pause(time.Second)
	}
	s.t.Logf("done: %v", counts)
	for _, r := range relays {
		r.Kill()
	}
	s.endFault()
	s.startStreaming()
	s.finish()
}
