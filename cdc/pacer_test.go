package cdc

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestPacer is the pacer's table: the pause after reads of these sizes, from a sender whose full read is 64 KiB.
func TestPacer(t *testing.T) {
	const window = 64 << 10
	reads := func(bytes ...int) func(*pacer) {
		return func(p *pacer) {
			for _, n := range bytes {
				p.observe(n, 0, 2, 1, time.Now())
			}
		}
	}
	again := func(times, bytes int) func(*pacer) {
		return func(p *pacer) {
			for range times {
				reads(bytes)(p)
			}
		}
	}
	unknown := func(p *pacer) { p.window = 0 }
	for _, c := range []struct {
		name    string
		does    []func(*pacer)
		atLeast time.Duration
		atMost  time.Duration
		busy    bool
		cramped bool
	}{
		{name: "at first: quiet", atLeast: longestPause, atMost: longestPause},
		{name: "small reads: quiet", does: []func(*pacer){again(100, 10<<10)}, atLeast: longestPause, atMost: longestPause},
		{name: "much in one read: the longest pause, to see whether it fills the window", does: []func(*pacer){reads(plenty)}, atLeast: longestPause, atMost: longestPause, busy: true},
		{name: "that does not fill it: quiet again", does: []func(*pacer){reads(plenty, plenty)}, atLeast: longestPause, atMost: longestPause},
		{name: "a full read: sooner", does: []func(*pacer){reads(window, window)}, atLeast: longestPause * 8 / 10, atMost: longestPause * 9 / 10, busy: true},
		{name: "full reads: down to the shortest", does: []func(*pacer){again(100, window)}, atLeast: shortestPause, atMost: shortestPause, busy: true},
		{name: "slowly, once it was too short", does: []func(*pacer){again(100, window), reads(window/3, window)}, atLeast: shortestPause * 7 / 5, atMost: shortestPause*3/2 - 1, busy: true},
		{name: "7/8 is full", does: []func(*pacer){again(100, window), reads(window / 8 * 7)}, atLeast: shortestPause, atMost: shortestPause, busy: true},
		{name: "less is not", does: []func(*pacer){again(100, window), reads(window/8*7 - 1)}, atLeast: shortestPause * 3 / 2, atMost: shortestPause * 3 / 2, busy: true},
		{name: "but half is, with more behind it", does: []func(*pacer){again(100, window), func(p *pacer) { p.observe(window/2, muchMore, 2, 1, time.Now()) }}, atLeast: shortestPause, atMost: shortestPause, busy: true},
		{name: "and not with a little", does: []func(*pacer){again(100, window), func(p *pacer) { p.observe(window/2, muchMore-1, 2, 1, time.Now()) }}, atLeast: shortestPause * 3 / 2, atMost: shortestPause * 3 / 2, busy: true},
		{name: "one short read does not end it", does: []func(*pacer){again(100, window), reads(100)}, atMost: longestPause / 10, busy: true},
		{name: "short reads: quiet again", does: []func(*pacer){again(100, window), again(20, 100)}, atLeast: longestPause, atMost: longestPause},
		{name: "a read of several windows changes nothing", does: []func(*pacer){again(100, window), reads(4*window, window*15/16)}, atLeast: shortestPause, atMost: shortestPause, busy: true},
		{name: "unknown window: half of the largest is full", does: []func(*pacer){unknown, again(100, 4*window), again(20, 2*window)}, atLeast: shortestPause, atMost: shortestPause, busy: true},
		{name: "unknown window: less is not", does: []func(*pacer){unknown, again(100, 4*window), reads(window)}, atLeast: shortestPause * 3 / 2, atMost: shortestPause * 3 / 2, busy: true},
		{name: "unknown window that becomes smaller: full is less", does: []func(*pacer){unknown, again(100, 4*window), again(1000, window)}, atLeast: shortestPause, atMost: shortestPause, busy: true, cramped: true},
		{name: "within one message: no rest at all", does: []func(*pacer){func(p *pacer) { p.observe(window, 0, 0, 0, time.Now()) }}, atMost: 0},
		{name: "within one message: nothing is learnt", does: []func(*pacer){func(p *pacer) { p.observe(window, 0, 0, 0, time.Now()) }, reads(10)}, atLeast: longestPause, atMost: longestPause},
		{name: "the window takes less: learnt", does: []func(*pacer){again(8, 36<<10)}, atLeast: longestPause * 8 / 10, atMost: longestPause * 9 / 10, busy: true},
		{name: "a live load of as much: not learnt", does: []func(*pacer){again(20, 0), func(p *pacer) {
			for range 10 {
				reads(25<<10, 39<<10)(p)
			}
		}}, atLeast: longestPause, atMost: longestPause},
		{name: "learnt, and forgotten when little comes", does: []func(*pacer){again(8, 36<<10), reads(100, 100, 100, 100, 36<<10, 36<<10)}, atLeast: longestPause, atMost: longestPause},
		{name: "held up: that was a rest", does: []func(*pacer){again(3, window), (*pacer).heldUp}, atMost: 0, busy: true},
		{name: "held up: a full read says nothing of the pause", does: []func(*pacer){again(100, window), reads(window / 3), (*pacer).heldUp, reads(window)}, atLeast: shortestPause * 3 / 2, atMost: shortestPause * 3 / 2, busy: true},
		{name: "held up always: busy all the same", does: []func(*pacer){(*pacer).heldUp, reads(window), (*pacer).heldUp, reads(window), (*pacer).heldUp}, atMost: 0, busy: true},
		{name: "full, but long after the read before: not cramped", does: []func(*pacer){again(100, window), func(p *pacer) {
			for i := range 2 * tightReads {
				p.observe(window, 0, 2, 1, time.Now().Add(time.Duration(i)*time.Millisecond))
			}
		}}, atMost: shortestPause, busy: true},
		{name: "always full, hardly any rest: cramped", does: []func(*pacer){again(100+tightReads, window)}, atMost: shortestPause, busy: true, cramped: true},
		{name: "with a publisher that holds it up: not cramped", does: []func(*pacer){again(tightReads, window), (*pacer).heldUp, again(tightReads/2, window)}, atMost: shortestPause * 3 / 2, busy: true},
		{name: "with a read that is not full: not cramped", does: []func(*pacer){again(tightReads, window), reads(window / 3), again(tightReads/2, window)}, atMost: shortestPause * 3 / 2, busy: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := pacer{pace: 2 * time.Millisecond, window: window}
				for _, f := range c.does {
					f(&p)
				}
				got := longestPause
				if p.inside || p.late || p.busy {
					got = p.rest(time.Now())
				}
				if p.busy != c.busy {
					t.Errorf("busy: %v", p.busy)
				}
				if got < c.atLeast || got > c.atMost {
					t.Errorf("rests %s, want %s to %s", got, c.atLeast, c.atMost)
				}
				if p.cramped() != c.cramped {
					t.Errorf("cramped: %v", p.cramped())
				}
			})
		})
	}
}

