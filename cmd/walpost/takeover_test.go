package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/cdctest/e2e"
)

// played is a connector of the test: a slot, a publication, a configuration and a topic with offsets, and nobody who
// publishes rows.
type played struct {
	*testbed
	slot   string
	topic  string // with the offsets
	config map[string]string
	client *kgo.Client
}

const prefix = "shop"

// newPlayed returns a connector of the outbox that has published nothing.
func newPlayed(t *testing.T) *played {
	t.Helper()
	s := newTestbed(t)
	p := &played{testbed: s, slot: cdctest.SlotName(t, "dbz"), topic: cdctest.Name(t, "offsets")}
	cdctest.CreateOutbox(t, s.AdminURL, "outbox")
	s.Exec("DROP PUBLICATION walpost")
	s.Exec("CREATE PUBLICATION dbz FOR TABLE outbox")
	s.Exec("SELECT pg_create_logical_replication_slot('" + p.slot + "', 'pgoutput')")
	p.config = map[string]string{
		"connector.class": "io.debezium.connector.postgresql.PostgresConnector", "plugin.name": "pgoutput", "slot.name": p.slot, "topic.prefix": prefix,
		"publication.name": "dbz", "publication.autocreate.mode": "disabled", "table.include.list": "public.outbox", "snapshot.mode": "no_data",
		"transforms": "outbox", "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter", "transforms.outbox.route.topic.replacement": s.Name + ".${routedByValue}",
	}
	cdctest.CreateTopic(t, s.Brokers, p.topic, 3)
	var err error
	if p.client, err = kgo.NewClient(kgo.SeedBrokers(s.Brokers...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.client.Close)
	return p
}

// sameSlot lets the pipeline use the connector's slot and publication.
func (p *played) sameSlot() {
	p.Env["WALPOST_SOURCE_SLOT"], p.Env["WALPOST_SOURCE_PUBLICATION"] = p.slot, "dbz"
}

// stores writes an offset of the connector; empty: a tombstone.
func (p *played) stores(value string) { p.T.Helper(); p.storesAs("outbox", value) }

func (p *played) storesAs(name, value string) {
	p.T.Helper()
	r := &kgo.Record{Topic: p.topic, Key: []byte(fmt.Sprintf(`[%q,{"server":%q}]`, name, prefix))}
	if value != "" {
		r.Value = []byte(value)
	}
	if err := p.client.ProduceSync(p.T.Context(), r).FirstErr(); err != nil {
		p.T.Fatal(err)
	}
}

// flags returns the command's arguments, with a configuration of the connector that over changes.
func (p *played) flags(over map[string]string, more ...string) []string {
	p.T.Helper()
	config := maps.Clone(p.config)
	maps.Copy(config, over)
	text, err := json.Marshal(map[string]any{"name": "outbox", "config": config})
	if err != nil {
		p.T.Fatal(err)
	}
	file := filepath.Join(p.T.TempDir(), "connector.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		p.T.Fatal(err)
	}
	return append([]string{"take-over", file, "--offset-topic", p.topic}, more...)
}

// refuses checks that a take-over fails with a sentence and changes nothing.
func (p *played) refuses(says string, args ...string) {
	p.T.Helper()
	there := func() string {
		return p.Query(`SELECT string_agg(slot_name || ' ' || confirmed_flush_lsn, ',' ORDER BY slot_name) || (SELECT coalesce(string_agg(pubname || ' ' || tablename, ',' ORDER BY pubname, tablename), '') FROM pg_publication_tables)
			|| (SELECT count(*) FROM pg_publication) || (SELECT count(*) FROM pg_roles WHERE rolname = $1) FROM pg_replication_slots WHERE database = current_database()`, "relay_"+strings.ReplaceAll(p.Name, "-", "_"))
	}
	before := there()
	out, err := p.Run(args...)
	if err == nil || !strings.Contains(err.Error(), says) {
		p.T.Errorf("%v, want an error that says %q\n%s", err, says, out)
	} else if strings.Contains(err.Error(), "\n") {
		p.T.Errorf("not one sentence: %v", err)
	}
	if st, err := p.Sink().Peek(p.T.Context()); st != nil || err != nil {
		p.T.Errorf("%s: a state record is there: %v, %v", says, st, err)
	}
	if after := there(); after != before {
		p.T.Errorf("%s: it changed %s to %s", says, before, after)
	}
}

// inserts inserts rows in one transaction and returns their ids.
func (p *played) inserts(n int) (ids []string) {
	p.T.Helper()
	return strings.Split(p.Query(`WITH i AS (INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload)
		SELECT gen_random_uuid(), 'order', 'k', 'Written', '{}' FROM generate_series(1, $1::int) RETURNING id) SELECT string_agg(id::text, ',') FROM i`, n), ",")
}

// seen is a message of the slot, as the connector gets it.
type seen struct {
	lsn  pglogrepl.LSN
	xid  int
	kind string
}

// sees returns the messages that the slot keeps.
func (p *played) sees() (all []seen) {
	p.T.Helper()
	text := p.Query(`SELECT json_agg(json_build_array(lsn::text, xid::text, chr(get_byte(data, 0))))::text
		FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'dbz') WHERE get_byte(data, 0) <> ascii('R')`, p.slot)
	var rows [][3]string
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		p.T.Fatal(err)
	}
	for _, r := range rows {
		lsn, err := pglogrepl.ParseLSN(r[0])
		if err != nil {
			p.T.Fatal(err)
		}
		s := seen{lsn: lsn, kind: r[2]}
		_, _ = fmt.Sscan(r[1], &s.xid)
		all = append(all, s)
	}
	return all
}

