package debezium

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ImportOptions are the inputs of Import besides the connector.
type ImportOptions struct {
	Worker  *Worker  // the worker's configuration; nil: only what the connector itself says is known
	Brokers []string // instead of the worker's bootstrap.servers
	Table   string   // schema.name, if the connector does not name exactly one table
}

// Line is one option of the input, its verdict, and the sentence that says why.
type Line struct {
	Option  string
	Verdict Verdict
	Says    string
}

// Imported is a configuration of walpost that was made from a connector's.
type Imported struct {
	Pipeline string
	Lines    []Line   // one for each option, in the order of the input
	Notes    []string // facts that belong to no single option

	from      string
	url       string
	slot      string
	publish   string // publication
	table     string
	kafka     [][2]string
	brokers   []string
	delivery  string
	poison    string
	hints     []string // commented lines below source
	debezium  pairs
	connector *Connector
}

// Unsupported returns how many options are not supported.
func (i *Imported) Unsupported() (n int) {
	for _, l := range i.Lines {
		if l.Verdict == Unsupported {
			n++
		}
	}
	return n
}

// entry is one option of the input: its own name, and the name that it has, or would have, in a connector of Connect.
type entry struct{ label, name, value string }

// importing is one run of Import.
type importing struct {
	*Imported
	entries []entry
	options pairs // by the names of Connect
	worker  *Worker
	asked   ImportOptions

	router  transform
	chain   []transform
	topic   string   // of the table's change events, before the router
	others  []string // further tables of table.include.list
	signals string   // the table for signals, which is among others
	columns []string // that the router reads

	columnIncludes, columnExcludes []pattern

	database map[string]string // parameters of source.url
	errs     []error
}

// Import makes a configuration of walpost from a connector's. The error contains everything that is wrong with the
// input, one sentence each; then there is no configuration. An option whose absence a consumer sees is no error: its Line
// says what a consumer sees.
func Import(c *Connector, o ImportOptions) (*Imported, error) {
	i := &importing{Imported: &Imported{connector: c}, worker: o.Worker, asked: o, database: map[string]string{}}
	i.errs = append(i.errs, c.unknown...)
	i.enter()
	if !i.isOurs() {
		return nil, errors.Join(i.errs...)
	}
	i.name()
	if i.router.name != "" {
		i.chooseTable()
		i.needColumns()
	}
	for _, e := range i.entries {
		if i.takes(e) {
			i.read(e)
		}
	}
	i.convert()
	i.readWorker()
	i.source()
	if i.toKafka() {
		i.sink()
	}
	i.quarkus()
	i.version()
	i.parse()
	if len(i.errs) > 0 {
		return nil, errors.Join(i.errs...)
	}
	return i.Imported, nil
}

// parse notes what the section debezium cannot have. An option that has its error already is not there, or replaced.
func (i *importing) parse() {
	options := i.debezium.toMap()
	if p := strings.TrimSpace(options[optionPrefix]); p == "" || reference.MatchString(p) {
		options[optionPrefix] = "p"
	}
	if _, err := Parse(options); err != nil {
		i.errs = append(i.errs, err)
	}
}

// toMap returns the pairs as a map.
func (s pairs) toMap() map[string]string {
	m := make(map[string]string, len(s))
	for i := range s {
		m[s[i].name] = s[i].value
	}
	return m
}

// wrong notes an error.
func (i *importing) wrong(format string, args ...any) {
	i.errs = append(i.errs, fmt.Errorf(format, args...))
}

// line adds the line of an option.
func (i *importing) line(e entry, v Verdict, format string, args ...any) {
	says := format
	if len(args) > 0 {
		says = fmt.Sprintf(format, args...)
	}
	i.Lines = append(i.Lines, Line{e.label, v, says})
}

// set sets an option of the router in the section debezium.
func (i *importing) set(name, value string) { i.debezium.set(name, value) }

// value returns the value of an option, or otherwise if the input does not have it.
func (i *importing) value(name, otherwise string) string {
	if v, ok := i.options.get(name); ok && strings.TrimSpace(v) != "" {
		return strings.TrimSpace(v)
	}
	return otherwise
}

// label returns the name that the option has, or would have, in the input.
func (i *importing) label(name string) string {
	if !i.connector.Server {
		return name
	}
	for _, e := range i.entries {
		if e.name == name {
			return e.label
		}
	}
	switch {
	case strings.HasPrefix(name, "transforms"), strings.HasPrefix(name, "predicates"):
		return "debezium." + name
	case strings.HasPrefix(name, overrides):
		return serverProducer + strings.TrimPrefix(name, overrides)
	}
	return "debezium.source." + name
}

const (
	overrides      = "producer.override."
	serverProducer = "debezium.sink.kafka.producer."
)

