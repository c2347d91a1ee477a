//go:build chromium

package browser_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/kafka"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/polling"
)

// state is what a page shows, and what a person must be able to read there.
type state struct {
	name string
	make func(t testing.TB) []*fake
	page.Options
	path  string // default: /
	title string // default: orders
	// says are texts that a person reads; runs are texts that stand alone, to be copied.
	says, runs []string
	// not are texts that are not there.
	not []string
	// open opens what is closed at first.
	open bool
	// short leaves the widths and schemes out, which another state has alike.
	short bool
	wide  bool // it is drawn at 3840 too, which takes long
}

// one returns a function that makes one pipeline.
func one(change func(t testing.TB, f *fake)) func(t testing.TB) []*fake {
	return func(t testing.TB) []*fake {
		f := &fake{
			Config: configured(t, nil), status: streaming(), points: hour(), events: lastEvents(20),
			changes: []pipeline.Change{{At: ago(26 * time.Hour), Role: cdc.Starting}, {At: ago(26*time.Hour - time.Second), Role: cdc.Streaming}},
		}
		change(t, f)
		return []*fake{f}
	}
}

// halt returns a function that makes a pipeline with this halt.
func halt(halts error, of cdc.Facts) func(t testing.TB) []*fake {
	return one(func(_ testing.TB, f *fake) { f.status, f.changes = halted(halts, of) })
}

// reconcile returns a function that makes a pipeline which halts at these facts.
func reconcile(change func(*cdc.State, *cdc.Facts)) func(t testing.TB) []*fake {
	return func(t testing.TB) []*fake {
		f, err := reconciled(t, change)
		return halt(err, f)(t)
	}
}

// nothing is what a page says where nobody has to act.
const nothing = "Nothing failed, and there is nothing to do."

var errKafkaDown = errors.New("connect to Kafka (kafka.brokers): dial tcp 10.20.0.11:9092: connect: connection refused")

// errPostgresDown is pgx's error.
var errPostgresDown = errors.New("connect to PostgreSQL: failed to connect to `user=relay database=shop`: 10.20.0.5:5432 (db.example.com): dial error: dial tcp 10.20.0.5:5432: connect: connection refused")

// retrying changes a status to that of a relay whose session ended with an error.
func retrying(f *fake, err error, since time.Duration) {
	f.status.Role, f.status.Reason, f.status.Since = cdc.Retrying, err.Error(), ago(since)
	blocks(&f.status, pipeline.CannotTell, err)
	why := f.status.BlockedBy[0]
	f.changes = append(f.changes, pipeline.Change{At: ago(since), Role: cdc.Retrying, Why: &why})
}

// unseen removes what PostgreSQL says.
func unseen(st *pipeline.Status) {
	st.Slot = &pipeline.Slot{Name: st.Slot.Name}
	st.WALEnd, st.LagBytes, st.LagSeconds, st.RetainedBytes, st.WALPerHour, st.SlotSeconds, st.Positions = "", nil, nil, nil, nil, nil, nil
}

// bars are the five numbers on top of each page.
var bars = []string{"Behind", "Rows a second", "Latency p50", "Latency p99", "Slot lasts"}