// at returns the offset that the connector stores after a message.
func at(all []seen, i int) string {
	kind := map[string]string{"B": "BEGIN", "I": "INSERT", "C": "COMMIT"}
	var committed, processed pglogrepl.LSN
	for _, m := range all[:i+1] {
		switch m.kind {
		case "C":
			committed, processed = m.lsn, m.lsn
		case "I":
			processed = m.lsn
		}
	}
	o := map[string]any{"transaction_id": nil, "lsn": uint64(all[i].lsn), "txId": all[i].xid, "ts_usec": 1, "messageType": kind[all[i].kind]}
	if processed > 0 {
		o["lsn_proc"] = uint64(processed)
	}
	if committed > 0 {
		o["lsn_commit"] = uint64(committed)
	}
	text, _ := json.Marshal(o)
	return string(text)
}

// TestTakeOverBeginsWhereTheOffsetIs stores an offset after each message of three transactions, and looks how many rows the
// command counts as not yet published. After one of them it takes over: the relay publishes those rows and no other.
func TestTakeOverBeginsWhereTheOffsetIs(t *testing.T) {
	t.Parallel()
	p := newPlayed(t)
	p.sameSlot()
	var ids []string
	for _, n := range []int{2, 3, 1} {
		ids = append(ids, p.inserts(n)...)
	}
	all := p.sees()
	published := 0
	half := ""
	for i, m := range all {
		if m.kind == "I" {
			published++
		}
		offset := at(all, i)
		if m.kind == "B" && i == 0 { // the connector stores no offset before its first row
			continue
		}
		p.stores(offset)
		if published == 4 && half == "" {
			half = offset
		}
		want := fmt.Sprintf("the slot keeps %d rows", len(ids)-published)
		if published == len(ids) {
			want = "the slot keeps no rows"
		}
		if out := p.MustRun(p.flags(nil, "--dry-run")...); !strings.Contains(out, want) || !strings.Contains(out, "nothing was changed") {
			t.Errorf("after %+v: want %q\n%s", m, want, out)
		} else if end := all[min(i+1, len(all)-1)]; m.kind == "I" && end.kind == "C" && !strings.Contains(out, "covered = "+end.lsn.String()+"\n") {
			t.Errorf("after the last row of a transaction: it is not covered whole, up to %s\n%s", end.lsn, out)
		}
	}
	p.stores("")
	// The slot is left where the state record is, although no relay has confirmed that: before the transaction of the last row.
	file := append(p.flags(nil)[:2], "--offset-file", p.offsetFile(half))
	p.MustRun(file...)
	p.MustRefuse("nothing was changed: 2 rows that the slot keeps are in Kafka, in transactions that are not there whole, and the next reader", p.flags(nil, "--back")...)
	if out := p.MustRun(p.flags(nil, "--back", "--repeat")...); !strings.Contains(out, "2 rows come again") {
		t.Error(out)
	}
	if at := p.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", p.slot); at != all[6].lsn.String() {
		t.Errorf("the slot is at %s, want the last published row's %s", at, all[6].lsn)
	}
	p.MustRun(file...)
	p.stores(half)
	p.refusesBecauseBegun()
	r := p.StartRelay()
	p.WaitForEvent(ids[len(ids)-1])
	if got := p.EventIDs(); !slices.Equal(got, ids[4:]) {
		t.Errorf("the relay published %v, want %v", got, ids[4:])
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	// And back: the slot stands after everything, and another pipeline may begin on it again.
	p.MustRefuse("still has a stored offset", p.flags(nil, "--back")...)
	p.stores("")
	p.MustRefuse("snapshot.mode is initial", p.flags(map[string]string{"snapshot.mode": ""}, "--back")...)
	p.MustRefuse("give the connector the slot that walpost has read", p.flags(map[string]string{"slot.name": "other"}, "--back")...)
	p.MustRefuse("give the connector the publication that walpost has read", p.flags(map[string]string{"publication.name": "other"}, "--back")...)
	if out := p.MustRun(append(p.flags(nil)[:2], "--back", "--dry-run")...); !strings.Contains(out, "if it has no stored offset: then no row is missing, and none comes twice; no offset was looked for: delete an old one") {
		t.Error(out)
	}
	if out := p.MustRun(p.flags(nil, "--back")...); !strings.Contains(out, "no row is missing, and none comes twice") {
		t.Error(out)
	}
	p.MustRefuse("as after it was given back: then nothing is left to do here: start the connector, which goes on where slot "+p.slot+" stands", p.flags(nil, "--back")...)
	if left := p.Query("SELECT count(*)::text FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'dbz')", p.slot); left != "0" {
		t.Errorf("the slot keeps %s messages after the relay has published all", left)
	}
	if st, err := p.Sink().Peek(t.Context()); st != nil || err != nil {
		t.Errorf("the state record is still there: %v, %v", st, err)
	}
}

