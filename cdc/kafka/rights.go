package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/walpost/walpost/cdc/identity"
)

// grant returns what to run so that the user of this connection may do the operations on a resource.
func (s *Sink) grant(kind, name string, operations ...string) string {
	return s.login.Grant(s.cfg.Kafka.Brokers, kind, name, operations...)
}

// denied adds the missing right and the command that grants it, or what is wrong with the login, to Kafka's refusal.
// It returns every other error unchanged.
func (s *Sink) denied(err error, topic string, operations ...string) error {
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("%w: %s", err, s.grant(identity.Topic, topic, operations...))
	// a login that was to be renewed
	case errors.Is(err, kerr.SaslAuthenticationFailed), errors.Is(err, kerr.IllegalSaslState):
		if refused := s.login.Explain(context.Background(), strings.Join(s.cfg.Kafka.Brokers, ", "), err); refused != nil {
			return refused
		}
	}
	return err
}

// denied does the same as Sink.denied for a request to write, with the transactional id of this client.
func (p *publisher) denied(err error, topic string) error {
	switch {
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return fmt.Errorf("%w: %s", err, p.sink.grant(identity.TransactionalID, p.id, "Write"))
	// from Kafka 3.0 on, a client that may write to any topic may take a producer id
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		return fmt.Errorf("%w: %s; before Kafka 3.0, grant IdempotentWrite on the cluster, too", err, p.sink.grant(identity.Topic, topic, "Write"))
	}
	return p.sink.denied(err, topic, "Write")
}

// writes returns a topic that a publisher of this sink writes to.
func (s *Sink) writes() string {
	if len(s.topics) > 0 {
		return s.topics[0]
	}
	return s.cfg.StateTopic()
}
