package debezium_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/debezium"
)

// outbox returns the shape of the usual table, with columns of text in Further.
func outbox(further ...string) *cdc.Shape {
	text := func(name string) *cdc.Column {
		return &cdc.Column{Name: name, Type: 1043, TypeName: "character varying(255)", Modifier: 259, NotNull: true}
	}
	s := &cdc.Shape{
		Table: "public.outbox", ID: &cdc.Column{Name: "id", Type: 2950, TypeName: "uuid", Modifier: -1, NotNull: true},
		AggregateType: text("aggregatetype"), AggregateID: text("aggregateid"), EventType: text("type"),
		Payload: &cdc.Column{Name: "payload", Type: 3802, TypeName: "jsonb", Modifier: -1},
	}
	for _, name := range further {
		s.Further = append(s.Further, text(name))
	}
	return s
}

func row(s *cdc.Shape, further ...string) *cdc.Row {
	r := &cdc.Row{
		Position: cdc.Position{Commit: 0x16B3748, Ordinal: 3}, Shape: s, ID: []byte("da8d6de6-3b77-45ff-8f44-57db55a7a06c"),
		AggregateType: []byte("User"), AggregateID: []byte("42"), Payload: []byte(`{"a": 1}`),
	}
	for _, f := range further {
		r.Further = append(r.Further, []byte(f))
	}
	return r
}

