package page_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a pipeline with a status that a test chooses.
type fake struct {
	name     string
	status   func(ctx context.Context) pipeline.Status
	letters  []pipeline.DeadLetter
	events   []pipeline.Event
	where    func(ctx context.Context) (*pipeline.Trace, error)
	settings []config.Setting
	asked    atomic.Int64 // calls of Status
}

func (f *fake) Name() string                { return f.name }
func (f *fake) Commands(text string) string { return text }
func (f *fake) Settings() []config.Setting  { return f.settings }
func (f *fake) History() []pipeline.Point   { return nil }
func (f *fake) Changes() []pipeline.Change  { return nil }

func (f *fake) Status(ctx context.Context) pipeline.Status {
	f.asked.Add(1)
	if f.status == nil {
		return flows(f.name)
	}
	return f.status(ctx)
}

func (f *fake) Tail(_ context.Context, _ pipeline.TailOptions, each func(pipeline.Event) error) error {
	for _, e := range f.events {
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) DeadLetters(context.Context) ([]pipeline.DeadLetter, error) { return f.letters, nil }

func (f *fake) DeadLetter(_ context.Context, id string) (pipeline.DeadLetter, error) {
	for _, d := range f.letters {
		if d.Key == id {
			return d, nil
		}
	}
	return pipeline.DeadLetter{}, fmt.Errorf("%q: no dead letter has this id", id)
}

func (f *fake) Where(ctx context.Context, o pipeline.WhereOptions) (*pipeline.Trace, error) {
	if f.where != nil {
		return f.where(ctx)
	}
	return &pipeline.Trace{Asked: o.ID, Events: []pipeline.Traced{{EventID: o.ID, Answer: pipeline.Unknown}}}, nil
}

// flows returns the status of a pipeline that works.
func flows(name string) pipeline.Status {
	seconds, bytes, unresolved := 0.25, int64(4096), 0
	return pipeline.Status{
		Pipeline: name, Verdict: pipeline.Flows, Role: cdc.Streaming, Since: time.Now(), LagSeconds: &seconds, LagBytes: &bytes, DeadLetters: &unresolved,
		Slot: &pipeline.Slot{Name: "walpost", Active: true, ConfirmedFlush: "0/1", WALStatus: "reserved"}, Blocked: []string{},
	}
}

// open serves a page, and returns its URL.
func open(t *testing.T, o page.Options, pipelines ...*fake) string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := httptest.NewServer(page.Handler(ctx, pipelines, o))
	t.Cleanup(func() {
		stop()
		s.CloseClientConnections()
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s.URL
}

// get returns an answer's code, headers and body.
func get(t *testing.T, url string) (int, http.Header, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, r.Header, string(body)
}

// text returns a page as a reader sees it.
func text(body string) string {
	body = regexp.MustCompile(`(?s)<[^>]*>`).ReplaceAllString(body, " ")
	return strings.Join(strings.Fields(html.UnescapeString(body)), " ")
}

// TestThePageAnswersFourQuestions: is it working, how far behind, what failed, what to do; in that order.
func TestThePageAnswersFourQuestions(t *testing.T) {
	halt := pipeline.Blocker{Found: "the slot was dropped", Means: "rows may be lost", Run: "run `walpost adopt`, then `walpost replay --from a`"}
	for name, c := range map[string]struct {
		change func(*pipeline.Status)
		says   []string
	}{
		"works": {func(*pipeline.Status) {}, []string{"Works", "Rows flow", "Behind 250 ms", "Nothing failed, and there is nothing to do"}},
		"halted": {func(s *pipeline.Status) {
			s.Role, s.Verdict, s.BlockedBy = cdc.Halted, pipeline.NeedsSomeone, []pipeline.Blocker{halt}
		}, []string{"Halted", "until you decide", "Behind 250 ms", "Found the slot was dropped", "Means rows may be lost", "Run run walpost adopt , then walpost replay --from a"}},
		"kafka away": {func(s *pipeline.Status) {
			s.KafkaStalled, s.Verdict, s.BlockedBy = true, pipeline.NeedsSomeone, []pipeline.Blocker{{Found: "kafka does not answer: look into its brokers' logs"}}
		}, []string{"Waiting for Kafka", "nothing is lost", "kafka does not answer: look into"}},
		"stalled": {func(s *pipeline.Status) {
			s.Stalled, s.Verdict, s.BlockedBy = "x", pipeline.NeedsSomeone, []pipeline.Blocker{{Found: "standby sb1 is away"}}
		}, []string{"Stalled", "nothing moves", "standby sb1 is away"}},
		"standby":     {func(s *pipeline.Status) { s.Role = cdc.Standby }, []string{"Standing by", "takes over"}},
		"retrying":    {func(s *pipeline.Status) { s.Role, s.Reason = cdc.Retrying, "connection reset" }, []string{"Trying again", "connection reset"}},
		"unknown lag": {func(s *pipeline.Status) { s.LagSeconds, s.LagBytes = nil, nil }, []string{"Behind unknown"}},
		"gap": {func(s *pipeline.Status) {
			s.Verdict, s.Gaps = pipeline.NeedsSomeone, []cdc.Gap{{Run: "`walpost replay`"}}
		}, []string{"needs you", "may be missing in Kafka", "walpost replay", "--none-missing"}},
		"lost slot":    {func(s *pipeline.Status) { s.Slot.WALStatus = "lost" }, []string{"Slot lasts the slot is lost"}},
		"dead letters": {func(s *pipeline.Status) { n := 1; s.DeadLetters = &n }, []string{"1 row could not be published", "bad type", "page.rows: true"}},
	} {
		f := &fake{name: "orders", letters: []pipeline.DeadLetter{{Key: "k", EventID: "e", Reason: "bad type"}}, status: func(context.Context) pipeline.Status {
			s := flows("orders")
			c.change(&s)
			return s
		}}
		code, _, body := get(t, open(t, page.Options{}, f)+"/")
		said, from := text(body), 0
		for _, want := range c.says {
			at := strings.Index(said[from:], want)
			if code != http.StatusOK || at < 0 {
				t.Errorf("%s: %d, the page does not say %q at its place: %s", name, code, want, said)
				break
			}
			from += at
		}
	}
}

// TestHostileValuesStayText: the writers of rows choose keys, types, ids and payloads.
func TestHostileValuesStayText(t *testing.T) {
	for name, hostile := range map[string]string{
		"markup":    `<script>alert(1)</script><img src=x onerror=alert(1)>`,
		"attribute": `" onmouseover="alert(1)' x='`,
		"template":  "{{.}}${1}`'",
		"url":       "javascript:alert(1)//../../?a=b&find=x#y",
		"bidi":      "order\u202e\u2066gnp.exe\u200b",
		"controls":  "a\x00b\x1b[31m\nred\r",
		"not UTF-8": "\xff\xfe\x80",
		"1 MB":      strings.Repeat("<", 1<<20),
	} {
		n := 1
		st := flows(hostile)
		st.DeadLetters, st.Slot.Name, st.Reason, st.Notes = &n, hostile, hostile, []string{hostile}
		st.BlockedBy = []pipeline.Blocker{{Found: hostile, Means: hostile, Run: hostile}}
		st.Decisions = []cdc.Decision{{Command: hostile, By: hostile, What: hostile}}
		f := &fake{
			name: "orders", status: func(context.Context) pipeline.Status { return st },
			letters:  []pipeline.DeadLetter{{Key: hostile, EventID: hostile, AggregateID: hostile, EventType: hostile, Reason: hostile, HeldFor: hostile, Row: json.RawMessage(fmt.Sprintf("%q", hostile))}},
			events:   []pipeline.Event{{Topic: hostile, Key: []byte(hostile), Type: hostile, ID: hostile}},
			settings: []config.Setting{{Key: "kafka.topic", Value: hostile, Origin: hostile}},
			where: func(context.Context) (*pipeline.Trace, error) {
				return &pipeline.Trace{Events: []pipeline.Traced{{EventID: hostile, Key: hostile, Type: hostile, DeadLetter: &pipeline.DeadLetter{Reason: hostile}}}, Notes: []string{hostile}}, nil
			},
		}
		url := open(t, page.Options{Rows: true}, f)
		for _, path := range []string{"/", "/?find=x", "/pipelines/orders"} {
			code, _, body := get(t, url+path)
			if code != http.StatusOK {
				t.Errorf("%s: %s answers %d", name, path, code)
			}
			if i := strings.IndexFunc(body, func(r rune) bool {
				return r < ' ' && r != '\n' || r == '\u202e' || r == '\u2066' || r == '\u200b' || r == '\ufffd'
			}); i >= 0 {
				t.Errorf("%s: %s has %q", name, path, body[max(0, i-40):min(len(body), i+40)])
			}
			for _, never := range []string{"<script>", "<img src=x", `" onmouseover`, `href="javascript:`} {
				if strings.Contains(body, never) {
					t.Errorf("%s: %s has %s", name, path, never)
				}
			}
			if len(body) > 200_000 {
				t.Errorf("%s: %s has %d bytes", name, path, len(body))
			}
		}
	}
}

// TestThePageIsGuarded checks the headers, the methods, the names by which it may be reached, and what is not there.
func TestThePageIsGuarded(t *testing.T) {
	url := open(t, page.Options{Local: true}, &fake{name: "orders"}, &fake{name: "stock"})
	code, h, body := get(t, url+"/")
	policy := h.Get("Content-Security-Policy")
	if code != http.StatusOK || !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("%d, %v", code, h)
	}
	if found := regexp.MustCompile(`(?i)<style|<script>|\sstyle=|\son[a-z]+=|https?://`).FindString(body); found != "" {
		t.Errorf("the page has %s", found)
	}
	for path, want := range map[string]string{
		"/pipelines/shop":                   "There is no pipeline shop. There are: orders stock",
		"/pipelines/%3Cb%3E%E2%80%AE":       `There is no pipeline <b>\u202e.`,
		"/nothing":                          "There is no page /nothing.",
		"/pipelines/shop/dead-letter?key=x": "There is no pipeline shop.",
	} {
		if code, _, body := get(t, url+path); code != http.StatusNotFound || !strings.Contains(text(body), want) {
			t.Errorf("%s: %d %s", path, code, text(body))
		}
	}
	if code, _, body := get(t, url+"/pipelines/orders/dead-letter?key=it's%20x"); code != http.StatusForbidden || !strings.Contains(text(body), `walpost dlq show 'it'\''s x'`) {
		t.Errorf("rows are off: %d %s", code, text(body))
	}
	if code, _, _ := get(t, url+"/live?pipeline=shop"); code != http.StatusNoContent {
		t.Errorf("a stream for a pipeline that is not there: %d", code)
	}
	for host, want := range map[string]int{"localhost:80": 200, "127.0.0.1": 200, "[::1]:8080": 200, "walpost.localhost": 200, "evil.example": 403, "127.0.0.1.evil.example": 403, "": 400} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		page.Handler(t.Context(), []*fake{{name: "orders"}}, page.Options{Local: true}).ServeHTTP(w, r)
		if got := w.Code; got != want && host != "" || host == "" && got == 200 {
			t.Errorf("host %q: %d, want %d", host, got, want)
		}
	}
	r, err := http.Post(url+"/", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", r.StatusCode)
	}
}

