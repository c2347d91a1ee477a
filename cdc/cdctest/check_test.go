package cdctest_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
)

const partitions = 3

// deliver returns a ledger of n events, in transactions of one to five, and the topic as a faultless relay writes it.
func deliver(n int) (cdctest.Ledger, []*kgo.Record) {
	ledger := cdctest.Ledger{RolledBack: map[uuid.UUID]bool{uuid.New(): true}}
	var records []*kgo.Record
	var offsets [partitions]int64
	seqs := map[string]int64{}
	for tx := int64(1); len(ledger.Events) < n; tx++ {
		for ord := range 1 + int(tx)%5 {
			key := fmt.Sprintf("key-%d", (int(tx)+ord)%30)
			seqs[key]++
			value := fmt.Appendf(nil, `{"seq": %d, "body": "%0200d"}`, seqs[key], tx)
			event := cdctest.Event{ID: uuid.New(), Key: key, Seq: seqs[key], Tx: tx, Ord: ord, Sum: sha256.Sum256(value)}
			ledger.Events = append(ledger.Events, event)
			p := (int(tx) + ord) % partitions
			records = append(records, &kgo.Record{
				Topic: "t", Partition: int32(p), Offset: offsets[p], Key: []byte(key), Value: value,
				Headers: []kgo.RecordHeader{
					{Key: "id", Value: []byte(event.ID.String())},
					{Key: "type", Value: []byte("Written")},
					{Key: "lsn", Value: []byte(pglogrepl.LSN(1000 * tx).String())},
					{Key: "seq", Value: fmt.Append(nil, ord)},
				},
			})
			offsets[p]++
		}
	}
	return ledger, records
}

// renumber numbers the records' offsets in their order.
func renumber(records []*kgo.Record) []*kgo.Record {
	var offsets [partitions]int64
	out := make([]*kgo.Record, len(records))
	for i, r := range records {
		moved := *r
		moved.Offset = offsets[r.Partition]
		offsets[r.Partition]++
		out[i] = &moved
	}
	return out
}

// of separates the records of a partition from the others.
func of(p int32, records []*kgo.Record) (its, others []*kgo.Record) {
	for _, r := range records {
		if r.Partition == p {
			its = append(its, r)
		} else {
			others = append(others, r)
		}
	}
	return its, others
}

func TestCheckAcceptsWhatARelayMayDo(t *testing.T) {
	ledger, records := deliver(3000)
	its, others := of(1, records)
	for name, test := range map[string]struct {
		records             []*kgo.Record
		duplicates, replays int
	}{
		"once each": {records, 0, 0},
		"a replay to the end of the log": {
			slices.Concat(others, its[:500], its[450:]), 50, 1,
		},
		"the last record again": {
			slices.Concat(others, its[:500], its[499:]), 1, 1,
		},
		"a replay that was killed and begun again": {
			slices.Concat(others, its[:500], its[400:450], its[420:]), 50 + 80, 2,
		},
		"a replay that continues where the killed one stopped": {
			slices.Concat(others, its[:500], its[400:450], its[450:]), 100, 1,
		},
		"everything twice": {slices.Concat(records, records), len(records), partitions},
		"a replay still going on": {
			slices.Concat(records, its[:10]), 10, 1,
		},
	} {
		report := cdctest.Check(ledger, renumber(test.records))
		if err := report.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if report.Events != len(ledger.Events) || report.Records != len(test.records) || report.Duplicates != test.duplicates || report.Replays != test.replays {
			t.Errorf("%s: %d events, %d records, %d duplicates in %d replays", name, report.Events, report.Records, report.Duplicates, report.Replays)
		}
	}
}

