package debezium

import (
	"slices"
	"strings"

	"github.com/walpost/walpost/cdc/misspelt"
)

// Verdict is the effect of an option of the input on walpost.
type Verdict int

// The verdicts, the one that a reader must see first stands first.
const (
	Unsupported Verdict = iota // a consumer sees a difference
	Equivalent                 // another key of walpost has it
	TakenOver                  // it is in the section debezium under its own name
	NoEffect                   // it changes no record
)

// explained is an option that an input may have.
type explained struct {
	name     string
	says     string
	harmless []string // the values with which the option changes nothing, usually its default; nil: every value
	seen     string   // for other values: what a consumer sees; such an option is not supported
}

// The sentences that many options share.
const (
	saysReplay     = "`walpost replay` publishes those of a time range, if the table has a column with the row's time (source.columns.created_at)"
	saysSnapshot   = "a setting of snapshots: walpost publishes new rows only; to publish older ones, " + saysReplay
	saysSignal     = "a setting of signals, which start snapshots: to publish rows again, " + saysReplay
	saysBuffer     = "a size or pause of Debezium's queue: window.rows, window.bytes and window.pace bound walpost's windows"
	saysRetry      = "a setting of retries: walpost tries again until it succeeds, and `walpost status` names the cause"
	saysNames      = "it names topics and schemas of change events, which the router replaces"
	saysOnlyOutbox = "it concerns change events of other kinds than the outbox's inserts"
	saysInternal   = "a setting of Debezium's own machinery"
	saysLineage    = "a setting of OpenLineage, which walpost does not report to"
	saysConnection = "a setting of Debezium's connection: walpost has its own"
	saysPlugin     = "a version of a plugin of Connect"
	saysConnect    = "a setting of Connect, which does not run walpost"
	saysProducer   = "a setting of Connect's producer: walpost's waits for all in-sync replicas, and writes each record in order"
	saysType       = "it chooses the form of a type of column"
	saysEngine     = "a setting of Debezium Server's engine"
)

