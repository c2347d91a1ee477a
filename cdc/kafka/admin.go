package kafka

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/internal/failpoint"
)

// Admin creates and removes what a pipeline needs in Kafka, for `walpost init`.
type Admin struct {
	sink    *Sink
	client  *kgo.Client
	brokers int
}

// Admin connects, and returns an error if Kafka does not answer.
func (s *Sink) Admin(ctx context.Context) (*Admin, error) {
	client, err := s.connect(ctx, kgo.RequiredAcks(kgo.AllISRAcks()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	brokers, err := kadm.NewClient(client).ListBrokers(ctx)
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("ask kafka for its brokers: %w", err)
	}
	return &Admin{sink: s, client: client, brokers: len(brokers)}, nil
}

// Close ends the connection.
func (a *Admin) Close() { a.client.Close() }

// TopicPlan describes a topic as it should be.
type TopicPlan struct {
	Name        string
	Partitions  int
	Replication int // 0: the brokers' default
	Config      map[string]string
	Tuning      map[string]string // settings that improve the topic, and that some services let no client set
}

// String returns a description of the topic to create.
func (p TopicPlan) String() string {
	said := fmt.Sprintf("%d partitions", p.Partitions)
	for _, settings := range []map[string]string{p.Config, p.Tuning} {
		for _, key := range slices.Sorted(maps.Keys(settings)) {
			said += ", " + key + "=" + settings[key]
		}
	}
	return said
}

// instead returns what to do if Kafka does not create the topic for this sink.
func (p TopicPlan) instead(s *Sink, err error) string {
	const byHand = "create it by hand with these settings, or give the user of kafka.sasl the right"
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return s.grant(identity.Topic, p.Name, "Create") + "; or create it by hand with these settings"
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return "set kafka.replication to a number of replicas that this Kafka has brokers for"
	case errors.Is(err, kerr.InvalidPartitions):
		return "set kafka.partitions to a number that this Kafka allows"
	case !errors.Is(err, kerr.InvalidConfig) && !errors.Is(err, kerr.PolicyViolation):
		return byHand
	case p.Config["max.message.bytes"] != "":
		return "lower source.max_row_bytes, because max.message.bytes is twice that plus 64 KiB; or this Kafka has no compaction, which dead letters need: poison.policy: halt works without it; or " + byHand
	case p.Config["cleanup.policy"] != "":
		return "a topic that is not compacted loses the delivered position after some time, and this Kafka may have no compaction (or not in this tier): source.kind: polling works without it; or " + byHand
	}
	return "set kafka.retention to what this Kafka allows, or " + byHand
}