func TestCheckReportsEveryMutation(t *testing.T) {
	ledger, records := deliver(3000)
	its, others := of(1, records)
	changed := func(i int, change func(*kgo.Record)) *kgo.Record {
		r := *its[i]
		r.Headers = slices.Clone(r.Headers)
		change(&r)
		return &r
	}
	with := func(i int, change func(*kgo.Record)) []*kgo.Record {
		return slices.Concat(others, its[:i], []*kgo.Record{changed(i, change)}, its[i+1:])
	}
	later := 500 // not the first row of its transaction
	for string(its[later].Headers[3].Value) == "0" {
		later++
	}
	header := func(name, value string) func(*kgo.Record) {
		return func(r *kgo.Record) {
			i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == name })
			r.Headers[i].Value = []byte(value)
		}
	}
	for name, test := range map[string]struct {
		records []*kgo.Record
		want    string // kinds, comma-separated
	}{
		"nothing arrived":                 {nil, "missing"},
		"dropped":                         {slices.Concat(others, its[:500], its[501:]), "missing, torn"},
		"the last ones dropped":           {slices.Concat(others, its[:len(its)-10]), "missing, torn"},
		"neighbours swapped":              {slices.Concat(others, its[:500], its[501:502], its[500:501], its[502:]), "reordered"},
		"moved far ahead":                 {slices.Concat(others, its[:100], its[500:501], its[100:500], its[501:]), "reordered"},
		"first appearances across a hole": {slices.Concat(others, its[:500], its[501:600], its[500:501], its[600:]), "reordered"},
		"an early one again":              {slices.Concat(others, its[:500], its[400:401], its[500:]), "misplaced"},
		"a replay that breaks off":        {slices.Concat(others, its[:500], its[400:450], its[500:]), "misplaced"},
		"a replay with a gap":             {slices.Concat(others, its[:500], its[400:420], its[421:]), "misplaced"},
		"a replay in another order":       {slices.Concat(others, its[:500], its[499:500], its[498:499], its[500:]), "misplaced"},
		"again in another partition":      {slices.Concat(records, []*kgo.Record{changed(7, func(r *kgo.Record) { r.Partition = 2 })}), "misplaced"},
		"phantom":                         {with(500, header("id", uuid.NewString())), "missing, ghost, torn"},
		"phantom on top":                  {slices.Concat(with(500, header("id", uuid.NewString())), its[500:501]), "ghost, reordered"},
		"rolled back":                     {with(500, header("id", slices.Collect(maps.Keys(ledger.RolledBack))[0].String())), "missing, ghost, torn"},
		"without an id":                   {with(500, func(r *kgo.Record) { r.Headers = r.Headers[1:] }), "missing, ghost, torn"},
		"with two ids":                    {with(500, func(r *kgo.Record) { r.Headers = append(r.Headers, r.Headers[0]) }), "missing, ghost, torn"},
		"a bit flipped":                   {with(500, func(r *kgo.Record) { r.Value = append([]byte("["), r.Value[1:]...) }), "torn"},
		"a payload cut short":             {with(500, func(r *kgo.Record) { r.Value = r.Value[:20] }), "torn"},
		"the neighbour's payload":         {with(500, func(r *kgo.Record) { r.Value = its[501].Value }), "torn"},
		"another key":                     {with(500, func(r *kgo.Record) { r.Key = []byte("key-x") }), "torn"},
		"the neighbour's lsn":             {with(500, header("lsn", "0/1")), "reordered"},
		"another seq":                     {with(later, header("seq", "0")), "reordered"},
		"a replay with another lsn":       {slices.Concat(others, its[:501], []*kgo.Record{changed(500, header("lsn", "F/1"))}, its[501:]), "reordered"},
	} {
		report := cdctest.Check(ledger, renumber(test.records))
		kinds := []string{}
		for kind, finding := range map[string]cdctest.Finding{
			"missing": report.Missing, "ghost": report.Ghosts, "reordered": report.Reordered, "torn": report.Torn, "misplaced": report.Misplaced,
		} {
			if finding.Count > 0 {
				kinds = append(kinds, kind)
			}
		}
		if report.Err() == nil {
			t.Errorf("%s: passed", name)
		}
		for _, want := range strings.Split(test.want, ", ") {
			if !slices.Contains(kinds, want) {
				t.Errorf("%s: not reported as %s, but as %v: %v", name, want, kinds, report.Err())
			}
		}
		if len(kinds) > len(strings.Split(test.want, ", ")) {
			t.Errorf("%s: reported as %v, want %s: %v", name, kinds, test.want, report.Err())
		}
	}
}

func TestCheckWantsOffsetsInOrder(t *testing.T) {
	ledger, records := deliver(100)
	records[0], records[partitions*2] = records[partitions*2], records[0]
	if cdctest.Check(ledger, records).Reordered.Count == 0 {
		t.Error("records in disorder passed")
	}
}

func BenchmarkCheck(b *testing.B) {
	ledger, records := deliver(500_000)
	for b.Loop() {
		cdctest.Check(ledger, records)
	}
}