// TestThePageIsOffWhereOthersMayReachIt: payloads are not shown, but keys and the configuration are.
func TestThePageIsOffWhereOthersMayReachIt(t *testing.T) {
	at := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 8080} }
	for _, c := range []struct {
		serve config.Serve
		at    net.Addr
		says  string // empty: the page
	}{
		{config.ServeOnLoopback, at("127.0.0.1"), ""},
		{config.ServeOnLoopback, at("::1"), ""},
		{config.ServeOnLoopback, at("0.0.0.0"), "0.0.0.0:8080, which other machines may reach: page.serve: always"},
		{config.ServeOnLoopback, at("10.1.2.3"), "page.serve: always"},
		{config.ServeAlways, at("0.0.0.0"), ""},
		{config.ServeNever, at("127.0.0.1"), "page.serve is never"},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = "localhost"
		page.Of(t.Context(), []*fake{{name: "orders"}}, config.Page{Serve: c.serve}, c.at).ServeHTTP(w, r)
		if (w.Code == http.StatusOK) != (c.says == "") || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s at %s: %d %s", c.serve, c.at, w.Code, w.Body)
		}
	}
}

// stream reads the parts of a live page until f reports true.
func stream(t *testing.T, url string, f func(id, html string) bool) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var part struct{ ID, HTML string }
		if err := json.Unmarshal([]byte(data), &part); err != nil {
			return err
		}
		if f(part.ID, part.HTML) {
			return nil
		}
	}
	return fmt.Errorf("the stream ended: %w", lines.Err())
}

