package debezium

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// allowed is the values that an option may have. Without values it is a number.
type allowed struct {
	values []string // the words that Debezium, Connect or Kafka takes
	older  []string // words that older versions take
	list   bool     // several of the words, with commas between them
	open   bool     // other words may be right too: only one that is nearly a known one is a mistake
	broken bool     // the number may have a fraction
	least  int64    // of a number
	most   int64    // of a number; 0: no limit
	no0    bool     // 0 is not allowed
}

// numbers from a least one on, and yes or no.
var (
	anyNumber = allowed{least: -1 << 63}
	minusOne  = allowed{least: -1}
	natural   = allowed{}
	positive  = allowed{least: 1}
	fraction  = allowed{broken: true}
	yesNo     = allowed{values: truthValues}
)

// oneOf returns the values of an option that takes one of the words.
func oneOf(words ...string) allowed { return allowed{values: words} }

// connectorValues are the options of connectors whose values Debezium 3.6 or Connect 4.3 checks or reads as a number, without those
// of the router, which are in known.
var connectorValues = permit(map[string]allowed{
	"snapshot.mode": {
		values: []string{"always", "initial", "no_data", "initial_only", "when_needed", "configuration_based", "custom"},
		older:  []string{"never", "schema_only", "schema_only_recovery", "recovery", "exported"},
	},
	"publication.autocreate.mode":                oneOf("disabled", "all_tables", "filtered", "no_tables"),
	"database.sslmode":                           {values: []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}, older: []string{"required", "verify_ca", "verify_full"}},
	"event.processing.failure.handling.mode":     oneOf("fail", "warn", "skip", "ignore"),
	"event.converting.failure.handling.mode":     oneOf("warn", "fail", "skip"),
	"binary.handling.mode":                       oneOf("bytes", "base64", "base64-url-safe", "hex"),
	"decimal.handling.mode":                      oneOf("precise", "string", "double"),
	"time.precision.mode":                        oneOf("adaptive", "adaptive_time_microseconds", "connect", "isostring", "microseconds", "nanoseconds"),
	"interval.handling.mode":                     oneOf("numeric", "string"),
	"hstore.handling.mode":                       oneOf("json", "map"),
	"schema.name.adjustment.mode":                oneOf("none", "avro", "avro_unicode"),
	"field.name.adjustment.mode":                 oneOf("none", "avro", "avro_unicode"),
	"schema.refresh.mode":                        oneOf("columns_diff", "columns_diff_exclude_unchanged_toast"),
	"incremental.snapshot.watermarking.strategy": oneOf("insert_insert", "insert_delete"),
	"guardrail.collections.limit.action":         oneOf("warn", "fail"),
	"snapshot.query.mode":                        oneOf("select_all", "custom"),
	"snapshot.tables.order.by.row.count":         oneOf("ascending", "descending", "disabled"),
	"snapshot.isolation.mode":                    oneOf("serializable", "repeatable_read", "read_committed", "read_uncommitted"),
	"snapshot.locking.mode":                      oneOf("shared", "none", "custom"),
	"lsn.flush.timeout.action":                   oneOf("fail", "warn", "ignore"),
	"lsn.flush.mode":                             oneOf("connector", "manual", "connector_and_driver"),
	"offset.mismatch.strategy":                   oneOf("no_validation", "trust_offset", "trust_slot", "trust_greater_lsn"),
	"skipped.operations":                         {values: []string{"c", "u", "d", "t", "m", "r", "none"}, list: true},
	"signal.enabled.channels":                    {values: []string{"source", "kafka", "file", "jmx", "in-process"}, list: true, open: true},
	"notification.enabled.channels":              {values: []string{"sink", "log", "jmx"}, list: true, open: true},
	"errors.tolerance":                           oneOf("none", "all"),
	"exactly.once.support":                       oneOf("requested", "required"),
	"exactly.once.source.support":                oneOf("disabled", "preparing", "enabled"), // of a worker
	"config.action.reload":                       oneOf("none", "restart"),
	"transaction.boundary":                       oneOf("poll", "interval", "connector"),
}, map[string]allowed{
	`tombstones.on.delete incremental.snapshot.allow.schema.changes provide.transaction.metadata skip.messages.without.change
	legacy.snapshot.max.threads internal.legacy.snapshot.max.threads snapshot.mode.configuration.based.snapshot.data
	snapshot.mode.configuration.based.snapshot.schema snapshot.mode.configuration.based.start.stream
	snapshot.mode.configuration.based.snapshot.on.schema.error snapshot.mode.configuration.based.snapshot.on.data.error
	openlineage.integration.enabled extended.headers.enabled statistics.metrics.enabled table.ignore.builtin include.schema.changes
	include.schema.comments slot.drop.on.stop slot.failover database.tcpKeepAlive include.unknown.datatypes publish.via.partition.root
	flush.lsn.source read.only slot.seek.to.known.offset.on.start internal.snapshot.scan.all.columns.force
	internal.log.position.check.enable log.position.check.enable internal.advanced.metrics.enable advanced.metrics.enable
	tasks.max.enforce errors.log.enable errors.log.include.messages errors.deadletterqueue.context.headers.enable topic.creation.enable
	record.processing.with.serial.consumer`: yesNo,
	`tasks.max retriable.restart.connector.wait.ms max.queue.size max.batch.size poll.interval.ms snapshot.max.threads
	snapshot.max.threads.multiplier signal.poll.interval.ms signal.emit.failure.backoff.ms connection.validation.timeout.ms
	executor.shutdown.timeout.ms status.update.interval.ms lsn.flush.timeout.ms`: positive,
	`poll.dispatch.interval.ms max.queue.size.in.bytes snapshot.delay.ms snapshot.fetch.size incremental.snapshot.chunk.size
	query.fetch.size signal.emit.failure.max.retries streaming.delay.ms guardrail.collections.max xmin.fetch.interval.ms
	database.query.timeout.ms heartbeat.interval.ms slot.max.retries slot.retry.delay.ms topic.cache.size money.fraction.digits
	memory.management.cache.size offset.flush.interval.ms offset.flush.timeout.ms offset.storage.partitions
	create.slot.command.timeout internal.create.slot.command.timeout errors.retry.delay.initial.ms`: natural,
	`errors.max.retries errors.retry.timeout errors.retry.delay.max.ms errors.deadletterqueue.topic.replication.factor
	snapshot.lock.timeout.ms transaction.boundary.interval.ms offset.storage.replication.factor offset.activity.monitor.interval.ms
	record.processing.shutdown.timeout.ms debezium.embedded.shutdown.pause.before.interrupt.ms internal.task.management.timeout.ms
	task.management.timeout.ms`: anyNumber,
})

