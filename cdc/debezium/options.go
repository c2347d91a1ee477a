package debezium

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/misspelt"
)

// Options are the router's options and those of the connector and its converters that change a record.
type Options struct {
	// Prefix is topic.prefix: it is in a header, and in the names of schemas.
	Prefix string
	// Expand reports whether payloads become structs: table.expand.json.payload.
	Expand bool
	// Tombstones reports whether an empty payload deletes its key: route.tombstone.on.empty.payload.
	Tombstones bool
	// Context reports whether records have the four headers with the name of the connector: extended.headers.enabled.
	Context bool

	id, key, payload, route string // columns
	event                   string // column of the event type, for people only: the router does not read it
	at                      string // the column of the record's timestamp; empty: the clock
	version                 string // the column of the envelope's schema version; empty: none
	placed                  []placement
	missing                 bool // columns of placed may be missing
	updates                 config.Updates
	keepNull, keepEmpty     bool
	topics                  *topicRouter
	keys, values, headers   *converter

	decimals, binaries, times, intervals, hstores string

	avro   bool // names of schemas are made fit for Avro
	strict bool // a value that Debezium cannot convert is an error
}

// placement puts a column into a header, the envelope or the partition.
type placement struct {
	column, alias string
	place         place
}

type place byte

const (
	inHeader place = iota
	inEnvelope
	asPartition
)

// envelope reports whether values are structs with the payload and other columns.
func (o *Options) envelope() bool {
	return slices.ContainsFunc(o.placed, func(p placement) bool { return p.place == inEnvelope })
}