// TestAHundredOpenPagesAskOnce: however many pages are open, each look asks the pipeline once.
func TestAHundredOpenPagesAskOnce(t *testing.T) {
	began := time.Now()
	var halted atomic.Bool
	f := &fake{name: "orders", status: func(context.Context) pipeline.Status {
		s := flows("orders")
		if halted.Load() {
			s.Role = cdc.Halted
		}
		return s
	}}
	every := 200 * time.Millisecond
	url := open(t, page.Options{Every: every}, f)
	var pages sync.WaitGroup
	var works atomic.Int64
	for range 100 {
		pages.Go(func() {
			if err := stream(t, url+"/live?pipeline=orders", func(id, html string) bool {
				if id == "state" && strings.Contains(html, ">Works<") && works.Add(1) == 100 {
					halted.Store(true)
				}
				return id == "state" && strings.Contains(html, ">Halted<")
			}); err != nil {
				t.Error(err)
			}
		})
	}
	pages.Wait()
	if asked, most := f.asked.Load(), int64(time.Since(began)/every)*2+2; asked > most {
		t.Errorf("%d looks at the pipeline, want %d at most", asked, most)
	}
}

// TestMorePagesThanAreKeptUpToDate: the others are complete, and do not ask again and again.
func TestMorePagesThanAreKeptUpToDate(t *testing.T) {
	url := open(t, page.Options{Every: 100 * time.Millisecond}, &fake{name: "orders"})
	ctx, stop := context.WithCancel(t.Context())
	var pages sync.WaitGroup
	var open, refused atomic.Int64
	for range 170 {
		pages.Go(func() {
			r, _ := http.NewRequestWithContext(ctx, http.MethodGet, url+"/live", nil)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				return
			}
			defer answer.Body.Close()
			if answer.StatusCode == http.StatusNoContent {
				refused.Add(1)
				return
			}
			open.Add(1)
			_, _ = io.Copy(io.Discard, answer.Body)
		})
	}
	cdctest.Eventually(t, time.Minute, func() error {
		if open.Load() != 150 || refused.Load() != 20 {
			return fmt.Errorf("%d are open, %d were refused", open.Load(), refused.Load())
		}
		return nil
	})
	if code, _, body := get(t, url+"/"); code != http.StatusOK || !strings.Contains(text(body), "Works") {
		t.Errorf("the next page: %d %s", code, text(body))
	}
	stop()
	pages.Wait()
}