// TestQuietPacer: after a silence the first row is read at once; within the pace the reader rests.
func TestQuietPacer(t *testing.T) {
	for _, pace := range []time.Duration{0, longestPause, time.Second} {
		p, now := pacer{pace: pace, window: 64 << 10}, time.Now()
		p.observe(100, 0, 3, 1, now)
		if d := p.rest(now.Add(2 * time.Second)); d > 0 {
			t.Errorf("pace %s: after a silence it rests %s", pace, d)
		}
		if d := p.rest(now.Add(pace / 2)); d != pace-pace/2 {
			t.Errorf("pace %s: within the pace it rests %s", pace, d)
		}
		p.observe(40, 0, 1, 0, now.Add(2*time.Second)) // a Begin in an earlier packet
		if d := p.rest(now.Add(2 * time.Second)); d > 0 {
			t.Errorf("pace %s: a read without rows held the next one back for %s", pace, d)
		}
		for range 60 {
			p.observe(64<<10, 0, 100, 100, now)
		}
		if d := p.rest(now); d > longestPause/4 {
			t.Errorf("pace %s: it rests %s beside a sender that has more", pace, d)
		}
	}
}

// wire is a model of a sender and a receive window, as the kernel has them. While the window is open, a message costs
// the sender open and is received at once. While it is closed, a message costs shut and waits in the sender's queue,
// which is sent when the window opens.
type wire struct {
	message    int // bytes
	work       time.Duration
	open, shut time.Duration // system time of one send
	window     int
	// bytes of a segment in the sender's queue, which the kernel sends whole or not at all; 1: split as needed
	segment    int
	refills    int // most windows that the sender's queue sends while the reader copies
	queueLimit int
	late       func() time.Duration           // how much longer a pause is than requested
	rate       func(at time.Duration) float64 // messages written per second; nil: a backlog

	now, sender       time.Duration
	received, queued  int // bytes
	opened, sent, due float64
	delay             time.Duration // the longest that a read's bytes can have waited
}

func newWire(message, window int, work, late time.Duration) *wire {
	rng := rand.New(rand.NewPCG(1, 2))
	return &wire{
		message: message, window: window, segment: 1, work: work, open: 4500 * time.Nanosecond, shut: 1500 * time.Nanosecond, queueLimit: 2 << 20,
		late: func() time.Duration { return time.Duration(rng.Int64N(int64(late) + 1)) },
	}
}

// until advances the sender to a time.
func (w *wire) until(then time.Duration) {
	for w.sender < then {
		if w.rate != nil {
			if w.due < 1 {
				step := 10 * time.Microsecond
				w.due += w.rate(w.sender) * step.Seconds()
				w.sender += step
				continue
			}
			w.due--
		}
		switch {
		case w.queued == 0 && w.received+w.message <= w.window:
			w.received += w.message
			w.sender += w.work + w.open
			w.opened++
		case w.queued+w.message <= w.queueLimit:
			w.queued += w.message
			w.sender += w.work + w.shut
		default:
			w.sender = then // it waits for the reader
			return
		}
		w.sent++
	}
}

