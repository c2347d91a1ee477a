package debezium

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc"
)

// inTransaction is an offset as Debezium 3.6.1 stores it after an INSERT.
const inTransaction = `{"transaction_id":null,"lsn_proc":24023128,"messageType":"INSERT","lsn_commit":24022968,"lsn":24023128,"txId":730,"ts_usec":1796064198670457}`

// TestParseOffset reads offsets after each kind of message, and decides whether they name a published row.
func TestParseOffset(t *testing.T) {
	for name, c := range map[string]struct {
		value    string
		end      cdc.LSN
		row      bool
		xid      uint32
		snapshot bool
	}{
		"a row":                 {inTransaction, 24023128, true, 730, false},
		"with a schema":         {`{"schema":null,"payload":` + inTransaction + `}`, 24023128, true, 730, false},
		"an id with an epoch":   {`{"lsn_proc":20,"lsn_commit":10,"lsn":20,"txId":4294968026,"messageType":"INSERT"}`, 20, true, 730, false},
		"a commit":              {`{"lsn_proc":20,"lsn_commit":20,"lsn":20,"txId":7,"messageType":"COMMIT"}`, 20, false, 7, false},
		"a begin":               {`{"lsn_proc":20,"lsn_commit":20,"lsn":20,"txId":8,"messageType":"BEGIN"}`, 20, false, 8, false},
		"a begin after a start": {`{"lsn_proc":20,"lsn":30,"txId":8,"messageType":"BEGIN"}`, 20, false, 8, false},
		"a row where the transaction before ended": {`{"lsn_proc":20,"lsn_commit":20,"lsn":20,"txId":8,"messageType":"INSERT"}`, 20, true, 8, false},
		"the same, not telling the message":        {`{"lsn_proc":20,"lsn_commit":20,"lsn":20,"txId":8}`, 20, false, 8, false},
		"a row, not telling the message":           {`{"lsn_proc":30,"lsn_commit":20,"lsn":30,"txId":8}`, 30, true, 8, false},
		"the first transaction":                    {`{"lsn_proc":30,"lsn":30,"txId":8,"messageType":"INSERT"}`, 30, true, 8, false},
		"a message":                                {`{"lsn_proc":30,"lsn_commit":30,"lsn":30,"messageType":"MESSAGE"}`, 30, false, 0, false},
		"the first copy":                           {`{"lsn":30,"txId":8,"snapshot":"INITIAL","last_snapshot_record":false,"snapshot_completed":false}`, 0, false, 8, true},
		"the first copy, of an older version":      {`{"lsn":30,"txId":8,"snapshot":true,"last_snapshot_record":false}`, 0, false, 8, true},
		"the last row of the first copy":           {`{"lsn":30,"txId":8,"snapshot":"INITIAL","last_snapshot_record":true,"snapshot_completed":true}`, 0, false, 8, false},
	} {
		o, err := ParseOffset([]byte(c.value))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if o.end() != c.end || o.row() != c.row || o.XID != c.xid || o.Snapshot != c.snapshot {
			t.Errorf("%s: end %d, row %v, transaction %d, snapshot %v", name, o.end(), o.row(), o.XID, o.Snapshot)
		}
	}
	for _, value := range []string{``, `null`, `7`, `{}`, `{"ts_sec":1,"file":"binlog.000003","pos":154}`, `{"lsn":"x"}`} {
		if o, err := ParseOffset([]byte(value)); err == nil {
			t.Errorf("%s is read as %v", value, o)
		}
	}
}

