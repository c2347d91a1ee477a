package route_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/route"
)

func kafkaConfig() config.Kafka {
	cfg := config.Default().Kafka
	cfg.AggregateTypes = []string{"order", "Übersicht"}
	cfg.Rename = map[string]string{"Übersicht": "overview", "OrderCreated": "created"}
	return cfg
}

func row() *cdc.Row {
	return &cdc.Row{
		Position: cdc.Position{Commit: 0x16B3748, Ordinal: 3}, ID: []byte("e1"), AggregateType: []byte("order"), AggregateID: []byte("42"),
		EventType: []byte("OrderPaid"), Payload: []byte(`{"a": 1}`), Headers: []byte("{}"), CreatedAt: []byte("2026-11-22 08:00:00.5+00"),
	}
}

func render(r *cdc.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s", r.Topic, r.Key, r.Value)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, " %s=%s", h.Key, h.Value)
	}
	return b.String()
}

func TestRecordOfARow(t *testing.T) {
	const usual = " type=OrderPaid lsn=0/16B3748 seq=3 source=shop"
	for _, c := range []struct {
		name   string
		topic  string
		change func(*cdc.Row)
		want   string
	}{
		{name: "the usual row", want: `outbox.event.order 42 {"a": 1} id=e1` + usual + " created_at=2026-11-22T08:00:00.5Z"},
		{name: "renamed aggregate type", change: func(r *cdc.Row) { r.AggregateType = []byte("Übersicht") }, want: `outbox.event.overview 42 {"a": 1} id=e1` + usual + " created_at=2026-11-22T08:00:00.5Z"},
		{
			name: "template over both", topic: "ecommerce.{aggregate_type}s.{event_type}", change: func(r *cdc.Row) { r.EventType, r.CreatedAt = []byte("OrderCreated"), nil },
			want: `ecommerce.orders.created 42 {"a": 1} id=e1 type=OrderCreated lsn=0/16B3748 seq=3 source=shop`,
		},
		{name: "no created_at, no headers", change: func(r *cdc.Row) { r.CreatedAt, r.Headers = nil, nil }, want: `outbox.event.order 42 {"a": 1} id=e1` + usual},
		{name: "infinity", change: func(r *cdc.Row) { r.CreatedAt = []byte("infinity") }, want: `outbox.event.order 42 {"a": 1} id=e1` + usual + " created_at=infinity"},
		{name: "without a time zone", change: func(r *cdc.Row) { r.CreatedAt = []byte("2026-11-22 08:00:00") }, want: `outbox.event.order 42 {"a": 1} id=e1` + usual + " created_at=2026-11-22T08:00:00"},
		{
			name: "own headers, without the names of walpost", change: func(r *cdc.Row) {
				r.CreatedAt, r.Headers = nil, []byte(`{"trace": "a\"b", "n": 5, "lsn": "stolen", "o": {"x": [1, 2]}, "z": null}`)
			},
			want: `outbox.event.order 42 {"a": 1} id=e1` + usual + ` trace=a"b n=5 o={"x": [1, 2]} z=null`,
		},
		{
			name: "own headers as pairs, of which a name may come twice", change: func(r *cdc.Row) {
				r.CreatedAt, r.Headers = nil, []byte(`[{"key": "a", "value": "b"}, ["a", "c"], ["id", "stolen"], {"key": "n", "value": 5}]`)
			},
			want: `outbox.event.order 42 {"a": 1} id=e1` + usual + ` a=b a=c n=5`,
		},
		{name: "no pairs", change: func(r *cdc.Row) { r.CreatedAt, r.Headers = nil, []byte(`[]`) }, want: `outbox.event.order 42 {"a": 1} id=e1` + usual},
		{name: "no event type, no header", change: func(r *cdc.Row) { r.CreatedAt, r.EventType = nil, nil }, want: `outbox.event.order 42 {"a": 1} id=e1 lsn=0/16B3748 seq=3 source=shop`},
		{name: "an empty payload is a value", change: func(r *cdc.Row) { r.CreatedAt, r.Payload = nil, []byte{} }, want: `outbox.event.order 42  id=e1` + usual},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := kafkaConfig()
			if c.topic != "" {
				cfg.Topic = c.topic
			}
			r, in := route.New("shop", cfg), row()
			if c.change != nil {
				c.change(in)
			}
			var rec cdc.Record
			if err := r.Route(in, &rec); err != nil {
				t.Fatal(err)
			}
			if got := render(&rec); got != c.want {
				t.Errorf("\n got  %s\n want %s", got, c.want)
			}
		})
	}
}

