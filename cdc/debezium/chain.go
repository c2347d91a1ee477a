package debezium

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// transform is one single message transformation of the input's chain.
type transform struct {
	name      string
	class     string
	predicate string
	negate    bool
	after     bool // it comes after the router
}

// transforms returns the chain in its order.
func transforms(options pairs) (chain []transform) {
	all, _ := options.get("transforms")
	after := false
	for _, name := range commaList(all) {
		t := transform{name: name, after: after}
		t.class, _ = options.get("transforms." + name + ".type")
		t.predicate, _ = options.get("transforms." + name + ".predicate")
		negate, _ := options.get("transforms." + name + ".negate")
		t.negate = strings.EqualFold(strings.TrimSpace(negate), "true")
		after = after || isRouter(t.class)
		chain = append(chain, t)
	}
	return chain
}

// routers returns the names of the outbox routers in the chain.
func routers(options pairs) (names []string) {
	for _, t := range transforms(options) {
		if isRouter(t.class) {
			names = append(names, t.name)
		}
	}
	return names
}

// isRouter reports whether the class is Debezium's outbox router for relational databases.
func isRouter(class string) bool {
	return slices.Contains([]string{"io.debezium.transforms.outbox.EventRouter", "EventRouter"}, strings.TrimSpace(class))
}

// isPostgres reports whether the class is Debezium's PostgreSQL connector.
func isPostgres(class string) bool {
	return slices.Contains([]string{"io.debezium.connector.postgresql.PostgresConnector", "PostgresConnector", "Postgres"}, strings.TrimSpace(class))
}

// simple returns the class's name without its package and without $Key or $Value.
func simple(class string) string {
	class = strings.TrimSpace(class)
	class = class[strings.LastIndexByte(class, '.')+1:]
	class, _, _ = strings.Cut(class, "$")
	return class
}

// commaList returns the elements of a comma-separated list, without white space and empty elements.
func commaList(text string) (elements []string) {
	for e := range strings.SplitSeq(text, ",") {
		if e = strings.TrimSpace(e); e != "" {
			elements = append(elements, e)
		}
	}
	return elements
}

// smt says what a transformation of a class does beside the router. An empty sentence means that it changes no record of
// the outbox.
type smt struct{ before, after string }

const (
	stays     = "records stay in the topic that the router gives them"
	headers   = "the headers that it adds are missing"
	unchanged = "key and value are those of the router, without its changes"
	filtered  = "the rows that it drops are published"
)

// smts are the transformations of Kafka 4.3 and Debezium 3.6, by the class's simple name.
var smts = map[string]smt{
	"Filter":                              {filtered, filtered},
	"RegexRouter":                         {"", stays},
	"TimestampRouter":                     {"", stays},
	"ByLogicalTableRouter":                {"", stays},
	"ContentBasedRouter":                  {"", stays},
	"InsertHeader":                        {headers, headers},
	"HeaderFrom":                          {headers, headers},
	"DropHeaders":                         {"the headers that it drops are there", "the headers that it drops are there"},
	"ReadToInsertEvent":                   {},
	"SchemaChangeEventFilter":             {},
	"PartitionRouting":                    {"", "a record is in the partition of its key"},
	"ExtractNewRecordState":               {"the router gets no change events, and its records differ", ""},
	"ExtractChangedRecordState":           {headers, ""},
	"DecodeLogicalDecodingMessageContent": {"events of pg_logical_emit_message are not published", ""},
	"ReplaceField":                        {unchanged, unchanged},
	"MaskField":                           {"values that it masks are in clear", "values that it masks are in clear"},
	"InsertField":                         {unchanged, unchanged},
	"Cast":                                {unchanged, unchanged},
	"Flatten":                             {unchanged, unchanged},
	"HoistField":                          {unchanged, unchanged},
	"ExtractField":                        {unchanged, unchanged},
	"SetSchemaMetadata":                   {"the router may not recognise change events of other schemas, and its records differ", "the names of the schemas are those of the router"},
	"ValueToKey":                          {"", "the key is the router's"},
	"TimestampConverter":                  {unchanged, unchanged},
	"TimezoneConverter":                   {unchanged, unchanged},
	"HeaderToValue":                       {unchanged, unchanged},
	"ActivateTracingSpan": {
		"the header traceparent is missing; to keep a trace that the service writes, place its column in a header: table.fields.additional.placement",
		"the header traceparent is missing; to keep a trace that the service writes, place its column in a header: table.fields.additional.placement",
	},
}

// beside returns what a consumer sees without the transformation; empty if it changes no record.
func (t *transform) beside() string {
	s, ok := smts[simple(t.class)]
	switch {
	case !ok:
		return "its changes are missing in the records"
	case t.after:
		return s.after
	}
	return s.before
}

// where returns the place of the transformation, for sentences.
func (t *transform) where() string {
	if t.after {
		return "after the router"
	}
	return "before the router"
}

// selects reports whether the predicate of a transformation before the router, or of the router, is true for change
// events in the topic. ok is false if that cannot be told.
func selects(options pairs, t transform, topic string) (yes, ok bool) {
	if t.predicate == "" {
		return true, true
	}
	class, _ := options.get("predicates." + t.predicate + ".type")
	switch simple(class) {
	case "TopicNameMatches":
		pattern, _ := options.get("predicates." + t.predicate + ".pattern")
		re, err := regexp.Compile("^(?:" + pattern + ")$")
		if err != nil {
			return false, false
		}
		return re.MatchString(topic) != t.negate, true
	case "RecordIsTombstone": // the router drops deletes and the tombstones after them
		return t.negate, true
	}
	return false, false
}

// pattern is one regular expression of a list of tables, schemas or columns. Debezium compares whole names, and ignores
// capitals.
type pattern struct {
	text string
	re   *regexp.Regexp
}

// patterns returns the expressions of an option's list.
func patterns(option, text string) (all []pattern, err error) {
	for _, e := range commaList(text) {
		re, err := regexp.Compile("(?i)^(?:" + e + ")$")
		if err != nil {
			return nil, fmt.Errorf("%s: an expression in it needs more than Go's regular expressions have: write the names there, public.outbox for example", option)
		}
		all = append(all, pattern{e, re})
	}
	return all, nil
}

// matchAny reports whether one of the expressions matches the whole name.
func matchAny(all []pattern, name string) bool {
	return slices.ContainsFunc(all, func(p pattern) bool { return p.re.MatchString(name) })
}

// literal returns the one name that an expression matches, if it is written like a name: public.outbox or public\.outbox.
func (p pattern) literal() (name string, ok bool) {
	name = strings.ReplaceAll(p.text, `\.`, ".")
	name = strings.TrimSuffix(strings.TrimPrefix(name, "^"), "$")
	return name, plainName.MatchString(name)
}

var plainName = regexp.MustCompile(`^[\pL\pN_-]+\.[\pL\pN_-]+$`)