// TestAHangingDatabaseHoldsNoPageUp: a page answers with what it knows, and says how old that is.
func TestAHangingDatabaseHoldsNoPageUp(t *testing.T) {
	var hangs atomic.Bool
	release := make(chan struct{})
	f := &fake{name: "orders", status: func(context.Context) pipeline.Status {
		if hangs.Load() {
			<-release
		}
		return flows("orders")
	}}
	hangs.Store(true)
	url := open(t, page.Options{Every: 50 * time.Millisecond}, f)
	began := time.Now()
	code, _, body := get(t, url+"/")
	if said := text(body); code != http.StatusOK || !strings.Contains(said, "have not answered yet") || time.Since(began) > 30*time.Second {
		t.Errorf("the first look hangs: after %s %d %s", time.Since(began), code, said)
	}
	hangs.Store(false)
	close(release)
	cdctest.Eventually(t, time.Minute, func() error {
		if _, _, body := get(t, url+"/"); !strings.Contains(text(body), "Rows flow") {
			return errors.New(text(body))
		}
		return nil
	})
	release = make(chan struct{})
	defer close(release)
	hangs.Store(true)
	cdctest.Eventually(t, time.Minute, func() error { // facts are worrying after 8 s
		began := time.Now()
		_, _, body := get(t, url+"/")
		if said := text(body); !strings.Contains(said, "facts that are") || !strings.Contains(said, "Rows flow") {
			return errors.New(said)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a page with old facts took %s", took)
		}
		return nil
	})
}