// connectorOptions are the options of Debezium's PostgreSQL connector, version 3.6, except those that import reads one by
// one (see readers).
var connectorOptions = []explained{
	{name: "database.query.timeout.ms", says: saysConnection},
	{name: "database.initial.statements", says: "statements for Debezium's JDBC connections: walpost runs none"},
	{name: "database.tcpKeepAlive", says: saysConnection},
	{name: "connection.validation.timeout.ms", says: saysConnection},
	{name: "replica.identity.autoset.values", says: "it is for updates and deletes of tables: walpost publishes inserts"},
	{name: "slot.max.retries", says: saysRetry},
	{name: "slot.retry.delay.ms", says: saysRetry},
	{name: "slot.seek.to.known.offset.on.start", says: saysInternal},
	{name: "create.slot.command.timeout", says: "`walpost init` creates a slot, and says which transactions it waits for"},
	{name: "internal.create.slot.command.timeout", says: "`walpost init` creates a slot, and says which transactions it waits for"},
	{name: "status.update.interval.ms", says: "walpost confirms each second (source.status_interval), so that the server keeps less WAL"},
	{name: "lsn.flush.mode", says: "walpost confirms the slot itself, as soon as the rows are durable in Kafka"},
	{name: "flush.lsn.source", says: "walpost confirms the slot itself, as soon as the rows are durable in Kafka"},
	{name: "lsn.flush.timeout.ms", says: "walpost confirms the slot itself, as soon as the rows are durable in Kafka"},
	{name: "lsn.flush.timeout.action", says: "walpost confirms the slot itself, as soon as the rows are durable in Kafka"},
	{name: "offset.mismatch.strategy", says: "walpost compares its state record with the slot at each start, and halts if rows may be missing"},
	{name: "xmin.fetch.interval.ms", says: "a metric of Debezium: `walpost status` shows the slot"},
	{name: "message.prefix.include.list", harmless: []string{""}, says: "it is empty", seen: "messages of pg_logical_emit_message are not published; they go to the topic with the suffix .message"},
	{name: "message.prefix.exclude.list", says: "it is for messages of pg_logical_emit_message, of which walpost publishes none"},
	{name: "message.key.columns", says: "the key of a change event, which the router replaces by table.field.event.key"},
	{name: "tombstones.on.delete", says: "the router drops deletes and the tombstones after them, and walpost reads none"},
	{name: "table.ignore.builtin", says: saysOnlyOutbox},
	{name: "include.schema.comments", says: saysOnlyOutbox},
	{name: "include.schema.changes", says: saysOnlyOutbox},
	{name: "schema.refresh.mode", says: "walpost reads the table's columns from the stream, and halts if one that it needs is missing"},
	{name: "unavailable.value.placeholder", says: "it is for updates, which the router drops"},
	{name: "skip.messages.without.change", says: "it is for updates, which the router drops"},
	{name: "sourceinfo.struct.maker", says: "it shapes the block source of a change event, which the router drops"},
	{name: "topic.delimiter", says: saysNames},
	{name: "topic.cache.size", says: saysNames},
	{name: "topic.transaction", says: saysNames},
	{name: "topic.heartbeat.prefix", says: "walpost needs no heartbeats: it confirms the WAL of other tables too"},
	{name: "heartbeat.topics.prefix", says: "walpost needs no heartbeats: it confirms the WAL of other tables too"},
	{name: "heartbeat.interval.ms", says: "walpost needs no heartbeats: it confirms the WAL of other tables too; the heartbeat topic gets no more records"},
	{name: "heartbeat.action.query", says: "walpost needs no heartbeats, and writes to no table of yours: remove that table after the move"},
	{name: "topic.naming.strategy", harmless: []string{"io.debezium.schema.SchemaTopicNamingStrategy"}, says: saysNames, seen: "the strategy may name the schemas of an envelope otherwise: walpost names them as Debezium does by default"},
	{name: "field.name.adjustment.mode", harmless: []string{"none"}, says: "Debezium's default", seen: "the names of fields in an envelope, and in an expanded payload, keep their letters"},
	{name: "include.unknown.datatypes", harmless: []string{"false"}, says: saysType + ", Debezium's default", seen: "a column of a type that Debezium does not know is not there"},
	{name: "money.fraction.digits", harmless: []string{"2"}, says: saysType + ", Debezium's default", seen: "a column of type money has two digits after the point"},
	{name: "transaction.metadata.factory", says: "it is for provide.transaction.metadata"},
	{name: "max.batch.size", says: saysBuffer},
	{name: "max.queue.size", says: saysBuffer},
	{name: "max.queue.size.in.bytes", says: saysBuffer},
	{name: "poll.interval.ms", says: saysBuffer},
	{name: "poll.dispatch.interval.ms", says: saysBuffer},
	{name: "query.fetch.size", says: saysBuffer},
	{name: "queue.provider.type", says: saysBuffer},
	{name: "errors.max.retries", says: saysRetry},
	{name: "retriable.restart.connector.wait.ms", says: saysRetry},
	{name: "custom.retriable.exception", says: saysRetry},
	{name: "streaming.delay.ms", says: saysSnapshot},
	{name: "snapshot.delay.ms", says: saysSnapshot},
	{name: "snapshot.fetch.size", says: saysSnapshot},
	{name: "snapshot.include.collection.list", says: saysSnapshot},
	{name: "snapshot.isolation.mode", says: saysSnapshot},
	{name: "snapshot.lock.timeout.ms", says: saysSnapshot},
	{name: "snapshot.locking.mode", says: saysSnapshot},
	{name: "snapshot.locking.mode.custom.name", says: saysSnapshot},
	{name: "snapshot.max.threads", says: saysSnapshot},
	{name: "snapshot.max.threads.multiplier", says: saysSnapshot},
	{name: "legacy.snapshot.max.threads", says: saysSnapshot},
	{name: "internal.legacy.snapshot.max.threads", says: saysSnapshot},
	{name: "snapshot.mode.custom.name", says: saysSnapshot},
	{name: "snapshot.mode.configuration.based.snapshot.data", says: saysSnapshot},
	{name: "snapshot.mode.configuration.based.snapshot.schema", says: saysSnapshot},
	{name: "snapshot.mode.configuration.based.start.stream", says: saysSnapshot},
	{name: "snapshot.mode.configuration.based.snapshot.on.schema.error", says: saysSnapshot},
	{name: "snapshot.mode.configuration.based.snapshot.on.data.error", says: saysSnapshot},
	{name: "snapshot.query.mode", says: saysSnapshot},
	{name: "snapshot.query.mode.custom.name", says: saysSnapshot},
	{name: "snapshot.select.statement.overrides", says: saysSnapshot},
	{name: "snapshot.tables.order.by.row.count", says: saysSnapshot},
	{name: "internal.snapshot.scan.all.columns.force", says: saysSnapshot},
	{name: "incremental.snapshot.chunk.size", says: saysSnapshot},
	{name: "incremental.snapshot.watermarking.strategy", says: saysSnapshot},
	{name: "incremental.snapshot.allow.schema.changes", says: saysSnapshot},
	{name: "read.only", says: saysSnapshot},
	{name: "signal.data.collection", says: saysSignal},
	{name: "signal.enabled.channels", says: saysSignal},
	{name: "signal.poll.interval.ms", says: saysSignal},
	{name: "signal.file", says: saysSignal},
	{name: "signal.emit.failure.backoff.ms", says: saysSignal},
	{name: "signal.emit.failure.max.retries", says: saysSignal},
	{name: "notification.sink.topic.name", says: "the topic of notification.enabled.channels"},
	{name: "custom.metric.tags", says: "it names Debezium's metrics: walpost's have the label pipeline"},
	{name: "internal.advanced.metrics.enable", says: "it is for Debezium's metrics"},
	{name: "advanced.metrics.enable", says: "it is for Debezium's metrics"},
	{name: "statistics.metrics.enabled", says: "it is for Debezium's metrics"},
	{name: "custom.sanitize.pattern", says: "it hides secrets in Debezium's log: walpost writes no secret"},
	{name: "guardrail.collections.max", says: "it limits the number of tables: walpost reads one"},
	{name: "guardrail.collections.limit.action", says: "it limits the number of tables: walpost reads one"},
	{name: "executor.shutdown.timeout.ms", says: "shutdown_timeout says how long walpost waits for Kafka after SIGTERM"},
	{name: "memory.management.schemas.class", says: saysInternal},
	{name: "memory.management.tables.class", says: saysInternal},
	{name: "memory.management.cache.size", says: saysInternal},
	{name: "internal.log.position.check.enable", says: saysInternal},
	{name: "log.position.check.enable", says: saysInternal},
	{name: "openlineage.integration.enabled", says: saysLineage},
	{name: "openlineage.integration.config.file.path", says: saysLineage},
	{name: "openlineage.integration.job.namespace", says: saysLineage},
	{name: "openlineage.integration.job.description", says: saysLineage},
	{name: "openlineage.integration.job.tags", says: saysLineage},
	{name: "openlineage.integration.job.owners", says: saysLineage},
	{name: "openlineage.integration.dataset.kafka.bootstrap.servers", says: saysLineage},
}