// enter gives each option of the input the name that Connect has for it.
func (i *importing) enter() {
	for _, s := range i.connector.options {
		e := entry{salt.ReplaceAllString(s.name, "${1}***"), s.name, s.value}
		if i.connector.Server {
			plain := withoutProfile(s.name)
			if plain != s.name && !strings.HasPrefix(s.name, "%prod.") {
				e.name = otherProfile
			} else {
				e.name = serverName(plain)
			}
			e.value = strings.ReplaceAll(s.value, "$${", "${")
		}
		i.entries = append(i.entries, e)
		i.options.set(e.name, e.value)
	}
}

// salt finds the salt of column.mask.hash, a secret in the name of an option.
var salt = regexp.MustCompile(`(\.with\.salt\.).+`)

const otherProfile = "(another profile)"

// serverName returns the name that Connect has for an option of Debezium Server. Names that Connect lacks stay.
func serverName(name string) string {
	for _, p := range [][2]string{{"debezium.source.", ""}, {serverProducer, overrides}, {"debezium.transforms", "transforms"}, {"debezium.predicates", "predicates"}} {
		if rest, ok := strings.CutPrefix(name, p[0]); ok {
			return p[1] + rest
		}
	}
	return name
}

// reference finds a reference to a secret or another value outside of the input, which Connect or Quarkus resolves.
var reference = regexp.MustCompile(`\$\{[^}]*\}`)

// literal returns the value of an option that must be in the input itself. It notes an error for a reference.
func (i *importing) literal(name, otherwise string) string {
	v := i.value(name, otherwise)
	if reference.MatchString(v) {
		i.wrong("%s: the value is a reference that is resolved elsewhere: write the value itself in a copy of the input", i.label(name))
		return ""
	}
	return v
}

// toKafka reports whether the input writes to Kafka, as Connect always does, or is nearly written so.
func (i *importing) toKafka() bool {
	sink := i.value("debezium.sink.type", "kafka")
	return !i.connector.Server || sink == "kafka" || nearest(sink, []string{"kafka"}) != ""
}

// isOurs reports whether the input is a PostgreSQL connector, whose other mistakes are worth a sentence. It notes what makes
// it another one, or one without exactly one outbox router.
func (i *importing) isOurs() bool {
	if sink := i.value("debezium.sink.type", ""); i.connector.Server && sink != "kafka" {
		switch {
		case sink == "":
			i.wrong("debezium.sink.type: missing: name the application.properties of a Debezium Server that writes to Kafka")
		case i.toKafka():
			i.wrong("debezium.sink.type: there is no such sink: did you mean kafka?")
		default:
			i.wrong("debezium.sink.type: this server does not write to Kafka, and walpost writes to Kafka only: leave it on Debezium Server, or change its sink first")
		}
	}
	class := i.value("connector.class", "")
	label := i.label("connector.class")
	meant := nearest(class, []string{"io.debezium.connector.postgresql.PostgresConnector", "PostgresConnector"})
	ours := true
	switch {
	case class == "":
		i.wrong("%s: missing: name the configuration of a PostgreSQL connector (io.debezium.connector.postgresql.PostgresConnector)", label)
	case isPostgres(class):
	case meant != "":
		i.wrong("%s: there is no such connector: did you mean %s?", label, meant)
	default:
		i.wrong("%s: %s: walpost reads PostgreSQL, from Debezium's io.debezium.connector.postgresql.PostgresConnector: name the configuration of such a connector", label, whose(class))
		ours = false
	}
	i.chain = transforms(i.options)
	var found []transform
	near := ""
	for _, t := range i.chain {
		switch {
		case isRouter(t.class):
			found = append(found, t)
		case simple(t.class) == "MongoEventRouter":
			i.wrong("%s: the chain has the outbox router for MongoDB: name a connector with io.debezium.transforms.outbox.EventRouter", i.label("transforms"))
			return false
		case nearest(t.class, []string{"io.debezium.transforms.outbox.EventRouter", "EventRouter"}) != "":
			near = t.name
		}
	}
	switch {
	case len(found) > 0:
		i.router = found[0]
		if len(found) > 1 {
			i.wrong("%s: the chain has %d outbox routers: import a copy of the input for each, with one of them in the chain", i.label("transforms"), len(found))
		}
	case near != "":
		i.wrong("%s: there is no such transformation: did you mean io.debezium.transforms.outbox.EventRouter?", i.label("transforms."+near+".type"))
	default:
		i.wrong("%s: the chain has no outbox router (io.debezium.transforms.outbox.EventRouter): the connector publishes changes of tables, which walpost does not: name a connector with the router", i.label("transforms"))
	}
	if plugin := i.value("plugin.name", "decoderbufs"); plugin != "pgoutput" && ours {
		said := "it is not pgoutput"
		if _, ok := i.options.get("plugin.name"); !ok {
			said = "missing, so that Debezium uses decoderbufs"
		}
		i.wrong("%s: %s: walpost reads slots of pgoutput: create a slot and a publication with walpost init, or recreate the connector with plugin.name=pgoutput before the move", i.label("plugin.name"), said)
	}
	predicates := commaList(i.value("predicates", ""))
	for _, t := range i.chain {
		if p := strings.TrimSpace(t.predicate); p != "" && !reference.MatchString(p) && !slices.Contains(predicates, p) {
			said := "add it to predicates, or take this option out"
			if meant := nearest(p, predicates); meant != "" {
				said = "did you mean " + printable(meant) + "?"
			}
			i.wrong("%s: predicates has no such name: %s", printable(i.label("transforms."+t.name+".predicate")), said)
		}
		if t.class == "" {
			i.wrong("%s: missing: transforms names %q: write its class, or take it out of transforms", i.label("transforms."+t.name+".type"), printable(t.name))
		}
	}
	return ours
}