// TestFindOffset takes the newest record of the connector, and names what else is there.
func TestFindOffset(t *testing.T) {
	record := func(name, prefix, value string) stored {
		r := stored{key: []byte(`["` + name + `",{"server":"` + prefix + `"}]`)}
		if value != "" {
			r.value = []byte(value)
		}
		return r
	}
	const older = `{"lsn_proc":1,"lsn_commit":1,"lsn":1}`
	two := []stored{{[]byte("garbage"), nil}, record("a", "p", older), record("b", "q", older), record("a", "p", inTransaction)}
	o, of, err := findOffset(two, owner{"", "p"}, "topic t", true)
	if err != nil || of.name != "a" || o.XID != 730 {
		t.Fatal(o, of, err)
	}
	for says, c := range map[string]struct {
		records []stored
		want    owner
		whole   bool
	}{
		`topic t has no offset of connector "c" with topic.prefix "p", only of connector "a" with topic.prefix "p", connector "b"`: {two, owner{"c", "p"}, true},
		`only of connector "a"`:                            {two, owner{"a", "other"}, true},
		`name the connector with --connector`:              {append(two, record("c", "p", older)), owner{"", "p"}, true},
		`was deleted (a tombstone)`:                        {append(two, record("a", "p", "")), owner{"a", "p"}, true},
		`topic t is empty`:                                 {nil, owner{"a", "p"}, true},
		`its first records are gone`:                       {nil, owner{"a", "p"}, false},
		`another connector than Debezium's for PostgreSQL`: {[]stored{record("a", "p", `{"pos":4}`)}, owner{"a", "p"}, true},
	} {
		if _, _, err := findOffset(c.records, c.want, "topic t", c.whole); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		} else if says != `name the connector with --connector` && !strings.Contains(says, "another connector than") && !errors.Is(err, errNoOffset) {
			t.Errorf("%v is not errNoOffset", err)
		}
	}
}

// TestParseFile reads a file that Java has written, and nothing that differs from it.
func TestParseFile(t *testing.T) {
	file, err := os.ReadFile("testdata/offsets.dat")
	if err != nil {
		t.Fatal(err)
	}
	records, err := parseFile(file)
	if err != nil || len(records) != 2 {
		t.Fatal(records, err)
	}
	o, of, err := findOffset(records, owner{"", "tutorial"}, "file", true)
	if err != nil || of.name != "kafka" || o.Committed != 24022968 {
		t.Error(o, of, err)
	}
	if _, _, err := findOffset(records, owner{"other", "second"}, "file", true); err == nil || !strings.Contains(err.Error(), "tombstone") {
		t.Error(err)
	}
	for n := range file {
		if _, err := parseFile(file[:n]); err == nil {
			t.Fatalf("the first %d bytes are read", n)
		}
	}
	if _, err := parseFile(append(file, 0)); err == nil {
		t.Error("a byte after the end is read over")
	}
}

// FuzzParseFile looks for files that make the decoder fail otherwise than with an error.
func FuzzParseFile(f *testing.F) {
	file, err := os.ReadFile("testdata/offsets.dat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add(append(append([]byte{}, javaMap...), make([]byte, 30)...))
	f.Fuzz(func(_ *testing.T, file []byte) {
		records, _ := parseFile(file)
		_, _, _ = findOffset(records, owner{"", "tutorial"}, "file", true)
	})
}

// FuzzParseOffset looks for keys and values that make the decoders fail otherwise than with an error.
func FuzzParseOffset(f *testing.F) {
	f.Add([]byte(`["kafka",{"server":"tutorial"}]`), []byte(inTransaction))
	f.Add([]byte(`{"schema":null,"payload":["a",null]}`), []byte(`{"lsn":-1,"txId":-1,"snapshot":true}`))
	f.Fuzz(func(_ *testing.T, key, value []byte) {
		_, _ = parseOwner(key)
		if o, err := ParseOffset(value); err == nil {
			_, _, _ = o.end(), o.row(), o.String()
		}
	})
}

// FuzzRelation looks for messages of pgoutput that make the decoders fail otherwise than with a report.
func FuzzRelation(f *testing.F) {
	f.Add([]byte("public\x00outbox\x00d\x00\x02\x01id\x00\x00\x00\x0b\x86\xff\xff\xff\xff\x00payload\x00\x00\x00\x0e\xda\xff\xff\xff\xff"), 1)
	f.Add([]byte("N\x00\x02t\x00\x00\x00\x01an"), 0)
	f.Fuzz(func(_ *testing.T, b []byte, column int) {
		var r relation
		r.read(b)
		_, _ = columnText(b, column)
	})
}