// TestOneSearchAtATime: a search reads topics, and must not slow the relay down.
func TestOneSearchAtATime(t *testing.T) {
	began, end := make(chan struct{}), make(chan struct{})
	f := &fake{name: "orders", where: func(context.Context) (*pipeline.Trace, error) {
		close(began)
		<-end
		return nil, errors.New("the topic is away: `walpost status`")
	}}
	url := open(t, page.Options{}, f)
	first := make(chan string)
	go func() {
		_, _, body := get(t, url+"/?find=a+b&since=24h")
		first <- text(body)
	}()
	<-began
	if _, _, body := get(t, url+"/?find=c"); !strings.Contains(text(body), "another search runs at this moment") {
		t.Error(text(body))
	}
	close(end)
	if said := <-first; !strings.Contains(said, "the topic is away: walpost status") || !strings.Contains(said, "walpost where 'a b' --since 24h") {
		t.Error(said)
	}
	for query, want := range map[string]string{"find=": "write an event's id, or a key", "find=" + strings.Repeat("x", 1001): "takes 1000 at most"} {
		if _, _, body := get(t, url+"/?"+query); !strings.Contains(text(body), want) {
			t.Errorf("%s: %s", query, text(body))
		}
	}
}

// TestManyPipelinesSort: the worst is on top, and each column sorts both ways.
func TestManyPipelinesSort(t *testing.T) {
	var all []*fake
	for i := range 50 {
		name := fmt.Sprintf("p%02d", i)
		all = append(all, &fake{name: name, status: func(context.Context) pipeline.Status {
			s := flows(name)
			seconds := float64(i)
			if s.LagSeconds = &seconds; i == 7 {
				s.Role = cdc.Halted
			}
			return s
		}})
	}
	url := open(t, page.Options{Every: time.Second}, all...)
	for query, want := range map[string]string{
		"": "p07 p00", "?sort=name": "p00 p01", "?sort=name&order=turned": "p49 p48", "?sort=behind": "p49 p48", "?sort=behind&order=turned": "p00 p01",
		"?sort=nothing": "p07 p00", "?sort=state&order=turned": "p00 p01",
	} {
		_, _, body := get(t, url+"/"+query)
		var names []string
		for _, m := range regexp.MustCompile(`<a href="/pipelines/(p\d\d)">`).FindAllStringSubmatch(body, -1) {
			names = append(names, m[1])
		}
		if got := strings.Join(names, " "); len(names) != 50 || !strings.HasPrefix(got, want) {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
		if n := strings.Count(body, "aria-sort="); n != 1 {
			t.Errorf("%q: %d columns are sorted", query, n)
		}
	}
	if _, _, body := get(t, url+"/"); !strings.Contains(text(body), "1 Halted 49 Works") {
		t.Error(text(body))
	}
}

// TestTenThousandDeadLetters: the page shows 25 of them, and the next.
func TestTenThousandDeadLetters(t *testing.T) {
	n := 10_000
	f := &fake{name: "orders", status: func(context.Context) pipeline.Status {
		s := flows("orders")
		s.DeadLetters = &n
		return s
	}}
	for i := range n {
		f.letters = append(f.letters, pipeline.DeadLetter{Key: fmt.Sprint("0/20EC300/1/event-", i), EventID: fmt.Sprint("event-", i), Reason: "too large", Row: json.RawMessage(`{"payload": "the secret of a customer"}`)})
	}
	url := open(t, page.Options{Rows: true}, f)
	for query, want := range map[string]string{"": "these are 1 to 25", "?letters=2": "these are 26 to 50", "?letters=400": "these are 9,976 to 10,000", "?letters=9999": "9,976", "?letters=-3": "1 to 25", "?letters=x": "1 to 25"} {
		_, _, body := get(t, url+"/pipelines/orders"+query)
		if said := text(body); !strings.Contains(said, want) || !strings.Contains(said, "10,000 rows could not be published") {
			t.Errorf("%s: %s", query, said)
		}
		if strings.Contains(body, "secret of a customer") {
			t.Error("the list has payloads")
		}
	}
	_, _, list := get(t, url+"/pipelines/orders") // the page's own link leads to the row
	link := regexp.MustCompile(`href="(/pipelines/orders/dead-letter\?key=[^"]*)"`).FindStringSubmatch(list)
	if link == nil {
		t.Fatal("the list has no link to a row")
	}
	if code, _, body := get(t, url+html.UnescapeString(link[1])); code != http.StatusOK || !strings.Contains(text(body), "secret of a customer") || !strings.Contains(text(body), "walpost dlq show 0/20EC300/1/event-0") {
		t.Errorf("%s: %d %s", link[1], code, text(body))
	}
	if code, _, body := get(t, url+"/pipelines/orders/dead-letter?key=zz"); code != http.StatusNotFound || !strings.Contains(text(body), "no dead letter has this id") {
		t.Errorf("%d %s", code, text(body))
	}
}
