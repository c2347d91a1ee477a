package identity

import (
	"cmp"
	"fmt"
	"strings"
)

// The kinds of resources that have rights in Kafka, as kafka-acls.sh calls them.
const (
	Topic           = "topic"
	Group           = "group"
	TransactionalID = "transactional-id"
)

// Grant returns what to run so that a user of Kafka may do the operations on a resource. A user without a name is known to Kafka alone: by a
// certificate or a token.
func Grant(user string, brokers []string, kind, name string, operations ...string) string {
	user = "User:" + cmp.Or(user, "NAME")
	command := fmt.Sprintf("kafka-acls.sh --bootstrap-server %s --add --allow-principal %s", strings.Join(brokers, ","), user)
	for _, operation := range operations {
		command += " --operation " + operation
	}
	return fmt.Sprintf("grant %s on %s %s to %s: %s --%s %s", strings.Join(operations, " and "), strings.ReplaceAll(kind, "-", " "), name, user, command, kind, name)
}

// User returns the name by which Kafka knows us, where we know it.
func (l *Login) User() string {
	if l == nil {
		return ""
	}
	return l.k.SASL.Username
}
