package cdc

import "time"

// pacer decides how long the reader leaves the socket alone before it reads again.
//
// Why it rests: PostgreSQL makes one send() per message, with TCP_NODELAY. While TCP's receive window is open, each becomes a
// packet that the sender pushes through the whole stack, and on loopback up to the receiver too. While the window is closed,
// send() only appends to the sender's queue, and the kernel sends that in large segments later: the walsender then needs less
// than half of its system time per row. So the window has to be full when the reader comes, most of the time: a full read is
// the cheap case, and no sign of a window that is too small.
//
// How long: a full read means that the sender has more, so the next pause is a little shorter; one that is not full means
// that the reader is about to overtake the sender, so it is much longer. The pause then is mostly longer than the sender takes for
// a window, and what is too much waits in the sender's queue. With steps of the same size it would be too short half of the time,
// and the queue would never build up.
//
// What is full: nearly as much as the window. One read may well have several windows, since on loopback the sender's queue comes in
// while the reader copies; so the largest read of late says little. Where the window is not known, half of the largest is full: the
// pause then is too short rather than too long, as a plain reader's is.
//
// A stream that does not fill the window within the longest pause is quiet: at most one read with rows per window.pace, and after
// a silence the first row goes at once, although the Begin before it came in a packet of its own.
type pacer struct {
	pace   time.Duration // window.pace
	window int           // bytes; 0: not known, the kernel makes it larger and smaller

	busy    bool
	pause   time.Duration // busy: from the end of one read to the next
	slowed  bool          // since it is busy, the pause was too short once
	largest int           // bytes of the largest read of late, where the window is not known
	tight   int           // full reads in a row, each after the shortest pause
	last    time.Time     // of the last read with rows
	late    bool          // the reader was held up since the last read
	inside  bool          // the last read lies within one message: its sender makes one send(), resting would only delay it
}

const (
	shortestPause = 50 * time.Microsecond
	longestPause  = 5 * time.Millisecond
	plenty        = 24 << 10 // bytes of one read that make a quiet stream busy: 12 MB/s at a pace of 2 ms
	smallestFull  = 32 << 10 // bytes; less is no full read of a window that is not known
	tightReads    = 256      // more than two windows hold, so the publisher is not what holds the reader up
)

// rest returns how long to leave the socket alone; zero or less: not at all.
func (p *pacer) rest(now time.Time) time.Duration {
	switch {
	case p.inside:
		return 0
	case p.busy:
		return p.pause
	}
	return p.last.Add(p.pace).Sub(now)
}

// took notes a read: its bytes, and the messages and rows that ended in it. How long the pause before it really was does not
// matter: if it was long, the read was full, and the next pause is shorter.
func (p *pacer) took(bytes, messages, rows int, now time.Time) {
	if rows > 0 {
		p.last = now
	}
	p.inside = bytes > 0 && messages == 0
	if p.inside || p.late {
		p.late, p.tight = false, 0
		return
	}
	full := p.full(bytes)
	switch {
	case !p.busy:
		p.busy, p.pause, p.slowed = bytes >= plenty, longestPause, false
	case !full:
		p.busy = p.pause < longestPause
		p.pause, p.slowed, p.tight = min(p.pause+p.pause/2, longestPause), true, 0
	case p.pause == shortestPause:
		p.tight++
	case p.slowed:
		p.pause = max(p.pause-p.pause/64, shortestPause)
	default:
		p.pause = max(p.pause-p.pause/8, shortestPause)
	}
}

func (p *pacer) full(bytes int) bool {
	if p.window > 0 {
		return bytes >= p.window/8*7
	}
	p.largest = max(bytes, p.largest-p.largest/256)
	return bytes >= max(smallestFull, p.largest/2)
}

// heldUp notes that the reader waited for room in the queue: that its next read is full says nothing about the sender.
func (p *pacer) heldUp() { p.late = true }

// cramped says that the receive window is what holds the sender up: the reader hardly rests, and still finds it full.
func (p *pacer) cramped() bool { return p.tight >= tightReads }