// producerValues are the same for the options of Kafka's producer, version 4.3. sink checks compression.type and
// sasl.mechanism.
var producerValues = permit(map[string]allowed{
	"acks":                       oneOf("all", "-1", "0", "1"),
	"client.dns.lookup":          oneOf("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"),
	"metadata.recovery.strategy": oneOf("none", "rebootstrap"),
	"metrics.recording.level":    oneOf("INFO", "DEBUG", "TRACE"),
	"security.protocol":          oneOf("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
	"ssl.truststore.type":        {values: []string{"JKS", "PKCS12", "PEM"}, open: true},
	"ssl.keystore.type":          {values: []string{"JKS", "PKCS12", "PEM"}, open: true},
}, map[string]allowed{
	`enable.idempotence enable.metrics.push partitioner.adaptive.partitioning.enable partitioner.ignore.keys auto.include.jmx.reporter
	transaction.two.phase.commit.enable sasl.oauthbearer.header.urlencode`: yesNo,
	`batch.size buffer.memory connections.max.idle.ms delivery.timeout.ms linger.ms max.block.ms max.in.flight.requests.per.connection
	metadata.max.age.ms metadata.max.idle.ms metadata.recovery.rebootstrap.trigger.ms metrics.num.samples metrics.sample.window.ms
	partitioner.availability.timeout.ms reconnect.backoff.max.ms reconnect.backoff.ms request.timeout.ms retries retry.backoff.max.ms
	retry.backoff.ms socket.connection.setup.timeout.max.ms socket.connection.setup.timeout.ms max.request.size transaction.timeout.ms
	receive.buffer.bytes send.buffer.bytes compression.gzip.level compression.lz4.level compression.zstd.level
	sasl.kerberos.min.time.before.relogin sasl.login.connect.timeout.ms sasl.login.read.timeout.ms sasl.login.refresh.buffer.seconds
	sasl.login.refresh.min.period.seconds sasl.login.retry.backoff.max.ms sasl.login.retry.backoff.ms
	sasl.oauthbearer.clock.skew.seconds sasl.oauthbearer.jwks.endpoint.refresh.ms sasl.oauthbearer.jwks.endpoint.retry.backoff.max.ms
	sasl.oauthbearer.jwks.endpoint.retry.backoff.ms`: anyNumber,
	`sasl.kerberos.ticket.renew.jitter sasl.kerberos.ticket.renew.window.factor sasl.login.refresh.window.factor
	sasl.login.refresh.window.jitter`: fraction,
})

// topicValues are those of the options of topics that Connect creates.
var topicValues = permit(map[string]allowed{
	"cleanup.policy":         {values: []string{"delete", "compact"}, list: true},
	"compression.type":       oneOf("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
	"message.timestamp.type": oneOf("CreateTime", "LogAppendTime"),
}, map[string]allowed{
	`preallocate unclean.leader.election.enable remote.storage.enable`: yesNo,
	`partitions`:         {least: -1, most: math.MaxInt32, no0: true},
	`replication.factor`: {least: -1, most: math.MaxInt16, no0: true},
	`retention.ms retention.bytes local.retention.ms local.retention.bytes`: minusOne,
	`min.insync.replicas segment.ms segment.bytes max.message.bytes delete.retention.ms file.delete.delay.ms flush.messages
	flush.ms index.interval.bytes max.compaction.lag.ms min.compaction.lag.ms segment.index.bytes segment.jitter.ms`: natural,
	`min.cleanable.dirty.ratio`: fraction,
})

// converterValues are those of the options of converters.
var converterValues = map[string]allowed{
	"schemas.enable": yesNo, "replace.null.with.default": yesNo, "schemas.cache.size": natural, "decimal.format": oneOf("BASE64", "NUMERIC"),
}

// permit returns the allowed values of single options together with those of groups, whose names stand in one text.
func permit(single, groups map[string]allowed) map[string]allowed {
	for names, k := range groups {
		for _, name := range strings.Fields(names) {
			single[name] = k
		}
	}
	return single
}

// allowedOf returns the values of an option by the name that Connect has for it. ok is false if any text may be right.
func (i *importing) allowedOf(name string) (k allowed, ok bool) {
	if option, is := strings.CutPrefix(name, overrides); is {
		k, ok = producerValues[option]
		return k, ok
	}
	if rest, is := strings.CutPrefix(name, "transforms."); is {
		transform, option, _ := strings.Cut(rest, ".")
		switch {
		case option == "negate":
			return yesNo, true
		case transform == i.router.name && slices.Contains(routerOptions, option) && known[option].values != nil:
			return allowed{values: known[option].values}, true
		}
		return allowed{}, false
	}
	if rest, is := strings.CutPrefix(name, "topic.creation."); is && name != "topic.creation.enable" {
		_, option, _ := strings.Cut(rest, ".")
		k, ok = topicValues[option]
		return k, ok
	}
	if rest, is := strings.CutPrefix(name, "debezium.format."); is {
		_, option, _ := strings.Cut("."+rest, ".")
		if _, own, part := strings.Cut(rest, "."); part && slices.ContainsFunc(recordParts, func(p string) bool { return strings.HasPrefix(rest, p+".") }) {
			option = own
		}
		k, ok = converterValues[option]
		return k, ok
	}
	if isConverter(name) {
		_, option, _ := strings.Cut(name, ".converter.")
		k, ok = converterValues[option]
		return k, ok
	}
	if name == "debezium.sink.kafka.wait.message.delivery.timeout.ms" {
		return natural, true
	}
	k, ok = connectorValues[name]
	return k, ok
}

// takes reports whether an option's value can be right. It notes an error for one that Debezium, Connect or Kafka would
// refuse, without the value, which may be a secret. What a reference stands for is not known here.
func (i *importing) takes(e entry) bool {
	value := strings.TrimSpace(e.value)
	k, ok := i.allowedOf(e.name)
	if !ok || value == "" || reference.MatchString(value) {
		return true
	}
	said := k.mistake(value)
	if said != "" {
		i.wrong("%s: %s", printable(e.label), said)
	}
	return said == ""
}

// mistake returns what is wrong with a value, and what to write; empty if nothing is.
func (k allowed) mistake(value string) string {
	if k.values != nil {
		words := []string{value}
		if k.list {
			words = commaList(value)
		}
		for _, word := range words {
			is := func(v string) bool { return strings.EqualFold(v, word) }
			if slices.ContainsFunc(k.values, is) || slices.ContainsFunc(k.older, is) {
				continue
			}
			meant := nearest(word, slices.Concat(k.values, k.older))
			switch {
			case meant != "":
				return "there is no such value: did you mean " + meant + "?"
			case !k.open:
				return "there is no such value: write " + choice(k.values)
			}
		}
		return ""
	}
	if k.broken {
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			return "it is no number: write digits and a point, 0.8 for example"
		}
		return ""
	}
	n, err := strconv.ParseInt(value, 10, 64)
	switch {
	case err != nil:
		return "it is no whole number: write digits alone, without a unit"
	case n < k.least:
		return "the number is too small: write " + strconv.FormatInt(k.least, 10) + " or more"
	case k.most > 0 && n > k.most:
		return "the number is too large: write " + strconv.FormatInt(k.most, 10) + " or less"
	case k.no0 && n == 0:
		return "it is 0, which Kafka does not take: write 1 or more, or -1 for the brokers' default"
	}
	return ""
}

// choice returns the words for a sentence: a, b or c.
func choice(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