var states = []state{
	{
		name: "streaming", wide: true, make: one(func(testing.TB, *fake) {}),
		says: append(bars, "Works", "Rows flow from PostgreSQL to Kafka.", "0 s", "136 B of WAL", "1,482,907 since the start", nothing, "4h", "end of the WAL", "3/5A401C88", "told to the slot", "Until now", "yes, in use",
			"None: every row could be published.", "order-88100", "OrderPaid", "shop.order", "Find an event or a key", "keys, each with its origin"),
		not: []string{secret},
	},
	{
		name: "idle", make: one(func(_ testing.TB, f *fake) {
			f.points, f.events, f.status.Published, f.status.DeadLetters = idle(), nil, 0, nil
			f.status.Notes = []string{"the server's clock is 3 s ahead of this machine's: latencies are wrong by that much; `timedatectl` shows whether a clock is synchronized"}
		}),
		says: []string{"Works", "0 s", "There is no event in the topics.", nothing, "Good to know", "This pipeline writes none: a row that can never be published halts it"}, runs: []string{"timedatectl"},
	},
	{
		name: "started a moment ago", short: true, make: one(func(_ testing.TB, f *fake) {
			f.status.Role, f.status.Since, f.points, f.changes, f.status.Published = cdc.Starting, now(), nil, nil, 0
			unseen(&f.status)
			blocks(&f.status, pipeline.CannotTell, errors.New("PostgreSQL and Kafka have not answered yet: ask again"))
		}),
		says: []string{"Starting", "unknown", "PostgreSQL and Kafka have not answered yet", "a point is added every 15 s", "It has just started."},
	},
	{
		name: "standby", make: one(func(_ testing.TB, f *fake) {
			f.status.Role, f.status.Reason, f.status.Published, f.points = cdc.Standby, cdc.ErrSlotInUse.Error(), 0, idle()
			f.status.Positions = positions(0, -1, -1, 0x88, 0x88, 0x40_0000)
			f.changes = []pipeline.Change{{At: ago(time.Hour), Role: cdc.Standby}}
		}),
		says: []string{"Standing by", "Another relay delivers the rows. This one takes over when that one ends.", nothing, "yes, in use"},
	},
	{
		name: "retrying", make: one(func(_ testing.TB, f *fake) {
			retrying(f, errors.New("read the stream: FATAL: terminating connection due to administrator command (SQLSTATE 57P01)"), 12*time.Second)
			f.status.LagBytes, f.status.LagSeconds = of(int64(5<<20)), of(12.4)
			f.status.Positions = positions(0, 5<<20, 5<<20, 5<<20, 5<<20, 9<<20)
		}),
		says: []string{"Trying again", "The relay starts the next one itself.", "12 s", "5120 KiB of WAL", "SQLSTATE 57P01"}, not: []string{nothing},
	},
	{
		name: "stalled", make: one(func(_ testing.TB, f *fake) {
			f.status.Stalled = "the WAL has grown from 3/58000000 to 3/5A401C88, rows may be waiting, and nothing has moved for 15 s: the walsender (process 4711, active, in IO/WALRead) sends nothing: the server's log may say why; `SELECT pg_terminate_backend(4711)` lets the relay connect again; nothing is lost"
			blocks(&f.status, pipeline.NeedsSomeone, errors.New(f.status.Stalled))
			f.status.LagBytes, f.status.LagSeconds = of(int64(37<<20)), of(95.0)
			f.status.Positions = positions(0, 37<<20, 37<<20, 37<<20, 37<<20, 41<<20)
		}),
		says: []string{"Stalled", "nothing moves", "1m35s", "37 MiB of WAL"}, runs: []string{"SELECT pg_terminate_backend(4711)"}, not: []string{nothing},
	},
	{
		name: "halted, the slot is lost", make: reconcile(func(_ *cdc.State, f *cdc.Facts) {
			f.Slot.WALStatus, f.Slot.Invalidation, f.Slot.ConfirmedFlush = "lost", "wal_removed", 0x3_4000_0000
		}),
		says: []string{"Halted", "The relay publishes nothing until you decide.", "replication slot \"orders\" is lost (wal_status lost, invalidation_reason wal_removed)", "the slot will not recover", "LSN range (3/5A401C00, 3/5A401C88]", "the slot is lost"},
		runs: []string{"walpost adopt --create-slot"}, not: []string{nothing},
	},
	{
		name: "halted, the publication hides the table", short: true, make: reconcile(func(_ *cdc.State, f *cdc.Facts) {
			f.Fingerprint, f.Hidden = "16402/none", []cdc.Finding{{Side: cdc.InPostgreSQL, Check: "publication_table", Found: "source.publication: orders does not carry public.outbox", Run: "ALTER PUBLICATION orders ADD TABLE public.outbox"}}
		}),
		says: []string{"Halted", "does not carry public.outbox: ALTER PUBLICATION orders ADD TABLE public.outbox", "may never have been streamed"}, runs: []string{"walpost adopt"}, not: []string{nothing},
	},
	{
		name: "halted, a poison row", make: func(t testing.TB) []*fake {
			row := &cdc.Row{Position: cdc.Position{Commit: walEnd - 0x4000, Ordinal: 3}, ID: []byte("0192f3a1-7c44-7b00-9e1d-3f5a70c1d2aa"), AggregateType: []byte("order")}
			err := cdc.Reject(row, cdc.TooLarge, "shop.order", "the record has 1,312,044 bytes, more than the 1,048,588 bytes that topic shop.order takes (max.message.bytes)")
			return halt(&cdc.HaltError{
				Found: err.Error(), Means: "no later row is published until you decide; nothing is lost",
				Run: "fix the cause: raise the topic's limit, and the relay resumes by itself, or correct the configuration (kafka.aggregate_types or kafka.rename, for example) and restart it; or set poison.policy: dead_letter and restart it, which moves such rows to the dead letter topic; or `walpost skip --to 3/5A3FDC90` gives up for good the rows of this one transaction that were not delivered; its delivered rows stay in Kafka, and you can write the others to the outbox again",
			}, facts())(t)
		},
		says: []string{"Halted", "0192f3a1-7c44-7b00-9e1d-3f5a70c1d2aa", "max.message.bytes", "nothing is lost", "raise the topic's limit"}, runs: []string{"walpost skip --to 3/5A3FDC90"}, not: []string{nothing},
	},
	{
		name: "halted, a server of another timeline", short: true, make: reconcile(func(st *cdc.State, _ *cdc.Facts) { st.Timeline = 2 }),
		says: []string{"Halted", "the state record is of timeline 2, the server is on timeline 1", "stale primary", "point source.url at the present primary"}, runs: []string{"walpost adopt"}, not: []string{nothing},
	},
	{
		name: "halted, another server", short: true, make: reconcile(func(st *cdc.State, _ *cdc.Facts) { st.SystemID = "7000000000000000001" }),
		says: []string{"Halted", "system id 7000000000000000001", "point source.url back at the right server"}, runs: []string{"walpost adopt --new-server"}, not: []string{nothing},
	},
	{
		name: "halted, a transaction that cannot be decoded", short: true, make: halt(&cdc.HaltError{
			Found: "PostgreSQL cannot decode the change at 3/5A3F0000: could not map filenumber \"base/16384/16431\" to relation OID (SQLSTATE XX000); it is in transaction 90311, committed at 3/5A3F2210",
			Means: "the transaction cannot be delivered whole, and every later row waits in the slot; nothing is lost",
			Run:   "`walpost skip --to 3/5A3F2218` gives up for good the rows of this one transaction that were not delivered; its delivered rows stay in Kafka, and you can write the others to the outbox again",
		}, facts()),
		says: []string{"Halted", "cannot decode the change", "transaction 90311"}, runs: []string{"walpost skip --to 3/5A3F2218"}, not: []string{nothing},
	},
	{
		name: "Kafka dead", make: one(func(_ testing.TB, f *fake) {
			f.status.KafkaStalled, f.err, f.status.DeadLetters = true, errKafkaDown, nil
			blocks(&f.status, pipeline.NeedsSomeone, errors.New("kafka does not answer: look into its brokers' logs"))
			blocks(&f.status, pipeline.NeedsSomeone, errKafkaDown)
			f.status.LagBytes, f.status.LagSeconds = of(int64(700<<20)), of(1900.0)
			f.status.Positions = positions(0, 120<<20, 700<<20, 700<<20, 700<<20, 704<<20)
		}),
		says: []string{"Waiting for Kafka", "They wait in the slot, and nothing is lost.", "31m40s", "700 MiB of WAL", "look into its brokers' logs", "10.20.0.11:9092: connect: connection refused"}, not: []string{nothing},
	},
	{
		name: "PostgreSQL away", make: one(func(_ testing.TB, f *fake) {
			retrying(f, errPostgresDown, 3*time.Minute)
			unseen(&f.status)
			blocks(&f.status, pipeline.CannotTell, errors.New("look at the server: "+errPostgresDown.Error()))
		}),
		says: []string{"Trying again", "unknown", "10.20.0.5:5432", "connection refused", "Exists\nunknown"}, not: []string{nothing},
	},
	{
		name: "polled, with held keys", make: one(func(t testing.TB, f *fake) {
			f.status = polled(polling.Backlog{Pending: 812, Rejected: 2, Failed: 3, HeldKeys: 2, OldestSeconds: 340, Horizon: &polling.Horizon{Transaction: cdc.Transaction{PID: 3312, Seconds: 340}}})
			f.Config = configured(t, map[string]string{"WALPOST_SOURCE_KIND": "polling"})
			f.letters = deadLetters(3)
			f.changes = []pipeline.Change{{At: ago(3 * time.Hour), Role: cdc.Streaming}}
		}),
		says: []string{"Works, and needs you", "5m40s", "812 rows wait", "3 rows have failed and hold 2 keys back", "Keys that wait for a failed row\n2", "the transaction of pid 3312, open for 340 s", "SELECT pg_terminate_backend(3312)", "a polled table has no slot", "A polled table keeps none."},
		runs: []string{"walpost dlq list"}, not: []string{nothing, "Where the rows are"},
	},
	{
		name: "10,000 dead letters, rows off", wide: true, make: one(tenThousand),
		says: []string{"Works, and needs you", "10,000 rows could not be published; these are 1 to 25.", "max.message.bytes", "; it waits for 3/5A3F0000/1/", "Rows are data, so the page does not show them", "10000 dead letters are unresolved", "not shown", "The next page"},
		runs: []string{"walpost dlq list", "page.rows: true", "walpost dlq show EVENT"}, not: []string{nothing},
	},
	{
		name: "10,000 dead letters, rows on, the last page", short: true, make: one(tenThousand), Options: page.Options{Rows: true}, path: "/?letters=400",
		says: []string{"these are 9,976 to 10,000", "the row of 0192f3a1-0000-7000-8000-000000009999", "The page before"}, not: []string{"Rows are data", "The next page"},
	},
	{
		name: "a dead letter with its row", make: one(func(t testing.TB, f *fake) { tenThousand(t, f); f.letters[6].Key = "6" }), Options: page.Options{Rows: true}, path: "/pipelines/orders/dead-letter?key=6", title: "orders, dead letter",
		says: []string{"order-40006", `"total": 1200`, "max.message.bytes", "Back to orders"}, runs: []string{"walpost dlq show 6"},
	},
	{
		name: "a gap after a skip, with decisions", short: true, make: one(func(_ testing.TB, f *fake) {
			f.status.Decisions = []cdc.Decision{
				{Time: ago(72 * time.Hour), Command: "adopt", By: "anna@ops-1", What: "accepts slot \"orders\" without a state record: every commit before 3/10000000 counts as delivered"},
				{
					Time: ago(2 * time.Hour), Command: "skip", By: "boris@ops-1", What: "gives up the rows of transaction 90311 that were not delivered, from position 0 on", From: "3/5A3F2210", To: "3/5A3F2218",
					Missing: &cdc.Missing{From: ago(3 * time.Hour), To: ago(2 * time.Hour), Run: "`walpost replay --from 2026-11-30T19:00:00Z --to 2026-11-30T20:00:00Z`"},
				},
			}
			f.status.Gaps, f.status.Verdict = cdc.Gaps(f.status.Decisions), pipeline.NeedsSomeone
		}),
		says: []string{"Works, and needs you", "(3/5A3F2210, 3/5A3F2218]", "consumers may lack events", "--none-missing", "skip by boris@ops-1", "adopt by anna@ops-1"},
		runs: []string{"walpost replay --from 2026-11-30T19:00:00Z --to 2026-11-30T20:00:00Z"}, not: []string{nothing},
	},
	{
		name: "50 pipelines", title: "pipelines", wide: true, make: fifty,
		says: []string{"shop-01", "shop-50", "Halted", "Waiting for Kafka", "Standing by", "Stalled", "Works", "Trying again", "Not known", "What is wrong", "Slot lasts", "Dead letters", "is lost"},
	},
	{
		name: "one of 50 pipelines", title: "shop-02", make: fifty, path: "/pipelines/shop-02", short: true,
		says: []string{"Halted", "All pipelines", "is lost"}, runs: []string{"walpost -p shop-02 adopt --create-slot"},
	},
	{
		name: "hostile values", wide: true, make: one(hostile), Options: page.Options{Rows: true}, open: true,
		says: []string{`<script>alert(1)</script>`, `"><img src=x onerror=alert(2)>`, `javascript:alert(3)`, `\u202e`, `\x1b[31m`, `\xff\xfe`, `{{.Name}}`, "…"}, not: []string{"\u202e", "\x1b", "\u200b"},
	},
	{
		name: "a hostile dead letter", make: one(hostile), Options: page.Options{Rows: true}, path: "/pipelines/orders/dead-letter?key=x", title: "orders, dead letter",
		says: []string{`<script>alert(1)</script>`, `\u202e`, `</pre>`}, not: []string{"\u202e", "\x1b"},
	},
	{
		name: "a search for hostile text", short: true, make: one(hostile), path: "/?find=%3Cscript%3Ealert(1)%3C%2Fscript%3E%22%27%60&since=1h",
		says: []string{"Found for <script>alert(1)</script>\"'`", "published 2 times", "shop.order, partition 3, offset 9,", `\u202e`},
	},
	{
		name: "a search that finds nothing", short: true, make: one(func(testing.TB, *fake) {}), path: "/pipelines/orders?find=order-7&since=24h",
		says: []string{"Found for order-7", "Read 18,204 records of 6 partitions"}, runs: []string{"walpost where order-7 --since 24h"},
	},
	{
		name: "long texts", wide: true, make: one(long), open: true,
		says: []string{"Halted", "the end of a long sentence"}, not: []string{nothing},
	},
	{name: "a pipeline that is not there", title: "not here", path: "/pipelines/shop", make: one(func(testing.TB, *fake) {}), says: []string{"There is no pipeline shop.", "There is:", "orders"}},
	{
		name: "not answered yet", make: func(t testing.TB) []*fake {
			f := one(func(testing.TB, *fake) {})(t)
			f[0].unanswered = make(chan struct{})
			t.Cleanup(func() { close(f[0].unanswered) })
			return f
		},
		says: []string{"Not known", "PostgreSQL and Kafka have not answered yet. The page asks again."}, not: []string{nothing, "Works"},
	},
}

