package debezium

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/internal/failpoint"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/postgres"
)

// Debezium's defaults of the properties that a move needs.
const (
	defaultSlotName    = "debezium"
	defaultPublication = "dbz_publication"
	defaultPlugin      = "decoderbufs"
	defaultAutocreate  = "all_tables"
	defaultSnapshot    = "initial"
)

// MoveOptions say which connector a pipeline takes over from, or gives back to, and where its offsets are.
type MoveOptions struct {
	Config   config.Config
	AdminURL string // URL of a superuser, or of an owner of table and publications that may replicate
	// Connector is the connector's configuration. Name is its name: empty stands for the one connector with the
	// topic.prefix.
	Connector *Connector
	Name      string
	// The place of the offsets: ConnectURL of a worker's REST interface, OffsetTopic of its Kafka, which is that of the
	// pipeline, or OffsetFile of a standalone worker or of Debezium Server.
	ConnectURL  string
	OffsetTopic string
	OffsetFile  string
	Wait        time.Duration // how long to wait for the table's lock, and for the connector to store its offset
	DryRun      bool

	Pipeline Beginner
	Progress func(what string, sql ...string) // is called with each step when the step begins
	Log      zerolog.Logger
	Kafka    []kgo.Opt    // further options of the Kafka client
	HTTP     *http.Client // nil: a client with a limit
}

// Beginner is the pipeline that begins where the connector ends.
type Beginner interface {
	// Prepare creates the role, its rights and the topics. Publication and slot need not exist.
	Prepare(ctx context.Context) error
	// Begin writes the first state record, at a position on the existing slot. why says how the position was found.
	Begin(ctx context.Context, at cdc.Start, why string) error
	// Leave ends the pipeline, and leaves slot and publication. It calls look with the position of its state record and a
	// pattern of the topics that its rows go to, and moves the slot to where look says.
	Leave(ctx context.Context, look func(ctx context.Context, after cdc.Start, topics *regexp.Regexp) (Kept, error)) (Kept, error)
}

// Kept says what a slot keeps for its next reader.
type Kept struct {
	At      cdc.LSN // every transaction at or below it is in Kafka
	Again   int64   // rows after At that are in Kafka
	Unknown string  // why further rows after At may be in Kafka; empty if Again has them all
}

// move is one take-over, with its connections.
type move struct {
	MoveOptions
	owner owner
	sink  *kafka.Sink
	admin *postgres.Admin
	conn  *pgx.Conn // the administrator's
	table *postgres.OpenTable

	outbox      outbox
	slot        slotSeen        // of the connector
	publication publicationSeen // of the connector
	others      []string        // further tables that the connector captures
	done        string          // what an interrupted run has done so far; empty: nothing
	topics      *regexp.Regexp  // of the topics that the pipeline's rows go to; nil if the pipeline does not follow the router
}

// option returns the value of one of the connector's properties, or its default.
func (m *move) option(name, otherwise string) string {
	value := m.Connector.Option(name)
	if m.Connector.Server {
		value = cmp.Or(m.Connector.Option("debezium.source."+name), m.Connector.Option("debezium."+name))
	}
	return cmp.Or(strings.TrimSpace(value), otherwise)
}

func (m *move) say(what string, args ...any) { m.Progress(fmt.Sprintf(what, args...)) }

// open connects to PostgreSQL, and returns an error if the connector's configuration does not fit the pipeline's.
func (o MoveOptions) open(ctx context.Context) (_ *move, err error) {
	if o.Config.Source.Kind != config.KindWAL {
		return nil, errors.New("source.kind: a polled pipeline has no slot to take over: write source.kind: wal")
	}
	var pattern *regexp.Regexp
	if len(o.Config.Debezium) > 0 {
		options, err := Parse(o.Config.Debezium)
		if err != nil {
			return nil, err
		}
		options.Configure(&o.Config)
		pattern = New(options).Pattern()
	}
	if o.Progress == nil {
		o.Progress = func(string, ...string) {}
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Timeout: 30 * time.Second}
	}
	m := &move{MoveOptions: o, topics: pattern}
	m.owner = owner{o.Name, m.option("topic.prefix", m.option("database.server.name", ""))}
	if class := m.option("connector.class", ""); class != "" && !strings.HasSuffix(class, ".PostgresConnector") && class != "PostgresConnector" {
		return nil, fmt.Errorf("connector.class: %s is no connector of Debezium for PostgreSQL: name the connector of the outbox", class)
	}
	if o.ConnectURL != "" && o.Name == "" {
		return nil, errors.New("--connector: missing: name the connector at --connect-url")
	}
	if m.owner.prefix == "" {
		return nil, errors.New("topic.prefix: the connector's configuration does not have it, and its offset is stored under it: give the whole configuration")
	}
	if plugin := m.option("plugin.name", defaultPlugin); plugin != "pgoutput" {
		return nil, fmt.Errorf("plugin.name: the connector reads a slot of %s, and walpost reads pgoutput: set plugin.name to pgoutput in the connector, with another slot.name, let it run, and run this again", plugin)
	}
	source := postgres.NewSource(o.Config.Pipeline, o.Config.Source, o.Log)
	m.sink = kafka.NewSink(o.Config, nil, o.Log, o.Kafka...)
	if m.admin, err = source.Admin(ctx, o.AdminURL); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.close(ctx)
		}
	}()
	if m.table, err = m.admin.Table(ctx); err != nil {
		return nil, err
	}
	m.conn = m.table.Conn
	switch {
	case len(m.table.Missing) > 0:
		return nil, m.table.Unfit(m.table.Missing...)
	case len(m.table.Problems) > 0:
		return nil, m.table.Unfit(m.table.Problems...)
	}
	if m.outbox, err = readOutbox(ctx, m.conn, m.table.OID, m.router("table.field.event.id", "id")); err != nil {
		return nil, err
	}
	if list := m.option("table.include.list", ""); list != "" && !includes(list, o.Config.Source.Table) {
		return nil, fmt.Errorf("table.include.list: the connector captures %s, and not %s: name the connector of this table, or correct source.table", list, o.Config.Source.Table)
	}
	return m, nil
}

