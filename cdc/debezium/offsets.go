package debezium

import (
	"bytes"
	"encoding/base64"
	bigendian "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/walpost/walpost/cdc"
)

// Offset is how far a connector has come, as Kafka Connect or Debezium Server stores it: the source offset of the newest
// record that Kafka has acknowledged together with every record before it.
//
// The LSNs are those of pgoutput's messages: an INSERT has the start of its WAL record, a COMMIT the end of its
// transaction, and a BEGIN the start of the transaction's first record.
type Offset struct {
	// Processed (lsn_proc) is the last message that the connector had processed: an INSERT of the transaction XID, or the
	// COMMIT of an earlier one.
	Processed cdc.LSN
	// Committed (lsn_commit) is the end of the last transaction whose COMMIT the connector had processed. It is what the
	// connector confirms to its slot. Zero before the first one.
	Committed cdc.LSN
	// Last (lsn) is the last message that the connector had seen, which may be a BEGIN.
	Last cdc.LSN
	XID  uint32
	// Message is the kind of that message: INSERT, BEGIN, COMMIT and so on. Older versions do not write it.
	Message string
	// Events is the number of messages at Processed: the rows of one COPY share an LSN. Older versions do not write it.
	Events int64
	// Snapshot is true while the connector copies the table's old rows.
	Snapshot bool
}

// end returns the LSN at or below which every transaction is in Kafka. A transaction that ended before a published row was
// written has a commit before that row's, and came before it.
func (o *Offset) end() cdc.LSN { return max(o.Processed, o.Committed) }

// row reports whether Processed is a row that is in Kafka, of the transaction XID. The end of a transaction may be the
// start of the next one's first row: then only the kind of the message tells the two apart.
func (o *Offset) row() bool {
	switch o.Message {
	case "INSERT", "UPDATE", "DELETE", "TRUNCATE":
		return o.Processed > 0 && o.Processed == o.Last
	case "":
		return o.Committed > 0 && o.Processed > o.Committed && o.Processed == o.Last
	}
	return false
}

func (o *Offset) String() string {
	said := fmt.Sprintf("lsn_commit %s, lsn_proc %s", o.Committed, o.Processed)
	if o.row() {
		said += fmt.Sprintf(" in transaction %d", o.XID)
	}
	return said
}

// ParseOffset reads the value of a stored offset.
func ParseOffset(value []byte) (*Offset, error) {
	var v struct {
		Processed *int64          `json:"lsn_proc"`
		Committed *int64          `json:"lsn_commit"`
		Last      *int64          `json:"lsn"`
		XID       *int64          `json:"txId"`
		Message   string          `json:"messageType"`
		Events    int64           `json:"lsn_events_processed"`
		Snapshot  json.RawMessage `json:"snapshot"`
		LastRow   bool            `json:"last_snapshot_record"`
		Completed bool            `json:"snapshot_completed"`
	}
	if err := json.Unmarshal(unwrapped(value), &v); err != nil {
		return nil, fmt.Errorf("read the connector's offset: it is no JSON of Debezium's PostgreSQL connector: %w", err)
	}
	if v.Last == nil && v.Processed == nil {
		return nil, errors.New("read the connector's offset: it has no lsn, so another connector than Debezium's for PostgreSQL wrote it: name the connector of the outbox")
	}
	o := &Offset{Message: v.Message, Events: v.Events}
	for _, lsn := range []struct {
		from *int64
		to   *cdc.LSN
	}{{v.Processed, &o.Processed}, {v.Committed, &o.Committed}, {v.Last, &o.Last}} {
		if lsn.from != nil {
			*lsn.to = cdc.LSN(uint64(*lsn.from))
		}
	}
	if v.XID != nil {
		o.XID = uint32(*v.XID) // txid_current has an epoch above the 32 bits
	}
	started := len(v.Snapshot) > 0 && !slices.Contains([]string{"null", "false"}, string(v.Snapshot))
	o.Snapshot = started && !v.LastRow && !v.Completed
	return o, nil
}

// unwrapped returns the payload of JSON that was written with a schema around it, and other JSON as it is.
func unwrapped(text []byte) []byte {
	var enveloped struct {
		Schema  json.RawMessage `json:"schema"`
		Payload json.RawMessage `json:"payload"`
	}
	if json.Unmarshal(text, &enveloped) == nil && enveloped.Payload != nil {
		return enveloped.Payload
	}
	return text
}

// owner is whose offset a record is: the connector's name, and its topic.prefix.
type owner struct{ name, prefix string }

func (o owner) String() string {
	return fmt.Sprintf("connector %q with topic.prefix %q", o.name, o.prefix)
}

// parseOwner reads the key of a stored offset: ["name",{"server":"prefix"}].
func parseOwner(key []byte) (owner, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(unwrapped(key), &parts); err != nil || len(parts) != 2 {
		return owner{}, errors.New("the key is not that of an offset")
	}
	var o owner
	var partition map[string]json.RawMessage
	if json.Unmarshal(parts[0], &o.name) != nil || json.Unmarshal(parts[1], &partition) != nil {
		return owner{}, errors.New("the key is not that of an offset")
	}
	if json.Unmarshal(partition["server"], &o.prefix) != nil {
		return owner{name: o.name}, nil // a connector of another kind
	}
	return o, nil
}

// stored is a record of an offset store. A nil value deletes what was stored before it.
type stored struct{ key, value []byte }