// tenThousand makes ten thousand dead letters.
func tenThousand(_ testing.TB, f *fake) {
	f.letters = deadLetters(10_000)
	f.row = []byte(`{"version": 1, "lsn": "3/5A3F0007", "payload": {"order": 40007, "total": 1200}}`)
	f.status.DeadLetters = of(len(f.letters))
	blocks(&f.status, pipeline.NeedsSomeone, fmt.Errorf("%d dead letters are unresolved: `walpost dlq list` says why", len(f.letters)))
}

// fifty makes fifty pipelines in the states of one.
func fifty(t testing.TB) (all []*fake) {
	var kinds []*fake
	for _, name := range []string{"streaming", "halted, the slot is lost", "Kafka dead", "standby", "stalled", "retrying", "idle", "10,000 dead letters, rows off", "a gap after a skip, with decisions"} {
		i := slices.IndexFunc(all50, func(s state) bool { return s.name == name })
		kinds = append(kinds, all50[i].make(t)...)
	}
	for i, c := range several(t, 50) {
		kind := kinds[i%len(kinds)]
		f := &fake{Config: c, status: kind.status, points: kind.points, changes: kind.changes, events: kind.events}
		f.status.Pipeline = c.Pipeline
		if f.status.LagSeconds != nil {
			f.status.LagSeconds = of(*f.status.LagSeconds + float64(i)/10)
		}
		if i == 49 {
			f.unanswered = make(chan struct{})
			t.Cleanup(func() { close(f.unanswered) })
		}
		all = append(all, f)
	}
	return all
}