// Columns returns the columns that the options name, each once.
func (o *Options) Columns() []string {
	names := []string{o.id, o.key, o.route, o.payload}
	for _, p := range o.placed {
		names = append(names, p.column)
	}
	for _, name := range []string{o.at, o.version} {
		if name != "" {
			names = append(names, name)
		}
	}
	var once []string
	for _, name := range names {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

// Names of the options that other files need.
const (
	optionID         = "table.field.event.id"
	optionKey        = "table.field.event.key"
	optionType       = "table.field.event.type"
	optionPayload    = "table.field.event.payload"
	optionTimestamp  = "table.field.event.timestamp"
	optionVersion    = "table.field.event.schema.version"
	optionRoute      = "route.by.field"
	optionPlacement  = "table.fields.additional.placement"
	optionUpdates    = "table.op.invalid.behavior"
	optionPrefix     = "topic.prefix"
	optionContext    = "extended.headers.enabled"
	optionConverting = "event.converting.failure.handling.mode"
	optionRelease    = "debezium.version" // not one of Debezium's: the version whose records are wanted
)

// option is one option: its default, and the values that it may have; nil: any text.
type option struct {
	normal string
	values []string
}

var truthValues = []string{"true", "false"}

// known holds every option except those of converters.
var known = map[string]option{
	optionID:                           {normal: "id"},
	optionKey:                          {normal: "aggregateid"},
	optionType:                         {normal: "type"},
	optionPayload:                      {normal: "payload"},
	optionTimestamp:                    {},
	optionVersion:                      {},
	optionPlacement:                    {},
	"table.field.additional.missing":   {normal: "error", values: []string{"error", "ignore"}},
	optionUpdates:                      {normal: "warn", values: []string{"warn", "error", "fatal"}},
	"table.expand.json.payload":        {normal: "false", values: truthValues},
	"table.json.payload.null.behavior": {normal: "ignore", values: []string{"ignore", "optional_bytes"}},
	"table.json.payload.empty.array.behavior": {normal: "ignore", values: []string{"ignore", "optional_string"}},
	optionRoute:                        {normal: "aggregatetype"},
	"route.topic.regex":                {normal: "(?<routedByValue>.*)"},
	"route.topic.replacement":          {normal: "outbox.event.${routedByValue}"},
	"route.tombstone.on.empty.payload": {normal: "false", values: truthValues},
	"tracing.span.context.field":       {},
	"tracing.operation.name":           {},
	"tracing.with.context.field.only":  {values: truthValues},
	optionRelease:                      {normal: "3.6"},
	optionPrefix:                       {},
	optionContext:                      {normal: "true", values: truthValues},
	"decimal.handling.mode":            {normal: "precise", values: []string{"precise", "string", "double"}},
	"time.precision.mode":              {normal: "adaptive", values: []string{"adaptive", "adaptive_time_microseconds", "connect", "isostring", "microseconds", "nanoseconds"}},
	"binary.handling.mode":             {normal: "bytes", values: []string{"bytes", "base64", "base64-url-safe", "hex"}},
	"interval.handling.mode":           {normal: "numeric", values: []string{"numeric", "string"}},
	"hstore.handling.mode":             {normal: "json", values: []string{"json"}},
	optionConverting:                   {normal: "warn", values: []string{"warn", "fail", "skip"}},
	"schema.name.adjustment.mode":      {normal: "none", values: []string{"none", "avro"}},
	"field.name.adjustment.mode":       {normal: "none", values: []string{"none"}},
}

// Names returns the names of all options that Parse knows, sorted; those of converters for their default.
func Names() []string {
	names := slices.Collect(maps.Keys(known))
	for _, c := range []string{"key.converter", "value.converter", "header.converter"} {
		names = append(names, c)
		for _, sub := range converterOptions {
			names = append(names, c+"."+sub, c+".delegate.converter.type."+sub)
		}
	}
	slices.Sort(names)
	return names
}

// Parse reads the options of a pipeline. The error names every mistake, and what to write instead.
func Parse(given map[string]string) (*Options, error) {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	names := Names()
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if slices.Contains(names, name) {
			continue
		}
		if meant := misspelt.Nearest(name, names); meant != "" {
			fail("%s: there is no such option: did you mean %s?", name, meant)
		} else if bare, ok := strings.CutPrefix(name, "transforms."); ok {
			fail("%s: write the router's options without transforms.%s.", name, strings.SplitN(bare, ".", 2)[0])
		} else {
			fail("%s: there is no such option of the router, or it does not change a record: leave it out; cdc/debezium/README.md lists the options", name)
		}
	}
	get := func(name string) string {
		o := known[name]
		v, set := given[name]
		if !set {
			return o.normal
		}
		if o.values == nil {
			return v
		}
		v = strings.ToLower(strings.TrimSpace(v))
		if !slices.Contains(o.values, v) {
			fail("%s: %q is not supported: write %s", name, given[name], strings.Join(o.values, " or "))
			return o.normal
		}
		return v
	}
	column := func(name string) string {
		v := get(name)
		if _, set := given[name]; set && strings.TrimSpace(v) == "" {
			fail("%s is empty: name a column, or leave the option out", name)
		}
		return v
	}
	o := &Options{
		Prefix: get(optionPrefix), Expand: get("table.expand.json.payload") == "true",
		Tombstones: get("route.tombstone.on.empty.payload") == "true", Context: get(optionContext) == "true",
		id: column(optionID), key: column(optionKey), payload: column(optionPayload), route: column(optionRoute), event: column(optionType),
		at: column(optionTimestamp), version: column(optionVersion),
		missing:  get("table.field.additional.missing") == "ignore",
		keepNull: get("table.json.payload.null.behavior") == "optional_bytes", keepEmpty: get("table.json.payload.empty.array.behavior") == "optional_string",
		decimals: get("decimal.handling.mode"), binaries: get("binary.handling.mode"), times: get("time.precision.mode"),
		intervals: get("interval.handling.mode"), hstores: get("hstore.handling.mode"),
	}
	o.strict = get(optionConverting) == "fail"
	o.avro = get("schema.name.adjustment.mode") == "avro"
	for _, name := range []string{"tracing.with.context.field.only", "field.name.adjustment.mode"} {
		if _, set := given[name]; set {
			get(name)
		}
	}
	o.updates = config.WarnOfUpdate
	if get(optionUpdates) == "fatal" {
		o.updates = config.HaltAtUpdate
	}
	if release := regexp.MustCompile(`^(\d+)\.(\d+)`).FindStringSubmatch(get(optionRelease)); release == nil {
		fail("%s: %q is no version: write 3.6 or 3.7", optionRelease, get(optionRelease))
	} else if major, _ := strconv.Atoi(release[1]); major < 3 || major == 3 && len(release[2]) == 1 && release[2] < "7" {
		o.keepEmpty = false // the option is newer
	}
	join := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	if list, set := given[optionPlacement]; set {
		o.placed, err = parsePlacement(list)
		join(err)
	}
	o.topics, err = newTopicRouter(get("route.topic.regex"), get("route.topic.replacement"))
	join(err)
	o.keys, err = newConverter("key.converter", given)
	join(err)
	o.values, err = newConverter("value.converter", given)
	join(err)
	o.headers, err = newConverter("header.converter", given)
	join(err)
	if o.Prefix == "" && (o.Context || o.envelope() && o.values != nil && o.values.describes()) {
		fail("topic.prefix is not set, and records show it: write the connector's topic.prefix, or extended.headers.enabled: \"false\" if the connector has that")
	}
	if strings.ContainsFunc(o.Prefix, func(c rune) bool { return !strings.ContainsRune(prefixLetters, c) }) {
		fail("topic.prefix: %q: write letters, digits, '.', '_' and '-' only, as Debezium asks", o.Prefix)
	}
	if o.version != "" && !o.envelope() {
		o.version = "" // Debezium reads it for an envelope only
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return o, nil
}

const prefixLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

// schemaName returns the name of a table's schemas.
func (o *Options) schemaName(table string) string {
	name := o.Prefix + "." + table
	if !o.avro {
		return name
	}
	fit := strings.Map(func(c rune) rune {
		if c == '-' || !strings.ContainsRune(prefixLetters, c) {
			return '_'
		}
		return c
	}, name)
	switch {
	case name[0] >= '0' && name[0] <= '9':
		return "_" + fit
	case name[0] == '.':
		return "_" + fit[1:]
	}
	return fit
}

// split cuts text as Java's String.split does: without empty parts at the end.
func split(s, separator string) []string {
	parts := strings.Split(s, separator)
	for len(parts) > 1 && parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	return parts
}

// parsePlacement reads col:placement[:alias],…
func parsePlacement(list string) ([]placement, error) {
	const usage = "write column:header, column:envelope or column:partition, with :alias behind it if you want, and commas between them"
	var placed []placement
	var errs []error
	fields := map[string]bool{"payload": true}
	for _, one := range split(list, ",") {
		parts := split(one, ":")
		if len(parts) != 2 && len(parts) != 3 || strings.TrimSpace(parts[0]) == "" {
			errs = append(errs, fmt.Errorf("%s: %q is no placement: %s", optionPlacement, one, usage))
			continue
		}
		p := placement{column: strings.TrimSpace(parts[0])}
		p.alias = p.column
		if len(parts) == 3 {
			p.alias = strings.TrimSpace(parts[2])
		}
		switch word := strings.ToLower(strings.TrimSpace(parts[1])); word {
		case "header":
			p.place = inHeader
		case "envelope":
			if p.place = inEnvelope; fields[p.alias] || p.alias == "" {
				errs = append(errs, fmt.Errorf("%s: the envelope would have the field %q twice: write another alias, %s:envelope:alias", optionPlacement, p.alias, p.column))
			}
			fields[p.alias] = true
		case "partition":
			p.place = asPartition
		default:
			errs = append(errs, fmt.Errorf("%s: %q in %q is no placement: %s", optionPlacement, word, one, usage))
		}
		placed = append(placed, p)
	}
	return placed, errors.Join(errs...)
}

// Configure sets the keys of walpost that the options stand for.
func (o *Options) Configure(cfg *config.Config) {
	c := &cfg.Source.Columns
	c.ID, c.AggregateType, c.AggregateID, c.Payload = o.id, o.route, o.key, o.payload
	c.EventType, c.Headers = o.event, config.None
	options := map[string]string{
		"id": optionID, "aggregate_type": optionRoute, "aggregate_id": optionKey, "payload": optionPayload,
		"event_type": optionType, "further": optionPlacement, "updates": optionUpdates,
	}
	if o.at != "" {
		c.CreatedAt = o.at
		options["created_at"] = optionTimestamp
	}
	c.Verbatim = &config.Verbatim{Further: o.further(), Optional: o.missing, Options: options, Updates: o.updates, Rekeyed: true}
	k := &cfg.Kafka
	k.AggregateTypes, k.Topic, k.Rename = []string{config.AnyType}, "{aggregate_type}", nil
	k.Headers, k.Payload, k.NullKey, k.NullPayload = config.HeadersWalpost, config.PayloadAny, config.PublishKey, config.Tombstone
}

// further returns the columns besides those of walpost's keys, in the order of Row.Further.
func (o *Options) further() []string {
	var names []string
	for _, p := range o.placed {
		if !slices.Contains(names, p.column) {
			names = append(names, p.column)
		}
	}
	if o.version != "" && !slices.Contains(names, o.version) {
		names = append(names, o.version)
	}
	return names
}