// whose returns words for a class that is not the PostgreSQL connector's.
func whose(class string) string {
	for _, k := range [][2]string{
		{"MySql", "it is the connector for MySQL"},
		{"MariaDb", "it is the connector for MariaDB"},
		{"MongoDb", "it is the connector for MongoDB"},
		{"SqlServer", "it is the connector for SQL Server"},
		{"Oracle", "it is the connector for Oracle"},
		{"Db2", "it is the connector for Db2"},
		{"Cassandra", "it is the connector for Cassandra"},
		{"Vitess", "it is the connector for Vitess"},
		{"Spanner", "it is the connector for Spanner"},
		{"Informix", "it is the connector for Informix"},
		{"Yugabyte", "it is the connector for YugabyteDB"},
		{"PostgresCdcSource", "it is the managed connector of Confluent Cloud, which has other options"},
		{"JdbcSource", "it is the JDBC source connector"},
		{"Sink", "it is a sink connector"},
	} {
		if strings.Contains(simple(class), k[0]) {
			return k[1]
		}
	}
	return "it is another connector"
}

// name chooses the pipeline's name.
func (i *importing) name() {
	given := i.connector.Name
	if i.connector.Server || given == "" {
		given = i.value("name", i.value("topic.prefix", ""))
	}
	i.Pipeline = legalName(given)
	switch {
	case i.connector.Server:
		i.from = "Debezium Server"
	case given != "":
		i.from = "the connector " + printable(given)
	default:
		i.from = "a connector"
	}
}

// legalName returns the text as the name of a pipeline: in small letters, with - for letters that no name has.
func legalName(text string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, text)
	name = strings.Trim(name, "-")
	if len(name) > 100 {
		name = strings.Trim(name[:100], "-")
	}
	if name == "" {
		return "outbox"
	}
	return name
}

// printable returns a name from the input for a comment: one line of at most 100 characters.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' || r == '\u0085' {
			return '?'
		}
		return r
	}, text)
	if r := []rune(text); len(r) > 100 {
		text = string(r[:97]) + "..."
	}
	return text
}

// chooseTable finds the one table that the router reads.
func (i *importing) chooseTable() {
	prefix := i.literal("topic.prefix", "")
	if prefix == "" && i.value("topic.prefix", "") == "" {
		i.wrong("%s: missing: Debezium needs it: write it in a copy of the input", i.label("topic.prefix"))
	}
	label := i.label("table.include.list")
	includes, err := patterns(label, i.value("table.include.list", ""))
	if err != nil {
		i.errs = append(i.errs, err)
		return
	}
	excludes := i.pattern("table.exclude.list")
	schemas, without := i.pattern("schema.include.list"), i.pattern("schema.exclude.list")
	captured := func(table string) bool {
		schema, _, _ := strings.Cut(table, ".")
		return (len(includes) == 0 || matchAny(includes, table)) && !matchAny(excludes, table) && (len(schemas) == 0 || matchAny(schemas, schema)) && !matchAny(without, schema)
	}
	chosen := i.asked.Table
	if chosen != "" {
		if !plainName.MatchString(chosen) {
			i.wrong("--table: it is no schema.name: write public.outbox, for example")
			return
		}
		if !captured(chosen) {
			i.wrong("--table: %s is not among the tables that the connector captures: name one of those in %s", chosen, label)
			return
		}
	}
	var candidates, others []string
	signal := i.value("signal.data.collection", "")
	for _, p := range includes {
		name, ok := p.literal()
		switch yes, told := selects(i.options, i.router, prefix+"."+name); {
		case chosen != "":
		case !ok:
			i.wrong("%s: an expression in it can match several tables: name the outbox with --table", label)
			return
		case strings.EqualFold(name, signal), told && !yes:
			others = append(others, name)
		default:
			candidates = append(candidates, name)
		}
	}
	switch {
	case chosen != "":
		for _, p := range includes {
			if name, ok := p.literal(); ok && !strings.EqualFold(name, chosen) {
				others = append(others, name)
			}
		}
	case len(includes) == 0:
		i.wrong("%s: missing, so that the connector captures every table: name the outbox with --table", label)
		return
	case len(candidates) == 0:
		i.wrong("%s: no table in it is left for the router, by its predicate: name the outbox with --table", label)
		return
	case len(candidates) > 1:
		i.wrong("%s: a pipeline reads one outbox, and here are %d (%s): run import for each with --table, and give each pipeline its own name and slot", label, len(candidates), strings.Join(candidates, ", "))
		return
	default:
		chosen = candidates[0]
		if !captured(chosen) {
			i.wrong("%s: the connector captures no change of %s, because schema.include.list, schema.exclude.list or table.exclude.list leaves it out: name the outbox with --table", label, chosen)
			return
		}
	}
	i.table, i.topic = chosen, prefix+"."+chosen
	if yes, ok := selects(i.options, i.router, i.topic); ok && !yes {
		i.wrong("%s: the predicate does not select %s, so that the router routes none of its rows: name the outbox with --table, or correct the predicate", i.label("transforms."+i.router.name+".predicate"), chosen)
	}
	i.others, i.signals = others, signal
}

