package identity

import (
	"fmt"
	"strings"
)

// The kinds of resources that have rights in Kafka, with the names of kafka-acls.sh.
const (
	Topic           = "topic"
	Group           = "group"
	TransactionalID = "transactional-id"
)

// Grant returns the instruction, with a command to run, that gives us the operations on a resource of Kafka.
func (l *Login) Grant(brokers []string, kind, name string, operations ...string) string {
	user, command := "User:NAME", "kafka-acls.sh --bootstrap-server "+strings.Join(brokers, ",")
	if l != nil && l.k.SASL.Username != "" { // otherwise only Kafka knows the name, from a certificate or a token
		user = "User:" + l.k.SASL.Username
	}
	if l != nil && (l.k.TLS || l.k.SASL.Mechanism != NoLogin) {
		command += " --command-config FILE" // the settings of an administrator, who has to log in, too
	}
	command += " --add --allow-principal " + user
	for _, operation := range operations {
		command += " --operation " + operation
	}
	return fmt.Sprintf("grant %s on %s %s to %s: %s --%s %s", strings.Join(operations, " and "), strings.ReplaceAll(kind, "-", " "), name, user, command, kind, name)
}