// Topics returns the plan of all topics that are known: the state topic, the dead letter topic if the policy needs
// one, and the topics of the rows.
func (a *Admin) Topics() []TopicPlan {
	k := a.sink.cfg.Kafka
	stateReplication := k.Replication
	if stateReplication == 0 {
		stateReplication = min(3, a.brokers) // the delivered position must not depend on one broker
	}
	var plans []TopicPlan
	if a.sink.cfg.Source.Kind != config.KindPolling { // a polled table records itself which rows are published
		plans = append(plans, TopicPlan{
			Name: a.sink.cfg.StateTopic(), Partitions: 1, Replication: stateReplication,
			Config: map[string]string{"cleanup.policy": "compact"},
			// The topic stays small, and is read at each start. In exactly-once each window leaves a marker, which
			// stays for delete.retention.ms: by default a day, which is a gigabyte for a busy relay.
			Tuning: map[string]string{"segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "60000"},
		})
	}
	if a.sink.cfg.Poison.Policy == config.PolicyDeadLetter {
		plans = append(plans, deadLetterPlan(a.sink.cfg, stateReplication))
	}
	for _, name := range a.sink.topics {
		plans = append(plans, a.sink.plan(name))
	}
	return plans
}

// plan returns the plan of a topic of rows.
func (s *Sink) plan(name string) TopicPlan {
	k := s.cfg.Kafka
	retention := "-1"
	if k.Retention > 0 {
		retention = strconv.FormatInt(k.Retention.Milliseconds(), 10)
	}
	return TopicPlan{Name: name, Partitions: k.Partitions, Replication: k.Replication, Config: map[string]string{"retention.ms": retention}}
}

// CreateCommand returns the kafka-topics.sh command that creates a topic of rows as init would.
func (s *Sink) CreateCommand(name string) string {
	plan := s.plan(name)
	command := fmt.Sprintf("kafka-topics.sh --bootstrap-server %s --create --topic %s --partitions %d", strings.Join(s.cfg.Kafka.Brokers, ","), name, plan.Partitions)
	if plan.Replication > 0 {
		command += fmt.Sprintf(" --replication-factor %d", plan.Replication)
	}
	for _, key := range slices.Sorted(maps.Keys(plan.Config)) {
		command += " --config " + key + "=" + plan.Config[key]
	}
	return command
}

// prepares lists the operations that it takes to compare a topic with its plan.
var prepares = []string{"Describe", "DescribeConfigs"}

// Missing reports whether the topic does not exist, and returns how an existing one differs from the plan.
func (a *Admin) Missing(ctx context.Context, plan TopicPlan) (missing bool, drift []string, err error) {
	t, err := a.sink.describeTopic(ctx, a.client, plan.Name, prepares...)
	if err != nil || t == nil {
		return err == nil, nil, err
	}
	if t.partitions != plan.Partitions {
		said := fmt.Sprintf("%d partitions instead of %d", t.partitions, plan.Partitions)
		if t.partitions < plan.Partitions && plan.Config["cleanup.policy"] == "" { // a topic of rows
			said += " (more partitions would move keys: read cdc/UPGRADING.md before you add them)"
		}
		drift = append(drift, said)
	}
	if plan.Replication > 0 && t.replication != plan.Replication {
		drift = append(drift, fmt.Sprintf("%d replicas instead of %d", t.replication, plan.Replication))
	}
	for key, want := range plan.Config {
		switch have, known := t.config[key]; {
		case !known:
			unseen := fmt.Sprintf("a %s that Kafka does not show to walpost: check that it is %s", key, want)
			if t.hidden {
				unseen += ", or " + a.sink.grant(identity.Topic, plan.Name, "DescribeConfigs")
			}
			drift = append(drift, unseen)
		case have != want:
			drift = append(drift, fmt.Sprintf("%s=%s instead of %s", key, have, want))
		}
	}
	slices.Sort(drift)
	return false, drift, nil
}

// Create creates the topic and waits until it is visible. If a service does not allow the topic's tuning, the topic
// is created without it: then refused has the reason.
func (a *Admin) Create(ctx context.Context, plan TopicPlan) (refused string, err error) {
	ctx, cancel := context.WithTimeout(ctx, createWithin)
	defer cancel()
	err = a.create(ctx, plan)
	if len(plan.Tuning) > 0 && (errors.Is(err, kerr.PolicyViolation) || errors.Is(err, kerr.InvalidConfig)) {
		refused, plan.Tuning = err.Error(), nil
		err = a.create(ctx, plan)
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return refused, fmt.Errorf("create topic %s with %s: %w: %s", plan.Name, plan, err, plan.instead(a.sink, err))
	}
	return refused, a.sink.waitTopic(ctx, a.client, plan.Name)
}

func (a *Admin) create(ctx context.Context, plan TopicPlan) error {
	settings := map[string]*string{}
	for _, from := range []map[string]string{plan.Config, plan.Tuning} {
		for k, v := range from {
			settings[k] = kadm.StringPtr(v)
		}
	}
	replication := int16(-1)
	if plan.Replication > 0 {
		replication = int16(plan.Replication)
	}
	_, err := kadm.NewClient(a.client).CreateTopic(ctx, int32(plan.Partitions), replication, settings, plan.Name)
	return err
}

// Delete removes the topic; it is no error if the topic does not exist.
func (a *Admin) Delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, createWithin)
	defer cancel()
	resp, err := kadm.NewClient(a.client).DeleteTopic(ctx, name)
	if err == nil {
		err = resp.Err
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		return fmt.Errorf("delete topic %s: %w", name, a.sink.denied(err, name, "Delete"))
	}
	if errors.Is(err, kerr.TopicDeletionDisabled) || unsupported(err) {
		return fmt.Errorf("delete topic %s: %w: delete it by hand, with the rights or the tools that this Kafka needs", name, err)
	}
	if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	return nil
}

// State reads the newest state record.
func (a *Admin) State(ctx context.Context) (*cdc.State, error) { return a.sink.Peek(ctx) }

// WriteDecision makes a record of an operator's decision durable.
func (a *Admin) WriteDecision(ctx context.Context, d *cdc.Decision) error {
	value, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode the decision: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	if err := a.client.ProduceSync(ctx, &kgo.Record{Topic: a.sink.cfg.StateTopic(), Key: []byte(d.Key()), Value: value}).FirstErr(); err != nil {
		return fmt.Errorf("write down the decision: %w", a.sink.denied(err, a.sink.cfg.StateTopic(), "Write"))
	}
	return nil
}

// OpenFenced opens a publisher for state records only. In exactly-once it fences the relay, so the slot must be free.
func (a *Admin) OpenFenced(ctx context.Context) (cdc.Publisher, error) {
	pub, err := (&Sink{cfg: a.sink.cfg, login: a.sink.login, extra: a.sink.extra}).Open(ctx)
	if p, ok := pub.(*publisher); ok {
		p.within = publishWithin
	}
	return pub, err
}

// WriteState makes a state record durable.
func (a *Admin) WriteState(ctx context.Context, st *cdc.State) error {
	p, err := a.OpenFenced(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Publish(ctx, nil, st); err != nil {
		return fmt.Errorf("write the state record: %w", err)
	}
	if err := a.AwaitState(ctx); err != nil {
		return err
	}
	return failpoint.Hit("init_record")
}

// AwaitState waits until everything that was written to the state topic can be read. Kafka answers the end of a
// transaction before its records are readable, and a relay that starts in between would use the record before.
func (a *Admin) AwaitState(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	if _, err := a.sink.readState(ctx, false); err != nil {
		return fmt.Errorf("read the state record back: %w", err)
	}
	return nil
}
