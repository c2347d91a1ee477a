package inbox

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A partition is a partition of the topic that this process owns. Its worker is a goroutine that runs while there are
// polled records to apply. Only the worker uses claim and gap; before the worker starts, only the assignment uses them.
type partition struct {
	claim claim
	gap   *gap // missing records before the first record that is polled

	ctx      context.Context // of the worker's transactions; ends when the partition is given up
	cancel   context.CancelFunc
	stopping chan struct{} // closed when the worker must begin no further transaction
	stopOnce sync.Once

	mu     sync.Mutex
	done   chan struct{} // closed when the worker has ended
	wake   chan<- struct{}
	paused bool
	record *kgo.Record // the last record that is done; its offset is not committed yet
	now    state
}

// A state says what keeps a partition from advancing.
type state struct {
	transient error // transient: the worker retries
	blocked   error // permanent: the partition waits for an operator
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
		<-before // closed already, unless records arrived for a partition that should be paused
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

// detach reports whether the worker is still running. If so, the partition counts as paused, and the worker sends on
// wake when it ends.
func (p *partition) detach(wake chan<- struct{}) bool {
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

// resumable reports whether the partition is paused and its worker has ended, so that it can be resumed.
func (p *partition) resumable() bool {
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

// stop waits up to grace for the worker to finish its open transaction, then cancels it, and returns when the worker
// has ended.
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

// setState stores s and reports whether it differs from the state before.
func (p *partition) setState(s state) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed = (s.transient == nil) != (p.now.transient == nil) || (s.blocked == nil) != (p.now.blocked == nil)
	p.now = s
	return changed
}