func (m *move) close(ctx context.Context) { m.admin.Close(context.WithoutCancel(ctx)) }

// interruptedError is the error of a run that a signal has ended. It wraps context.Canceled and has its text alone.
type interruptedError string

func (e interruptedError) Error() string      { return string(e) }
func (interruptedError) Is(target error) bool { return target == context.Canceled }

// interrupted returns an error that says what is done, in place of one that came because the context ended.
func (m *move) interrupted(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	done := "nothing was changed"
	if m != nil && !m.DryRun && m.done != "" {
		done = m.done
	}
	return interruptedError(done + ": run this again")
}

// see reads the connector's slot and publication.
func (m *move) see(ctx context.Context) (err error) {
	if m.slot, err = readSlot(ctx, m.conn, m.option("slot.name", defaultSlotName)); err != nil {
		return err
	}
	m.publication, err = readPublication(ctx, m.conn, m.option("publication.name", defaultPublication), m.table.OID)
	return err
}

// captured reads the further tables that the connector captures.
func (m *move) captured(ctx context.Context) error {
	rows, err := m.conn.Query(ctx, `
		SELECT t.schemaname || '.' || t.tablename
		FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
		WHERE t.pubname = $1 AND c.oid <> $2 AND NOT $2 IN (SELECT relid FROM pg_partition_ancestors(c.oid)) ORDER BY 1`, m.publication.name, m.table.OID)
	if err != nil {
		return fmt.Errorf("look at publication %s: %w", m.publication.name, err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look at publication %s: %w", m.publication.name, err)
	}
	list, without := m.option("table.include.list", ""), m.option("table.exclude.list", "")
	m.others = slices.DeleteFunc(tables, func(name string) bool {
		return list != "" && !includes(list, name) || without != "" && includes(without, name) || name == m.option("signal.data.collection", "")
	})
	return nil
}

// offset reads how far the connector has come.
func (m *move) offset(ctx context.Context) (o *Offset, err error) {
	switch {
	case m.ConnectURL != "":
		o, err = m.restOffset(ctx)
	case m.OffsetTopic != "":
		var records []stored
		whole, exists, err := m.sink.EachRecord(ctx, m.OffsetTopic, func(r *kgo.Record) { records = append(records, stored{r.Key, r.Value}) })
		if err != nil {
			return nil, err
		}
		if !exists {
			return nil, fmt.Errorf("there is no topic %s in this Kafka: name the topic with the connector's offsets (offset.storage.topic of the worker)", m.OffsetTopic)
		}
		o, m.owner, err = m.found(records, "topic "+m.OffsetTopic, whole)
		if err != nil {
			return nil, err
		}
		return m.complete(o)
	case m.OffsetFile != "":
		file, err := os.ReadFile(m.OffsetFile)
		if err != nil {
			return nil, fmt.Errorf("read the connector's offset: %w: name the file of offset.storage.file.filename", err)
		}
		var records []stored
		if len(file) > 0 {
			if records, err = parseFile(file); err != nil {
				return nil, fmt.Errorf("read %s: %w", m.OffsetFile, err)
			}
		}
		o, m.owner, err = m.found(records, m.OffsetFile, true)
		if err != nil {
			return nil, err
		}
		return m.complete(o)
	default:
		return nil, errors.New("it is not known where the connector's offsets are: give --connect-url of the worker, or --offset-topic, or --offset-file of a standalone worker or of Debezium Server")
	}
	if err != nil {
		return nil, err
	}
	return m.complete(o)
}

// found finds the connector's offset among the records of a store.
func (m *move) found(records []stored, place string, whole bool) (*Offset, owner, error) {
	o, of, err := findOffset(records, m.owner, place, whole)
	if err != nil {
		return nil, m.owner, err
	}
	return o, of, nil
}

// complete returns an error for an offset that says too little.
func (m *move) complete(o *Offset) (*Offset, error) {
	if o.Snapshot {
		return nil, fmt.Errorf("%s is in its first copy of the table (a snapshot), and its offset does not say which rows it has published: wait until the copy is complete", m.owner)
	}
	return o, nil
}

// rest asks Connect about the connector.
func (m *move) rest(ctx context.Context, verb string, answer any) error {
	connect, err := newConnect(m.HTTP, m.ConnectURL)
	if err != nil {
		return err
	}
	text, err := connect.get(ctx, "connectors", m.owner.name, verb)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("kafka connect at %s answers no JSON for %s: %w: name the URL of Connect's REST API", connect.host(), verb, err)
	}
	return nil
}