// offsetFile returns a file with an offset, as Debezium Server writes it.
func (p *played) offsetFile(value string) string {
	p.T.Helper()
	file, err := os.ReadFile("../../cdc/debezium/testdata/offsets.dat")
	if err != nil {
		p.T.Fatal(err)
	}
	// one entry in place of the two: the header, then key and value as arrays, the second of which refers to the first's class
	array := func(class, text string) []byte {
		return append(binary.BigEndian.AppendUint32([]byte(class), uint32(len(text))), text...)
	}
	const size = 77 // where the number of entries is
	out := append(slices.Clone(file[:size]), 0, 0, 0, 1)
	out = append(out, array("ur\x00\x02[B\xac\xf3\x17\xf8\x06\x08T\xe0\x02\x00\x00xp", `["outbox",{"server":"`+prefix+`"}]`)...)
	out = append(out, array("uq\x00~\x00\x02", value)...)
	name := filepath.Join(p.T.TempDir(), "offsets.dat")
	if err := os.WriteFile(name, append(out, 'x'), 0o600); err != nil {
		p.T.Fatal(err)
	}
	return name
}

func (p *played) refusesBecauseBegun() {
	p.T.Helper()
	p.MustRefuse("has a state record already", p.flags(nil)...)
}

// TestTakeOverLooksIntoKafka has rows in Kafka that are newer than the offset, and a COPY, whose rows share an LSN: those do
// not come again.
func TestTakeOverLooksIntoKafka(t *testing.T) {
	t.Parallel()
	p := newPlayed(t)
	p.sameSlot()
	first := p.inserts(1)
	conn := p.Connect()
	var copied []string
	for i := range 5 { // with a default that is volatile, each row would have an LSN
		copied = append(copied, fmt.Sprintf("00000000-0000-4000-8000-%012d", i))
	}
	if _, err := conn.PgConn().CopyFrom(t.Context(), strings.NewReader(strings.Join(append(copied, ""), "\torder\tk\tCopied\t{}\t2026-11-22\n")),
		"COPY outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at) FROM STDIN"); err != nil {
		t.Fatal(err)
	}
	later := p.inserts(2)
	all := p.sees()
	i := slices.IndexFunc(all, func(m seen) bool { return m.kind == "I" && m.xid != all[0].xid })
	if all[i].lsn != all[i+4].lsn {
		t.Fatalf("the rows of a COPY have different LSNs: %v", all)
	}
	p.stores(at(all, i))
	if out := p.MustRun(p.flags(nil, "--dry-run")...); !strings.Contains(out, "the slot keeps 6 rows") {
		t.Errorf("with an offset at a COPY:\n%s", out)
	}
	counted := strings.TrimSuffix(at(all, i), "}") + `,"lsn_events_processed":3}`
	p.stores(counted)
	if out := p.MustRun(p.flags(nil, "--dry-run")...); !strings.Contains(out, "the slot keeps 4 rows") {
		t.Errorf("with an offset that counts the rows of a COPY:\n%s", out)
	}
	cdctest.CreateTopic(t, p.Brokers, p.Topic, 3)
	for _, id := range slices.Concat(first, copied[:4], later[1:]) { // the last one out of order
		if err := p.client.ProduceSync(t.Context(), &kgo.Record{Topic: p.Topic, Key: []byte("k"), Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(id)}}}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	p.stores(at(all, i))
	out := p.MustRun(p.flags(nil)...)
	if !strings.Contains(out, "the slot keeps 3 rows") || !strings.Contains(out, "1 of them are in Kafka already, and come again") || !strings.Contains(out, "(3 rows after the stored offset are in Kafka: they do not come again)") {
		t.Error(out)
	}
	p.StartRelay()
	p.WaitUntilConfirmed(30 * time.Second)
	var ours []string
	for _, r := range cdctest.ReadAll(t, p.Brokers, p.Topic) {
		if e2e.Header(r, "lsn") != "" {
			ours = append(ours, e2e.Header(r, "id"))
		}
	}
	if want := slices.Concat(copied[4:], later); !slices.Equal(ours, want) {
		t.Errorf("the relay published %v, want %v", ours, want)
	}
}

