package inbox

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A partition is one that this process owns. Its worker, a goroutine while there is something to do, applies what was
// polled of it; only the worker uses claim and gap, and the assignment before the worker begins.
type partition struct {
	claim claim
	gap   *gap // records before the first that is polled, missing

	ctx      context.Context // of transactions; ends when the partition is gone
	cancel   context.CancelFunc
	stopping chan struct{} // closed: begin nothing more
	stopOnce sync.Once

	mu     sync.Mutex
	done   chan struct{} // closed when the worker is
	wake   chan<- struct{}
	paused bool
	record *kgo.Record // the last that is done and whose offset is not committed
	now    state
}

// A state is what keeps a partition from going on.
type state struct {
	trouble error // transient: it is tried again and again
	blocked error // permanent: it waits for a human
}

func newPartition(c claim) *partition {
	p := &partition{claim: c, stopping: make(chan struct{}), done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	close(p.done)
	return p
}

// start runs work as the partition's only worker.
func (p *partition) start(work func()) {
	done := make(chan struct{})
	p.mu.Lock()
	before := p.done
	p.done = done
	p.mu.Unlock()
	go func() {
		<-before // closed already, unless records came of a partition that should be paused
		work()
		p.mu.Lock()
		defer p.mu.Unlock()
		close(done)
		if p.wake != nil {
			select {
			case p.wake <- struct{}{}:
			default:
			}
			p.wake = nil
		}
	}()
}

func (p *partition) idle() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// leave reports whether the worker is still at it, so that the partition must be paused; it will send on wake.
func (p *partition) leave(wake chan<- struct{}) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		p.wake, p.paused = wake, true
		return true
	}
}

func (p *partition) isPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// back reports whether the partition is paused and need not be any longer.
func (p *partition) back() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		was := p.paused
		p.paused = false
		return was
	default:
		return false
	}
}

// stop returns when the worker is done: with the transaction in hand, if that ends within grace.
func (p *partition) stop(grace time.Duration) {
	p.stopOnce.Do(func() { close(p.stopping) })
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.idle():
	case <-timer.C:
	}
	p.cancel()
	<-p.idle()
}

func (p *partition) isStopping() bool {
	select {
	case <-p.stopping:
		return true
	default:
		return false
	}
}

func (p *partition) finished(record *kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.record = record
}

func (p *partition) uncommitted() *kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.record
}

func (p *partition) committed(record *kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.record == record {
		p.record = nil
	}
}

func (p *partition) state() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

// become reports whether s is another state than the one before.
func (p *partition) become(s state) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = (s.trouble == nil) != (p.now.trouble == nil) || (s.blocked == nil) != (p.now.blocked == nil)
	p.now = s
	return changed
}