// restOffset asks the worker for the connector's offset.
func (m *move) restOffset(ctx context.Context) (*Offset, error) {
	var answer struct {
		Offsets []struct {
			Partition struct {
				Server string `json:"server"`
			} `json:"partition"`
			Offset json.RawMessage `json:"offset"`
		} `json:"offsets"`
	}
	err := m.rest(ctx, "offsets", &answer)
	if missing(err) {
		return nil, none("read the connector's offset: %v: name a connector of this worker; if the worker is older than Kafka 3.5, or the connector is deleted, give --offset-topic instead of --connect-url", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the connector's offset: %w", err)
	}
	if len(answer.Offsets) == 0 {
		return nil, none("Kafka Connect has no stored offset of connector %q: it has published no row yet, or its offsets were deleted: wait until it has published one (offset.flush.interval.ms, 60 s by default, after it); if it will never run again, `walpost init` begins without it", m.owner.name)
	}
	var records []stored
	for _, o := range answer.Offsets {
		key, _ := json.Marshal([]any{m.owner.name, map[string]string{"server": o.Partition.Server}})
		records = append(records, stored{key, o.Offset})
	}
	o, _, err := m.found(records, "Kafka Connect", true)
	return o, err
}

// status is the state of the connector, as the worker reports it.
type status struct {
	Connector struct {
		State string `json:"state"`
	} `json:"connector"`
	Tasks []struct {
		State string `json:"state"`
	} `json:"tasks"`
}

// running returns an error if the connector has tasks, or may have them again by itself.
func (m *move) running(ctx context.Context) error {
	if m.slot.active && m.option("slot.drop.on.stop", "false") == "true" {
		return fmt.Errorf("slot.drop.on.stop is true, so the connector drops slot %s when it stops: set it to false in the connector, or take way (b)", m.slot.name)
	}
	if m.slot.active {
		return fmt.Errorf("slot %s is being read (pid %d), so the connector runs: %s, and run this again", m.slot.name, m.slot.pid, m.stopIt())
	}
	if m.ConnectURL == "" {
		return nil
	}
	var s status
	err := m.rest(ctx, "status", &s)
	switch {
	case missing(err): // deleted
		return nil
	case err != nil:
		return err
	case s.Connector.State != "STOPPED" || len(s.Tasks) > 0:
		return fmt.Errorf("connector %s is %s with %d tasks, and could read the slot again: %s, and run this again", m.owner.name, s.Connector.State, len(s.Tasks), m.stopIt())
	}
	return nil
}

// stopIt returns how to stop the connector.
func (m *move) stopIt() string {
	if m.ConnectURL == "" && m.OffsetTopic == "" {
		return "stop it (SIGTERM), which stores its offset"
	}
	return fmt.Sprintf("stop it (PUT /connectors/%s/stop), which stores its offset", cmp.Or(m.owner.name, "NAME"))
}

// ahead returns an error if the slot has confirmed more than the offset says is published.
func (m *move) ahead(o *Offset) error {
	end := o.end()
	if end == 0 {
		end = o.Last // the first copy of the table: rows up to here were in it
	}
	if m.slot.confirmed <= end {
		return nil
	}
	return fmt.Errorf("slot %s has confirmed %s, and the connector's offset says only %s (%s): someone advanced the slot, or the offset is an old one: rows committed between the two may be missing in Kafka. Look for them (the newest records of the topics, the rows of the table); then `walpost adopt` continues from the slot, and `walpost replay` publishes rows that are still in the table; with lsn.flush.mode=connector_and_driver the driver itself confirms WAL without rows: let the connector publish one more row, and run this again",
		m.slot.name, m.slot.confirmed, end, o)
}

// TakeOver lets the pipeline begin where the connector stands: on the connector's own slot, if the configuration names
// that, and else on a second slot beside the running connector. It may be interrupted between any two steps, and run again.
// It returns what to do next, a sentence each.
func TakeOver(ctx context.Context, o MoveOptions) (next []string, err error) {
	m, err := o.open(ctx)
	if err != nil {
		return nil, (*move)(nil).interrupted(ctx, err)
	}
	defer m.close(ctx)
	defer func() { err = m.interrupted(ctx, err) }()
	if err := m.see(ctx); err != nil {
		return nil, err
	}
	if err := m.slot.readable(); err != nil {
		ours, otherwise := readPublication(ctx, m.conn, m.Config.Source.Publication, m.table.OID)
		if otherwise == nil && !m.slot.exists && ours.carries && !m.publication.carries {
			return nil, fmt.Errorf("%s is in publication %s already, and slot %s of the connector is gone, so it is not known whether the connector has published every row before the cut: if it has, delete topic %s, and `walpost adopt` begins at slot %s, which has every row after the cut", m.Config.Source.Table, ours.name, m.slot.name, m.Config.StateTopic(), m.Config.Source.Slot)
		}
		return nil, err
	}
	if !m.publication.exists {
		return nil, fmt.Errorf("publication %s does not exist: name the connector's publication (publication.name; %s is the default)", m.publication.name, defaultPublication)
	}
	if err := m.captured(ctx); err != nil {
		return nil, err
	}
	cfg := m.Config.Source
	same := cfg.Slot == m.slot.name
	switch {
	case same && cfg.Publication != m.publication.name:
		return nil, fmt.Errorf("source.publication is %s, and the connector reads slot %s with publication %s: name that one to take over the slot; or name another source.slot too, for a second slot beside the connector", cfg.Publication, m.slot.name, m.publication.name)
	case !same && cfg.Publication == m.publication.name:
		return nil, fmt.Errorf("source.publication is the connector's, %s, and source.slot is another: name another publication too, for a second slot beside the connector; or source.slot: %s, to take over that slot", m.publication.name, m.slot.name)
	}
	if m.DryRun {
		m.ways(same)
	}
	if same {
		return m.sameSlot(ctx)
	}
	return m.secondSlot(ctx)
}

// ways reports the two ways with their consequences.
func (m *move) ways(same bool) {
	here := func(chosen bool) string {
		if chosen {
			return "this configuration"
		}
		return "the other way"
	}
	m.say("way (a), same slot (%s): source.slot: %s, source.publication: %s. The connector is stopped first; no row is missing; a row that the connector published after its last stored offset comes again: none after an orderly stop, and after a crash those that Kafka has out of order; rows wait from the stop to the start of the relay",
		here(same), m.slot.name, m.publication.name)
	m.say("way (b), second slot (%s): another source.slot and source.publication. The connector runs; in one transaction the table moves from publication %s to the new one, while inserts wait for a moment; no row is missing and none comes twice; rows after that wait until the connector has stored its offset (60 s)",
		here(!same), m.publication.name)
}

// sameSlot takes over the connector's slot and publication.
func (m *move) sameSlot(ctx context.Context) (next []string, err error) {
	runs := m.running(ctx)
	if runs != nil && !m.DryRun {
		return nil, runs
	}
	if runs != nil {
		m.say("the connector must be stopped first, and without --dry-run this is refused: %s", runs)
	}
	if !m.publication.carries {
		return nil, fmt.Errorf("publication %s does not carry %s, so the connector does not publish its rows: name the connector of this table, or correct source.table", m.publication.name, m.Config.Source.Table)
	}
	if len(m.others) > 0 {
		return nil, fmt.Errorf("the connector also captures %s, and on its slot nobody would publish their changes any more: take way (b), a second slot, which leaves those tables to the connector; or take them out of table.include.list", few(m.others))
	}
	o, err := m.offset(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.ahead(o); err != nil {
		return nil, err
	}
	if _, err := m.conn.Exec(ctx, "SET client_encoding = 'SQL_ASCII'"); err != nil { // the rows' text is not read
		return nil, fmt.Errorf("look into slot %s: %w", m.slot.name, err)
	}
	look := peek
	if m.slot.active { // in a dry run
		look = func(ctx context.Context, conn *pgx.Conn, slot, publication string, of outbox, o *Offset, _ cdc.LSN) (*backlog, error) {
			return peekCopy(ctx, conn, slot, publication, of, o)
		}
	}
	b, err := look(ctx, m.conn, m.slot.name, m.publication.name, m.outbox, o, m.slot.confirmed)
	if err != nil {
		return nil, err
	}
	if _, err := m.conn.Exec(ctx, "SET client_encoding = 'UTF8'"); err != nil {
		return nil, fmt.Errorf("look into slot %s: %w", m.slot.name, err)
	}
	if err := m.lookUp(ctx, b); err != nil {
		return nil, err
	}
	m.say("%s has stored %s; its slot %s has confirmed %s", m.owner, o, m.slot.name, m.slot.confirmed)
	from := fmt.Sprintf("walpost begins at %s", b.start.Covered)
	if b.start.Last.Ordinal > 0 {
		from = fmt.Sprintf("walpost begins after the connector's last row, number %d of transaction %d, committed at %s", b.start.Last.Ordinal, b.start.XID, b.start.Last.Commit)
	}
	if b.found > 0 {
		from += fmt.Sprintf(" (%d rows after the stored offset are in Kafka: they do not come again)", b.found)
	}
	again := ""
	switch unseen := b.rows - int64(len(b.waiting)); {
	case b.rows == 0:
	case len(b.waiting) == 0:
		again = ": their ids cannot be looked up in Kafka: those that the connector published after it stored this offset come again"
	case unseen > 0:
		again = fmt.Sprintf(": %d of the first %d are in Kafka already, and come again; the other %d were not looked up", b.again, len(b.waiting), unseen)
	default:
		again = fmt.Sprintf(": %d of them are in Kafka already, and come again", b.again)
	}
	if runs != nil {
		from = "as of now, before the connector is stopped: " + from
	}
	m.say("%s; the slot keeps %s after that%s", from, b, again)
	m.done = "the connector's slot and publication are as they were, and nothing is lost"
	if err := m.Pipeline.Begin(ctx, b.start, fmt.Sprintf("took over slot %s of %s, which had stored %s; the slot kept %s after that%s", m.slot.name, m.owner, o, b, again)); err != nil {
		return nil, err
	}
	return []string{
		"start `walpost relay`: the rows that wait come first",
		fmt.Sprintf("delete the connector before somebody starts it again (DELETE /connectors/%s/offsets, then DELETE /connectors/%s; for Debezium Server its container and offset file): the slot has one reader, and an old offset would only confuse a later connector", m.owner.name, m.owner.name),
		fmt.Sprintf("slot %s and publication %s are walpost's now: drop neither", m.slot.name, m.publication.name),
	}, nil
}

// router returns the value of an option of the Outbox Event Router, or its default.
func (m *move) router(name, otherwise string) string {
	for alias := range strings.SplitSeq(m.option("transforms", ""), ",") {
		alias = strings.TrimSpace(alias)
		if strings.HasSuffix(m.option("transforms."+alias+".type", ""), "EventRouter") {
			return m.option("transforms."+alias+"."+name, otherwise)
		}
	}
	return otherwise
}

// variable matches the parts of a topic's template that the rows fill in.
var variable = regexp.MustCompile(`\$(\{[^}]*\}|[0-9]+)`)

// lookUp looks for the waiting rows in Kafka, by the header id, and passes those that are there.
func (m *move) lookUp(ctx context.Context, b *backlog) error {
	pattern := m.topics
	if pattern == nil {
		template := m.router("route.topic.replacement", "outbox.event.${routedByValue}")
		var said strings.Builder
		end := 0
		for _, at := range variable.FindAllStringIndex(template, -1) {
			said.WriteString(regexp.QuoteMeta(template[end:at[0]]) + ".*")
			end = at[1]
		}
		pattern = regexp.MustCompile("^" + said.String() + regexp.QuoteMeta(template[end:]) + "$")
	}
	there, shared, _, err := m.inKafka(ctx, b, pattern)
	if err != nil {
		return err
	}
	b.passes(there)
	b.again += shared
	return nil
}

// inKafka returns the ids of the waiting rows that are in Kafka. An id that two waiting rows have is none of them: shared is the
// number of rows whose id is in Kafka and may be that of another row. inKafka reports that the records are named unless some
// are there and none has an id.
func (m *move) inKafka(ctx context.Context, b *backlog, pattern *regexp.Regexp) (there map[string]bool, shared int64, named bool, err error) {
	wanted, there := map[string]int64{}, map[string]bool{}
	if len(b.waiting) == 0 {
		return there, 0, true, nil
	}
	topics, err := m.sink.Topics(ctx, pattern)
	if err != nil {
		return nil, 0, false, err
	}
	for _, row := range b.waiting {
		wanted[row.id]++
	}
	// A record has the publisher's time, which is later than the commit; its clock may differ from the server's. With a column
	// for the time, a record has any time.
	from := b.waiting[0].start.Commit.Add(-10 * time.Minute)
	if m.Config.Debezium[optionTimestamp] != "" || m.router(optionTimestamp, "") != "" {
		from = time.UnixMilli(0)
	}
	_, read, err := m.sink.Search(ctx, kafka.Search{Topics: topics, From: from, Match: func(id, _ string) bool {
		named = named || id != ""
		if id = headerText(id); wanted[id] > 0 {
			there[id] = true
		}
		return false
	}})
	if err != nil {
		return nil, 0, false, fmt.Errorf("look for the rows that wait in Kafka: %w", err)
	}
	for id := range there {
		if n := wanted[id]; n > 1 {
			shared += n
			delete(there, id)
		}
	}
	return there, shared, named || read.Records == 0, nil
}

// headerText returns a header's text without what JsonConverter writes around it: quotes, and perhaps a schema.
func headerText(value string) string {
	if strings.HasPrefix(value, "{") {
		value = string(unwrapped([]byte(value)))
	}
	return strings.Trim(value, `"`)
}

// kept looks for rows in Kafka that the pipeline has published after its state record.
func (m *move) kept(ctx context.Context, after cdc.Start, topics *regexp.Regexp) (Kept, error) {
	k := Kept{At: after.Covered}
	of := m.outbox
	of.id = m.Config.Source.Columns.ID
	if _, err := m.conn.Exec(ctx, "SET client_encoding = 'SQL_ASCII'"); err != nil { // the rows' text is not read
		return k, fmt.Errorf("look into slot %s: %w", m.slot.name, err)
	}
	b, err := peekUpTo(ctx, m.conn, m.slot.name, m.publication.name, of, &Offset{}, after.Covered, mostRelayed)
	if err != nil {
		return k, err
	}
	if _, err := m.conn.Exec(ctx, "SET client_encoding = 'UTF8'"); err != nil {
		return k, fmt.Errorf("look into slot %s: %w", m.slot.name, err)
	}
	there, shared, named, err := m.inKafka(ctx, b, topics)
	switch last, unseen := len(b.waiting)-1, b.rows-int64(len(b.waiting)); {
	case err != nil:
		k.Unknown, there = fmt.Sprintf("the ids of the %d rows that the slot keeps could not be looked up in Kafka: %v", b.rows, err), map[string]bool{}
	case !named:
		k.Unknown = fmt.Sprintf("the records have no header id, so the %d rows that the slot keeps cannot be looked up in Kafka", b.rows)
	case shared > 0:
		k.Unknown = fmt.Sprintf("%d rows share their ids with others of them, and it is not known which of them are in Kafka", shared)
	case unseen > 0 && int64(len(b.waiting)) < b.most:
		k.Unknown = fmt.Sprintf("the slot does not show the ids of %d rows, so they cannot be looked up in Kafka", unseen)
	case unseen > 0 && there[b.waiting[last].id]:
		k.Unknown = fmt.Sprintf("only the first %d of %d rows were looked up", len(b.waiting), b.rows)
	}
	if after.Last.Ordinal > 0 && after.Last.Commit >= after.Covered {
		// The record says that these are there, although the slot keeps them: windows end inside a transaction.
		for _, row := range b.waiting {
			if row.start.Last.Compare(after.Last) <= 0 {
				there[row.id] = true
			}
		}
		if len(b.waiting) == 0 {
			k.Again = int64(after.Last.Ordinal)
			return k, nil
		}
	}
	k.At, k.Again = b.whole(there)
	return k, nil
}

func few(names []string) string {
	const most = 3
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

// secondSlot makes a second slot, cuts, and waits until the connector has published what is before the cut.
func (m *move) secondSlot(ctx context.Context) (next []string, err error) {
	cfg := m.Config.Source
	ours, err := readPublication(ctx, m.conn, cfg.Publication, m.table.OID)
	if err != nil {
		return nil, err
	}
	mine, err := readSlot(ctx, m.conn, cfg.Slot)
	if err != nil {
		return nil, err
	}
	done := ours.carries && !m.publication.carries
	switch {
	case ours.carries && m.publication.carries:
		return nil, fmt.Errorf("publications %s and %s both carry %s, and each row would be published twice: take it out of %s: ALTER PUBLICATION %s DROP TABLE %s", m.publication.name, ours.name, cfg.Table, ours.name, postgres.Ident(ours.name), postgres.TableName(cfg))
	case !done && !m.publication.carries:
		return nil, fmt.Errorf("publication %s does not carry %s, so the connector does not publish its rows: name the connector of this table, or correct source.table", m.publication.name, cfg.Table)
	case m.publication.all:
		return nil, fmt.Errorf("publication %s is FOR ALL TABLES, and PostgreSQL cannot take one table out of it: take way (a); or give the connector a publication that lists its tables (publication.name, publication.autocreate.mode=disabled), and run this again", m.publication.name)
	case !done && !m.publication.outbox:
		return nil, fmt.Errorf("publication %s carries %s with its whole schema (%s) or through its partitions, and PostgreSQL cannot take the one table out of it: take way (a); or give the connector a publication that names %s, and run this again", m.publication.name, cfg.Table, strings.Join(m.publication.schemas, ", "), cfg.Table)
	case !done && m.publication.filter:
		return nil, fmt.Errorf("publication %s has a row filter on %s, and walpost publishes every row: a consumer would see rows that the connector left out: take the filter out, or leave the pipeline with the connector", m.publication.name, cfg.Table)
	case m.option("publication.autocreate.mode", defaultAutocreate) == "filtered":
		return nil, errors.New("publication.autocreate.mode is filtered: whenever the connector starts, it would put the table back into its publication, and rows would be published twice: set it to disabled in the connector (it restarts, and nothing is lost), and run this again")
	case !m.publication.ours:
		return nil, fmt.Errorf("the role of the administrator's URL may not alter publication %s, which belongs to %s: connect as that role or as a superuser", m.publication.name, m.publication.owner)
	case ours.exists && !ours.ours:
		return nil, fmt.Errorf("the role of the administrator's URL may not alter publication %s, which belongs to %s: connect as that role or as a superuser", ours.name, ours.owner)
	case mine.exists && mine.active:
		return nil, fmt.Errorf("slot %s is being read (pid %d): stop the relay, or name another source.slot", mine.name, mine.pid)
	case done && !mine.exists:
		return nil, fmt.Errorf("%s is in publication %s already, and slot %s does not exist: rows that were committed since are in no slot: `walpost init` begins with a new slot, and `walpost replay` publishes the rows of that time from the table", cfg.Table, ours.name, mine.name)
	case !done && !m.slot.active:
		return nil, fmt.Errorf("nobody reads slot %s, so the connector does not run, and would never publish what is before the cut: start it, or take way (a)", m.slot.name)
	}
	if mine.exists {
		if err := mine.readable(); err != nil {
			return nil, err
		}
	}
	o, err := m.offset(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.ahead(o); err != nil && !done {
		return nil, err
	}
	m.say("%s has stored %s; its slot %s has confirmed %s", m.owner, o, m.slot.name, m.slot.confirmed)
	if err := m.readers(ctx); err != nil {
		return nil, err
	}
	m.done = fmt.Sprintf("nothing was moved: the connector has %s as before, and publication %s and slot %s perhaps exist", cfg.Table, ours.name, mine.name)
	if done {
		m.done = m.cutDone()
	}
	if err := m.Pipeline.Prepare(ctx); err != nil {
		return nil, err
	}
	if !ours.exists {
		sql := emptySQL(m.table, ours.name)
		m.Progress(fmt.Sprintf("publication %s: create it without a table", ours.name), sql)
		if !m.DryRun {
			if _, err := m.conn.Exec(ctx, sql); err != nil {
				return nil, fmt.Errorf("create publication %s: %w", ours.name, err)
			}
			if err := failpoint.Hit("takeover_publication"); err != nil {
				return nil, err
			}
		}
	}
	if !mine.exists {
		m.Progress(fmt.Sprintf("slot %s: create it (PostgreSQL waits until the open transactions have ended)", mine.name), m.admin.CreateSlotSQL())
		if !m.DryRun {
			if err := m.admin.CreateSlot(ctx); err != nil {
				return nil, err
			}
			if err := failpoint.Hit("takeover_slot"); err != nil {
				return nil, err
			}
		}
	}
	if !done {
		if err := m.cut(ctx, ours.name, mine.name); err != nil {
			return nil, err
		}
	}
	if m.DryRun {
		m.say("wait until %s has stored an offset at or after its last row before the cut", m.owner)
		m.say("state record in %s: write the first one, at the position of slot %s", m.Config.StateTopic(), mine.name)
		return m.afterCut(), nil
	}
	if err := m.drained(ctx); err != nil {
		return nil, err
	}
	if mine, err = readSlot(ctx, m.conn, cfg.Slot); err != nil {
		return nil, err
	}
	why := fmt.Sprintf("took over from %s, which has published every row before the cut; publication %s has every row after it", m.owner, ours.name)
	if err := m.Pipeline.Begin(ctx, cdc.Start{Covered: mine.confirmed}, why); err != nil {
		return nil, err
	}
	return m.afterCut(), nil
}

// cutDone returns what is done after the cut.
func (m *move) cutDone() string {
	return fmt.Sprintf("the cut is made; nothing is lost: later rows wait in slot %s", m.Config.Source.Slot)
}

// readers reports other slots that may be read with the connector's publication. PostgreSQL does not record it.
func (m *move) readers(ctx context.Context) error {
	var others []string
	err := m.conn.QueryRow(ctx, `SELECT ARRAY(SELECT slot_name::text FROM pg_replication_slots
		WHERE database = current_database() AND plugin = 'pgoutput' AND slot_name <> ALL ($1) ORDER BY 1)`, []string{m.slot.name, m.Config.Source.Slot}).Scan(&others)
	if err != nil {
		return fmt.Errorf("look for other slots: %w", err)
	}
	if len(others) > 0 {
		if len(others) == 1 {
			m.say("note: slot %s of this database may also be read with publication %s: its reader gets no row of %s after the cut", others[0], m.publication.name, m.Config.Source.Table)
		} else {
			m.say("note: slots %s of this database may also be read with publication %s: their readers get no row of %s after the cut", few(others), m.publication.name, m.Config.Source.Table)
		}
	}
	return nil
}

// cut moves the table between the publications. It tries again while a transaction holds the table.
func (m *move) cut(ctx context.Context, to, slot string) error {
	cfg := m.Config.Source
	m.Progress(fmt.Sprintf("cut: move %s from publication %s to %s in one transaction; inserts wait for it, at most %s at a time", cfg.Table, m.publication.name, to, lockWithin), cutSQL(cfg, m.publication.name, to)...)
	if m.DryRun {
		return nil
	}
	// The slot must know the publication, and nothing of the table: else it is one that something else has made.
	b, err := peek(ctx, m.conn, slot, to, m.outbox, nil, 0)
	if err != nil {
		return fmt.Errorf("nothing was moved: %w: slot %s is older than publication %s: name another source.slot, or drop it if nothing needs it", err, slot, to)
	}
	if b.rows > 0 {
		return fmt.Errorf("nothing was moved: slot %s keeps %s already: name another source.slot and source.publication", slot, b)
	}
	for end := time.Now().Add(m.Wait); ; {
		before := m.done
		m.done = "nothing is lost: the next run sees whether the cut was made"
		at, err := cutOver(ctx, m.conn, cfg, m.publication.name, to)
		switch {
		case err == nil:
			m.done = m.cutDone()
			m.say("the cut is at %s: the connector publishes every row that was committed before it, and walpost every row after it", at)
			return failpoint.Hit("takeover_after_cut")
		case !errors.Is(err, errLocked):
			return err
		case time.Now().After(end):
			return fmt.Errorf("nothing was moved: a transaction has held %s for %s: end it (SELECT pid, state, xact_start FROM pg_stat_activity ORDER BY xact_start), and run this again", cfg.Table, m.Wait)
		}
		m.done = before
		m.say("waits for a transaction that has rows of %s open, and tries again", cfg.Table)
		if err := pause(ctx, time.Second); err != nil {
			return fmt.Errorf("nothing was moved: %w", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const (
	askEach = time.Second
	sayEach = 10 * time.Second
)

// drained waits until the connector has stored an offset at or after its last row before the cut: until then walpost would
// publish rows before older ones of their key.
func (m *move) drained(ctx context.Context) error {
	if _, err := m.conn.Exec(ctx, "SET client_encoding = 'SQL_ASCII'"); err != nil {
		return fmt.Errorf("look into slot %s: %w", m.slot.name, err)
	}
	defer func() { _, _ = m.conn.Exec(context.WithoutCancel(ctx), "SET client_encoding = 'UTF8'") }()
	for end, told := time.Now().Add(m.Wait), (time.Time{}); ; {
		o, err := m.offset(ctx)
		var b *backlog
		if err == nil {
			b, err = peekCopy(ctx, m.conn, m.slot.name, m.publication.name, m.outbox, o)
		}
		if err == nil && b.rows > 0 && b.rows == b.shared {
			// Rows of one COPY share an LSN, and the offset does not say which of them are published.
			err = m.lookUp(ctx, b)
		}
		if err == nil && b.rows == 0 {
			m.say("%s has stored %s: it has published every row before the cut", m.owner, o)
			return failpoint.Hit("takeover_drained")
		}
		what := ""
		if err != nil {
			what = err.Error()
		} else {
			what = fmt.Sprintf("it has stored %s, and %s are after that", o, b)
		}
		if time.Since(told) > sayEach {
			told = time.Now()
			m.say("waits until %s has stored the offset of its last row before the cut (offset.flush.interval.ms, 60 s by default; faster: %s): %s", m.owner, m.stopIt(), what)
		}
		if time.Now().After(end) {
			return fmt.Errorf("the cut is made, and %s has not stored the offset of its last row before it within %s: %s. Nothing is lost: later rows wait in slot %s. See that the connector runs, and run this again", m.owner, m.Wait, what, m.Config.Source.Slot)
		}
		if err := pause(ctx, askEach); err != nil {
			return fmt.Errorf("%s: run this again (%w)", m.cutDone(), err)
		}
	}
}

// afterCut returns what to do after a cut.
func (m *move) afterCut() []string {
	next := []string{"start `walpost relay`: the rows that wait come first"}
	if len(m.others) > 0 {
		return append(next, fmt.Sprintf("the connector goes on with %s: leave it, its slot %s and its publication %s as they are", few(m.others), m.slot.name, m.publication.name))
	}
	return append(next,
		fmt.Sprintf("the connector has nothing more to do: delete it (PUT /connectors/%[1]s/stop, DELETE /connectors/%[1]s/offsets, DELETE /connectors/%[1]s; for Debezium Server its container and offset file)", m.owner.name),
		fmt.Sprintf("then drop its slot, which keeps WAL until the disk is full: SELECT pg_drop_replication_slot(%s); and DROP PUBLICATION %s", postgres.Literal(m.slot.name), postgres.Ident(m.publication.name)))
}

// GiveBack ends the pipeline, so that a connector goes on with its slot and publication. The relay must be stopped, and the
// connector must not have been started. It returns what to do next, a sentence each.
func GiveBack(ctx context.Context, o MoveOptions) (next []string, err error) {
	m, err := o.open(ctx)
	if err != nil {
		return nil, (*move)(nil).interrupted(ctx, err)
	}
	defer m.close(ctx)
	defer func() { err = m.interrupted(ctx, err) }()
	cfg := m.Config.Source
	if name := m.option("slot.name", defaultSlotName); name != cfg.Slot {
		return nil, fmt.Errorf("slot.name is %s: give the connector the slot that walpost has read, slot.name=%s: another one has no rows or old ones", name, cfg.Slot)
	}
	if name := m.option("publication.name", defaultPublication); name != cfg.Publication {
		return nil, fmt.Errorf("publication.name is %s: give the connector the publication that walpost has read, publication.name=%s: PostgreSQL looks up which rows a publication has as of their commit, so another one lacks the rows that wait", name, cfg.Publication)
	}
	if mode := m.option("snapshot.mode", defaultSnapshot); mode != "no_data" && mode != "never" {
		return nil, fmt.Errorf("snapshot.mode is %s: the connector would publish every row of the table once more: set it to no_data (before Debezium 2.6: never)", mode)
	}
	if err := m.see(ctx); err != nil {
		return nil, err
	}
	if err := m.slot.readable(); err != nil {
		return nil, err
	}
	if m.slot.active {
		return nil, fmt.Errorf("slot %s is being read (pid %d): stop the relay with SIGTERM, and run this again", m.slot.name, m.slot.pid)
	}
	placed := m.ConnectURL != "" || m.OffsetTopic != "" || m.OffsetFile != ""
	if placed {
		o, err := m.offset(ctx)
		if err != nil && !errors.Is(err, errNoOffset) {
			return nil, err
		}
		if err == nil {
			return nil, fmt.Errorf("%s still has a stored offset (%s), from before walpost: delete it (DELETE /connectors/%s/offsets while the connector is stopped; for Debezium Server delete the offset file), and run this again: without an offset the connector starts where the slot stands", m.owner, o, m.owner.name)
		}
	}
	m.done = "no row is lost, and slot and publication are there; the pipeline is given back when its state topic is gone"
	kept, err := m.Pipeline.Leave(ctx, m.kept)
	if err != nil {
		return nil, err
	}
	said := "the connector starts at the slot's position: no row is missing, and none comes twice"
	switch {
	case kept.Unknown != "":
		said = fmt.Sprintf("the connector starts at the slot's position: no row is missing; %d rows come again, and perhaps more: %s", kept.Again, kept.Unknown)
	case kept.Again == 0 && !placed:
		said = "the connector starts at the slot's position if it has no stored offset: then no row is missing, and none comes twice"
	case kept.Again > 0:
		said = fmt.Sprintf("the connector starts at the slot's position: no row is missing; %d rows come again", kept.Again)
	}
	if !placed {
		said += "; no offset was looked for: delete an old one from before walpost, if there is one (DELETE /connectors/NAME/offsets while the connector is stopped; for Debezium Server its offset file), or give --connect-url, --offset-topic or --offset-file"
	}
	return []string{
		said,
		"create the connector without an offset (a new name, or the old one after its offsets are deleted)",
		"do not start the relay of this pipeline again",
	}, nil
}
