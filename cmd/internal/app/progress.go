package app

import (
	"io"
	"sync"
	"time"

	"github.com/walpost/walpost/cdc/plain"
)

const (
	quietFor      = 2 * time.Second // a shorter work prints no progress
	redrawEvery   = 200 * time.Millisecond
	progressEvery = 10 * time.Second // where no terminal is
)

// Progress prints how far a long work is, with its rate and the time that is left: on a terminal as one line that it
// rewrites, elsewhere as a line every ten seconds. It prints nothing for a work that takes less than two seconds.
type Progress struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	mu          sync.Mutex
	began, told time.Time
	drawn       bool // the terminal's last line is one of this Progress
}

// NewProgress returns a Progress that prints to out, which is a process's standard error.
func NewProgress(out io.Writer) *Progress {
	p := &Progress{out: out, terminal: isTerminal(out), now: time.Now}
	p.Begin()
	return p
}

// Begin starts the clock again, for another work.
func (p *Progress) Begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.began, p.told = p.now(), time.Time{}
}

// At is called with the amount that is done, as often as the caller likes. The total is 0 if it is not known. unit is what
// is counted: rows, or plain.Bytes.
func (p *Progress) At(done, total int64, unit string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	every := progressEvery
	if p.terminal {
		every = redrawEvery
	}
	if now.Sub(p.began) < quietFor || !p.told.IsZero() && now.Sub(p.told) < every {
		return
	}
	p.told = now
	line := plain.Progress(done, total, unit, now.Sub(p.began))
	if p.terminal {
		_, _ = io.WriteString(p.out, "\r"+line+"\x1b[K")
		p.drawn = true
		return
	}
	_, _ = io.WriteString(p.out, line+"\n")
}

// Close removes the line from the terminal.
func (p *Progress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *Progress) clear() {
	if p.drawn {
		_, _ = io.WriteString(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

// Beside returns a writer for other output of the process: it removes the line from the terminal before each write.
func (p *Progress) Beside(w io.Writer) io.Writer { return beside{p, w} }

type beside struct {
	p *Progress
	w io.Writer
}

func (b beside) Write(text []byte) (int, error) {
	b.p.Close()
	return b.w.Write(text)
}
