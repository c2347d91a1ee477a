package cdc

import (
	"cmp"
	"time"
)

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
// What is full: seven eighths of the window; or half of it, if as soon as it was read much more was there, because on loopback and between
// containers the sender's queue comes in at once. The kernel does not split what it has queued as one segment, so a sender that has
// more may leave up to half of the window open (tcp_snd_wnd_test). Where more does not come at once, it is learnt: three reads after the
// longest pause that had hardly more than those after window.pace were limited by the window, and so were full. One read may also have
// several windows, so the largest read of late says little. Where the window is not known, half of the largest is full: the pause then is
// too short rather than too long, as a plain reader's is.
//
// A stream that does not fill the window within the longest pause is quiet: at most one read with rows per window.pace, and after
// a silence the first row goes at once, although the Begin before it came in an earlier packet.
type pacer struct {
	pace   time.Duration // window.pace
	window int           // bytes; 0: not known, the kernel makes it larger and smaller

	busy    bool
	pause   time.Duration // busy: from the end of one read to the next
	slowed  bool          // since it is busy, the pause was too short once
	before  int           // bytes of the read that made it busy
	no      int           // how often in a row that was quiet again at once
	less    int           // bytes of a full window, where that is less than the window
	largest int           // bytes of the largest read of late, where the window is not known
	tight   int           // full reads in a row, each soon after the one before
	read    time.Time     // when the last read came back
	last    time.Time     // when the last read with rows did
	late    bool          // the reader was held up since the last read
	inside  bool          // the last read lies within one message: its sender makes one send(), resting would only delay it
}

const (
	shortestPause = 50 * time.Microsecond
	longestPause  = 5 * time.Millisecond
	plenty        = 24 << 10 // bytes of one read that make a quiet stream busy: 12 MB/s at a pace of 2 ms
	smallestFull  = 16 << 10 // bytes; less is no full read of a window that is not known
	muchMore      = 16 << 10 // bytes
	tightReads    = 256      // more than two windows of 4 MiB hold, so the publisher is not what holds the reader up
	tightCycle    = 4 * shortestPause
)

// rest returns how long to leave the socket alone; zero or less: not at all.
func (p *pacer) rest(now time.Time) time.Duration {
	switch {
	case p.inside || p.late: // waiting for room was a rest
		return 0
	case p.busy:
		return p.pause
	}
	return p.last.Add(p.pace).Sub(now)
}

// took notes a read: its bytes, how many more there were right after it (asked for while busy), and the messages and rows that ended in
// it. How long the pause before it really was does not matter: if it was long, the read was full, and the next pause is shorter.
func (p *pacer) took(bytes, more, messages, rows int, now time.Time) {
	cycle := now.Sub(p.read)
	p.read = now
	if rows > 0 {
		p.last = now
	}
	late := p.late
	p.late, p.inside = false, bytes > 0 && messages == 0
	switch full := p.full(bytes, more); {
	case p.inside:
		p.tight = 0
	case !p.busy:
		if p.busy = bytes >= plenty; !p.busy {
			p.no, p.less = 0, 0
		}
		p.before, p.pause, p.slowed, p.tight = bytes, longestPause, false, 0
	case late:
		p.tight = 0
	case !full:
		if p.busy = p.pause < longestPause; !p.busy {
			p.learn(bytes)
		}
		p.pause, p.slowed, p.tight = min(p.pause+p.pause/2, longestPause), true, 0
	case p.pause == shortestPause && cycle < tightCycle:
		p.tight++
	case p.slowed:
		p.pause, p.tight = max(p.pause-p.pause/64, shortestPause), 0
	default:
		p.pause, p.tight = max(p.pause-p.pause/8, shortestPause), 0
	}
}

// learn notes a read after the longest pause that was not full. Three times in a row hardly more than what came after window.pace: that
// is what the window takes.
func (p *pacer) learn(bytes int) {
	if p.pace > longestPause/2 || bytes < plenty || bytes/3*2 > p.before {
		p.no = 0
	} else if p.no++; p.no == 3 {
		p.no, p.less = 0, bytes
	}
}

// full says that the sender had more than the window took.
func (p *pacer) full(bytes, more int) bool {
	if p.window > 0 {
		window := cmp.Or(p.less, p.window)
		return bytes >= window/8*7 || bytes >= window/2 && more >= muchMore
	}
	p.largest = max(bytes, p.largest-p.largest/256)
	return bytes >= max(smallestFull, p.largest/2)
}

// heldUp notes that the reader waited for room in the queue: that its next read is full says nothing about the sender.
func (p *pacer) heldUp() { p.late = true }

// opened notes that the window is the kernel's now.
func (p *pacer) opened() { p.window, p.tight = 0, 0 }

// cramped says that the receive window is what holds the sender up: the reader hardly rests, and still finds it full.
func (p *pacer) cramped() bool { return p.tight >= tightReads }