// connectOptions are the options that Kafka Connect 4.3 has for every connector.
var connectOptions = []explained{
	{name: "connector.plugin.version", says: saysPlugin},
	{name: "key.converter.plugin.version", says: saysPlugin},
	{name: "value.converter.plugin.version", says: saysPlugin},
	{name: "header.converter.plugin.version", says: saysPlugin},
	{name: "tasks.max", says: "the connector has one task, and a pipeline has one relay; a second relay stands by"},
	{name: "tasks.max.enforce", says: "the connector has one task, and a pipeline has one relay; a second relay stands by"},
	{name: "config.action.reload", says: "walpost reads passwords and certificates again at each connection"},
	{name: "errors.retry.timeout", says: saysRetry},
	{name: "errors.retry.delay.max.ms", says: saysRetry},
	{name: "errors.log.enable", says: "walpost logs each row that it cannot publish, without its payload"},
	{name: "errors.log.include.messages", says: "walpost logs each row that it cannot publish, without its payload"},
	{name: "errors.deadletterqueue.topic.name", says: "Connect has this for sinks only: poison.topic names walpost's dead letter topic"},
	{name: "errors.deadletterqueue.topic.replication.factor", says: "Connect has this for sinks only: poison.topic names walpost's dead letter topic"},
	{name: "errors.deadletterqueue.context.headers.enable", says: "Connect has this for sinks only: poison.topic names walpost's dead letter topic"},
	{name: "transaction.boundary", says: "a transaction of walpost holds a window of rows (delivery: exactly_once)"},
	{name: "transaction.boundary.interval.ms", says: "a transaction of walpost holds a window of rows (delivery: exactly_once)"},
	{name: "offsets.storage.topic", says: "walpost keeps its position in the topic walpost.state.<pipeline>; the move reads this one"},
	{name: "topic.creation.enable", says: saysConnect},
	{name: "internal.key.converter", says: saysConnect},
	{name: "internal.value.converter", says: saysConnect},
	{name: "auto.restart", says: saysConnect},
}