// includeList writes the line of the tables of table.include.list.
func (i *importing) includeList(e entry) {
	switch {
	case !slices.ContainsFunc(i.others, func(o string) bool { return !strings.EqualFold(o, i.signals) }) && len(i.others) > 0:
		i.line(e, Equivalent, "source.table; the table for signals is not read")
	case len(i.others) > 0:
		i.line(e, Unsupported, "source.table: %s; the changes of %s are not published", i.table, strings.Join(i.others, ", "))
	default:
		i.line(e, Equivalent, "source.table")
	}
}

// pattern returns the expressions of an option's list; none, with an error noted, for one that Go cannot read.
func (i *importing) pattern(option string) []pattern {
	all, err := patterns(i.label(option), i.value(option, ""))
	if err != nil {
		i.errs = append(i.errs, err)
	}
	return all
}

// placed is one element of table.fields.additional.placement.
type placed struct{ text, column, where string }

// placements returns the elements of the router's list.
func (i *importing) placements() (all []placed) {
	text, _ := i.options.get("transforms." + i.router.name + ".table.fields.additional.placement")
	for _, e := range commaList(text) {
		of := strings.Split(e, ":")
		p := placed{text: e, column: strings.TrimSpace(of[0])}
		if len(of) > 1 {
			p.where = strings.ToLower(strings.TrimSpace(of[1]))
		}
		all = append(all, p)
	}
	return all
}

// needColumns finds the columns that the router reads, and notes an error for each that the connector leaves out.
func (i *importing) needColumns() {
	option := func(name, otherwise string) string {
		return i.value("transforms."+i.router.name+"."+name, otherwise)
	}
	required := []string{
		option("table.field.event.id", "id"), option("table.field.event.key", "aggregateid"), option("table.field.event.payload", "payload"),
		option("route.by.field", "aggregatetype"), option("table.field.event.timestamp", ""), option("table.field.event.schema.version", ""),
	}
	required = slices.DeleteFunc(required, func(c string) bool { return c == "" })
	i.columnIncludes, i.columnExcludes = i.pattern("column.include.list"), i.pattern("column.exclude.list")
	for _, c := range required {
		if i.leftOut(c) {
			i.wrong("%s: it leaves out %s, which the router needs, so that the connector's task fails: correct the list in a copy of the input", i.label(i.columnList()), printable(c))
		}
	}
	i.columns = required
	for _, p := range i.placements() {
		i.columns = append(i.columns, p.column)
	}
}

// leftOut reports whether the connector leaves the column out of its change events.
func (i *importing) leftOut(column string) bool {
	name := i.table + "." + column
	return len(i.columnIncludes) > 0 && !matchAny(i.columnIncludes, name) || matchAny(i.columnExcludes, name)
}

// columnList returns the name of the option that leaves columns out.
func (i *importing) columnList() string {
	if len(i.columnIncludes) > 0 {
		return "column.include.list"
	}
	return "column.exclude.list"
}

