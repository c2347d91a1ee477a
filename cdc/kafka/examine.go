package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/plain"
)

// Examined is what Examine has found.
type Examined struct {
	Findings   []cdc.Finding
	Reached    bool
	Partitions Partitions     // of the topics that exist
	Takes      map[string]int // the largest record in bytes that a topic of rows takes
}

// Examine asks Kafka, with the relay's own login, for everything that a relay needs from it, and returns a finding for each check, also
// for one that passes. It creates nothing, fences nothing and takes no transactional id.
func (s *Sink) Examine(ctx context.Context) (e Examined) {
	x := &examiner{sink: s, e: &e}
	client, err := s.client()
	if err != nil {
		x.fails("connection", err)
		return e
	}
	defer client.Close()
	x.client = client
	if !x.connects(ctx) {
		return e
	}
	if s.cfg.Source.Kind != config.KindPolling {
		x.state(ctx)
	}
	if s.cfg.Poison.Policy == config.PolicyDeadLetter {
		x.deadLetters(ctx)
	}
	for _, name := range s.topics {
		x.rows(ctx, name)
	}
	return e
}

// examiner asks the questions of Examine with one client.
type examiner struct {
	sink   *Sink
	client *kgo.Client
	e      *Examined
}

// add adds a finding about Kafka.
func (x *examiner) add(f cdc.Finding) {
	f.Side = cdc.InKafka
	x.e.Findings = append(x.e.Findings, f)
}

// passes adds a check that has found nothing wrong.
func (x *examiner) passes(check, format string, args ...any) {
	x.add(cdc.Finding{Severity: cdc.OK, Check: check, Found: fmt.Sprintf(format, args...)})
}

// fails adds an error as a finding: a HaltError in its parts, another error as a check without an answer.
func (x *examiner) fails(check string, err error) {
	f := cdc.Finding{Severity: cdc.Unknown, Check: check}
	f.Found, f.Run = cdc.Parted(err.Error())
	var halt *cdc.HaltError
	var away *awayError
	switch {
	case errors.As(err, &halt):
		f.Severity, f.Found, f.Means, f.Run = cdc.Problem, halt.Found, halt.Means, halt.Run
	case errors.As(err, &away):
		f.Found, f.Run = fmt.Sprintf("%s (%v)", away.found, away.err), away.run
		if away.advertised {
			f.Severity, f.Check = cdc.Problem, "advertised_listeners"
		}
	case errors.As(err, new(*identity.RefusedError)):
		f.Severity = cdc.Problem
	}
	x.add(f)
}