// engineOptions are the options of Debezium Server's engine, below debezium.source.
var engineOptions = []explained{
	{name: "name", says: "the engine's name"},
	{name: "offset.storage", says: "walpost keeps its position in the topic walpost.state.<pipeline>; the move reads this one"},
	{name: "offset.storage.file.filename", says: "walpost keeps its position in the topic walpost.state.<pipeline>; the move reads this file"},
	{name: "offset.storage.topic", says: "walpost keeps its position in the topic walpost.state.<pipeline>; the move reads this one"},
	{name: "offset.storage.partitions", says: saysEngine},
	{name: "offset.storage.replication.factor", says: saysEngine},
	{name: "offset.flush.interval.ms", says: "walpost writes its position with each window"},
	{name: "offset.flush.timeout.ms", says: "walpost writes its position with each window"},
	{name: "offset.commit.policy", says: "walpost writes its position with each window"},
	{name: "offset.activity.monitor.interval.ms", says: saysEngine},
	{name: "errors.retry.delay.initial.ms", says: saysRetry},
	{name: "errors.retry.delay.max.ms", says: saysRetry},
	{name: "errors.max.retries", says: saysRetry},
	{name: "record.processing.threads", says: saysEngine},
	{name: "record.processing.shutdown.timeout.ms", says: saysEngine},
	{name: "record.processing.with.serial.consumer", says: saysEngine},
	{name: "debezium.embedded.shutdown.pause.before.interrupt.ms", says: saysEngine},
	{name: "internal.task.management.timeout.ms", says: saysEngine},
	{name: "task.management.timeout.ms", says: saysEngine},
	{name: "tasks.max", says: "the connector has one task, and a pipeline has one relay; a second relay stands by"},
}

// families are options whose names begin with a prefix and end with a name of the user's, or of a client's option.
var families = []struct {
	explained
	connect, server bool
}{
	{explained{name: "snapshot.select.statement.overrides.", says: saysSnapshot}, true, true},
	{explained{name: "signal.kafka.", says: saysSignal}, true, true},
	{explained{name: "signal.consumer.", says: saysSignal}, true, true},
	{explained{name: "driver.", says: saysConnection}, true, true},
	{explained{name: "schema.history.internal", says: "the PostgreSQL connector has no schema history"}, true, true},
	{explained{name: "openlineage.", says: saysLineage}, true, true},
	{explained{name: "consumer.override.", says: saysConnect}, true, false},
	{explained{name: "admin.override.", says: "a setting of the client with which Connect creates topics: `walpost init` creates walpost's own"}, true, false},
	{explained{name: "confluent.", says: saysConnect}, true, false},
	{explained{name: "_aiven.", says: saysConnect}, true, false},
	{explained{name: "errors.deadletterqueue.", says: "Connect has this for sinks only: poison.topic names walpost's dead letter topic"}, true, false},
	{explained{name: "offset.storage.", says: saysEngine}, false, true},
	{explained{name: "internal.", says: saysInternal}, true, true},
}