// read writes the line of one option.
func (i *importing) read(e entry) {
	name := e.name
	prefix, rest, _ := strings.Cut(name, ".")
	switch {
	case name == otherProfile:
		i.line(e, NoEffect, "another profile of Quarkus than prod")
	case i.connector.Server && strings.HasPrefix(name, "debezium.") && !strings.HasPrefix(name, "debezium.embedded."): // the engine has options of that name
		i.readServer(e)
	case i.connector.Server && (prefix == "quarkus" || prefix == "smallrye" || prefix == "mp"):
		i.line(e, NoEffect, "a setting of Quarkus, which does not run walpost")
	case name == "transforms":
		i.line(e, NoEffect, "the chain: each transformation has its own line")
	case prefix == "transforms" && rest != "":
		i.readTransform(e, rest)
	case name == "predicates":
		i.line(e, NoEffect, "the predicates: each transformation that has one names it")
	case prefix == "predicates" && rest != "":
		i.readPredicate(e, rest)
	case strings.HasPrefix(name, overrides):
		i.readProducer(e, strings.TrimPrefix(name, overrides))
	case strings.HasPrefix(name, "topic.creation.") && name != "topic.creation.enable":
		i.readTopicCreation(e, strings.TrimPrefix(name, "topic.creation."))
	case isConverter(name) && !i.connector.Server:
		i.readConverter(e)
	default:
		i.readOption(e)
	}
}

// readOption writes the line of an option of the connector, of Connect or of the engine.
func (i *importing) readOption(e entry) {
	if f := oneByOne[e.name]; f != nil && (!i.connector.Server || !slices.Contains(connectReaders, e.name)) {
		f(i, e)
		return
	}
	lists := [][]explained{connectorOptions, connectOptions}
	if i.connector.Server {
		lists[1] = engineOptions
	}
	for _, l := range lists {
		if k, ok := knownIn(l, e.name); ok {
			i.static(e, k)
			return
		}
	}
	for _, f := range families {
		if strings.HasPrefix(e.name, f.name) && (f.connect && !i.connector.Server || f.server && i.connector.Server) {
			i.static(e, f.explained)
			return
		}
	}
	if i.readColumns(e) || i.readPlugins(e) {
		return
	}
	i.unknown(e, i.knownNames())
}

// static notes the sentence of an option.
func (i *importing) static(e entry, k explained) {
	if k.harmless != nil && !slices.ContainsFunc(k.harmless, func(v string) bool { return strings.EqualFold(v, strings.TrimSpace(e.value)) }) {
		i.line(e, Unsupported, "%s", k.seen)
		return
	}
	i.line(e, NoEffect, "%s", k.says)
}

// unknown notes the error of an option that nobody knows.
func (i *importing) unknown(e entry, names []string) {
	said := "Debezium ignores it: remove it from a copy of the input, or correct its name"
	prefix := ""
	if strings.HasPrefix(e.name, "transforms.") {
		prefix = "transforms." + i.router.name + "."
	}
	if now := renamed[strings.TrimPrefix(e.name, prefix)]; now != "" {
		if _, there := i.options.get(prefix + now); there {
			i.line(e, NoEffect, "an older name of %s, which Debezium no longer reads", now)
			return
		}
		said = "Debezium calls it " + now + " today: write that in a copy of the input"
	} else if meant := nearest(e.label, names); meant != "" {
		said = "did you mean " + meant + "?"
	}
	i.wrong("%s: there is no such option: %s", printable(e.label), said)
}

// knownNames returns the names of all options, as the input would have them.
func (i *importing) knownNames() (names []string) {
	add := func(prefix string, all ...string) {
		for _, n := range all {
			names = append(names, prefix+n)
		}
	}
	of := func(list []explained) (all []string) {
		for _, k := range list {
			all = append(all, k.name)
		}
		return all
	}
	if !i.connector.Server {
		add("", readers...)
		add("", connectReaders...)
		add("", of(connectorOptions)...)
		add("", of(connectOptions)...)
		add(overrides, producerOptions...)
		add(overrides, producerReaders...)
		return names
	}
	add("debezium.source.", readers...)
	add("debezium.source.", of(connectorOptions)...)
	add("debezium.source.", of(engineOptions)...)
	add(serverProducer, producerOptions...)
	add(serverProducer, producerReaders...)
	add("debezium.", "sink.type", "sink.kafka.wait.message.delivery.timeout.ms", "format.key", "format.value", "format.header", "format.schemas.enable", "transforms", "predicates", "api.enabled")
	return names
}

// readPredicate writes the line of an option of a predicate; rest is its name without predicates.
func (i *importing) readPredicate(e entry, rest string) {
	predicate, option, _ := strings.Cut(rest, ".")
	names := commaList(i.value("predicates", ""))
	meant := nearest(predicate, names)
	switch {
	case slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(rest, n+".") }):
		i.line(e, NoEffect, "it belongs to a predicate: the lines of the transformations say what that means")
	case meant != "":
		i.wrong("%s: predicates has no such name: did you mean %s?", printable(e.label), printable(i.label("predicates."+meant+"."+option)))
	default:
		i.line(e, NoEffect, "predicates does not name this predicate")
	}
}

