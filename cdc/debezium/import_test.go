package debezium_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/debezium"
)

var update = flag.Bool("update", false, "TestImportPrintsAConfiguration: write the goldens")

// examples are the files in testdata/connectors, and what is imported with each.
var examples = []struct {
	file, worker, brokers string
	unsupported           int
}{
	{"docs.json", "", "kafka:9092", 0},
	{"example-outbox.json", "", "kafka:9092", 1},
	{"bare.json", "", "kafka:9092", 0},
	{"answer.json", "worker.properties", "", 1},
	{"standalone.properties", "worker.properties", "", 1},
	{"strimzi.yaml", "", "kafka:9092", 0},
	{"aiven.json", "", "kafka:9092", 2},
	{"server.properties", "", "", 0},
	{"page.json", "", "kafka-1:9092", 1},
	{"everything.json", "", "kafka:9092", 16},
}

// TestImportPrintsAConfiguration compares what is made of each example with its golden: one line for each option, no
// secret, and the configuration.
func TestImportPrintsAConfiguration(t *testing.T) {
	t.Parallel()
	for _, e := range examples {
		t.Run(e.file, func(t *testing.T) {
			t.Parallel()
			c, o := example(t, e.file, e.worker, e.brokers)
			i, err := debezium.Import(c, o)
			if err != nil {
				t.Fatal(err)
			}
			got := i.YAML()
			cdctest.NoSecret(t, e.file, string(got))
			golden := filepath.Join("testdata", "connectors", e.file+".golden")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v; got\n%s\nwant\n%s", err, got, want)
			}
			if n := i.Unsupported(); n != e.unsupported {
				t.Errorf("%d options are not supported, want %d", n, e.unsupported)
			}
			lines := map[string]int{}
			for _, l := range i.Lines {
				lines[l.Option]++
				if l.Says == "" {
					t.Errorf("the line of %s says nothing", l.Option)
				}
			}
			for _, option := range c.Options() {
				if option = strings.ReplaceAll(option, cdctest.Canary, "***"); lines[option] != 1 {
					t.Errorf("%s has %d lines, want 1", option, lines[option])
				}
			}
		})
	}
}