// readers are the options that import reads one by one.
var readers = []string{
	"name", "connector.class", "transforms", "predicates", "converters", "post.processors",
	"topic.prefix", "plugin.name", "slot.name", "slot.drop.on.stop", "slot.failover", "slot.stream.params", "publication.name", "publication.autocreate.mode",
	"publish.via.partition.root", "table.include.list", "table.exclude.list", "schema.include.list", "schema.exclude.list", "column.include.list", "column.exclude.list",
	"column.propagate.source.type", "datatype.propagate.source.type", "skipped.operations", "snapshot.mode", "notification.enabled.channels", "provide.transaction.metadata",
	"event.processing.failure.handling.mode", "extended.headers.enabled", "binary.handling.mode", "decimal.handling.mode", "time.precision.mode",
	"interval.handling.mode", "hstore.handling.mode", "schema.name.adjustment.mode", "event.converting.failure.handling.mode",
	"database.hostname", "database.port", "database.user", "database.password", "database.dbname", "database.sslmode", "database.sslcert", "database.sslkey",
	"database.sslpassword", "database.sslrootcert", "database.sslfactory",
}

// connectReaders are those that import reads one by one in a connector of Connect only.
var connectReaders = []string{
	"key.converter", "value.converter", "header.converter", "errors.tolerance", "exactly.once.support", "topic.creation.groups",
}

// topicCreation are the endings of topic.creation.GROUP. that Connect itself reads; the others are options of a topic.
var topicCreation = []string{"include", "exclude", "replication.factor", "partitions"}

// producerOptions are the options of Kafka's producer, version 4.3, that change nothing; import reads those of
// producerReaders.
var producerOptions = []string{
	"acks", "batch.size", "buffer.memory", "client.dns.lookup", "client.id", "client.rack", "connections.max.idle.ms", "delivery.timeout.ms", "enable.idempotence",
	"enable.metrics.push", "key.serializer", "linger.ms", "max.block.ms", "max.in.flight.requests.per.connection", "metadata.max.age.ms", "metadata.max.idle.ms",
	"metadata.recovery.rebootstrap.trigger.ms", "metadata.recovery.strategy", "metric.reporters", "metrics.num.samples", "metrics.recording.level",
	"metrics.sample.window.ms", "partitioner.adaptive.partitioning.enable", "partitioner.availability.timeout.ms", "receive.buffer.bytes", "reconnect.backoff.max.ms",
	"reconnect.backoff.ms", "request.timeout.ms", "retries", "retry.backoff.max.ms", "retry.backoff.ms", "security.providers", "send.buffer.bytes",
	"socket.connection.setup.timeout.max.ms", "socket.connection.setup.timeout.ms", "transactional.id", "transaction.two.phase.commit.enable", "value.serializer",
	"compression.gzip.level", "compression.lz4.level", "compression.zstd.level", "auto.include.jmx.reporter", "config.providers",
	"sasl.client.callback.handler.class", "sasl.kerberos.kinit.cmd", "sasl.kerberos.min.time.before.relogin", "sasl.kerberos.service.name",
	"sasl.kerberos.ticket.renew.jitter", "sasl.kerberos.ticket.renew.window.factor", "sasl.login.callback.handler.class", "sasl.login.class",
	"sasl.login.connect.timeout.ms", "sasl.login.read.timeout.ms", "sasl.login.refresh.buffer.seconds", "sasl.login.refresh.min.period.seconds",
	"sasl.login.refresh.window.factor", "sasl.login.refresh.window.jitter", "sasl.login.retry.backoff.max.ms", "sasl.login.retry.backoff.ms",
	"sasl.oauthbearer.clock.skew.seconds", "sasl.oauthbearer.expected.audience", "sasl.oauthbearer.expected.issuer", "sasl.oauthbearer.header.urlencode",
	"sasl.oauthbearer.jwks.endpoint.refresh.ms", "sasl.oauthbearer.jwks.endpoint.retry.backoff.max.ms", "sasl.oauthbearer.jwks.endpoint.retry.backoff.ms",
	"sasl.oauthbearer.jwks.endpoint.url", "sasl.oauthbearer.scope.claim.name", "sasl.oauthbearer.sub.claim.name", "sasl.oauthbearer.client.credentials.client.id",
	"sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.scope", "sasl.oauthbearer.jwt.retriever.class", "sasl.oauthbearer.jwt.validator.class",
	"ssl.cipher.suites", "ssl.enabled.protocols", "ssl.endpoint.identification.algorithm", "ssl.engine.factory.class", "ssl.keymanager.algorithm", "ssl.protocol",
	"ssl.provider", "ssl.secure.random.implementation", "ssl.trustmanager.algorithm",
}