// published puts records with the ids of rows into the pipeline's topic, as a relay does before its next state record.
func (p *played) published(ids ...string) {
	p.T.Helper()
	for _, id := range ids {
		r := &kgo.Record{Topic: p.Topic, Key: []byte("k")}
		if id != "" {
			r.Headers = []kgo.RecordHeader{{Key: "id", Value: []byte(id)}}
		}
		if err := p.client.ProduceSync(p.T.Context(), r).FirstErr(); err != nil {
			p.T.Fatal(err)
		}
	}
}

// TestTakeOverBackLooksIntoKafka gives back after a relay that was killed: rows that it published after its last state record
// do not come again, and those of a transaction that is not there whole are counted.
func TestTakeOverBackLooksIntoKafka(t *testing.T) {
	t.Parallel()
	p := newPlayed(t)
	p.sameSlot()
	p.inserts(1)
	p.MustRun(append(p.flags(nil)[:2], "--offset-file", p.offsetFile(at(p.sees(), 2)))...)
	first, second, third := p.inserts(2), p.inserts(3), p.inserts(1)
	ends := slices.DeleteFunc(p.sees(), func(m seen) bool { return m.kind != "C" })
	back := func(more ...string) []string { return p.flags(nil, append(more, "--back")...) }
	slot := func() string {
		return p.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", p.slot)
	}
	before := slot()
	p.published("")
	p.MustRefuse("the records have no header id, so the 6 rows that the slot keeps cannot be looked up", back()...)
	p.published(first...)
	p.published(second[0], second[1])
	p.MustRefuse("nothing was changed: 2 rows that the slot keeps are in Kafka, in transactions that are not there whole, and the next reader", back()...)
	out := p.MustRun(back("--repeat", "--dry-run")...)
	if !strings.Contains(out, "2 rows come again") || !strings.Contains(out, "at or below "+ends[1].lsn.String()) {
		t.Errorf("want the end of the first whole transaction, %s\n%s", ends[1].lsn, out)
	}
	if now := slot(); now != before {
		t.Errorf("the slot was moved from %s to %s", before, now)
	}
	// Two rows of one id: a record does not say which of them it is.
	p.Exec("DELETE FROM outbox WHERE id::text = $1", third[0])
	p.Exec("INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES ($1::text::uuid, 'order', 'k', 'Again', '{}')", third[0])
	p.published(second[2], third[0])
	p.MustRefuse("2 rows share their ids with others of them", back()...)
}