// example reads one of the examples.
func example(t *testing.T, file, worker, brokers string) (*debezium.Connector, debezium.ImportOptions) {
	t.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join("testdata", "connectors", name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	c, err := debezium.ReadConnector(read(file))
	if err != nil {
		t.Fatal(err)
	}
	var o debezium.ImportOptions
	if brokers != "" {
		o.Brokers = strings.Split(brokers, ",")
	}
	if worker != "" {
		if o.Worker, err = debezium.ReadWorker(read(worker)); err != nil {
			t.Fatal(err)
		}
	}
	return c, o
}

// base is a connector that is imported without an error, as properties.
const base = `connector.class=io.debezium.connector.postgresql.PostgresConnector
plugin.name=pgoutput
database.hostname=localhost
database.user=debezium
database.password=kanarienvogel7
database.dbname=shop
topic.prefix=shop
table.include.list=public.outbox
transforms=outbox
transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
`

// serverBase is the same for Debezium Server.
const serverBase = `debezium.sink.type=kafka
debezium.sink.kafka.producer.bootstrap.servers=kafka:9092
debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector
debezium.source.plugin.name=pgoutput
debezium.source.database.hostname=localhost
debezium.source.database.user=debezium
debezium.source.database.dbname=shop
debezium.source.topic.prefix=shop
debezium.source.table.include.list=public.outbox
debezium.transforms=outbox
debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
`

// imported imports properties with brokers.
func imported(t *testing.T, text string, o debezium.ImportOptions) (*debezium.Imported, error) {
	t.Helper()
	c, err := debezium.ReadConnector([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Brokers) == 0 && !strings.Contains(text, "debezium.sink") {
		o.Brokers = []string{"kafka:9092"}
	}
	return debezium.Import(c, o)
}

// without returns the properties without an option.
func without(text, option string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, option+"=") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestImportNamesBadInput gives import a connector with one thing that cannot work, and expects the sentence that says so.
func TestImportNamesBadInput(t *testing.T) {
	t.Parallel()
	const class = "connector.class=io.debezium.connector."
	for name, c := range map[string]struct{ text, want string }{
		"MySQL":                        {strings.Replace(base, class+"postgresql.PostgresConnector", class+"mysql.MySqlConnector", 1), "connector.class: it is the connector for MySQL: walpost reads PostgreSQL"},
		"MongoDB":                      {strings.Replace(base, class+"postgresql.PostgresConnector", class+"mongodb.MongoDbConnector", 1), "it is the connector for MongoDB"},
		"Confluent Cloud":              {strings.Replace(base, "io.debezium.connector.postgresql.PostgresConnector", "PostgresCdcSourceV2", 1), "the managed connector of Confluent Cloud"},
		"a sink":                       {strings.Replace(base, "io.debezium.connector.postgresql.PostgresConnector", "io.debezium.connector.jdbc.JdbcSinkConnector", 1), "it is a sink connector"},
		"no class":                     {without(base, "connector.class"), "connector.class: missing"},
		"no router":                    {without(base, "transforms"), "transforms: the chain has no outbox router"},
		"MongoDB's router":             {strings.Replace(base, "transforms.outbox.EventRouter", "mongodb.transforms.outbox.MongoEventRouter", 1), "the outbox router for MongoDB"},
		"a router of others":           {strings.Replace(base, "io.debezium.transforms.outbox", "com.example", 1), "transforms: the chain has no outbox router"},
		"two routers":                  {strings.Replace(base, "transforms=outbox", "transforms=outbox,more\ntransforms.more.type=EventRouter", 1), "the chain has 2 outbox routers"},
		"an SMT without a class":       {strings.Replace(base, "transforms=outbox", "transforms=outbox,more", 1), `transforms.more.type: missing: transforms names "more"`},
		"decoderbufs by default":       {without(base, "plugin.name"), "plugin.name: missing, so that Debezium uses decoderbufs"},
		"another plugin":               {strings.Replace(base, "pgoutput", "wal2json", 1), "plugin.name: it is not pgoutput"},
		"no converter":                 {without(base, "value.converter"), "value.converter: missing: Connect takes it from the worker: name the worker's file with --worker"},
		"a misspelt option":            {base + "slot.nam=x", "slot.nam: there is no such option: did you mean slot.name?"},
		"a misspelt SMT option":        {base + "transforms.outbox.route.topic.replacment=x", "did you mean transforms.outbox.route.topic.replacement?"},
		"a misspelt SMT":               {base + "transforms.outbx.route.by.field=x", "the chain has no transformation of this name: did you mean transforms.outbox.route.by.field?"},
		"a misspelt converter option":  {base + "header.converter=JsonConverter\nheader.converter.schema.enable=false", "did you mean header.converter.schemas.enable?"},
		"a misspelt producer option":   {base + "producer.override.linger.m=5", "did you mean producer.override.linger.ms?"},
		"a misspelt topic option":      {base + "topic.creation.default.partition=5", "did you mean topic.creation.default.partitions?"},
		"an unknown option":            {base + "foo.bar=x", "foo.bar: there is no such option: Debezium ignores it: remove it"},
		"a name of before":             {without(base, "topic.prefix") + "database.server.name=x", "database.server.name: there is no such option: Debezium calls it topic.prefix today"},
		"a router's name of before":    {base + "transforms.outbox.debezium.op.invalid.behavior=warn", "Debezium calls it table.op.invalid.behavior today"},
		"no table":                     {without(base, "table.include.list"), "table.include.list: missing, so that the connector captures every table: name the outbox with --table"},
		"several tables":               {strings.Replace(base, "public.outbox", "public.outbox,sales.outbox", 1), "a pipeline reads one outbox, and here are 2 (public.outbox, sales.outbox)"},
		"tables by expression":         {strings.Replace(base, "public.outbox", `public.outbox_.*`, 1), "an expression in it can match several tables: name the outbox with --table"},
		"a table of another schema":    {base + "schema.exclude.list=public", "the connector captures no change of public.outbox"},
		"a table that is excluded":     {base + "table.exclude.list=public.outbox", "the connector captures no change of public.outbox"},
		"a lookahead":                  {base + "table.exclude.list=(?!x).*", "table.exclude.list: an expression in it needs more than Go's regular expressions have"},
		"a column that is left out":    {base + "column.exclude.list=public[.]outbox[.]payload", "column.exclude.list: it leaves out payload, which the router needs"},
		"columns that are not left in": {base + "column.include.list=public.outbox.(id|type)", "column.include.list: it leaves out aggregateid"},
		"a placed column left out":     {base + "column.exclude.list=public.outbox.type\ntransforms.outbox.table.fields.additional.placement=type:header", "it leaves out type, which table.fields.additional.placement names"},
		"no host":                      {without(base, "database.hostname"), "database.hostname: missing"},
		"a host from elsewhere":        {strings.Replace(base, "localhost", "${env:PGHOST}", 1), "database.hostname: the value is a reference that is resolved elsewhere"},
		"a port that is none":          {base + "database.port=70000", "database.port: it is no port"},
		"a URL for a host":             {strings.Replace(base, "localhost", "jdbc:postgresql://kanarienvogel7@h/", 1), "database.hostname: it has a character that no name of a host has"},
		"a mode that is none":          {base + "database.sslmode=maybe", "database.sslmode: there is no such value: write disable, allow, prefer, require, verify-ca or verify-full"},
		"a tolerance that is none":     {base + "errors.tolerance=al", "errors.tolerance: there is no such value: write none or all"},
		"a slot that is none":          {base + "slot.name=Bad-Slot", "slot.name: PostgreSQL has no slot of this name, only names of 1 to 63 of a-z, 0-9 and _: did you mean bad_slot?"},
		"a snapshot that is none":      {base + "snapshot.mode=nevre", "snapshot.mode: there is no such value: write always, initial, no_data, initial_only"},
		"a snapshot misspelt":          {base + "snapshot.mode=initial_onyl", "snapshot.mode: there is no such value: did you mean initial_only?"},
		"a publication misspelt":       {base + "publication.autocreate.mode=filterd", "publication.autocreate.mode: there is no such value: did you mean filtered?"},
		"a pause with letters":         {base + "poll.interval.ms=5OO", "poll.interval.ms: it is no whole number: write digits alone, without a unit"},
		"a number of 0":                {base + "max.batch.size=0", "max.batch.size: the number is too small: write 1 or more"},
		"tasks as a word":              {base + "tasks.max=two", "tasks.max: it is no whole number"},
		"a boolean misspelt":           {base + "tombstones.on.delete=flase", "tombstones.on.delete: there is no such value: write true or false"},
		"an operation misspelt":        {base + "skipped.operations=t,x", "skipped.operations: there is no such value: write c, u, d, t, m, r or none"},
		"a channel misspelt":           {base + "signal.enabled.channels=sourse", "signal.enabled.channels: there is no such value: did you mean source?"},
		"a mode of types misspelt":     {base + "decimal.handling.mode=dobule", "decimal.handling.mode: there is no such value: write precise, string or double"},
		"a converter misspelt":         {base + "header.converter=JsonConvertor", "header.converter: there is no such converter: did you mean org.apache.kafka.connect.json.JsonConverter?"},
		"a whole converter misspelt":   {base + "header.converter=org.apache.kafka.connect.storage.StringConvertr", "did you mean org.apache.kafka.connect.storage.StringConverter?"},
		"an option of a text misspelt": {base + "value.converter.schemas.enabl=false", "value.converter.schemas.enabl: there is no such option: did you mean value.converter.schemas.enable?"},
		"schemas that are none":        {base + "value.converter.schemas.enable=flase", "value.converter.schemas.enable: there is no such value: write true or false"},
		"partitions as a word":         {base + "topic.creation.default.partitions=six", "topic.creation.default.partitions: it is no whole number"},
		"a predicate misspelt":         {base + "transforms.outbox.predicate=isOutbx\npredicates=isOutbox\npredicates.isOutbox.type=HasHeaderKey", "transforms.outbox.predicate: predicates has no such name: did you mean isOutbox?"},
		"a predicate that is none":     {base + "transforms.outbox.predicate=isOutbox", "transforms.outbox.predicate: predicates has no such name: add it to predicates"},
		"a predicate's option":         {base + "predicates=isOutbox\npredicates.isOutbx.type=HasHeaderKey", "predicates.isOutbx.type: predicates has no such name: did you mean predicates.isOutbox.type?"},
		"a publication too long":       {base + "publication.name=" + strings.Repeat("p", 64), "publication.name: PostgreSQL has no publication of this name"},
		"a broker without a port":      {strings.Replace(serverBase, "kafka:9092", "kafka:9092,kafka2", 1), "kafka.brokers: a broker of the input or of --brokers is no host with a port"},
		"no partitions":                {base + "topic.creation.default.partitions=0", "topic.creation.default.partitions: it is 0, which Kafka does not take"},
		"too many replicas":            {base + "topic.creation.default.replication.factor=40000", "topic.creation.default.replication.factor: the number is too large: write 32767 or less"},
		"a policy that is none":        {base + "topic.creation.default.cleanup.policy=delete,compct", "topic.creation.default.cleanup.policy: there is no such value: did you mean compact?"},
		"a protocol misspelt":          {base + "producer.override.security.protocol=SASL_SSLL", "producer.override.security.protocol: there is no such value: did you mean SASL_SSL?"},
		"a producer's number":          {base + "producer.override.linger.ms=5ms", "producer.override.linger.ms: it is no whole number"},
		"a router's value misspelt":    {base + "transforms.outbox.table.op.invalid.behavior=warning", "transforms.outbox.table.op.invalid.behavior: there is no such value: write warn, error or fatal"},
		"a negation misspelt":          {base + "transforms.outbox.negate=ture", "transforms.outbox.negate: there is no such value: write true or false"},
		"a connector misspelt":         {strings.Replace(base, "PostgresConnector", "PostgreConnector", 1), "connector.class: there is no such connector: did you mean io.debezium.connector.postgresql.PostgresConnector?"},
		"a router misspelt":            {strings.Replace(base, "EventRouter", "EventRoutr", 1), "transforms.outbox.type: there is no such transformation: did you mean io.debezium.transforms.outbox.EventRouter?"},
		"a server's boolean":           {serverBase + "debezium.format.schemas.enable=no", "debezium.format.schemas.enable: there is no such value: write true or false"},
		"a server's number":            {serverBase + "debezium.source.offset.flush.interval.ms=1m", "debezium.source.offset.flush.interval.ms: it is no whole number"},
		"a sink misspelt":              {strings.Replace(serverBase, "sink.type=kafka", "sink.type=kafca", 1), "debezium.sink.type: there is no such sink: did you mean kafka?"},
		"a format misspelt":            {serverBase + "debezium.format.value=jsom", "debezium.format.value: Debezium Server has no such format for Kafka: did you mean json?"},
		"no prefix":                    {without(base, "topic.prefix"), "topic.prefix: missing"},
		"Kerberos":                     {base + "producer.override.security.protocol=SASL_SSL", "producer.override.sasl.mechanism: walpost has no such login"},
		"a compression that is none":   {base + "producer.override.compression.type=brotli", "producer.override.compression.type: Kafka has no such compression"},
		"a predicate for others":       {base + "transforms.outbox.predicate=p\npredicates=p\npredicates.p.type=TopicNameMatches\npredicates.p.pattern=x", "no table in it is left for the router, by its predicate"},
		"another sink":                 {strings.Replace(serverBase, "sink.type=kafka", "sink.type=kinesis", 1), "debezium.sink.type: this server does not write to Kafka"},
		"no sink":                      {without(serverBase, "debezium.sink.type"), "debezium.sink.type: missing"},
		"a misspelt format":            {serverBase + "debezium.format.valu=json", "did you mean debezium.format.value?"},
		"a format that is none":        {serverBase + "debezium.format.value=xml", "debezium.format.value: Debezium Server has no such format"},
		"a misspelt server option":     {serverBase + "debezium.source.slot.nam=x", "did you mean debezium.source.slot.name?"},
		"MySQL in a server":            {strings.Replace(serverBase, class[16:]+"postgresql.PostgresConnector", class[16:]+"mysql.MySqlConnector", 1), "debezium.source.connector.class: it is the connector for MySQL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := imported(t, c.text, debezium.ImportOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil {
				cdctest.NoSecret(t, "the error", err.Error())
			}
		})
	}
	t.Run("no brokers", func(t *testing.T) {
		t.Parallel()
		c, err := debezium.ReadConnector([]byte(base))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = debezium.Import(c, debezium.ImportOptions{}); err == nil || !strings.Contains(err.Error(), "kafka.brokers: missing") {
			t.Errorf("got %v", err)
		}
	})
	const strimzi = "apiVersion: kafka.strimzi.io/v1beta2\nkind: KafkaConnector\nmetadata: {name: x}\nspec:\n  class: io.debezium.connector.postgresql.PostgresConnector\n  taskMax: 2\n  config: {slot.nam: x}\n"
	for name, c := range map[string]struct {
		text  string
		wants []string
	}{
		"a name and the router's value": {base + "slot.nam=x\ntransforms.outbox.table.op.invalid.behavior=warning\n", []string{"slot.nam:", "table.op.invalid.behavior:"}},
		"a placement and a name": {
			base + "value.converter.schemas.enabl=x\ntransforms.outbox.table.fields.additional.placement=type:haeder\n",
			[]string{"value.converter.schemas.enabl:", "table.fields.additional.placement:"},
		},
		"a regex and a name":      {base + "slot.nam=x\ntransforms.outbox.route.topic.regex=(\n", []string{"slot.nam:", "route.topic.regex"}},
		"another sink and a name": {strings.Replace(serverBase, "sink.type=kafka", "sink.type=kinesis", 1) + "debezium.source.slot.nam=x\n", []string{"debezium.sink.type:", "debezium.source.slot.nam:"}},
		"a chain misspelt":        {strings.Replace(serverBase, "debezium.transforms=", "debezium.transform=", 1), []string{"has no outbox router", "debezium.transform: there is no such option: did you mean debezium.transforms?"}},
		"Connect's chain":         {strings.Replace(base, "transforms=", "transform=", 1) + "slot.nam=x\n", []string{"has no outbox router", "did you mean transforms?", "slot.nam:"}},
		"no prefix and a name":    {without(base, "topic.prefix") + "slot.nam=x\n", []string{"topic.prefix: missing", "slot.nam:"}},
		"two routers and a name":  {strings.Replace(base, "transforms=outbox", "transforms=outbox,more\ntransforms.more.type=EventRouter\nslot.nam=x", 1), []string{"the chain has 2 outbox routers", "slot.nam:"}},
		"a name of Strimzi":       {strimzi, []string{"spec.taskMax: there is no such field: did you mean spec.tasksMax?", "slot.nam:", "has no outbox router", "plugin.name: missing"}},
	} {
		t.Run("at once: "+name, func(t *testing.T) {
			t.Parallel()
			_, err := imported(t, c.text, debezium.ImportOptions{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("want %q in\n%v", want, err)
				}
			}
			if got := 1 + strings.Count(err.Error(), "\n"); name != "a name of Strimzi" && got != len(c.wants) {
				t.Errorf("%d sentences, want %d:\n%v", got, len(c.wants), err)
			}
		})
	}
	t.Run("everything at once", func(t *testing.T) {
		t.Parallel()
		_, err := imported(t, without(without(base, "plugin.name"), "value.converter")+"slot.nam=x\nfoo=1\ndatabase.sslmode=maybe", debezium.ImportOptions{})
		if err == nil || strings.Count(err.Error(), "\n") != 4 {
			t.Errorf("want five sentences, got\n%v", err)
		}
	})
}