// producerReaders are the options of Kafka's producer that import reads one by one.
var producerReaders = []string{
	"bootstrap.servers", "compression.type", "max.request.size", "transaction.timeout.ms", "partitioner.class", "partitioner.ignore.keys", "interceptor.classes",
	"security.protocol", "sasl.mechanism", "sasl.jaas.config", "sasl.oauthbearer.token.endpoint.url",
	"ssl.truststore.location", "ssl.truststore.password", "ssl.truststore.type", "ssl.truststore.certificates",
	"ssl.keystore.location", "ssl.keystore.password", "ssl.keystore.type", "ssl.keystore.key", "ssl.keystore.certificate.chain", "ssl.key.password",
}

// routerOptions are the options of the outbox router, below transforms.NAME.
var routerOptions = []string{
	"table.field.event.id", "table.field.event.key", "table.field.event.type", "table.field.event.payload", "table.field.event.timestamp",
	"table.field.event.schema.version", "table.fields.additional.placement", "table.field.additional.missing", "table.op.invalid.behavior",
	"table.expand.json.payload", "table.json.payload.null.behavior", "table.json.payload.empty.array.behavior", "route.by.field", "route.topic.regex",
	"route.topic.replacement", "route.tombstone.on.empty.payload", "tracing.span.context.field", "tracing.operation.name", "tracing.with.context.field.only",
}

// knownIn returns the option of this name in the list.
func knownIn(list []explained, name string) (explained, bool) {
	i := slices.IndexFunc(list, func(k explained) bool { return k.name == name })
	if i < 0 {
		return explained{}, false
	}
	return list[i], true
}

// withoutProfile returns the name of a property without Quarkus' profile: %prod.debezium.sink.type is debezium.sink.type.
func withoutProfile(name string) string {
	if strings.HasPrefix(name, "%") {
		if _, rest, ok := strings.Cut(name, "."); ok {
			return rest
		}
	}
	return name
}

// renamed are options of older versions of Debezium, with today's names.
var renamed = map[string]string{
	"database.server.name":         "topic.prefix",
	"table.whitelist":              "table.include.list",
	"table.blacklist":              "table.exclude.list",
	"schema.whitelist":             "schema.include.list",
	"schema.blacklist":             "schema.exclude.list",
	"column.whitelist":             "column.include.list",
	"column.blacklist":             "column.exclude.list",
	"slot.drop_on_stop":            "slot.drop.on.stop",
	"toasted.value.placeholder":    "unavailable.value.placeholder",
	"sanitize.field.names":         "field.name.adjustment.mode",
	"source.struct.version":        "sourceinfo.struct.maker",
	"debezium.op.invalid.behavior": "table.op.invalid.behavior",
	"table.field.schema.version":   "table.field.event.schema.version",
	"table.field.payload":          "table.field.event.payload",
	"table.fields.payload":         "table.field.event.payload",
}

// nearest returns the name that was meant; empty if none is near. A name of this length is nobody's mistake.
func nearest(written string, names []string) string {
	if len(written) > 200 {
		return ""
	}
	return misspelt.Nearest(written, names)
}
