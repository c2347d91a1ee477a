package cdc

import (
	"cmp"
	"time"
)

// pacer decides how long the reader leaves the socket alone before it reads again.
//
// Why the reader rests: PostgreSQL makes one send() per message, with TCP_NODELAY. While TCP's receive window is
// open, each send() becomes a packet that the sender pushes through the whole stack, and on loopback up to the
// receiver too. While the window is closed, send() only appends to the sender's queue, and the kernel later sends
// that queue in large segments: the walsender then needs less than half of its system time per row. So the window
// should be full most of the times when the reader reads. A full read is the cheap case, and no sign of a window that
// is too small.
//
// How long: a full read means that the sender has more, so the next pause is a little shorter. A read that is not
// full means that the reader is about to overtake the sender, so the next pause is much longer. As a result most
// pauses are longer than the sender takes to fill a window, and the rest waits in the sender's queue. With steps of
// equal size half of the pauses would be too short, and the queue would never build up.
//
// What counts as full: seven eighths of the window; or half of it, if much more was readable right after the read,
// because on loopback and between containers the sender's queue arrives at once. The kernel does not split a segment
// that it has queued, so a sender that has more may leave up to half of the window open (tcp_snd_wnd_test). Where
// more does not arrive at once, the pacer learns the size of a full read: three reads after the longest pause that
// had hardly more bytes than the reads after window.pace were limited by the window, and so were full. One read may
// also hold several windows, so the largest recent read says little. If the window is not known, half of the largest
// recent read counts as full: the pause is then too short rather than too long, like that of a plain reader.
//
// A stream that does not fill the window within the longest pause is quiet: it gets at most one read with rows per
// window.pace. After a silence the first row is read at once, although the Begin before it came in an earlier packet.
type pacer struct {
	pace   time.Duration // window.pace
	window int           // bytes; 0 if it is not known: the kernel then adjusts it

	busy    bool
	pause   time.Duration // busy: from the end of one read to the next
	slowed  bool          // the pause was too short once since the stream became busy
	before  int           // bytes of the read that made the stream busy
	no      int           // how many times in a row the stream became quiet again at once
	less    int           // bytes of a full read, if learned to be less than the window
	largest int           // bytes of the largest recent read, if the window is not known
	tight   int           // full reads in a row, each soon after the one before
	read    time.Time     // when the last read came back
	last    time.Time     // when the last read with rows came back
	late    bool          // the reader has waited for room since the last read
	inside  bool          // the last read lies within one message: its sender makes one send(), so a rest would only delay it
}

const (
	shortestPause = 50 * time.Microsecond
	longestPause  = 5 * time.Millisecond
	plenty        = 24 << 10 // bytes of one read that make a quiet stream busy: 12 MB/s at a pace of 2 ms
	smallestFull  = 16 << 10 // bytes; a smaller read is never full if the window is not known
	muchMore      = 16 << 10 // bytes
	tightReads    = 256      // more reads than two windows of 4 MiB hold, so that the publisher is not the cause
	tightCycle    = 4 * shortestPause
)

// rest returns how long to leave the socket alone; zero or less means not at all.
func (p *pacer) rest(now time.Time) time.Duration {
	switch {
	case p.inside || p.late: // waiting for room was a rest
		return 0
	case p.busy:
		return p.pause
	}
	return p.last.Add(p.pace).Sub(now)
}

// observe records a read: its bytes, how many more bytes were readable right after it (known while busy), and the
// messages and rows that ended in it. The real length of the pause before it does not matter: if it was long, the
// read was full, and the next pause is shorter.
func (p *pacer) observe(bytes, more, messages, rows int, now time.Time) {
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

// learn records a read after the longest pause that was not full. If three in a row had hardly more bytes than the
// reads after window.pace, their size is the size of a full window.
func (p *pacer) learn(bytes int) {
	if p.pace > longestPause/2 || bytes < plenty || bytes/3*2 > p.before {
		p.no = 0
	} else if p.no++; p.no == 3 {
		p.no, p.less = 0, bytes
	}
}

// full reports whether the sender had more than the window could take.
func (p *pacer) full(bytes, more int) bool {
	if p.window > 0 {
		window := cmp.Or(p.less, p.window)
		return bytes >= window/8*7 || bytes >= window/2 && more >= muchMore
	}
	p.largest = max(bytes, p.largest-p.largest/256)
	return bytes >= max(smallestFull, p.largest/2)
}

// heldUp records that the reader waited for room in the queue: if its next read is full, that says nothing about the
// sender.
func (p *pacer) heldUp() { p.late = true }

// opened records that the kernel now sizes the window.
func (p *pacer) opened() { p.window, p.tight = 0, 0 }

// cramped reports whether the receive window limits the sender: the reader hardly rests, and still finds the window
// full.
func (p *pacer) cramped() bool { return p.tight >= tightReads }