// TestRecordIsACloudEvent: a record has the attributes that version 1.0 requires, and no others.
func TestRecordIsACloudEvent(t *testing.T) {
	const usual = `outbox.event.order 42 {"a": 1} ce_id=e1 ce_type=OrderPaid ce_lsn=0/16B3748 ce_seq=3 ce_source=`
	const rest = " ce_specversion=1.0 ce_subject=42"
	for _, c := range []struct {
		name   string
		change func(*config.Kafka, *cdc.Row)
		want   string
	}{
		{"the usual row", nil, usual + "walpost:shop ce_time=2026-11-22T08:00:00.5Z" + rest + " content-type=application/json"},
		{"another source and another content type", func(c *config.Kafka, _ *cdc.Row) {
			c.CloudEvents = config.CloudEvents{Source: "https://shop.example/orders", ContentType: "application/avro"}
		}, usual + "https://shop.example/orders ce_time=2026-11-22T08:00:00.5Z" + rest + " content-type=application/avro"},
		{"nothing said of the content", func(c *config.Kafka, _ *cdc.Row) { c.CloudEvents.ContentType = "" }, usual + "walpost:shop ce_time=2026-11-22T08:00:00.5Z" + rest},
		{"no time", func(_ *config.Kafka, r *cdc.Row) { r.CreatedAt = nil }, usual + "walpost:shop" + rest + " content-type=application/json"},
		{"infinity is no time", func(_ *config.Kafka, r *cdc.Row) { r.CreatedAt = []byte("infinity") }, usual + "walpost:shop" + rest + " content-type=application/json"},
		{"a time without a zone is none", func(_ *config.Kafka, r *cdc.Row) { r.CreatedAt = []byte("2026-11-22 08:00:00") }, usual + "walpost:shop" + rest + " content-type=application/json"},
		{"own headers, without the names of walpost", func(_ *config.Kafka, r *cdc.Row) {
			r.CreatedAt, r.Headers = nil, []byte(`{"ce_traceparent": "00-1", "ce_id": "stolen", "content-type": "text/html", "id": "mine"}`)
		}, usual + "walpost:shop" + rest + " content-type=application/json ce_traceparent=00-1 id=mine"},
	} {
		cfg, in := kafkaConfig(), row()
		cfg.Headers = config.HeadersCloudEvents
		if c.change != nil {
			c.change(&cfg, in)
		}
		var rec cdc.Record
		if err := route.New("shop", cfg).Route(in, &rec); err != nil {
			t.Fatal(err)
		}
		if got := render(&rec); got != c.want {
			t.Errorf("%s:\n got  %s\n want %s", c.name, got, c.want)
		}
	}
	cfg, in := kafkaConfig(), row()
	cfg.Headers, in.EventType = config.HeadersCloudEvents, nil
	var refused *cdc.RejectedError
	if err := route.New("shop", cfg).Route(in, new(cdc.Record)); !errors.As(err, &refused) || refused.Class != cdc.BadType {
		t.Errorf("an event without a type is none: %v", err)
	}
}

func TestRowsThatCannotBePublishedAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		topic  string
		change func(*cdc.Row)
		says   string
	}{
		"type not listed":  {change: func(r *cdc.Row) { r.AggregateType = []byte("invoice") }, says: `"invoice" is not in kafka.aggregate_types`},
		"type missing":     {change: func(r *cdc.Row) { r.AggregateType = nil }, says: "kafka.aggregate_types"},
		"id missing":       {change: func(r *cdc.Row) { r.ID = nil }, says: "id is NULL"},
		"key missing":      {change: func(r *cdc.Row) { r.AggregateID = nil }, says: "aggregate_id is empty"},
		"key empty":        {change: func(r *cdc.Row) { r.AggregateID = []byte{} }, says: "aggregate_id is empty"},
		"payload missing":  {change: func(r *cdc.Row) { r.Payload = nil }, says: "payload is NULL"},
		"illegal topic":    {topic: "x.{event_type}", change: func(r *cdc.Row) { r.EventType = []byte("a b") }, says: "does not allow"},
		"payload not JSON": {change: func(r *cdc.Row) { r.Payload = []byte(`{"a": `) }, says: "not valid JSON"},
		"too many headers": {change: func(r *cdc.Row) {
			r.Headers = []byte(`{"h": 0` + strings.Repeat(`, "h": 0`, 1000) + "}")
		}, says: "more than 1000"},
		"headers an array":    {change: func(r *cdc.Row) { r.Headers = []byte("[1]") }, says: "neither {"},
		"headers a number":    {change: func(r *cdc.Row) { r.Headers = []byte("5") }, says: "neither a JSON object nor"},
		"a pair of three":     {change: func(r *cdc.Row) { r.Headers = []byte(`[["a", "b", "c"]]`) }, says: "neither {"},
		"a pair without key":  {change: func(r *cdc.Row) { r.Headers = []byte(`[{"value": "b"}]`) }, says: "neither {"},
		"headers torn":        {change: func(r *cdc.Row) { r.Headers = []byte(`{"a": `) }, says: "not valid JSON"},
		"headers not closed":  {change: func(r *cdc.Row) { r.Headers = []byte(`{"a": 1`) }, says: "not valid JSON"},
		"headers with a list": {change: func(r *cdc.Row) { r.Headers = []byte(`{"a": 1]`) }, says: "not valid JSON"},
	} {
		cfg := kafkaConfig()
		if c.topic != "" {
			cfg.Topic = c.topic
		}
		cfg.Payload = "json"
		in := row()
		c.change(in)
		var rec cdc.Record
		var refused *cdc.RejectedError
		if err := route.New("shop", cfg).Route(in, &rec); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "0/16B3748/3") {
			t.Errorf("%s: %v, want a RejectedError that says %q and where the row is", name, err, c.says)
		}
	}
}