// connects asks the seeds and then the brokers at the addresses that they advertise, and reports whether any of those answers.
func (x *examiner) connects(ctx context.Context) bool {
	if _, err := x.sink.ping(ctx, x.client); err != nil {
		x.fails("connection", err)
		last := &x.e.Findings[len(x.e.Findings)-1]
		if last.Means == "" {
			last.Means = "no row can be published; rows wait in PostgreSQL, and nothing else of Kafka could be checked"
		}
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	x.e.Reached = true
	brokers, err := kadm.NewClient(x.client).ListBrokers(ctx)
	if err != nil {
		x.fails("connection", fmt.Errorf("ask kafka for its brokers: %w", err))
		return true
	}
	with := "without TLS"
	if x.sink.cfg.Kafka.TLS {
		with = "with TLS"
	}
	if user := x.sink.cfg.Kafka.SASL.Username; user != "" {
		with = "as user " + user + ", " + with
	}
	x.passes("connection", "Kafka at %s answers, %s; brokers: %d", strings.Join(x.sink.cfg.Kafka.Brokers, ", "), with, len(brokers))
	return true
}

// state checks the state topic.
func (x *examiner) state(ctx context.Context) {
	name := x.sink.cfg.StateTopic()
	found := x.topic(ctx, "state_topic", name, "Read", "Write")
	switch {
	case found == nil:
	case found.missing:
		x.add(cdc.Finding{
			Severity: cdc.Problem, Check: "state_topic", Found: fmt.Sprintf("topic %s does not exist", name), Init: true,
			Means: "the relay keeps its position there, and does not start without it",
			Run:   "run `walpost init` if this pipeline is new; if the topic was deleted, `walpost adopt` makes it again and continues from the slot's position",
		})
	default:
		if err := checkStateTopic(name, &found.topic); err != nil {
			x.fails("state_topic", err)
			return
		}
		x.compacted("state_topic", name, &found.topic)
	}
}

// deadLetters checks the dead letter topic.
func (x *examiner) deadLetters(ctx context.Context) {
	name := x.sink.cfg.DeadLetterTopic()
	found := x.topic(ctx, "dead_letter_topic", name, "Read", "Write")
	if found == nil {
		return
	}
	described := &found.topic
	if found.missing {
		described = nil
	}
	if err := checkDeadLetterTopic(name, described); err != nil {
		x.fails("dead_letter_topic", err)
		x.e.Findings[len(x.e.Findings)-1].Init = found.missing
		return
	}
	x.compacted("dead_letter_topic", name, &found.topic)
}

// compacted adds that a topic is in order, or that Kafka does not show whether it is compacted.
func (x *examiner) compacted(check, name string, t *topic) {
	if _, known := t.config["cleanup.policy"]; known {
		x.passes(check, "topic %s has one partition and is compacted", name)
		return
	}
	x.add(cdc.Finding{
		Severity: cdc.Note, Check: check, Found: fmt.Sprintf("topic %s has one partition, and Kafka does not show whether it is compacted", name),
		Means: "if its cleanup.policy is not compact, Kafka deletes its records after a while", Run: x.sink.grant(identity.Topic, name, "DescribeConfigs"),
	})
}

// rows checks a topic of rows.
func (x *examiner) rows(ctx context.Context, name string) {
	s := x.sink
	found := x.topic(ctx, "topic", name, "Write")
	switch {
	case found == nil:
		return
	case found.missing && s.cfg.Kafka.CreateTopics:
		x.passes("topic", "topic %s does not exist; the relay creates it before its first row (kafka.create_topics)", name)
		return
	case found.missing:
		x.fails("topic_missing", s.noTopic(name))
		x.e.Findings[len(x.e.Findings)-1].Init = true
		return
	}
	takes := s.limitOf(&found.topic)
	if x.e.Takes == nil {
		x.e.Takes, x.e.Partitions = map[string]int{}, Partitions{}
	}
	x.e.Takes[name], x.e.Partitions[name] = takes.bytes, found.partitions
	if takes.assumed {
		x.add(cdc.Finding{
			Severity: cdc.Note, Check: "topic", Found: fmt.Sprintf("topic %s has %d partitions, and Kafka does not show its limit for records (max.message.bytes)", name, found.partitions),
			Means: fmt.Sprintf("the relay takes it for the default, %d bytes: a larger row is a poison row", takes.bytes), Run: s.grant(identity.Topic, name, "DescribeConfigs"),
		})
		return
	}
	x.passes("topic", "topic %s (partitions: %d, replicas: %d) takes records of up to %s", name, found.partitions, found.replication, plain.Size(int64(takes.bytes)))
}

// described is a topic, or a missing one.
type described struct {
	topic
	missing bool
}

// topic describes a topic, and checks that the login may do the operations on it. It returns nil if there is nothing more to check.
func (x *examiner) topic(ctx context.Context, check, name string, operations ...string) *described {
	found, err := x.sink.describe(ctx, x.client, []string{name}, true, operations...)
	switch {
	case errors.As(err, new(*cdc.HaltError)):
		x.fails("acl", err)
		return nil
	case err != nil:
		x.fails(check, err)
		return nil
	case found[name] == nil:
		return &described{missing: true}
	}
	t := found[name]
	lacks := slices.DeleteFunc(slices.Clone(operations), t.allows)
	if len(lacks) == 0 {
		return &described{topic: *t}
	}
	x.add(cdc.Finding{
		Severity: cdc.Problem, Check: "acl", Found: fmt.Sprintf("kafka does not allow the relay's login to %s topic %s", strings.ToLower(strings.Join(lacks, " and ")), name),
		Means: "the relay stops there; nothing is lost", Run: x.sink.grant(identity.Topic, name, lacks...),
	})
	return nil
}

// allows reports whether the login may do the operation on the topic. It returns true where Kafka does not say it.
func (t *topic) allows(operation string) bool {
	op, err := kmsg.ParseACLOperation(operation)
	return err != nil || t.allowed < 0 || t.allowed&(1<<op) != 0
}

// RaiseLimit returns the command that lets a topic take larger records.
func (s *Sink) RaiseLimit(name string, bytes int64) string {
	return fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --alter --topic %s --add-config max.message.bytes=%d", strings.Join(s.cfg.Kafka.Brokers, ","), name, bytes)
}