func parse(t testing.TB, options map[string]string) *debezium.Options {
	t.Helper()
	all := map[string]string{"topic.prefix": "shop"}
	maps.Copy(all, options)
	o, err := debezium.Parse(all)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestMistakesInOptionsAreNamed: Parse names every mistake with its option, and what to write.
func TestMistakesInOptionsAreNamed(t *testing.T) {
	for says, options := range map[string]map[string]string{
		"rout.by.field: there is no such option: did you mean route.by.field?":                {"rout.by.field": "x"},
		"transforms.outbox.x.y.z: write the router's options without transforms.outbox":       {"transforms.outbox.x.y.z": "x"},
		"heartbeat.query: there is no such option of the router":                              {"heartbeat.query": "1"},
		"table.op.invalid.behavior: \"panic\" is not supported: write warn or error or fatal": {"table.op.invalid.behavior": "panic"},
		"route.tombstone.on.empty.payload: \"yes\" is not supported":                          {"route.tombstone.on.empty.payload": "yes"},
		"table.field.event.id is empty":                                                       {"table.field.event.id": " "},
		"table.fields.additional.placement: \"type\" is no placement":                         {"table.fields.additional.placement": "type"},
		"\"nope\" in \"a:nope\" is no placement":                                              {"table.fields.additional.placement": "a:nope"},
		"the envelope would have the field \"payload\" twice":                                 {"table.fields.additional.placement": "a:envelope:payload"},
		"the envelope would have the field \"b\" twice":                                       {"table.fields.additional.placement": "a:envelope:b,b:envelope"},
		"has a lookahead, (?!…)":                                                              {"route.topic.regex": "(?!x).*", "route.topic.replacement": "t"},
		"names the group \"routedByValue\", which route.topic.regex does not have":            {"route.topic.regex": "(.*)"},
		"key.converter: AvroConverter writes ids of a schema registry":                        {"key.converter": "io.confluent.connect.avro.AvroConverter"},
		"value.converter: ProtobufConverter writes ids":                                       {"value.converter": "io.confluent.connect.protobuf.ProtobufConverter"},
		"value.converter: walpost does not have the converter com.example.Mine":               {"value.converter": "com.example.Mine"},
		"JsonConverter has no package: write org.apache.kafka.connect.json":                   {"value.converter": "JsonConverter"},
		"value.converter.schemas.enable: \"maybe\" is neither true nor false":                 {"value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "maybe"},
		"value.converter.decimal.format: \"HEX\" is not supported":                            {"value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.decimal.format": "HEX"},
		"value.converter: SimpleHeaderConverter is for header.converter only":                 {"value.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter"},
		"topic.prefix is not set":                                                             {"topic.prefix": ""},
		"debezium.version: \"new\" is no version":                                             {"debezium.version": "new"},
		"hstore.handling.mode: \"map\" is not supported":                                      {"hstore.handling.mode": "map"},
	} {
		all := map[string]string{"topic.prefix": "shop", "decimal.handling.mode": "wrong"}
		maps.Copy(all, options)
		_, err := debezium.Parse(all)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "decimal.handling.mode") {
			t.Errorf("%v: %v, want %q, and the other mistake", options, err, says)
		}
	}
}

// TestShapesThatDoNotFitAreRefused: Fits names the option, the column and the reason; Route rejects the row with the same.
func TestShapesThatDoNotFitAreRefused(t *testing.T) {
	const c = "org.apache.kafka.connect.converters."
	of := func(kind uint32, name string) *cdc.Column {
		return &cdc.Column{Name: "x", Type: kind, TypeName: name, Modifier: -1}
	}
	for says, change := range map[string]struct {
		options map[string]string
		shape   func(*cdc.Shape)
	}{
		"table.field.event.id: the table has no column \"id\"":                                                                            {nil, func(s *cdc.Shape) { s.ID = nil }},
		"table.field.event.key: column aggregateid is a string for Debezium, and LongConverter":                                           {map[string]string{"key.converter": c + "LongConverter"}, nil},
		"table.field.event.payload: column payload is a string for Debezium, and ByteArrayConverter (value.converter) takes bytes only":   {map[string]string{"value.converter": c + "ByteArrayConverter"}, nil},
		"route.by.field: column aggregatetype is a int32":                                                                                 {nil, func(s *cdc.Shape) { s.AggregateType = of(23, "integer") }},
		"route.by.field: column aggregatetype of type bytea is not supported here":                                                        {map[string]string{"binary.handling.mode": "hex"}, func(s *cdc.Shape) { s.AggregateType = of(17, "bytea") }},
		"table.field.event.payload: column x of type vector is not supported here":                                                        {nil, func(s *cdc.Shape) { s.Payload = of(0, "vector") }},
		"table.field.event.payload: column payload is of type pg_lsn, which Debezium leaves out":                                          {nil, func(s *cdc.Shape) { s.Payload = of(3220, "pg_lsn") }},
		"column payload is written by Debezium as the address of an object":                                                               {nil, func(s *cdc.Shape) { s.Payload = of(1700, "numeric") }},
		"table.fields.additional.placement: column a is of type character varying(255), and Debezium takes a partition from integer only": {map[string]string{"table.fields.additional.placement": "a:partition"}, nil},
		"column a is written by Debezium as the address":                                                                                  {map[string]string{"table.fields.additional.placement": "a:envelope"}, func(s *cdc.Shape) { s.Further[0] = of(1562, "bit varying") }},
		"the envelope is a struct for Debezium, and ByteArrayConverter":                                                                   {map[string]string{"table.fields.additional.placement": "a:envelope", "value.converter": c + "ByteArrayConverter"}, nil},
		"table.field.event.timestamp: column at is of type timestamp with time zone":                                                      {map[string]string{"table.field.event.timestamp": "at"}, func(s *cdc.Shape) { s.CreatedAt = of(1184, "timestamp with time zone") }},
		"header.converter: a header with the connector's name is a string":                                                                {map[string]string{"header.converter": c + "IntegerConverter"}, nil},
		"has the default infinity": {nil, func(s *cdc.Shape) {
			s.Payload = of(1114, "timestamp without time zone")
			s.Payload.Default = "'infinity'::timestamp without time zone"
		}},
	} {
		shape := outbox("a")
		if change.shape != nil {
			change.shape(shape)
		}
		r := debezium.New(parse(t, change.options))
		err := r.Fits(shape)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		var rejected *cdc.RejectedError
		if err := r.Route(row(shape, "v"), new(cdc.Record)); !errors.As(err, &rejected) || !strings.Contains(err.Error(), says) {
			t.Errorf("the row: %v, want %q", err, says)
		}
	}
}

// TestConfigurationFollowsTheOptions: Configure sets the columns and what depends on them.
func TestConfigurationFollowsTheOptions(t *testing.T) {
	o := parse(t, map[string]string{
		"table.field.event.id": "eid", "table.field.event.key": "k", "route.by.field": "dest", "table.field.event.payload": "body", "table.field.event.timestamp": "at",
		"table.fields.additional.placement": " a:header , b:envelope:B,a:header:A", "table.field.event.schema.version": "v", "table.field.additional.missing": "IGNORE", "table.op.invalid.behavior": "fatal",
	})
	cfg := config.Default()
	o.Configure(&cfg)
	c := cfg.Source.Columns
	if c.ID != "eid" || c.AggregateID != "k" || c.AggregateType != "dest" || c.Payload != "body" || c.CreatedAt != "at" || c.EventType != "type" || c.Headers != config.None {
		t.Errorf("%+v", c)
	}
	if v := c.Verbatim; fmt.Sprint(v.Further) != "[a b v]" || !v.Optional || v.Updates != config.HaltAtUpdate || v.Options["payload"] != "table.field.event.payload" {
		t.Errorf("%+v", v)
	}
	if fmt.Sprint(o.Columns()) != "[eid k dest body a b at v]" {
		t.Errorf("%v", o.Columns())
	}
	cfg.Kafka.Brokers, cfg.Source.URL, cfg.Pipeline = []string{"localhost:9092"}, "postgres://localhost/x", "p"
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

// TestTopicsOfARouter: the topics that rows may go to are those of the replacement, if the regex matches every value.
func TestTopicsOfARouter(t *testing.T) {
	r := debezium.New(parse(t, nil))
	known, patterns := r.Topics()
	if p := r.Pattern(); known != nil || fmt.Sprint(patterns) != "[outbox.event.{aggregate_type}]" || !p.MatchString("outbox.event.User") || p.MatchString("orders") || r.Topic("User", "") != "outbox.event.User" {
		t.Errorf("%v %v %s", known, patterns, p)
	}
	r = debezium.New(parse(t, map[string]string{"route.topic.regex": "x(.*)", "route.topic.replacement": "t.$1"}))
	if p := r.Pattern(); !p.MatchString("t.1") || !p.MatchString("orders") || r.Topic("x1", "") != "t.1" || r.Topic("orders", "") != "orders" {
		t.Errorf("%s", p)
	}
}

// TestRecordsOfAWindowKeepTheirBytes makes many records before any is used: one must not overwrite another's bytes.
func TestRecordsOfAWindowKeepTheirBytes(t *testing.T) {
	r := debezium.New(parse(t, map[string]string{
		"key.converter": "org.apache.kafka.connect.json.JsonConverter", "key.converter.schemas.enable": "false",
		"table.fields.additional.placement": "a:envelope", "table.expand.json.payload": "true",
	}))
	shape := outbox("a")
	for range 3 {
		r.NextWindow()
		records, rows := make([]cdc.Record, 3000), make([]*cdc.Row, 3000)
		for i := range records {
			rows[i] = row(shape, fmt.Sprint("a", i))
			rows[i].AggregateID = fmt.Append(nil, "k", i)
			if err := r.Route(rows[i], &records[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range records {
			if got, want := fmt.Sprintf("%s %s", records[i].Key, records[i].Value), fmt.Sprintf(`"k%d" Struct{payload=Struct{a=1},a=a%d}`, i, i); got != want {
				t.Fatalf("record %d: %s, want %s", i, got, want)
			}
		}
	}
}

// TestPlainRowsDoNotAllocate: the usual preset costs no allocation for a row.
func TestPlainRowsDoNotAllocate(t *testing.T) {
	r, in := debezium.New(parse(t, map[string]string{"table.fields.additional.placement": "type:header:eventType"})), row(outbox("type"), "UserCreated")
	var rec cdc.Record
	if n := testing.AllocsPerRun(1000, func() {
		if err := r.Route(in, &rec); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	const json = "org.apache.kafka.connect.json.JsonConverter"
	for name, options := range map[string]map[string]string{
		"plain":    nil,
		"json":     {"key.converter": json, "value.converter": json, "header.converter": json},
		"envelope": {"value.converter": json, "table.fields.additional.placement": "type:envelope"},
		"expand":   {"value.converter": json, "value.converter.schemas.enable": "false", "table.expand.json.payload": "true"},
	} {
		b.Run(name, func(b *testing.B) {
			r, in := debezium.New(parse(b, options)), row(outbox("type"), "UserCreated")
			var rec cdc.Record
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%5000 == 0 {
					r.NextWindow()
				}
				if err := r.Route(in, &rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestValuesThatDebeziumCannotConvert: NaN in a numeric column is null. Where null is not allowed, or with fail, the row
// is rejected.
func TestValuesThatDebeziumCannotConvert(t *testing.T) {
	for _, c := range []struct {
		name    string
		notNull bool
		options map[string]string
		key     string // empty: the row is rejected
	}{
		{"null", false, nil, "null"},
		{"NOT NULL", true, nil, ""},
		{"fail", false, map[string]string{"event.converting.failure.handling.mode": "fail"}, ""},
		{"as text", true, map[string]string{"decimal.handling.mode": "string"}, `"NAN"`},
	} {
		options := map[string]string{"key.converter": "org.apache.kafka.connect.json.JsonConverter", "key.converter.schemas.enable": "false"}
		maps.Copy(options, c.options)
		shape := outbox()
		shape.AggregateID = &cdc.Column{Name: "n", Type: 1700, TypeName: "numeric(5,2)", Modifier: 5<<16 | 2 + 4, NotNull: c.notNull}
		in, rec := row(shape), cdc.Record{}
		in.AggregateID = []byte("NaN")
		err := debezium.New(parse(t, options)).Route(in, &rec)
		var rejected *cdc.RejectedError
		if c.key == "" && (!errors.As(err, &rejected) || rejected.Class != cdc.BadKey) || c.key != "" && (err != nil || string(rec.Key) != c.key) {
			t.Errorf("%s: key %q, %v", c.name, rec.Key, err)
		}
	}
}