// TestRecordsOfAWindowKeepTheirBytes makes many records before any is used: one must not overwrite another's bytes.
func TestRecordsOfAWindowKeepTheirBytes(t *testing.T) {
	r := route.New("shop", kafkaConfig())
	for range 3 {
		r.NextWindow()
		records := make([]cdc.Record, 3000)
		rows := make([]cdc.Row, len(records))
		for i := range records {
			rows[i] = *row()
			rows[i].Position = cdc.Position{Commit: cdc.LSN(i / 2), Ordinal: uint32(i + 1)}
			if err := r.Route(&rows[i], &records[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range records {
			want := fmt.Sprintf("lsn=%s seq=%d source=shop created_at=2026-11-22T08:00:00.5Z", cdc.LSN(i/2), i+1)
			if got := render(&records[i]); !strings.HasSuffix(got, want) {
				t.Fatalf("record %d: %s, want it to end in %s", i, got, want)
			}
		}
	}
}

func TestTopics(t *testing.T) {
	cfg := kafkaConfig()
	for _, c := range []struct {
		topic  string
		types  []string
		rename map[string]string
		want   string
	}{
		{cfg.Topic, cfg.AggregateTypes, cfg.Rename, "[outbox.event.order outbox.event.overview] []"},
		{"{event_type}", []string{"order", "stock"}, nil, "[] [{event_type}]"},
		{"{event_type}", []string{"order", "stock"}, map[string]string{"order": "orders", "OrderPaid": "paid", "Reserved": "reserved"}, "[paid reserved] [{event_type}]"},
		{"x.{aggregate_type}.{event_type}", []string{"order"}, map[string]string{"order": "orders", "OrderPaid": "paid"}, "[x.orders.paid] [x.orders.{event_type}]"},
		{"{aggregate_type}.{event_type}", []string{"stock", "order"}, map[string]string{"OrderPaid": "paid"}, "[] [order.{event_type} stock.{event_type}]"},
	} {
		cfg.Topic, cfg.AggregateTypes, cfg.Rename = c.topic, c.types, c.rename
		if got := fmt.Sprint(route.New("shop", cfg).Topics()); got != c.want {
			t.Errorf("%s of %v, %v: %s, want %s", c.topic, c.types, c.rename, got, c.want)
		}
	}
}

// TestPatternMatchesWhatRowsMayGoTo: the pattern matches these topics and no others.
func TestPatternMatchesWhatRowsMayGoTo(t *testing.T) {
	cfg := kafkaConfig()
	cfg.Topic = "shop.{aggregate_type}s.{event_type}"
	p := route.New("shop", cfg).Pattern()
	for name, want := range map[string]bool{
		route.New("shop", cfg).Topic("order", "OrderCreated"): true, route.New("shop", cfg).Topic("Übersicht", "x"): true,
		"shop.invoices.created": false, "shopXorders.created": false, "shop.orders.": false, "a.shop.orders.created": false,
	} {
		if p.MatchString(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func BenchmarkRoute(b *testing.B) {
	r, in := route.New("shop", kafkaConfig()), row()
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
}

// TestRowsThatLackSomethingByChoice: rows without key or payload are published if the configuration allows it.
func TestRowsThatLackSomethingByChoice(t *testing.T) {
	cfg := kafkaConfig()
	cfg.NullKey, cfg.NullPayload, cfg.Payload, cfg.AggregateTypes, cfg.Topic = config.PublishKey, config.Tombstone, config.PayloadJSON, []string{config.AnyType}, "{aggregate_type}"
	if known, patterns := route.New("shop", cfg).Topics(); known != nil || !slices.Equal(patterns, []string{"{aggregate_type}"}) {
		t.Errorf("known before any row came: %v; patterns %v", known, patterns)
	}
	if !route.New("shop", cfg).Pattern().MatchString("shop.orders") {
		t.Error("a topic of a row is not one of the pipeline's")
	}
	r := route.New("shop", cfg)
	for _, key := range [][]byte{nil, {}} {
		in, rec := row(), cdc.Record{}
		in.AggregateType, in.AggregateID, in.Payload = []byte("shop.orders"), key, nil
		if err := r.Route(in, &rec); err != nil || rec.Topic != "shop.orders" || rec.Key != nil || rec.Value != nil {
			t.Errorf("key %q: %v, %+v, want no key and no value", key, err, rec)
		}
	}
	in := row()
	in.AggregateType = nil
	var refused *cdc.RejectedError
	if err := r.Route(in, new(cdc.Record)); !errors.As(err, &refused) || refused.Class != cdc.BadType {
		t.Errorf("a row without an aggregate type: %v", err)
	}
}
