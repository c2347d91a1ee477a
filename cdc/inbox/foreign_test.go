package inbox_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/inbox"
)

// TestRecordsOfOtherProducers: a record that some other producer wrote is applied, or rejected with a reason and
// counted. It never ends the consumer, delays no other record, and is never passed over silently.
func TestRecordsOfOtherProducers(t *testing.T) {
	t.Parallel()
	var long []byte
	for len(long) < 7000 { // more than an index accepts
		long = append(long, rand.Text()...)
	}
	h := func(key string, value []byte) kgo.RecordHeader { return kgo.RecordHeader{Key: key, Value: value} }
	typed := h("type", []byte("Thing"))
	id := newID()
	ids := newIDs(10)
	cases := []struct {
		name   string
		record kgo.Record
		id     string // the id it is applied under; "": it is rejected
		reason string
	}{
		{"nothing at all", kgo.Record{}, "", "header id is missing, and the value too: a tombstone that is no event"},
		{"no headers", kgo.Record{Key: []byte("k"), Value: []byte("v")}, "", "header id is missing"},
		{"an empty id", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", nil), typed}}, "", "header id is missing"},
		{"no type", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte(ids[0]))}}, "", "header type is missing"},
		{"a null key and a null value", kgo.Record{Headers: []kgo.RecordHeader{h("id", []byte(ids[1])), typed}}, ids[1], ""},
		{"an id that is 16 bytes", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte("\x01\x70\xff\xfe\x00\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\x01")), typed}}, "", "header id is not UTF-8 text"},
		{"an id in Latin-1", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte("caf\xe9")), typed}}, "", "header id is not UTF-8 text"},
		{"an id with a NUL", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte("a\x00b")), typed}}, "", "header id is not UTF-8 text"},
		{"an id that is JSON", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte(`"7"`)), typed}}, `"7"`, ""},
		{"an enormous id", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", bytes.Repeat([]byte("x"), 100_000)), typed}}, "", "header id is longer than 255 bytes"},
		{"a UUID in braces and capitals", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte("{"+strings.ToUpper(id)+"}")), typed}}, id, ""},
		{"headers twice: the first counts", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte(ids[2])), h("id", []byte("other")), typed, h("type", nil)}}, ids[2], ""},
		{"an enormous type", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte(ids[3])), h("type", bytes.Repeat([]byte("T"), 100_000))}}, "", "unknown type TTT"},
		{"an enormous header", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte(ids[4])), typed, h("trace", bytes.Repeat([]byte("x"), 500_000))}}, ids[4], ""},
		{"headers that are no text", kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{h("\xff\x00", []byte("\xff\x00")), typed}}, "", "header id is missing"},
		{"a long key", kgo.Record{Key: long, Value: []byte("v"), Headers: []kgo.RecordHeader{typed}}, "", "header id is missing"},
		{"the next of the long key", kgo.Record{Key: long, Value: []byte("v"), Headers: []kgo.RecordHeader{h("id", []byte(ids[5])), typed}}, "", "an earlier event of its key is parked"},
	}
	f := newFixture(t, 1)
	var applied []string
	for _, c := range cases {
		f.produce(&c.record)
		if c.id != "" {
			applied = append(applied, c.id)
		}
	}
	f.send(0, "last", ids[9])
	r := f.start(policy(inbox.ParkKey), func(cfg *inbox.Config) { cfg.Types = []string{"Thing"} })
	f.waitEffects("", append(applied, ids[9])...)
	f.waitCommitted(f.group, map[int32]int64{0: int64(len(cases)) + 1})
	list, err := f.operator().List(t.Context(), inbox.ListOptions{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	why := map[int64]string{}
	for _, p := range list {
		why[p.Offset] = p.Reason
		if shown, err := f.operator().Show(t.Context(), p.ID); err != nil {
			t.Errorf("show: %v", err)
		} else if _, err := json.Marshal(shown); err != nil {
			t.Errorf("show as JSON: %v", err)
		}
	}
	for i, c := range cases {
		if got := why[int64(i)]; !strings.HasPrefix(got, c.reason) || (got == "") != (c.id != "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.reason)
		}
	}
	if n := int(r.count(t, "test_events_parked_total") + r.count(t, "test_events_held_total")); n != len(list) || n != len(cases)-len(applied) {
		t.Errorf("%d counted and %d recorded, want %d", n, len(list), len(cases)-len(applied))
	}

	// Dropping the first event of the long key frees the events that wait for it.
	first, err := f.operator().Drop(t.Context(), inbox.DropOptions{IDs: []int64{list[len(list)-2].ID}})
	if got := did(t, first, err); got != "dropped" {
		t.Errorf("dropped: %s", got)
	}
	next, err := f.operator().Redrive(t.Context(), inbox.RedriveOptions{IDs: []int64{list[len(list)-1].ID}})
	if got := did(t, next, err); !strings.HasPrefix(got, "applied") {
		t.Errorf("redriven: %s", got)
	}
}