// readTransform writes the line of an option of the chain; rest is its name without transforms.
func (i *importing) readTransform(e entry, rest string) {
	at := slices.IndexFunc(i.chain, func(t transform) bool { return strings.HasPrefix(rest, t.name+".") })
	if at < 0 {
		var names []string
		for _, t := range i.chain {
			names = append(names, t.name)
		}
		name, option, _ := strings.Cut(rest, ".")
		if meant := nearest(name, names); meant != "" {
			i.wrong("%s: the chain has no transformation of this name: did you mean %s?", printable(e.label), i.label("transforms."+meant+"."+option))
			return
		}
		i.line(e, NoEffect, "the chain does not name this transformation")
		return
	}
	t := i.chain[at]
	option := strings.TrimPrefix(rest, t.name+".")
	if t.name == i.router.name {
		i.readRouter(e, option)
		return
	}
	if option != "type" {
		i.line(e, NoEffect, "it belongs to %s: the line of its type says what that means", printable(t.name))
		return
	}
	seen := t.beside()
	if yes, ok := selects(i.options, t, i.topic); !t.after && ok && !yes {
		i.line(e, NoEffect, "%s, %s: its predicate does not select the outbox", simpleName(t.class), t.where())
		return
	}
	if seen == "" {
		i.line(e, NoEffect, "%s, %s: it changes no record of the outbox", simpleName(t.class), t.where())
		return
	}
	i.line(e, Unsupported, "%s, %s: %s", simpleName(t.class), t.where(), seen)
}

// simpleName returns the simple name of a class for a sentence, if it is a name.
func simpleName(class string) string {
	if s := simple(class); className.MatchString(s) {
		return s
	}
	return "a class"
}