// sendOn moves from the sender's queue into the empty window as much as fits.
func (w *wire) sendOn() (bytes int) {
	if bytes = w.queued; bytes > w.window {
		bytes = w.window / w.segment * w.segment
	}
	w.queued -= bytes
	return bytes
}

// run reads with a pacer for d. Decoding costs 70 ns a message.
func (w *wire) run(p *pacer, d time.Duration) {
	start := time.Unix(0, 0)
	for end := w.now + d; w.now < end; {
		if rest := p.rest(start.Add(w.now)); rest > 0 {
			w.now += rest + w.late()
			w.delay = max(w.delay, rest)
		}
		w.until(w.now)
		if w.received == 0 { // Fill waits for the first byte
			w.now = max(w.now+5*time.Microsecond, w.sender)
			w.until(w.now)
		}
		n := w.received
		for range w.refills {
			n += w.sendOn()
		}
		w.received = w.sendOn()
		messages := n / w.message
		w.now += time.Duration(messages)*70*time.Nanosecond + 5*time.Microsecond
		p.observe(n, w.received, messages, messages, start.Add(w.now))
	}
}

// TestPacerKeepsTheWindowShut: for every sender, message size and window size, and for pauses that end late, a
// backlog arrives at nearly the rate of a sender that never meets an open window. If the pacer does not know the
// window, or if a read has several windows and empties the sender's queue, it is not slower than a reader that does
// not rest.
func TestPacerKeepsTheWindowShut(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: seconds of arithmetic")
	}
	for _, message := range []int{120, 500, 2000, 16000} {
		for _, window := range []int{40 << 10, 64 << 10, 128 << 10} {
			for _, work := range []time.Duration{1000, 2000, 4000, 40000} {
				for _, late := range []time.Duration{0, 60 * time.Microsecond, 200 * time.Microsecond} {
					for _, refills := range []int{0, 1, 3} {
						for _, segment := range []int{1, window / 2, window * 5 / 16, window * 11 / 20} {
							for _, known := range []int{window, 0} {
								name := fmt.Sprintf("%dB/window%dk/known%t/work%s/late%s/refills%d/segment%d", message, window>>10, known > 0, work, late, refills, segment)
								w := newWire(message, window, work+time.Duration(3*message), late)
								w.refills, w.segment = refills, segment
								p := pacer{pace: 2 * time.Millisecond, window: known}
								w.run(&p, 200*time.Millisecond) // until the pacer has learned
								w.sent, w.opened = 0, 0
								w.run(&p, time.Second)
								messages := time.Duration(window / message)
								if messages*(w.work+w.shut) < shortestPause+late {
									continue // no reader is that fast
								}
								// the cost of a send hardly counts
								if known == 0 || refills > 0 || messages*(w.work+w.open) > longestPause || w.work > 4*w.open {
									if least := 0.95 / (w.work + w.open).Seconds(); w.sent < least {
										t.Errorf("%s: %.0f messages/s, a plain reader has %.0f", name, w.sent, least)
									}
									continue
								}
								part := 0.8
								// one segment alone gets through: half of what the sender has room for
								if segment > window/2 {
									part = 0.65
								}
								if best := 1 / (w.work + w.shut).Seconds(); w.sent < part*best || w.opened > 0.3*w.sent {
									t.Errorf("%s: %.2f of the best rate, %.2f through an open window, pause %s", name, w.sent/best, w.opened/w.sent, p.pause)
								}
							}
						}
					}
				}
			}
		}
	}
}

// TestPacerCarriesLiveLoad: a stream that does not fill the window is read once per pace, a faster stream is read in
// time, and a stream that changes between the two becomes quiet again soon.
func TestPacerCarriesLiveLoad(t *testing.T) {
	const pace = 2 * time.Millisecond
	steady := func(rate float64) func(time.Duration) float64 { return func(time.Duration) float64 { return rate } }
	for _, c := range []struct {
		name string
		rate func(time.Duration) float64 // of messages of 250 bytes
		rest time.Duration               // the longest rest
	}{
		{"100 rows a second", steady(300), pace},
		{"1,000", steady(3000), pace},
		{"10,000", steady(30000), pace},
		{"20,000", steady(60000), longestPause},
		{"more and less, every three seconds", func(at time.Duration) float64 { return []float64{3000, 90000}[at/(3*time.Second)%2] }, longestPause},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(250, 64<<10, time.Microsecond, 60*time.Microsecond)
			w.rate = c.rate
			p := pacer{pace: pace, window: 64 << 10}
			w.run(&p, 14*time.Second)
			if w.delay > c.rest || w.queued > w.window {
				t.Errorf("rests up to %s, %d bytes wait at the end", w.delay, w.queued)
			}
			w.rate = steady(3000)
			if w.run(&p, 50*time.Millisecond); p.busy {
				t.Error("still busy when little comes")
			}
		})
	}
}
