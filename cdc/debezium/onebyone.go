package debezium

import (
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// oneByOne has a function for each option that depends on others, or reaches a key of walpost.
var oneByOne map[string]func(*importing, entry)

func init() { // a literal would refer to itself
	oneByOne = map[string]func(*importing, entry){
		"name":            func(i *importing, e entry) { i.line(e, Equivalent, "pipeline") },
		"connector.class": func(i *importing, e entry) { i.line(e, Equivalent, "source.kind: wal, its default") },
		"topic.prefix": func(i *importing, e entry) {
			i.set("topic.prefix", strings.TrimSpace(e.value))
			i.line(e, TakenOver, "topic.prefix")
		},
		"extended.headers.enabled": func(i *importing, e entry) {
			i.set("extended.headers.enabled", strings.TrimSpace(e.value))
			i.line(e, TakenOver, "extended.headers.enabled")
		},
		"binary.handling.mode":                   (*importing).typeMode,
		"decimal.handling.mode":                  (*importing).typeMode,
		"time.precision.mode":                    (*importing).typeMode,
		"interval.handling.mode":                 (*importing).typeMode,
		"hstore.handling.mode":                   (*importing).typeMode,
		"schema.name.adjustment.mode":            (*importing).typeMode,
		"event.converting.failure.handling.mode": (*importing).typeMode,
		"converters":                             (*importing).plugins,
		"post.processors":                        (*importing).plugins,
		"plugin.name":                            func(i *importing, e entry) { i.line(e, Equivalent, "walpost reads slots of pgoutput") },
		"slot.name": func(i *importing, e entry) {
			i.line(e, Equivalent, "source.slot; the move continues with this slot, or with a second one")
		},
		"slot.drop.on.stop": func(i *importing, e entry) {
			if isTrue(e.value) {
				i.line(e, NoEffect, "walpost never drops its slot; set it to false in the connector before you move with the same slot, which is lost otherwise when the connector stops")
				return
			}
			i.line(e, NoEffect, "walpost never drops its slot")
		},
		"slot.failover": func(i *importing, e entry) {
			i.line(e, NoEffect, "the slot keeps the flag that it has; `walpost init` creates a slot with failover where the server has it")
		},
		"slot.stream.params": func(i *importing, e entry) {
			if strings.Contains(strings.ReplaceAll(e.value, " ", ""), "origin=none") {
				i.line(e, Unsupported, "rows that another server has replicated into the table are published, too")
				return
			}
			i.line(e, NoEffect, "walpost sets the parameters of its stream itself")
		},
		"table.include.list":          (*importing).includeList,
		"publication.name":            func(i *importing, e entry) { i.line(e, Equivalent, "source.publication") },
		"publication.autocreate.mode": (*importing).autocreate,
		"publish.via.partition.root":  (*importing).viaRoot,
		"table.exclude.list": func(i *importing, e entry) {
			i.line(e, NoEffect, "it leaves the outbox in, and walpost reads no other table")
		},
		"schema.include.list": func(i *importing, e entry) {
			i.line(e, NoEffect, "it leaves the outbox in, and walpost reads no other table")
		},
		"schema.exclude.list": func(i *importing, e entry) {
			i.line(e, NoEffect, "it leaves the outbox in, and walpost reads no other table")
		},
		"column.include.list":                    func(i *importing, e entry) { i.line(e, NoEffect, "it leaves in the columns that the router reads") },
		"column.exclude.list":                    func(i *importing, e entry) { i.line(e, NoEffect, "it leaves in the columns that the router reads") },
		"column.propagate.source.type":           (*importing).propagate,
		"datatype.propagate.source.type":         (*importing).propagate,
		"skipped.operations":                     (*importing).skipped,
		"snapshot.mode":                          (*importing).snapshot,
		"notification.enabled.channels":          (*importing).notifications,
		"provide.transaction.metadata":           (*importing).transactions,
		"event.processing.failure.handling.mode": (*importing).failures,
		"errors.tolerance":                       (*importing).failures,
		"exactly.once.support":                   (*importing).exactlyOnce,
		"topic.creation.groups":                  func(i *importing, e entry) { i.line(e, NoEffect, saysTopics) },
		"database.hostname":                      func(i *importing, e entry) { i.line(e, Equivalent, "source.url") },
		"database.port":                          func(i *importing, e entry) { i.line(e, Equivalent, "source.url") },
		"database.dbname":                        func(i *importing, e entry) { i.line(e, Equivalent, "source.url") },
		"database.user": func(i *importing, e entry) {
			i.line(e, Equivalent, "source.url; the role needs LOGIN and REPLICATION, and no other right")
		},
		"database.password":    (*importing).password,
		"database.sslmode":     (*importing).sslmode,
		"database.sslrootcert": (*importing).certificate,
		"database.sslcert":     (*importing).certificate,
		"database.sslkey":      (*importing).certificate,
		"database.sslpassword": func(i *importing, e entry) {
			i.line(e, Equivalent, "the variable PGSSLPASSWORD, if the key stays encrypted: the secret is not printed here (cdc/identity/README.md)")
		},
		"database.sslfactory": func(i *importing, e entry) {
			if simple(e.value) == "NonValidatingFactory" {
				i.line(e, Equivalent, "sslmode=require in source.url, which checks no certificate either")
				return
			}
			i.line(e, NoEffect, "a class of Java; sslmode and sslrootcert in source.url say what walpost checks")
		},
	}
}

// isTrue reports whether an option's value is true.
func isTrue(value string) bool { return strings.EqualFold(strings.TrimSpace(value), "true") }

// typeMode takes the form of a type of column over, or writes what a consumer sees in its place.
func (i *importing) typeMode(e entry) {
	value := strings.TrimSpace(e.value)
	if _, err := Parse(map[string]string{optionPrefix: "p", e.name: value}); err == nil {
		i.set(e.name, value)
		i.line(e, TakenOver, "%s", e.name)
		return
	}
	if e.name == "schema.name.adjustment.mode" {
		i.line(e, Unsupported, "the names of schemas in keys and values keep their letters")
		return
	}
	i.line(e, Unsupported, "columns of this kind are written as with %s, Debezium's default", known[e.name].normal)
}

// plugins writes the line of Debezium's converters or post processors.
func (i *importing) plugins(e entry) {
	names := commaList(e.value)
	if len(names) == 0 {
		i.line(e, NoEffect, "it is empty")
		return
	}
	for j := range names {
		names[j] = printable(names[j])
	}
	i.line(e, Unsupported, "%s: columns that it changes are written as they are in the table", strings.Join(names, ", "))
}

// saysAllTables says what a publication of all tables means for the move.
const saysAllTables = "A publication FOR ALL TABLES rules out way (b) of the move, not way (a): for (b) give the connector one that lists its tables (cdc/debezium/MOVE.md)"

func (i *importing) autocreate(e entry) {
	switch strings.ToLower(strings.TrimSpace(e.value)) {
	case "all_tables":
		i.line(e, NoEffect, "walpost needs a publication with the inserts of the outbox, and takes one of all tables too, although the server then sends it the changes of all; `walpost init` creates one of the outbox alone. %s", saysAllTables)
	default:
		i.line(e, NoEffect, "the relay never creates a publication, `walpost init` does; it needs the inserts of the outbox")
	}
}

func (i *importing) viaRoot(e entry) {
	if isTrue(e.value) {
		i.line(e, Equivalent, "a partitioned outbox is read by its root: the publication keeps publish_via_partition_root")
		return
	}
	i.line(e, NoEffect, "it is for a partitioned outbox, which walpost reads by its root: the publication needs publish_via_partition_root = true then")
}

// propagate notes what a consumer sees without the types of columns in schemas.
func (i *importing) propagate(e entry) {
	if strings.TrimSpace(e.value) == "" {
		i.line(e, NoEffect, "it is empty")
		return
	}
	i.line(e, Unsupported, "schemas in records (JsonConverter with schemas.enable) do not have the parameters __debezium.source.column")
}

func (i *importing) skipped(e entry) {
	if skips(e.value, 'c') {
		i.line(e, Unsupported, "Debezium publishes no insert at all, and walpost publishes each")
		return
	}
	i.line(e, NoEffect, "walpost reads inserts, and the router drops updates and deletes")
}

func (i *importing) snapshot(e entry) {
	switch mode := strings.ToLower(strings.TrimSpace(e.value)); mode {
	case "always":
		i.line(e, Unsupported, "the rows of the table are not published again at each start; %s", saysReplay)
	case "initial_only", "custom", "configuration_based":
		i.line(e, Unsupported, "%s: walpost publishes each new row, and no older one; %s", mode, saysReplay)
	case "never", "no_data", "schema_only", "schema_only_recovery", "recovery":
		i.line(e, NoEffect, "walpost publishes new rows only, as this mode does")
	default:
		i.line(e, NoEffect, "%s", saysSnapshot)
	}
}

func (i *importing) notifications(e entry) {
	if slices.Contains(commaList(e.value), "sink") {
		i.line(e, Unsupported, "the topic of notification.sink.topic.name gets no more records")
		return
	}
	i.line(e, NoEffect, "walpost has logs and metrics (cdc/METRICS.md), and sends no notifications")
}

func (i *importing) transactions(e entry) {
	if isTrue(e.value) {
		i.line(e, Unsupported, "the topic with the suffix .transaction gets no more records")
		return
	}
	i.line(e, NoEffect, "walpost writes no records about transactions")
}

// failures writes the line of the choice to drop rows that fail.
func (i *importing) failures(e entry) {
	if reference.MatchString(e.value) {
		i.line(e, Equivalent, "poison.policy: the value is resolved elsewhere: write dead_letter there if rows that fail are dropped today")
		return
	}
	switch strings.ToLower(strings.TrimSpace(e.value)) {
	case "fail", "none":
		i.line(e, Equivalent, "poison.policy: halt, its default")
	default:
		i.poison = "dead_letter"
		i.line(e, Equivalent, "poison.policy: dead_letter: walpost never drops a row: one that cannot be published is kept in the dead letter topic (`walpost dlq list`), and the others go on")
	}
}

func (i *importing) exactlyOnce(e entry) {
	if reference.MatchString(e.value) {
		i.line(e, Equivalent, "delivery: the value is resolved elsewhere: write exactly_once there if it is required")
		return
	}
	if strings.EqualFold(strings.TrimSpace(e.value), "required") {
		i.delivery = "exactly_once"
		i.line(e, Equivalent, "delivery: exactly_once")
		return
	}
	i.line(e, NoEffect, "delivery: at_least_once, its default; exactly_once works with each Kafka that walpost takes")
}

// The references of Connect's and Strimzi's providers whose parts are names, and no secrets.
var (
	ofDirectory = regexp.MustCompile(`^\$\{dir(?:ectory)?:(/[\w./-]+):([\w.-]+)\}$`)
	ofFile      = regexp.MustCompile(`^\$\{file:(/[\w./-]+):([\w.-]+)\}$`)
	ofSecret    = regexp.MustCompile(`^\$\{secrets:([\w.-]+/[\w.-]+):([\w.-]+)\}$`)
	ofVariable  = regexp.MustCompile(`^\$\{(?:(?:strimzi)?env:)?([A-Z_][A-Z0-9_]*)(?::[^}]*)?\}$`)
)

// password writes the line of the password: where it belongs, without the password.
func (i *importing) password(e entry) {
	value := strings.TrimSpace(e.value)
	if m := ofDirectory.FindStringSubmatch(value); m != nil {
		i.database["password_file"] = path.Join(m[1], m[2])
		i.line(e, Equivalent, "password_file in source.url: the file of the reference, which must hold the password alone")
		return
	}
	from := "write it to a file that holds it alone, and add password_file=FILE to source.url, or set the whole URL in WALPOST_SOURCE_URL (cdc/identity/README.md)"
	switch {
	case ofFile.MatchString(value):
		m := ofFile.FindStringSubmatch(value)
		i.line(e, Equivalent, "it is in %s, under %s: %s", m[1], m[2], from)
	case ofSecret.MatchString(value):
		m := ofSecret.FindStringSubmatch(value)
		i.line(e, Equivalent, "mount the key %s of the Secret %s as a file, and add password_file=FILE to source.url (cdc/identity/README.md)", m[2], m[1])
	case ofVariable.MatchString(value):
		i.line(e, Equivalent, "it is in the variable %s: %s", ofVariable.FindStringSubmatch(value)[1], from)
	default:
		i.line(e, Equivalent, "it is not printed here: %s", from)
	}
}

// sslmode notes which connection Debezium has, and sets walpost's.
func (i *importing) sslmode(e entry) {
	switch mode := strings.ToLower(strings.TrimSpace(e.value)); mode {
	case "disable", "require", "verify-ca", "verify-full":
		i.database["sslmode"] = mode
		i.line(e, Equivalent, "source.url")
	case "required", "verify_ca", "verify_full":
		i.database["sslmode"] = map[string]string{"required": "require", "verify_ca": "verify-ca", "verify_full": "verify-full"}[mode]
		i.line(e, Equivalent, "source.url")
	case "allow", "prefer", "":
		i.line(e, Equivalent, "source.url has sslmode=require (to this machine: none), because walpost never sends a password in clear by chance: write verify-full and sslrootcert for a checked server, or disable for one without TLS")
	}
}

// certificate takes the path of a certificate or key over.
func (i *importing) certificate(e entry) {
	parameter := strings.TrimPrefix(e.name, "database.")
	file := strings.TrimSpace(e.value)
	if !strings.HasPrefix(file, "/") || reference.MatchString(file) {
		i.line(e, Equivalent, "%s=FILE in source.url: name the file with its whole path; this one depends on where Connect runs", parameter)
		return
	}
	i.database[parameter] = file
	said := ""
	if parameter == "sslkey" {
		said = "; Debezium's driver reads PKCS-8 in DER, walpost reads PEM: openssl pkey -inform DER -in FILE.pk8 -out FILE"
	}
	i.line(e, Equivalent, "%s in source.url; the file must be where walpost runs%s", parameter, said)
}

// readServer writes the line of an option that only Debezium Server has.
func (i *importing) readServer(e entry) {
	name := strings.TrimPrefix(e.name, "debezium.")
	switch {
	case name == "sink.type":
		i.line(e, Equivalent, "kafka.brokers")
	case name == "sink.kafka.wait.message.delivery.timeout.ms":
		i.line(e, NoEffect, "walpost waits for Kafka, and keeps the connection alive meanwhile (queue_timeout)")
	case strings.HasPrefix(name, "sink.kafka."):
		i.unknown(e, i.knownNames())
	case strings.HasPrefix(name, "sink."):
		i.line(e, NoEffect, "it is for another sink")
	case strings.HasPrefix(name, "api."), strings.HasPrefix(name, "deployment."):
		i.line(e, NoEffect, "a setting of Debezium Server, which does not run walpost")
	case name == "format" || strings.HasPrefix(name, "format."):
		i.readFormat(e, strings.TrimPrefix(name, "format."))
	default:
		i.unknown(e, i.knownNames())
	}
}

// readProducer writes the line of an option of Kafka's producer.
func (i *importing) readProducer(e entry, option string) {
	value := strings.TrimSpace(e.value)
	switch option {
	case "bootstrap.servers":
		i.line(e, Equivalent, "kafka.brokers")
	case "compression.type":
		i.line(e, Equivalent, "kafka.compression")
	case "max.request.size":
		i.line(e, NoEffect, "kafka.max_request_bytes is 100MiB; the topic's max.message.bytes is the limit")
	case "transaction.timeout.ms":
		i.line(e, NoEffect, "kafka.transaction_timeout is 30s, with delivery: exactly_once")
	case "partitioner.class":
		if value == "" || slices.Contains([]string{"DefaultPartitioner", "BuiltInPartitioner"}, simple(value)) {
			i.line(e, NoEffect, "the default: murmur2 of the key")
			return
		}
		i.line(e, Unsupported, "a record is in the partition of its key (murmur2), not in that of %s: the order of a key across the move is lost", simpleName(value))
	case "partitioner.ignore.keys":
		if isTrue(value) {
			i.line(e, Unsupported, "a record is in the partition of its key (murmur2), not in any")
			return
		}
		i.line(e, NoEffect, "the default: murmur2 of the key")
	case "interceptor.classes":
		if value == "" {
			i.line(e, NoEffect, "it is empty")
			return
		}
		i.line(e, Unsupported, "the interceptors do not run: their changes are missing in the records, headers of traces for example")
	case "security.protocol":
		i.line(e, Equivalent, "kafka.tls, kafka.sasl.mechanism")
	case "sasl.mechanism":
		i.line(e, Equivalent, "kafka.sasl.mechanism")
	case "sasl.jaas.config":
		i.line(e, Equivalent, "kafka.sasl.username; the password is not printed here: write it to a file that holds it alone, and name that in kafka.sasl.password_file, or set WALPOST_KAFKA_SASL_PASSWORD")
	case "sasl.oauthbearer.token.endpoint.url":
		i.line(e, Equivalent, "kafka.sasl.token_url")
	case "ssl.truststore.location":
		i.line(e, Equivalent, "kafka.tls_ca_file%s", pemOnly(i.producerValue("ssl.truststore.type"), value, "keytool -exportcert -rfc -keystore STORE -alias NAME > FILE"))
	case "ssl.keystore.location":
		i.line(e, Equivalent, "kafka.tls_cert_file and kafka.tls_key_file%s", pemOnly(i.producerValue("ssl.keystore.type"), value, "openssl pkcs12 -in STORE -nodes"))
	case "ssl.truststore.certificates":
		i.line(e, Equivalent, "kafka.tls_ca_file: write the certificates to a file, and name it there")
	case "ssl.keystore.key", "ssl.keystore.certificate.chain":
		i.line(e, Equivalent, "kafka.tls_cert_file and kafka.tls_key_file: write certificate and key to files, and name them there; neither is printed here")
	case "ssl.truststore.password", "ssl.keystore.password", "ssl.key.password", "ssl.truststore.type", "ssl.keystore.type":
		i.line(e, NoEffect, "walpost reads certificates as PEM, and keys for Kafka without a passphrase")
	default:
		if slices.Contains(producerOptions, option) {
			i.line(e, NoEffect, saysProducer)
			return
		}
		i.unknown(e, i.knownNames())
	}
}

// producerValue returns the value of an option of the producer, from the connector or the worker.
func (i *importing) producerValue(option string) string {
	if v, ok := i.options.get(overrides + option); ok {
		return strings.TrimSpace(v)
	}
	return i.worker.producer(option)
}

// pemOnly returns what to do with a store that is not PEM; nothing for PEM.
func pemOnly(kind, file, command string) string {
	if isPEM(kind, file) {
		return "; the file must be where walpost runs"
	}
	return ": walpost reads PEM: " + command + ", and name the file there"
}

// isPEM reports whether a store of this type can be named in walpost's configuration.
func isPEM(kind, file string) bool {
	return strings.EqualFold(kind, "PEM") && strings.HasPrefix(file, "/") && !reference.MatchString(file)
}

// mechanisms are walpost's names of Kafka's.
var mechanisms = map[string]string{
	"PLAIN": "plain", "SCRAM-SHA-256": "scram-sha-256", "SCRAM-SHA-512": "scram-sha-512", "OAUTHBEARER": "oauthbearer", "AWS_MSK_IAM": "aws-msk-iam",
}

var (
	jaasUser   = regexp.MustCompile(`\busername\s*=\s*"([^"]*)"`)
	jaasClient = regexp.MustCompile(`\bclientId\s*=\s*"([^"]*)"`)
)

// sink makes the keys of Kafka.
func (i *importing) sink() {
	i.brokers = slices.Clone(i.asked.Brokers)
	if len(i.brokers) == 0 {
		i.brokers = commaList(i.producerValue("bootstrap.servers"))
	}
	if len(i.brokers) == 0 {
		i.brokers = commaList(i.worker.value("bootstrap.servers"))
	}
	for j, b := range i.brokers {
		if _, address, ok := strings.Cut(b, "://"); ok { // Kafka's clients ignore it
			i.brokers[j] = address
		}
		if reference.MatchString(b) {
			i.wrong("bootstrap.servers: the value is a reference that is resolved elsewhere: name the brokers with --brokers host:9092")
			return
		}
		if _, port, err := net.SplitHostPort(i.brokers[j]); err != nil || portOf(port) == 0 {
			i.wrong("kafka.brokers: a broker of the input or of --brokers is no host with a port: write host:9092")
			return
		}
	}
	if len(i.brokers) == 0 {
		i.wrong("kafka.brokers: missing: the input does not name Kafka's brokers: add --brokers host:9092, or --worker with the worker's file")
	}
	i.Notes = append(i.Notes, "kafka.create_topics is true, because Connect or the brokers create the topics of new aggregate types for Debezium; walpost gives them kafka.partitions and kafka.retention")
	add := func(key, value string) {
		if value != "" {
			i.kafka = append(i.kafka, [2]string{key, value})
		}
	}
	switch c := strings.ToLower(i.producerValue("compression.type")); c {
	case "", "none":
	case "gzip", "snappy", "lz4", "zstd":
		add("compression", c)
	default:
		i.wrong("%s: Kafka has no such compression: write none, gzip, snappy, lz4 or zstd", i.label(overrides+"compression.type"))
	}
	protocol := strings.ToUpper(i.producerValue("security.protocol"))
	if protocol == "SSL" || protocol == "SASL_SSL" {
		add("tls", "true")
		if file := i.producerValue("ssl.truststore.location"); isPEM(i.producerValue("ssl.truststore.type"), file) {
			add("tls_ca_file", file)
		}
		if file := i.producerValue("ssl.keystore.location"); isPEM(i.producerValue("ssl.keystore.type"), file) {
			add("tls_cert_file", file)
			add("tls_key_file", file)
		}
	}
	if protocol != "SASL_PLAINTEXT" && protocol != "SASL_SSL" {
		return
	}
	mechanism := strings.ToUpper(i.producerValue("sasl.mechanism"))
	if mechanism == "" {
		mechanism = "GSSAPI"
	}
	ours, ok := mechanisms[mechanism]
	if !ok {
		i.wrong("%s: walpost has no such login (Kerberos, for example): give walpost a user with PLAIN, SCRAM or OAUTHBEARER, and import a copy of the input that has it", i.label(overrides+"sasl.mechanism"))
		return
	}
	add("sasl.mechanism", ours)
	jaas := i.producerValue("sasl.jaas.config")
	switch ours {
	case "plain", "scram-sha-256", "scram-sha-512":
		if m := jaasUser.FindStringSubmatch(jaas); m != nil && !reference.MatchString(m[1]) {
			add("sasl.username", m[1])
		} else {
			i.Notes = append(i.Notes, "kafka.sasl.username: the input does not hold it: write it there")
		}
	case "oauthbearer":
		add("sasl.token_url", i.producerValue("sasl.oauthbearer.token.endpoint.url"))
		if m := jaasClient.FindStringSubmatch(jaas); m != nil && !reference.MatchString(m[1]) {
			add("sasl.client_id", m[1])
		}
		i.Notes = append(i.Notes, "kafka.sasl.client_secret_file: write the secret of the client to a file that holds it alone, and name it there")
	}
}

// portOf returns the text as a port of TCP; 0 if it is none.
func portOf(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 {
		return 0
	}
	return n
}