// TestTakeOverBackPassesWholeTransactions gives back after all rows of two transactions are in Kafka, and no row of a third.
func TestTakeOverBackPassesWholeTransactions(t *testing.T) {
	t.Parallel()
	p := newPlayed(t)
	p.sameSlot()
	p.inserts(1)
	p.MustRun(append(p.flags(nil)[:2], "--offset-file", p.offsetFile(at(p.sees(), 2)))...)
	first, second, third := p.inserts(2), p.inserts(3), p.inserts(1)
	ends := slices.DeleteFunc(p.sees(), func(m seen) bool { return m.kind != "C" })
	p.published(first...)
	p.published(second[:2]...)
	p.published(`{"schema":{"type":"string"},"payload":"` + second[2] + `"}`) // as JsonConverter writes headers
	if out := p.MustRun(p.flags(nil, "--back")...); !strings.Contains(out, "none comes twice") {
		t.Error(out)
	}
	if now := p.Query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", p.slot); now != ends[2].lsn.String() {
		t.Errorf("the slot is at %s, want the end of the last published row's transaction, %s", now, ends[2].lsn)
	}
	if kept := p.sees(); len(kept) != 3 {
		t.Errorf("the slot keeps %v, want the row %s alone", kept, third)
	}
}

// reads reads the slot as a connector does, until the test calls stop.
func (p *played) reads() (stop func()) {
	p.T.Helper()
	cfg, err := pgconn.ParseConfig(p.AdminURL)
	if err != nil {
		p.T.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(p.T.Context(), cfg)
	if err != nil {
		p.T.Fatal(err)
	}
	if err := pglogrepl.StartReplication(p.T.Context(), conn, p.slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'dbz'"}}); err != nil {
		p.T.Fatal(err)
	}
	return func() {
		_ = conn.Close(context.Background())
		cdctest.Eventually(p.T, 10*time.Second, func() error {
			if p.Query("SELECT active::text FROM pg_replication_slots WHERE slot_name = $1", p.slot) == "true" {
				return fmt.Errorf("the slot is still read")
			}
			return nil
		})
	}
}

// TestTakeOverRefuses gives each bad input, and checks that nothing is started and nothing moved.
func TestTakeOverRefuses(t *testing.T) {
	t.Parallel()
	p := newPlayed(t)
	p.inserts(1)
	offset := at(p.sees(), 1)
	p.refuses("also captures", func() []string {
		p.Exec("CREATE TABLE customers (id int PRIMARY KEY); ALTER PUBLICATION dbz ADD TABLE customers")
		p.sameSlot()
		return p.flags(map[string]string{"table.include.list": ""})
	}()...)
	p.refuses("topic "+p.topic+" is empty", p.flags(nil)...)
	cdctest.CreateTopic(t, p.Brokers, p.Topic, 3)
	p.published("some-id", "another-id")
	p.refuses("topic "+p.Topic+" has 2 records, and none is an offset of Kafka Connect: name the place", append(p.flags(nil)[:2], "--offset-topic", p.Topic)...)
	for _, places := range [][]string{{"--offset-file", "f"}, {"--connect-url", "http://127.0.0.1:1"}} {
		p.refuses("the connector's offset is in one place: give one of them", p.flags(nil, places...)...)
	}
	p.storesAs("another", offset)
	p.refuses(`only of connector "another"`, p.flags(nil)...)
	p.refuses(`only of connector "another" with topic.prefix "shop"`, p.flags(map[string]string{"topic.prefix": "other"})...)
	p.stores(offset)
	p.stores("")
	p.refuses("was deleted (a tombstone)", p.flags(nil)...)
	p.stores(`{"ts_sec":1,"file":"binlog.000003","pos":154}`)
	p.refuses("another connector than Debezium's for PostgreSQL", p.flags(nil)...)
	p.stores(`{"lsn":1,"snapshot":"INITIAL","last_snapshot_record":false,"snapshot_completed":false}`)
	p.refuses("is in its first copy of the table", p.flags(nil)...)
	p.stores(offset)
	for says, over := range map[string]map[string]string{
		"plugin.name: the connector reads a slot of decoderbufs": {"plugin.name": ""},
		"plugin.name: the connector reads a slot of wal2json":    {"plugin.name": "wal2json"},
		"is no connector of Debezium for PostgreSQL":             {"connector.class": "io.debezium.connector.mysql.MySqlConnector"},
		"table.include.list: the connector captures":             {"table.include.list": "public.other,public.out"},
		"topic.prefix: the connector's configuration":            {"topic.prefix": ""},
		"slot nowhere does not exist":                            {"slot.name": "nowhere"},
		"publication nowhere does not exist":                     {"publication.name": "nowhere"},
		"source.publication is the connector's":                  {"slot.name": "wrong_one"},
	} {
		if over["slot.name"] == "wrong_one" {
			over["slot.name"] = p.Query("SELECT slot_name::text FROM pg_create_logical_replication_slot('" + cdctest.SlotName(t, "wrong") + "', 'pgoutput')")
		}
		p.refuses(says, p.flags(over)...)
	}
	test := cdctest.SlotName(t, "test")
	p.Exec("SELECT pg_create_logical_replication_slot('" + test + "', 'test_decoding')")
	p.refuses("is a slot of test_decoding", p.flags(map[string]string{"slot.name": test})...)
	p.refuses("it is not known where the connector's offsets are", p.flags(nil)[:2]...)
	p.refuses("there is no topic nowhere", append(p.flags(nil)[:2], "--offset-topic", "nowhere")...)
	p.refuses("it is not the offset file of Kafka Connect", append(p.flags(nil)[:2], "--offset-file", p.flags(nil)[1])...)

	// A slot of another database.
	other := cdctest.SlotName(t, "elsewhere")
	elsewhere := cdctest.Database(t)
	conn := e2e.ConnectTo(t, elsewhere)
	if _, err := conn.Exec(t.Context(), "SELECT pg_create_logical_replication_slot('"+other+"', 'pgoutput')"); err != nil {
		t.Fatal(err)
	}
	p.refuses("belongs to database", p.flags(map[string]string{"slot.name": other})...)

	stop := p.reads()
	p.refuses("so the connector runs: stop it", p.flags(nil)...)
	running := p.MustRun(p.flags(nil, "--dry-run")...)
	for _, says := range []string{"as of now, before the connector is stopped: walpost begins", "CREATE ROLE", "state record in ", "the connector must be stopped first", "so the connector runs: stop it"} {
		if !strings.Contains(running, says) {
			t.Errorf("the dry run beside the connector does not say %q:\n%s", says, running)
		}
	}
	p.refuses("slot.drop.on.stop is true", p.flags(map[string]string{"slot.drop.on.stop": "true"})...)
	stop()
	worker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/connectors/gone/"):
			http.Error(w, `{"error_code":404,"message":"there is no such connector"}`, http.StatusNotFound)
		case strings.HasSuffix(r.URL.Path, "/status"):
			fmt.Fprint(w, `{"connector":{"state":"PAUSED"},"tasks":[{"id":0,"state":"PAUSED"}]}`)
		default:
			fmt.Fprint(w, `{"offsets":[]}`)
		}
	}))
	defer worker.Close()
	p.refuses("is PAUSED with 1 tasks, and could read the slot again", append(p.flags(nil)[:2], "--connect-url", worker.URL)...)
	p.refuses("there is no such connector", append(p.flags(nil)[:2], "--connect-url", worker.URL, "--connector", "gone")...)

	// Somebody advanced the slot.
	p.inserts(1)
	p.Exec("SELECT pg_replication_slot_advance('" + p.slot + "', pg_current_wal_lsn())")
	p.refuses("someone advanced the slot", p.flags(nil)...)
	// A table of another shape.
	p.Exec("ALTER TABLE outbox RENAME payload TO body")
	p.refuses(`the table has no column "payload"`, p.flags(nil)...)
}