// errNoOffset is returned when a place has no offset of the connector.
var errNoOffset = errors.New("no offset is stored")

// none returns an error that wraps errNoOffset and has its text alone.
func none(format string, args ...any) error { return noOffsetError(fmt.Sprintf(format, args...)) }

type noOffsetError string

func (e noOffsetError) Error() string      { return string(e) }
func (noOffsetError) Is(target error) bool { return target == errNoOffset }

// findOffset returns the offset of a connector among the records of a store, oldest first. An empty name stands for the one
// connector with the prefix. place names the store, and begins tells whether the store still has its first record.
func findOffset(records []stored, want owner, place string, whole bool) (*Offset, owner, error) {
	newest := map[owner][]byte{}
	var owners []owner
	for _, r := range records {
		o, err := parseOwner(r.key)
		if err != nil {
			continue
		}
		if _, seen := newest[o]; !seen {
			owners = append(owners, o)
		}
		newest[o] = r.value
	}
	var of []owner
	for _, o := range owners {
		if o.prefix == want.prefix && (want.name == "" || o.name == want.name) {
			of = append(of, o)
		}
	}
	switch {
	case len(of) > 1:
		return nil, owner{}, fmt.Errorf("%s has offsets of %s: name the connector with --connector", place, listOwners(of))
	case len(of) == 1 && newest[of[0]] == nil:
		return nil, owner{}, none("%s: the offset of %s was deleted (a tombstone), so it is not known what the connector has published: if its slot still exists, `walpost adopt` continues from the slot; rows may come again", place, of[0])
	case len(of) == 1:
		o, err := ParseOffset(newest[of[0]])
		if err != nil {
			return nil, owner{}, fmt.Errorf("%s: %w", place, err)
		}
		return o, of[0], nil
	case len(owners) > 0:
		return nil, owner{}, none("%s has no offset of %s, only of %s: name the right connector, or the place where its offsets are", place, want, listOwners(owners))
	case len(records) > 0:
		return nil, owner{}, fmt.Errorf("%s has %d records, and none is an offset of Kafka Connect: name the place where the connector's offsets are: offset.storage.topic of the worker (not its config.storage.topic or status.storage.topic), or offsets.storage.topic of the connector", place, len(records))
	case !whole:
		return nil, owner{}, none("%s has no offset: its first records are gone, because it is not compacted or was emptied, and it is not known what the connector has published: if the slot still exists, `walpost adopt` continues from the slot; rows may come again", place)
	}
	return nil, owner{}, none("%s is empty: no connector has stored an offset there: name the place where the connector's offsets are (offset.storage.topic of the worker, or offsets.storage.topic of the connector); if the connector has never published a row, `walpost init` begins without it", place)
}

// listOwners names a few owners.
func listOwners(owners []owner) string {
	const most = 3
	var said []string
	for _, o := range owners[:min(len(owners), most)] {
		said = append(said, o.String())
	}
	if more := len(owners) - most; more > 0 {
		said = append(said, fmt.Sprintf("%d more", more))
	}
	return strings.Join(said, ", ")
}

// The parts of a java.util.HashMap of byte arrays, as Java serialises it.
var (
	javaMap = unbase64("rO0ABXNyABFqYXZhLnV0aWwuSGFzaE1hcAUH2sHDFmDRAwACRgAKbG9hZEZhY3RvckkACXRocmVzaG9sZHhw")
	// the class of an array, described at the first one and referred to later
	javaBytes      = unbase64("dXIAAltCrPMX+AYIVOACAAB4cA==")
	javaBytesAgain = []byte{0x75, 0x71, 0x00, 0x7e, 0x00, 0x02}
)

func unbase64(text string) []byte {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b
}

// parseFile reads the offset file of a standalone worker or of Debezium Server: a Java-serialised map of byte arrays. It
// reads this one shape and nothing else.
func parseFile(file []byte) ([]stored, error) {
	other := errors.New("it is not the offset file of Kafka Connect or Debezium Server (a serialised java.util.HashMap of byte arrays): name the file of offset.storage.file.filename")
	rest, ok := bytes.CutPrefix(file, javaMap)
	// load factor, threshold, and a block of 8 bytes: capacity and size
	if !ok || len(rest) < 18 || rest[8] != 0x77 || rest[9] != 8 {
		return nil, other
	}
	size := bigendian.BigEndian.Uint32(rest[14:18])
	rest = rest[18:]
	described := false
	array := func() (b []byte, ok bool) {
		if len(rest) > 0 && rest[0] == 0x70 { // null
			rest = rest[1:]
			return nil, true
		}
		head := javaBytes
		if described {
			head = javaBytesAgain
		}
		if rest, ok = bytes.CutPrefix(rest, head); !ok || len(rest) < 4 {
			return nil, false
		}
		described = true
		n := bigendian.BigEndian.Uint32(rest)
		if rest = rest[4:]; uint64(n) > uint64(len(rest)) {
			return nil, false
		}
		b, rest = rest[:n:n], rest[n:]
		return b, true
	}
	var records []stored
	for range size {
		key, ok := array()
		value, okToo := array()
		if !ok || !okToo {
			return nil, other
		}
		records = append(records, stored{key, value})
	}
	if !bytes.Equal(rest, []byte{0x78}) {
		return nil, other
	}
	return records, nil
}