// all50 is states, for fifty, which is in it.
var all50 []state

func init() { all50 = states }

// attacks are texts that must stay texts.
var attacks = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(2)>`, `' onmouseover='alert(4)' x='`, `javascript:alert(3)`, "user\u202egnp.exe\u2066\u200b", "\x1b[31mred\x1b[0m\r\n\x00\a", "\xff\xfe not UTF-8 \xc3\x28",
	`{{.Name}}</title></style></table></pre><svg onload=alert(5)><iframe srcdoc="<script>alert(6)</script>">`, "`" + `walpost adopt; rm -rf /` + "` <b>", strings.Repeat("A", 1<<20), strings.Repeat("<i>𝔘", 4000),
}

// hostile fills every field that a page shows with hostile text.
func hostile(_ testing.TB, f *fake) {
	one := strings.Join(attacks[:9], " ")
	f.events, f.letters = nil, nil
	for i, a := range attacks {
		f.events = append(f.events, pipeline.Event{Time: ago(time.Minute), Topic: a, Key: []byte(a), Type: a, ID: a, Partition: int32(i), LSN: a, Source: a})
		f.letters = append(f.letters, pipeline.DeadLetter{Key: a, EventID: a, Source: a, AggregateType: a, AggregateID: a, EventType: a, Topic: a, Class: cdc.Class(a), Reason: a, HeldFor: a, Time: ago(time.Hour), LSN: a})
		f.status.Decisions = append(f.status.Decisions, cdc.Decision{Time: ago(time.Hour), Command: a, By: a, What: a, From: a, To: a, Missing: &cdc.Missing{Run: a}})
		f.status.Notes = append(f.status.Notes, a)
		f.extra = append(f.extra, config.Setting{Key: fmt.Sprintf("debezium.hostile%d", i), Value: a, Origin: a, Doc: a})
		blocks(&f.status, pipeline.NeedsSomeone, errors.New(a))
		blocks(&f.status, pipeline.NeedsSomeone, &cdc.HaltError{Found: a, Means: a, Run: a})
		f.changes = append(f.changes, pipeline.Change{At: ago(time.Minute), Role: cdc.Retrying, Why: &pipeline.Blocker{Found: a, Means: a, Run: a}})
	}
	f.letters = append(f.letters, pipeline.DeadLetter{Key: "x", EventID: one, AggregateID: one, EventType: one, Topic: one, Reason: one, Error: one, Time: ago(time.Hour)})
	f.row = []byte(`{"payload": "` + strings.ReplaceAll(strings.ToValidUTF8(attacks[0]+attacks[7], ""), `"`, `\"`) + "\u202e</pre>" + strings.Repeat("B", 1<<20) + `"}`)
	f.status.Gaps = cdc.Gaps(f.status.Decisions)
	f.status.DeadLetters = of(len(f.letters))
	f.status.Slot.Name, f.status.Slot.WALStatus, f.status.Reason, f.status.Stalled = one, one, one, one
	f.status.Role, f.status.WALEnd = cdc.Retrying, one
	f.trace = &pipeline.Trace{Asked: one, From: ago(time.Hour), Notes: attacks[:9]}
	for _, a := range attacks {
		f.trace.Events = append(f.trace.Events, pipeline.Traced{
			EventID: a, Key: a, Type: a, Answer: pipeline.IsPublished, Times: 2, Places: []kafka.Place{{Topic: a, Partition: 3, Offset: 9, LSN: a, Time: ago(time.Minute)}},
			DeadLetter: &pipeline.DeadLetter{Reason: a}, Row: &polling.RowStatus{Status: a, LastError: a},
		})
	}
	f.trace.Events[0].Places[0].Topic = "shop.order"
}

// long fills every field with texts that are as long as they can be.
func long(t testing.TB, f *fake) {
	word := strings.Repeat("averylongnamethatnobodybreaks", 4)
	sentence := strings.Repeat("a long sentence that goes on with `walpost replay --from 2026-11-30T19:00:00Z --to 2026-11-30T20:00:00Z` and then ", 8) + "the end of a long sentence"
	f.Config = configured(t, map[string]string{"WALPOST_SOURCE_SLOT": "a_slot_with_a_name_of_sixty_three_letters_as_long_as_it_may_be", "WALPOST_KAFKA_AGGREGATE_TYPES": "order,invoice,shipment", "WALPOST_PIPELINE": strings.Repeat("a-long-name-", 4) + "end"})
	f.status, f.changes = halted(&cdc.HaltError{Found: sentence, Means: word + " " + sentence, Run: sentence, Risk: cdc.Range{From: 1, To: walEnd}}, facts())
	f.status.Slot.Name = f.Config.Source.Slot
	f.status.Notes = []string{sentence, word}
	f.letters, f.status.DeadLetters = deadLetters(3), of(3)
	for i := range f.letters {
		f.letters[i].Reason, f.letters[i].AggregateID, f.letters[i].EventType, f.letters[i].EventID = sentence, word, word, word
	}
	for i := range f.events {
		f.events[i].Key, f.events[i].ID, f.events[i].Topic, f.events[i].Type = []byte(word), word, word, word
	}
	f.status.Decisions = []cdc.Decision{{Time: ago(400 * time.Hour), Command: "adopt --new-server --create-slot --yes", By: word, What: sentence}}
	f.status.Published, f.status.LagSeconds, f.status.LagBytes, f.status.RetainedBytes = 1<<60, of(12_345_678.0), of(int64(1)<<52), of(int64(1)<<52)
}