// TestTakeOverCuts takes a second slot beside the connector, from each state in which an interrupted run leaves the database.
func TestTakeOverCuts(t *testing.T) {
	t.Parallel()
	p := newPlayed(t)
	p.Env["WALPOST_SOURCE_PUBLICATION"] = "relayed"
	p.inserts(1)
	all := p.sees()
	p.stores(at(all, 1))
	p.refuses("nobody reads slot", p.flags(nil)...)
	stop := p.reads()
	defer stop()
	p.refuses("publication.autocreate.mode is filtered", p.flags(map[string]string{"publication.autocreate.mode": "filtered"})...)
	if p.Query("SELECT current_setting('server_version_num')") >= "150000" {
		p.Exec("CREATE PUBLICATION filtered FOR TABLE outbox WHERE (aggregate_id <> 'secret')")
		p.refuses("has a row filter on public.outbox", p.flags(map[string]string{"publication.name": "filtered"})...)
		p.Exec("DROP PUBLICATION filtered; CREATE PUBLICATION schema FOR TABLES IN SCHEMA public")
		p.refuses("carries public.outbox with its whole schema (public)", p.flags(map[string]string{"publication.name": "schema"})...)
		p.Exec("DROP PUBLICATION schema")
	}
	p.Exec("CREATE PUBLICATION every FOR ALL TABLES")
	p.refuses("FOR ALL TABLES", p.flags(map[string]string{"publication.name": "every"})...)
	p.Exec("DROP PUBLICATION every; CREATE PUBLICATION relayed FOR TABLE outbox")
	p.refuses("both carry public.outbox", p.flags(nil)...)
	p.Exec("DROP PUBLICATION relayed")
	p.Exec("CREATE ROLE clerk_" + p.Slot() + " LOGIN SUPERUSER PASSWORD '" + cdctest.Canary + "'")
	p.Exec("ALTER ROLE clerk_" + p.Slot() + " NOSUPERUSER REPLICATION CREATEROLE")
	defer p.Exec("DROP ROLE clerk_" + p.Slot())
	p.refuses("may not alter publication dbz", p.flags(nil, "--admin-url", p.URLFor("clerk_"+p.Slot(), cdctest.Canary))...)
	other := cdctest.SlotName(t, "other")
	p.Exec("SELECT pg_create_logical_replication_slot('" + other + "', 'pgoutput')")
	dry := p.MustRun(p.flags(nil, "--dry-run")...)
	for _, says := range []string{
		"note: slot " + other + " of this database may also be read with publication dbz", "way (a), same slot (the other way)", "way (b), second slot (this configuration)", "LOCK TABLE", "pg_drop_replication_slot('" + p.slot + "')",
	} {
		if !strings.Contains(dry, says) {
			t.Errorf("the dry run does not say %q:\n%s", says, dry)
		}
	}
	without := p.Env
	p.Env = maps.Clone(p.Env)
	delete(p.Env, "WALPOST_KAFKA_TOPIC")
	delete(p.Env, "WALPOST_KAFKA_AGGREGATE_TYPES")
	p.Env["WALPOST_DEBEZIUM"] = fmt.Sprintf(`{topic.prefix: shop, route.topic.replacement: "%s.${routedByValue}", route.by.field: aggregate_type, table.field.event.key: aggregate_id, table.op.invalid.behavior: fatal}`, p.Name)
	if dry := p.MustRun(p.flags(nil, "--dry-run")...); !strings.Contains(dry, "CREATE PUBLICATION \"relayed\" WITH (publish = 'insert, update'") { // else the relay would halt
		t.Errorf("with table.op.invalid.behavior: fatal:\n%s", dry)
	}
	p.Env = without

	// An open transaction holds the table: the cut waits, and moves nothing if that lasts.
	holder := p.Connect()
	begin := func(sql string) {
		t.Helper()
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	p.Exec("CREATE PUBLICATION relayed WITH (publish = 'insert')") // a run was interrupted after this
	p.Exec("SELECT pg_create_logical_replication_slot('" + p.Slot() + "', 'pgoutput')")
	begin("BEGIN; LOCK TABLE outbox IN ROW EXCLUSIVE MODE")
	p.MustRefuse("nothing was moved: a transaction has held public.outbox", p.flags(nil, "--wait", "1ms")...)
	begin("COMMIT")

	gone, end := context.WithCancel(t.Context())
	end()
	for _, args := range [][]string{p.flags(nil), p.flags(nil, "--dry-run"), p.flags(nil, "--back")} { // interrupted at once
		if err := run(gone, args, p.Getenv, io.Discard, io.Discard); !errors.Is(err, context.Canceled) || err.Error() != "interrupted: nothing was changed: run this again" {
			t.Errorf("%v: %v", args, err)
		}
	}

	before := p.inserts(2)
	out, ended := &cdctest.Log{}, make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ended <- run(ctx, p.flags(nil), p.Getenv, out, out) }()
	waits := func() {
		t.Helper()
		cdctest.Eventually(t, 30*time.Second, func() error {
			if !strings.Contains(out.String(), "and 2 rows") {
				return fmt.Errorf("it says %s", out)
			}
			return nil
		})
	}
	waits()
	after := p.inserts(2)
	cancel() // interrupted after the cut
	if err := <-ended; !errors.Is(err, context.Canceled) || err.Error() != "interrupted: the cut is made; nothing is lost: later rows wait in slot "+p.Slot()+": run this again" {
		t.Fatal(err)
	}
	// Nothing may publish the rows after the cut before the connector has published those before it.
	const under = "says that `walpost take-over` did not finish"
	for _, args := range [][]string{{"init"}, {"adopt"}, {"adopt", "--dry-run"}, {"take-over", "--back"}} {
		if args[0] == "take-over" {
			args = p.flags(map[string]string{"slot.name": p.Slot(), "publication.name": "relayed"}, "--back")
			args[3] = p.topic + "-none" // where no offset is
			cdctest.CreateTopic(t, p.Brokers, args[3], 1)
		}
		if out, err := p.Run(args...); err == nil || !strings.Contains(err.Error(), under) || !strings.Contains(err.Error(), "run `walpost take-over` again") {
			t.Errorf("%v: %v\n%s", args, err, out)
		} else if strings.Contains(out, "role ") {
			t.Errorf("%v: it begins before it refuses:\n%s", args, out)
		}
	}
	if out, err := p.Run("status"); !strings.Contains(fmt.Sprint(out, err), under) {
		t.Errorf("status: %v\n%s", err, out)
	}
	halted := p.StartRelay()
	cdctest.Eventually(t, 30*time.Second, func() error {
		if !strings.Contains(halted.Log.String(), under) {
			return fmt.Errorf("the relay says %s", halted.Log.String())
		}
		return nil
	})
	if err := halted.Stop(); err != nil {
		t.Fatal(err)
	}
	p.MustRefuse("has not stored the offset of its last row before it within 1ms", p.flags(nil, "--wait", "1ms")...)
	p.MustRefuse("slot nowhere of the connector is gone", p.flags(map[string]string{"slot.name": "nowhere"})...)
	stop()
	all = p.sees() // rows before the cut
	last := len(all) - 2
	p.stores(at(all, last))
	reread := p.reads()
	defer reread()
	if said := p.MustRun(p.flags(nil)...); !strings.Contains(said, "has published every row before the cut") || strings.Contains(said, "cut: move") {
		t.Error(said)
	}
	p.refusesBecauseBegun()
	p.StartRelay()
	p.WaitForEvent(after[1])
	if got := p.EventIDs(); !slices.Equal(got, after) {
		t.Errorf("the relay published %v, want the rows after the cut, %v; before it were %v", got, after, before)
	}
}