// TestImportChecksEachValue gives each option whose values are checked a wrong one, which is an error, and a reference, which
// is none.
func TestImportChecksEachValue(t *testing.T) {
	t.Parallel()
	known := slices.Concat(debezium.KnownNames(false), debezium.KnownNames(true))
	for option, open := range debezium.Checked() {
		switch {
		case option == "exactly.once.source.support": // of a worker
			continue
		case !slices.Contains(known, option) && !slices.Contains(known, "debezium.source."+option):
			t.Errorf("%s: import does not know the option whose values it checks", option)
		}
		text, label := base, option
		if !slices.Contains(known, option) {
			text, label = serverBase, "debezium.source."+option
		}
		_, err := imported(t, without(text, label)+label+"=wrong value\n", debezium.ImportOptions{})
		if wrong := err != nil && strings.HasPrefix(err.Error(), label+": "); wrong == open {
			t.Errorf("%s, a wrong value: %v", label, err)
		}
		i, err := imported(t, without(text, label)+label+"=${env:VALUE}\n", debezium.ImportOptions{})
		switch {
		case err != nil && option != "extended.headers.enabled":
			t.Errorf("%s, a reference: %v", label, err)
		case err == nil && strings.Contains(string(i.YAML()), "dead_letter\ndebezium:"):
			t.Errorf("%s: a reference sets poison.policy", label)
		}
	}
	worker, err := debezium.ReadWorker([]byte("bootstrap.servers=kafka:9092\nexactly.once.source.support=enabeld\nproducer.security.protocol=SSLL\nheader.converter=JsonConverter\nheader.converter.schemas.enable=flase\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = imported(t, base, debezium.ImportOptions{Worker: worker})
	for _, want := range []string{"exactly.once.source.support (worker): ", "producer.security.protocol (worker): ", "header.converter.schemas.enable (worker): "} {
		if err == nil || !strings.Contains(err.Error(), want+"there is no such value") {
			t.Errorf("want %q in\n%v", want, err)
		}
	}
}

// TestImportOfNewTopics imports settings of topics that Connect creates, and walpost does not give.
func TestImportOfNewTopics(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]debezium.Verdict{
		"default.cleanup.policy=compact":                              debezium.Unsupported,
		"default.cleanup.policy=delete, compact":                      debezium.Unsupported,
		"default.cleanup.policy=delete":                               debezium.NoEffect,
		"default.message.timestamp.type=LogAppendTime":                debezium.Unsupported,
		"default.message.timestamp.type=CreateTime":                   debezium.NoEffect,
		"default.partitions=-1":                                       debezium.Equivalent,
		"default.min.insync.replicas=2":                               debezium.NoEffect,
		"events.cleanup.policy=compact":                               debezium.NoEffect, // topic.creation.groups does not name it
		"groups=events\ntopic.creation.events.cleanup.policy=compact": debezium.Unsupported,
	} {
		i, err := imported(t, base+"topic.creation."+option+"\n", debezium.ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := i.Lines[len(i.Lines)-1]
		if got.Verdict != want || strings.Contains(option, "compact") && want == debezium.Unsupported && !strings.Contains(got.Says, "not compacted") {
			t.Errorf("%s: %v, want verdict %d", option, got, want)
		}
	}
}

// TestImportChoosesTheTable imports one of several tables: the one that the predicate or the caller chooses.
func TestImportChoosesTheTable(t *testing.T) {
	t.Parallel()
	several := strings.Replace(base, "public.outbox", "public.outbox,public.customer", 1)
	const predicate = "transforms.outbox.predicate=p\npredicates=p\npredicates.p.type=org.apache.kafka.connect.transforms.predicates.TopicNameMatches\n"
	for name, c := range map[string]struct {
		text, table string
		unsupported int
	}{
		"by --table":              {several, "public.outbox", 1},
		"by --table, expressions": {strings.Replace(base, "public.outbox", `public\..*`, 1), "public.outbox", 0},
		"by a predicate":          {several + predicate + `predicates.p.pattern=.*\\.outbox`, "", 1},
		"by a negated predicate":  {several + predicate + "transforms.outbox.negate=true\n" + `predicates.p.pattern=.*customer`, "", 1},
		"a predicate of a header": {base + strings.Replace(predicate, "org.apache.kafka.connect.transforms.predicates.TopicNameMatches", "HasHeaderKey", 1), "", 1},
		"a table for signals":     {strings.Replace(base, "public.outbox", "public.outbox,public.s\nsignal.data.collection=public.s", 1), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, err := imported(t, c.text, debezium.ImportOptions{Table: c.table})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(i.YAML()); !strings.Contains(got, "\n  table: public.outbox\n") || i.Unsupported() != c.unsupported {
				t.Errorf("%d not supported, want %d:\n%s", i.Unsupported(), c.unsupported, got)
			}
		})
	}
	if _, err := imported(t, base, debezium.ImportOptions{Table: "public.other"}); err == nil || !strings.Contains(err.Error(), "--table: public.other is not among the tables") {
		t.Errorf("another table: %v", err)
	}
}

// TestImportNamesEachTransformation has a transformation before and after the router, and expects what a consumer sees.
func TestImportNamesEachTransformation(t *testing.T) {
	t.Parallel()
	for class, c := range map[string]struct{ before, after debezium.Verdict }{
		"io.debezium.transforms.Filter":                        {debezium.Unsupported, debezium.Unsupported},
		"org.apache.kafka.connect.transforms.RegexRouter":      {debezium.NoEffect, debezium.Unsupported},
		"io.debezium.transforms.ByLogicalTableRouter":          {debezium.NoEffect, debezium.Unsupported},
		"org.apache.kafka.connect.transforms.InsertHeader":     {debezium.Unsupported, debezium.Unsupported},
		"org.apache.kafka.connect.transforms.HeaderFrom$Value": {debezium.Unsupported, debezium.Unsupported},
		"io.debezium.transforms.SchemaChangeEventFilter":       {debezium.NoEffect, debezium.NoEffect},
		"io.debezium.transforms.tracing.ActivateTracingSpan":   {debezium.Unsupported, debezium.Unsupported},
		"org.apache.kafka.connect.transforms.MaskField$Value":  {debezium.Unsupported, debezium.Unsupported},
		"com.example.Own": {debezium.Unsupported, debezium.Unsupported},
		"io.debezium.transforms.partitions.PartitionRouting":            {debezium.NoEffect, debezium.Unsupported},
		"org.apache.kafka.connect.transforms.SetSchemaMetadata$Value":   {debezium.Unsupported, debezium.Unsupported},
		"io.debezium.transforms.ExtractNewRecordState":                  {debezium.Unsupported, debezium.NoEffect},
		"org.apache.kafka.connect.transforms.TimestampRouter":           {debezium.NoEffect, debezium.Unsupported},
		"org.apache.kafka.connect.transforms.predicates.x.ReplaceField": {debezium.Unsupported, debezium.Unsupported},
	} {
		for chain, want := range map[string]debezium.Verdict{"x,outbox": c.before, "outbox,x": c.after} {
			i, err := imported(t, strings.Replace(base, "transforms=outbox", "transforms="+chain+"\ntransforms.x.type="+class, 1), debezium.ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range i.Lines {
				if l.Option == "transforms.x.type" && l.Verdict != want {
					t.Errorf("%s in %s: %d, %s, want %d", class, chain, l.Verdict, l.Says, want)
				}
			}
		}
	}
}

// TestImportNamesEachConverter has a converter that walpost does not write as, and expects what a consumer sees.
func TestImportNamesEachConverter(t *testing.T) {
	t.Parallel()
	for class, want := range map[string]string{
		"io.confluent.connect.avro.AvroConverter":                     "not Avro with the id of a schema in a registry",
		"io.confluent.connect.protobuf.ProtobufConverter":             "not Protobuf with the id of a schema in a registry",
		"io.confluent.connect.json.JsonSchemaConverter":               "not JSON with the id of a schema in a registry",
		"io.apicurio.registry.utils.converter.ExtJsonConverter":       "not JSON with the id of a schema in a registry",
		"com.amazonaws.services.schemaregistry.AWSKafkaAvroConverter": "not Avro with the id of a schema in a registry",
		"io.debezium.converters.CloudEventsConverter":                 "kafka.headers: cloudevents",
		"com.example.JsonConverter":                                   "not what JsonConverter writes",
	} {
		for _, part := range []string{"key", "value", "header"} {
			i, err := imported(t, without(base, part+".converter")+part+".converter="+class+"\n", debezium.ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(i.YAML()); !strings.Contains(got, "#   "+part+".converter: a "+part+" is the text of the column") || !strings.Contains(got, want) || i.Unsupported() != 1 {
				t.Errorf("%s of %s, want %q:\n%s", part, class, want, got)
			}
		}
	}
	i, err := imported(t, serverBase+"debezium.format.value=avro\ndebezium.format.value.schema.registry.url=http://r\n", debezium.ImportOptions{})
	if err != nil || !strings.Contains(string(i.YAML()), "not Avro") || i.Unsupported() != 1 {
		t.Errorf("a server's Avro: %v\n%s", err, i.YAML())
	}
}

// TestImportShowsNoSecret gives every option in turn a password as its value, and looks for it in the output and in the
// errors. Options whose values are names that the configuration needs are left out.
func TestImportShowsNoSecret(t *testing.T) {
	t.Parallel()
	names := map[string]bool{
		"name": true, "slot.name": true, "publication.name": true, "topic.prefix": true, "table.include.list": true, "transforms": true, "predicates": true,
		"converters": true, "post.processors": true, "database.hostname": true, "database.user": true, "database.dbname": true, "extended.headers.enabled": true,
		"key.converter": true, "value.converter": true, "header.converter": true, "bootstrap.servers": true, "partitioner.class": true, "schemas.enable": true,
	}
	for _, server := range []bool{false, true} {
		text, options := base, debezium.KnownNames(server)
		if server {
			text = serverBase
		}
		if len(options) < 150 {
			t.Errorf("only %d options are known", len(options))
		}
		shown := 0
		for _, option := range options {
			plain := option
			for _, prefix := range []string{"debezium.source.", "debezium.sink.kafka.producer.", "producer.override.", "debezium.format.", "debezium."} {
				plain = strings.TrimPrefix(plain, prefix)
			}
			if names[plain] {
				continue
			}
			i, err := imported(t, without(text, option)+option+"="+cdctest.Canary+"\n", debezium.ImportOptions{})
			if err != nil {
				cdctest.NoSecret(t, option+" in an error", err.Error())
				continue
			}
			cdctest.NoSecret(t, option, string(i.YAML()))
			shown++
		}
		if shown < 100 {
			t.Errorf("only %d options were imported", shown)
		}
	}
	for _, more := range []string{"transforms.x.password", "value.converter.basic.auth.user.info", "driver.password", "predicates.p.secret", "transforms.outbox.plugin.version"} {
		i, err := imported(t, base+more+"="+cdctest.Canary+"\n", debezium.ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cdctest.NoSecret(t, more, string(i.YAML()))
	}
}

// TestImportOfServerFormats imports the formats of Debezium Server, whose defaults are others than Connect's.
func TestImportOfServerFormats(t *testing.T) {
	t.Parallel()
	const (
		asJSON   = `"org.apache.kafka.connect.json.JsonConverter"`
		asString = `"org.apache.kafka.connect.storage.StringConverter"`
		asBinary = `"io.debezium.converters.BinaryDataConverter"`
	)
	for name, c := range map[string]struct {
		text       string
		have, lack []string
	}{
		"by default": {"", []string{"header.converter: " + asJSON, "key.converter: " + asJSON, "value.converter: " + asJSON}, []string{"schemas.enable"}},
		"one format with schemas": {
			"debezium.format.value.schemas.enable=false\ndebezium.format.schemas.enable=true\n",
			[]string{`key.converter.schemas.enable: "true"`, `value.converter.schemas.enable: "false"`, `header.converter.schemas.enable: "true"`},
			nil,
		},
		"others than JSON": {
			"debezium.format.key=simplestring\ndebezium.format.value=binary\ndebezium.format.schemas.enable=false\n",
			[]string{"key.converter: " + asString, "value.converter: " + asBinary, `header.converter.schemas.enable: "false"`},
			[]string{"key.converter.schemas", "value.converter.schemas"},
		},
		"a class": {
			"debezium.format.value=clientprovided\ndebezium.format.value.class=org.apache.kafka.connect.storage.StringConverter\n",
			[]string{"value.converter: " + asString},
			nil,
		},
	} {
		i, err := imported(t, serverBase+c.text, debezium.ImportOptions{})
		if err != nil || i.Unsupported() > 0 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, section, _ := strings.Cut(string(i.YAML()), "\ndebezium:\n")
		for _, text := range c.have {
			if !strings.Contains(section, "  "+text+"\n") {
				t.Errorf("%s: no %s in\n%s", name, text, section)
			}
		}
		for _, text := range c.lack {
			if strings.Contains(section, text) {
				t.Errorf("%s: %s in\n%s", name, text, section)
			}
		}
	}
}

// TestImportKnowsOlderVersions imports from a Debezium that writes no context headers, and options with today's name
// beside an older one.
func TestImportKnowsOlderVersions(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{"2.7.4.Final": "false", "3.2.9.Final": "false", "3.3.0.Final": "", "3.6.1.Final": "", "4.0.0.Final": "", "": ""} {
		c, err := debezium.ReadConnector([]byte(base + "database.server.name=x\n"))
		if err != nil {
			t.Fatal(err)
		}
		c.Version = version
		i, err := debezium.Import(c, debezium.ImportOptions{Brokers: []string{"kafka:9092"}})
		if err != nil {
			t.Fatal(err)
		}
		got := string(i.YAML())
		if has := strings.Contains(got, `  extended.headers.enabled: "false"`); has != (want == "false") {
			t.Errorf("version %q:\n%s", version, got)
		}
		if noted := strings.Contains(got, "are written as by Debezium 3.3 and later"); noted != (version == "") {
			t.Errorf("version %q: the note on versions:\n%s", version, got)
		}
		if !strings.Contains(got, "database.server.name: an older name of topic.prefix, which Debezium no longer reads") {
			t.Errorf("the older name has no line:\n%s", got)
		}
	}
}

// TestImportOfServerHeaders imports headers that Debezium Server would leave out for NULL.
func TestImportOfServerHeaders(t *testing.T) {
	t.Parallel()
	const class = "debezium.format.header=clientprovided\ndebezium.format.header.class=org.apache.kafka.connect.storage.StringConverter\n"
	for more, want := range map[string]int{"": 0, "debezium.transforms.outbox.table.fields.additional.placement=a:envelope\n": 0, "debezium.transforms.outbox.table.fields.additional.placement=a:header\n": 1} {
		i, err := imported(t, serverBase+class+more, debezium.ImportOptions{})
		if err != nil || i.Unsupported() != want {
			t.Errorf("%q: %v, %d not supported, want %d", more, err, i.Unsupported(), want)
		}
	}
}
