package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/devenv"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
)

// hands do what a person's keys ask for: they break the demo's parts, and bring them back.
type hands struct {
	say      func(format string, args ...any)
	relay    *relayProcess
	kafka    *broker
	orders   *pipeline.Pipeline // for its dead letters
	database string             // URL of the database orders, with the owner's rights
	walpost  string             // the beginning of a command that acts on the pipeline orders
	poisoned int
}

// broker is the demo's Kafka. It can be stopped, and comes back at its address with its data.
type broker struct {
	cfg devenv.KafkaConfig

	mu sync.Mutex
	up *devenv.Kafka // nil while it is stopped
}

// brokers returns the addresses for a client, which are the same while the broker is stopped.
func (b *broker) brokers() []string {
	return []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(b.cfg.Ports[0]))}
}

// toggle starts a broker that is stopped, and stops one that is up. It reports whether the broker is up now.
func (b *broker) toggle() (up bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.up != nil {
		b.up.Close()
		b.up = nil
		return false, nil
	}
	b.up, err = devenv.StartKafka(b.cfg)
	return err == nil, err
}

// start starts a broker that is stopped.
func (b *broker) start() error {
	b.mu.Lock()
	stopped := b.up == nil
	b.mu.Unlock()
	if stopped {
		_, err := b.toggle()
		return err
	}
	return nil
}

func (b *broker) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.up != nil {
		b.up.Close()
	}
}

const keysHelp = `
  k  kill the relay; k again starts it
  s  stop Kafka; s again starts it
  p  send a poison row: one that can never be published
  d  drop the dead letters
  h  help
  q  quit: check that every event has arrived once, and remove everything`

// work does what the keys say, until ctx ends. Then, and at q, it returns.
func (h *hands) work(ctx context.Context, keys <-chan byte) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case key := <-keys:
			var err error
			switch key {
			case 'k':
				err = h.kill()
			case 's':
				err = h.stopKafka()
			case 'p':
				err = h.poison(ctx)
			case 'd':
				err = h.drop(ctx)
			case 'q':
				return nil
			default:
				h.say("%s", keysHelp)
			}
			if err != nil && ctx.Err() == nil {
				h.say("  That failed: %v", err)
			}
		}
	}
}

func (h *hands) kill() error {
	pid, err := h.relay.kill()
	switch {
	case errors.Is(err, os.ErrProcessDone):
	case err != nil:
		return err
	case pid == 0:
		h.relay.start()
	default:
		h.say("\nkill -9 %d: the relay is dead", pid)
		h.say("  Watch: orders are placed and paid as before, their events wait in PostgreSQL's WAL, and the page says that the relay is down.")
		h.say("  The relay starts again in %.0f s, or when you press k. The lag falls to 0, and no event is applied twice.", relayPause.Seconds())
	}
	return nil
}

func (h *hands) stopKafka() error {
	up, err := h.kafka.toggle()
	switch {
	case err != nil:
		return err
	case up:
		h.say("\nKafka is back, with its data")
		h.say("  Watch: the lag falls to 0. The rows arrive in the order of their commits, and none is applied twice.")
	default:
		h.say("\nKafka is stopped")
		h.say("  Watch: orders are placed and paid as before, the relay retries, and the lag grows. Press s to start Kafka.")
	}
	return nil
}

func (h *hands) poison(ctx context.Context) error {
	h.poisoned++
	key := fmt.Sprintf("gift-%d", h.poisoned)
	conn, err := pgx.Connect(ctx, h.database)
	if err == nil {
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		_, err = conn.Exec(ctx, `INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (uuid_v7(), 'gift', $1, 'GiftWrapped', '{}')`, key)
	}
	if err != nil {
		return fmt.Errorf("write a poison row: %w", err)
	}
	h.say("\nA poison row is committed: key %s, aggregate type gift, which kafka.aggregate_types does not allow", key)
	h.say("  Watch: it becomes a dead letter (poison.policy: dead_letter), with the reason, and the rows after it are published.")
	h.say("  %s dlq list", h.walpost)
	h.say("  Press d to drop it, as this does:")
	h.say("  %s dlq drop --all", h.walpost)
	return nil
}

func (h *hands) drop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("waited 10 s for Kafka: is it stopped? Press s to start it"))
	defer cancel()
	dropped, err := h.orders.Drop(ctx, pipeline.DropOptions{})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	if len(dropped.Letters) == 0 {
		h.say("\nThere is no dead letter: p makes one")
	}
	for _, letter := range dropped.Letters {
		h.say("\nDropped: %s of key %s, because %s", plain.Line(letter.EventType), plain.Line(letter.AggregateID), plain.Line(letter.Reason))
		h.say("  Watch: the page shows no dead letter. The row stays in the table outbox, and is never published.")
	}
	return nil
}

// heal starts what is stopped.
func (h *hands) heal() error {
	h.relay.start()
	return h.kafka.start()
}