var className = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,80}$`)

// readRouter writes the line of an option of the router.
func (i *importing) readRouter(e entry, option string) {
	value := strings.TrimSpace(e.value)
	switch {
	case option == "type":
		i.line(e, Equivalent, "the section debezium: walpost writes the router's records")
	case option == "predicate", option == "negate":
		if _, ok := selects(i.options, i.router, i.topic); !ok {
			i.line(e, Unsupported, "walpost routes every row of the table, also those that the predicate leaves to others")
			return
		}
		i.line(e, NoEffect, "it selects the outbox, and walpost reads no other table")
	case option == "plugin.version":
		i.line(e, NoEffect, saysPlugin)
	case !slices.Contains(routerOptions, option):
		var names []string
		for _, n := range append([]string{"type", "predicate", "negate"}, routerOptions...) {
			names = append(names, strings.TrimSuffix(e.label, option)+n)
		}
		i.unknown(e, names)
	case option == "table.field.event.type":
		i.line(e, NoEffect, "the router never reads it; a type in a header is in table.fields.additional.placement")
	case strings.HasPrefix(option, "tracing."):
		i.line(e, Unsupported, "with OpenTelemetry on the connector's classpath a record has the header traceparent: walpost writes none; to keep a trace that the service writes, place its column in a header: table.fields.additional.placement")
	case option == "table.op.invalid.behavior" && skips(i.value("skipped.operations", "t"), 'u'):
		i.line(e, NoEffect, "skipped.operations has u: the router sees no update")
	case option == "table.field.event.timestamp" && i.connector.Server:
		i.line(e, NoEffect, "Debezium Server's sink does not pass the time on: a record has the time at which it is written, here too")
	case option == "table.fields.additional.placement":
		i.place(e)
	case value == "" && option != "route.topic.replacement":
		i.line(e, NoEffect, "it is empty")
	default:
		i.set(option, e.value)
		i.line(e, TakenOver, "%s", option)
	}
}

// place writes the line of the additional fields.
func (i *importing) place(e entry) {
	ignore := strings.EqualFold(i.value("transforms."+i.router.name+".table.field.additional.missing", "error"), "ignore")
	var kept, dropped []string
	for _, p := range i.placements() {
		switch {
		case i.leftOut(p.column) && ignore:
			dropped = append(dropped, printable(p.column)+", which "+i.columnList()+" leaves out")
		case i.leftOut(p.column):
			i.wrong("%s: it leaves out %s, which table.fields.additional.placement names, so that the connector's task fails: correct one of the two in a copy of the input", i.label(i.columnList()), printable(p.column))
		case p.where == "partition" && i.connector.Server:
			dropped = append(dropped, printable(p.column)+", because Debezium Server's sink does not pass the partition on")
		default:
			kept = append(kept, p.text)
		}
	}
	if len(dropped) == 0 {
		i.set("table.fields.additional.placement", e.value)
		i.line(e, TakenOver, "table.fields.additional.placement")
		return
	}
	if len(kept) > 0 {
		i.set("table.fields.additional.placement", strings.Join(kept, ","))
	}
	i.line(e, Equivalent, "table.fields.additional.placement without %s", strings.Join(dropped, ", and without "))
}

// skips reports whether skipped.operations has the operation.
func skips(operations string, operation byte) bool {
	return slices.Contains(commaList(operations), string(operation))
}

// readColumns writes the line of column.mask and column.truncate. It reports whether the option is one of them.
func (i *importing) readColumns(e entry) bool {
	seen := ""
	switch name := e.name; {
	case columnMask.MatchString(name):
		seen = "the value is in clear, and not masked"
	case columnTruncate.MatchString(name):
		seen = "the value is whole, and not cut"
	default:
		return false
	}
	all, err := patterns(e.label, e.value)
	if err != nil {
		i.errs = append(i.errs, err)
		return true
	}
	for _, c := range i.columns {
		if matchAny(all, i.table+"."+c) {
			i.line(e, Unsupported, "column %s: %s", printable(c), seen)
			return true
		}
	}
	i.line(e, NoEffect, "it is for columns that no record has")
	return true
}

var (
	columnMask     = regexp.MustCompile(`^column\.mask\.(?:with\.\d+\.chars|hash\.(?:v2\.)?[^.]+\.with\.salt\..+)$`)
	columnTruncate = regexp.MustCompile(`^column\.truncate\.to\.\d+\.chars$`)
)

// readPlugins writes the line of an option of one of Debezium's converters or post processors. It reports whether the
// option is one of them.
func (i *importing) readPlugins(e entry) bool {
	for _, of := range []string{"converters", "post.processors"} {
		for _, name := range commaList(i.value(of, "")) {
			if strings.HasPrefix(e.name, name+".") {
				i.line(e, NoEffect, "it belongs to %s: the line of %s says what that means", printable(name), i.label(of))
				return true
			}
		}
	}
	return false
}

// readTopicCreation writes the line of topic.creation.GROUP.NAME.
func (i *importing) readTopicCreation(e entry, rest string) {
	if rest == "groups" {
		i.line(e, NoEffect, saysTopics)
		return
	}
	group, option, ok := strings.Cut(rest, ".")
	groups := append(commaList(i.value("topic.creation.groups", "")), "default")
	switch {
	case !ok:
		i.unknown(e, []string{"topic.creation.groups", "topic.creation.default.partitions", "topic.creation.default.replication.factor"})
	case !slices.Contains(groups, group):
		i.line(e, NoEffect, "topic.creation.groups does not name this group")
	case option == "cleanup.policy" && slices.Contains(commaList(strings.ToLower(e.value)), "compact"):
		i.line(e, Unsupported, "a topic that walpost creates is not compacted, and loses old records by kafka.retention: create it beforehand")
	case option == "message.timestamp.type" && strings.EqualFold(strings.TrimSpace(e.value), "LogAppendTime"):
		i.line(e, Unsupported, "a record in a topic that walpost creates has its own time, and not the broker's: create it beforehand")
	default:
		if !slices.Contains(topicCreation, option) {
			if meant := nearest(option, topicCreation); meant != "" {
				i.wrong("%s: there is no such option: did you mean topic.creation.%s.%s?", printable(e.label), printable(group), meant)
				return
			}
		}
		if group != "default" {
			i.line(e, NoEffect, "walpost creates all topics alike: create the topics of this group beforehand")
			return
		}
		i.readNewTopics(e, option)
	}
}

// readNewTopics writes the line of an option of the topics that Connect creates.
func (i *importing) readNewTopics(e entry, option string) {
	n, err := strconv.Atoi(strings.TrimSpace(e.value))
	switch {
	case option == "partitions" && err == nil && n > 0:
		i.kafka = append(i.kafka, [2]string{"partitions", strconv.Itoa(n)})
		i.line(e, Equivalent, "kafka.partitions")
	case option == "replication.factor" && err == nil && n > 0:
		i.kafka = append(i.kafka, [2]string{"replication", strconv.Itoa(n)})
		i.line(e, Equivalent, "kafka.replication")
	case option == "partitions":
		i.line(e, Equivalent, "kafka.partitions is 3 by default: write the brokers' num.partitions there")
	case option == "replication.factor":
		i.line(e, Equivalent, "kafka.replication: 0, its default, is the brokers' default")
	case option == "retention.ms" && err == nil:
		retention := time.Duration(0) // unlimited, as Kafka's -1 and as more than a time.Duration can hold
		if n > 0 && n < int(math.MaxInt64/time.Millisecond) {
			retention = time.Duration(n) * time.Millisecond
		}
		i.kafka = append(i.kafka, [2]string{"retention", retention.String()})
		i.line(e, Equivalent, "kafka.retention")
	default:
		i.line(e, NoEffect, "walpost does not set it on topics that it creates: create such topics beforehand")
	}
}

const saysTopics = "walpost creates all topics alike: kafka.partitions, kafka.replication, kafka.retention"

// source makes the keys of the source.
func (i *importing) source() {
	i.slot = i.literal("slot.name", "debezium")
	if i.slot != "" && !legalSlot.MatchString(i.slot) {
		said := "write the name that the slot has"
		if meant := notOfSlot.ReplaceAllString(strings.ToLower(i.slot), "_"); legalSlot.MatchString(meant) {
			said = "did you mean " + meant + "?"
		}
		i.wrong("%s: PostgreSQL has no slot of this name, only names of 1 to 63 of a-z, 0-9 and _: %s", i.label("slot.name"), said)
	}
	i.publish = i.literal("publication.name", "dbz_publication")
	if len(i.publish) > 63 {
		i.wrong("%s: PostgreSQL has no publication of this name, only names of at most 63 bytes: write the name that the publication has", i.label("publication.name"))
	}
	host, port, user, database := i.literal("database.hostname", ""), i.literal("database.port", "5432"), i.literal("database.user", ""), i.literal("database.dbname", "")
	for _, needed := range [][2]string{{"database.hostname", host}, {"database.user", user}, {"database.dbname", database}} {
		if needed[1] == "" && i.value(needed[0], "") == "" {
			i.wrong("%s: missing: Debezium needs it: write it in a copy of the input", i.label(needed[0]))
		}
	}
	if portOf(port) == 0 && port != "" {
		i.wrong("%s: it is no port: write a number, 5432 for example", i.label("database.port"))
	}
	var hosts []string
	for _, h := range commaList(host) {
		if strings.ContainsAny(h, "/@?# \t") {
			i.wrong("%s: it has a character that no name of a host has: write the name of the host alone", i.label("database.hostname"))
			return
		}
		hosts = append(hosts, net.JoinHostPort(strings.Trim(h, "[]"), port))
	}
	if len(i.errs) > 0 || len(hosts) == 0 {
		return
	}
	u := url.URL{Scheme: "postgres", User: url.User(user), Host: strings.Join(hosts, ","), Path: "/" + database}
	mode := i.database["sslmode"]
	if mode == "" && !slices.ContainsFunc(commaList(host), func(h string) bool { return !loopback(h) }) {
		mode = "" // this machine: PostgreSQL's own default is safe
	} else if mode == "" {
		mode = "require"
		if i.value("database.sslmode", "") == "" {
			i.Notes = append(i.Notes, "source.url has sslmode=require, because Debezium's default (prefer) may send the password in clear: write verify-full and sslrootcert for a checked server, or disable for one without TLS")
		}
	}
	var query []string
	if mode != "" {
		query = append(query, "sslmode="+mode)
	}
	for _, p := range []string{"sslrootcert", "sslcert", "sslkey", "password_file"} {
		if v := i.database[p]; v != "" {
			query = append(query, p+"="+strings.ReplaceAll(url.QueryEscape(v), "%2F", "/"))
		}
	}
	u.RawQuery = strings.Join(query, "&")
	i.url = u.String()
	if i.value("publication.autocreate.mode", "") == "" {
		i.Notes = append(i.Notes, "publication.autocreate.mode is not there, so that a publication that Debezium has created is of all tables. "+saysAllTables)
	}
}

var (
	legalSlot = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	notOfSlot = regexp.MustCompile(`[^a-z0-9_]`)
)

// loopback reports whether the host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// version leaves the context headers out for a Debezium that does not write them yet.
func (i *importing) version() {
	if _, said := i.options.get(optionContext); said {
		return
	}
	var major, minor int
	_, err := fmt.Sscanf(i.connector.Version, "%d.%d", &major, &minor)
	switch {
	case err != nil:
		i.Notes = append(i.Notes, `the headers __debezium.context.* are written as by Debezium 3.3 and later: for an older one write extended.headers.enabled: "false" below debezium; walpost import --check shows which it is`)
	case major < 3 || major == 3 && minor < 3:
		i.set(optionContext, "false")
		i.Notes = append(i.Notes, fmt.Sprintf("extended.headers.enabled is false: Debezium %d.%d does not write the headers __debezium.context.* yet", major, minor))
	}
}

// quarkus notes what is special about the table of Quarkus' outbox extension.
func (i *importing) quarkus() {
	_, name, _ := strings.Cut(i.table, ".")
	if !strings.EqualFold(name, "outboxevent") {
		return
	}
	i.Notes = append(i.Notes,
		"the table has the name that Quarkus' outbox extension gives it: with remove-after-insert, its default, a row is deleted in its own transaction; walpost publishes the insert, and `walpost replay` and `walpost where` find no row",
		"its column tracingspancontext: Debezium writes a header traceparent from it only with OpenTelemetry on the classpath; walpost does not")
	i.hints = append(i.hints, "columns: {created_at: timestamp}   # Quarkus' column; with remove-after-insert: false it serves walpost replay and cleanup")
}
