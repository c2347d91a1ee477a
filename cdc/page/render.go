package page

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
)

//go:embed templates
var sources embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"line": plain.Line, "cut": plain.Cut, "prose": prose, "lines": lines, "size": plain.Size, "number": number[int64], "count": number[int], "clock": clock,
	"lag": lag, "doing": doing, "key": key, "add": func(a, b int) int { return a + b },
}).ParseFS(sources, "templates/*.html"))

// part is a piece of the page that is sent again when it has changed.
type part struct {
	ID   string
	HTML template.HTML
}

// layout is a whole page.
type layout struct {
	Title   string
	Live    string // address of the stream of parts; empty: the page stays as it is
	Up      bool   // link to the table of all pipelines
	Parts   []part
	Found   *found   // the answer to a search
	Fixed   *fixed   // the rest of a pipeline's page, which is not kept up to date
	Letter  *letter  // a dead letter with its row
	Missing *missing // what is not here
}

type missing struct {
	What  string
	Names []string
}

// fixed is what does not change while the page is open.
type fixed struct {
	Name     string
	Find     string // what was searched for
	Back     []back
	Settings []config.Setting
}

// lag returns how long an event took, if that is known.
func lag(e pipeline.Event) string {
	if e.Lag == nil {
		return "unknown"
	}
	return plain.Duration(*e.Lag)
}

// key returns a record's key for people.
func key(k []byte) string {
	if k == nil {
		return "–"
	}
	return plain.Cut(string(k), 60)
}

// write answers with a page.
func (s *site) write(w http.ResponseWriter, code int, page layout) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, "page.html", page); err != nil {
		http.Error(w, "the page could not be rendered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	_, _ = b.WriteTo(w)
}

// render renders the parts of a page.
func (s *site) render(t target) []part {
	if t.room == nil {
		return s.table(t)
	}
	f := t.room.look(s.Every * 9 / 10)
	now := time.Now().UTC()
	v := &view{Name: t.room.Name(), Now: now, Rows: s.Rows, commands: t.room.Commands}
	for _, setting := range t.room.Settings() {
		if setting.Key == "poison.policy" {
			v.policy = setting.Value
		}
	}
	if f == nil {
		parts := draw(v, "clock", "state")
		for _, name := range partsOfOne[len(parts):] { // the stream fills them
			parts = append(parts, part{ID: name})
		}
		return parts
	}
	v.fill(f)
	v.lettersOf(t.room.unresolved(f, staleWithin), t.query.Get("letters"))
	if e := t.room.newest(staleWithin); e != nil {
		v.Events, v.EventsAt = e.all, e.at
		if e.err != nil {
			v.EventsErr = e.err.Error()
		}
	}
	return draw(v, partsOfOne...)
}

// partsOfOne are the parts of a pipeline's page, in their order.
var partsOfOne = []string{"clock", "state", "todo", "positions", "plots", "slot", "letters", "events", "past"}

// draw renders a part by each of these templates.
func draw(data any, names ...string) (parts []part) {
	for _, name := range names {
		var b bytes.Buffer
		if err := templates.ExecuteTemplate(&b, name, data); err != nil {
			b.Reset()
			template.HTMLEscape(&b, []byte("this part could not be rendered: "+err.Error()))
		}
		parts = append(parts, part{name, template.HTML(b.String())}) //nolint:gosec // html/template has escaped it
	}
	return parts
}

// view is what the parts of one pipeline's page show.
type view struct {
	Name  string
	Now   time.Time
	Old   string // how old the facts are, if that is a reason to worry
	State state
	St    *pipeline.Status // nil before the first look

	Seconds, Amount string // behind
	Rate, P50, P99  string
	Left            string
	Todo            []task
	Positions       []position
	Plots           []plot
	Changes         []pipeline.Change // the newest first

	Letters                []pipeline.DeadLetter // of this page of them
	LettersErr             string
	LettersAll             int
	Rows                   bool
	LettersFrom            int
	LettersBack, LettersOn string // addresses of the pages before and after

	Events    []pipeline.Event
	EventsAt  time.Time
	EventsErr string

	commands func(string) string
	policy   string // poison.policy
}

// task is something that an operator has to do.
type task struct {
	Found, Means, Run string
}

type position struct {
	Name, Means, LSN, Bytes, Seconds string
	At                               int // 0 to 1000
}

// worried is the age of facts from which on the page says so.
const worried = 8 * time.Second

// fill fills in what the facts say.
func (v *view) fill(f *facts) {
	st := f.status
	v.St, v.State = &st, stateOf(&st)
	if age := v.Now.Sub(f.at); age > worried {
		v.Old = plain.Duration(age)
	}
	v.Seconds, v.Amount = behind(&st)
	v.Left = left(&st)
	v.Rate, v.P50, v.P99 = "–", "–", "–"
	v.Plots = plots(f.points, v.Now)
	if n := len(f.points); n > 0 && len(v.Plots[0].Lines) > 0 {
		v.Rate = v.Plots[0].Lines[0].Last
		if lines := v.Plots[1].Lines; len(lines) == 2 {
			v.P50, v.P99 = lines[0].Last, lines[1].Last
		}
	}
	for _, b := range st.BlockedBy {
		if t := (task{v.commands(b.Found), v.commands(b.Means), v.commands(b.Run)}); !slices.Contains(v.Todo, t) {
			v.Todo = append(v.Todo, t)
		}
	}
	for _, g := range st.Gaps {
		v.Todo = append(v.Todo, task{
			"rows committed in " + g.Range.String() + " may be missing in Kafka, since a decision of an operator",
			"consumers may lack events", v.commands(g.Run + "; if you know that none is missing, add --none-missing"),
		})
	}
	var most int64
	for _, p := range st.Positions {
		most = max(most, p.Bytes)
	}
	for _, p := range st.Positions {
		at := position{Name: places[p.Place][0], Means: places[p.Place][1], LSN: p.LSN, Bytes: plain.Size(p.Bytes), Seconds: "unknown", At: bar(p.Bytes, most)}
		if p.Seconds != nil {
			at.Seconds = plain.Duration(secs(*p.Seconds))
		}
		if p.Bytes == 0 {
			at.Seconds = "0 s"
		}
		v.Positions = append(v.Positions, at)
	}
	v.Changes = slices.Clone(f.changes)
	slices.Reverse(v.Changes)
}

// lettersOf fills in the dead letters of one page of them.
func (v *view) lettersOf(l *letters, page string) {
	if l == nil {
		v.LettersErr = "Kafka has not answered yet: the page asks again"
		return
	}
	if l.err != nil {
		v.LettersErr = l.err.Error()
	}
	v.LettersAll = len(l.all)
	pages := (len(l.all) + lettersOnPage - 1) / lettersOnPage
	n, _ := strconv.Atoi(page)
	n = max(1, min(n, pages))
	from := (n - 1) * lettersOnPage
	v.LettersFrom, v.Letters = from, l.all[from:min(from+lettersOnPage, len(l.all))]
	if n > 1 {
		v.LettersBack = v.address("letters", strconv.Itoa(n-1))
	}
	if n < pages {
		v.LettersOn = v.address("letters", strconv.Itoa(n+1))
	}
}

// address returns the page's address with another value of a parameter.
func (v *view) address(key, value string) string {
	return "/pipelines/" + v.Name + "?" + key + "=" + value + "#dead-letters"
}

// Run returns the walpost command with the pipeline's name, where there are several.
func (v *view) Run(command string) string {
	return strings.Trim(v.commands("`"+command+"`"), "`")
}

// Halts reports whether a row that can never be published halts the pipeline, so that it writes no dead letters.
func (v *view) Halts() bool { return v.policy == string(config.PolicyHalt) && v.LettersUnknown() }

// LettersUnknown reports whether nobody could count the dead letters.
func (v *view) LettersUnknown() bool { return v.St == nil || v.St.DeadLetters == nil && !v.Polled() }

// Polled reports whether the pipeline polls its table.
func (v *view) Polled() bool { return v.St != nil && v.St.Backlog != nil }

// fixed returns what does not change while a page is open.
func (s *site) fixed(t target, query url.Values) *fixed {
	f := &fixed{Name: t.room.Name(), Find: query.Get("find"), Settings: t.room.Settings()}
	for _, c := range spansBack {
		c.Chosen = c.Value == query.Get("since")
		f.Back = append(f.Back, c)
	}
	return f
}

// row is a pipeline in the table of all.
type row struct {
	Name, Seconds, Amount, Rate, Left, What string
	State                                   state
	Letters                                 string

	lag     float64
	rate    float64
	left    float64
	letters int
	mood    int
}

// column is a column of the table, with the address that sorts by it.
type column struct {
	Name, Sort, Href, Aria string
}

// tableView is the table of all pipelines.
type tableView struct {
	Now     time.Time
	Old     string
	Summary []state // a word for each state, with the number of pipelines in Sentence
	Columns []column
	Rows    []row
}

var moods = []string{"bad", "care", "idle", "good"} // the worst first

// table renders the table of all pipelines.
func (s *site) table(t target) []part {
	v := &tableView{Now: time.Now().UTC()}
	all := make(chan row)
	for _, r := range s.all {
		go func() {
			f := r.look(s.Every * 9 / 10)
			all <- rowOf(r, f)
		}()
	}
	for range s.all {
		v.Rows = append(v.Rows, <-all)
	}
	v.sort(t.query.Get("sort"), t.query.Get("order"))
	counts := map[string]int{}
	for _, r := range v.Rows {
		counts[r.State.Word]++
	}
	for _, r := range slices.SortedStableFunc(slices.Values(v.Rows), func(a, b row) int { return a.mood - b.mood }) {
		if n := counts[r.State.Word]; n > 0 {
			v.Summary = append(v.Summary, state{r.State.Mood, r.State.Word, strconv.Itoa(n)})
			counts[r.State.Word] = 0
		}
	}
	return draw(v, "clock", "table")
}

// rowOf returns a pipeline's row.
func rowOf(r *room, f *facts) row {
	if f == nil {
		return row{Name: r.Name(), State: state{"idle", "Not known", ""}, Seconds: "unknown", Rate: "–", Left: "unknown", What: "PostgreSQL and Kafka have not answered yet", mood: 2}
	}
	st := &f.status
	out := row{Name: r.Name(), State: stateOf(st), Rate: "–", Left: left(st), lag: -1, left: -1}
	out.mood = slices.Index(moods, out.State.Mood)
	out.Seconds, out.Amount = behind(st)
	switch {
	case st.Backlog != nil:
		out.lag = st.Backlog.OldestSeconds
	case st.LagSeconds != nil:
		out.lag = *st.LagSeconds
	}
	if n := len(f.points); n > 0 {
		out.rate = f.points[n-1].Rows
		out.Rate = number(int64(out.rate + 0.5))
	}
	if st.SlotSeconds != nil {
		out.left = *st.SlotSeconds
	}
	if st.DeadLetters != nil {
		out.letters = *st.DeadLetters
	} else if st.Backlog != nil {
		out.letters = int(st.Backlog.Failed)
	}
	out.Letters = number(out.letters)
	if len(st.BlockedBy) > 0 {
		out.What = lines(r.Commands(st.BlockedBy[0].Found))[0]
	} else if len(st.Gaps) > 0 {
		out.What = "rows may be missing in Kafka since a decision of an operator"
	}
	return out
}

// sort sorts the rows. At first the worst are on top.
func (v *tableView) sort(by, order string) {
	less := map[string]func(a, b row) int{
		"name":    func(a, b row) int { return strings.Compare(a.Name, b.Name) },
		"state":   func(a, b row) int { return cmp.Or(a.mood-b.mood, strings.Compare(a.State.Word, b.State.Word)) },
		"behind":  func(a, b row) int { return cmp.Compare(b.lag, a.lag) },
		"rate":    func(a, b row) int { return cmp.Compare(b.rate, a.rate) },
		"left":    func(a, b row) int { return cmp.Compare(a.left, b.left) },
		"letters": func(a, b row) int { return cmp.Compare(b.letters, a.letters) },
	}
	if less[by] == nil {
		by, order = "state", ""
	}
	turned := order == "turned"
	slices.SortFunc(v.Rows, func(a, b row) int {
		c := less[by](a, b)
		if turned {
			c = -c
		}
		return cmp.Or(c, strings.Compare(a.Name, b.Name))
	})
	for _, c := range []column{
		{Name: "Pipeline", Sort: "name"},
		{Name: "State", Sort: "state"},
		{Name: "Behind", Sort: "behind"},
		{Name: "Rows a second", Sort: "rate"},
		{Name: "Slot lasts", Sort: "left"},
		{Name: "Dead letters", Sort: "letters"},
		{Name: "What is wrong"},
	} {
		if c.Sort != "" {
			c.Href = "/?sort=" + c.Sort
		}
		if c.Sort == by {
			// aria-sort speaks of the values, and only names and the time left begin with the smallest.
			c.Aria = "descending"
			if small := by == "name" || by == "left" || by == "state"; small != turned {
				c.Aria = "ascending"
			}
			if !turned {
				c.Href += "&order=turned"
			}
		}
		v.Columns = append(v.Columns, c)
	}
}

// letter is a dead letter with its row.
type letter struct {
	Name   string
	Letter pipeline.DeadLetter
	Row    []string // the row's JSON, in lines
	Err    string
	Off    string // how to turn rows on
	Show   string // the command that prints the row
}

// mostLines and lineLetters limit the row that a page shows.
const (
	mostLines   = 2000
	lineLetters = 20000
)

// letter answers with a dead letter and, where the configuration allows it, its row.
func (s *site) letter(w http.ResponseWriter, r *http.Request) {
	name, key := r.PathValue("name"), r.URL.Query().Get("key")
	room := s.room(name)
	if room == nil {
		s.missing(w, "There is no pipeline "+name+".")
		return
	}
	v := &letter{Name: room.Name(), Show: strings.Trim(room.Commands("`walpost dlq show "+quoted(key)+"`"), "`")}
	page := layout{Title: room.Name() + ", dead letter", Up: len(s.all) > 1, Letter: v}
	if !s.Rows {
		v.Off = "page.rows: true shows the rows of dead letters here"
		s.write(w, http.StatusForbidden, page)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), letterWithin)
	defer cancel()
	code := http.StatusOK
	if d, err := room.DeadLetter(ctx, key); err != nil {
		v.Err, code = room.Commands(err.Error()), http.StatusNotFound
	} else {
		v.Letter = d
		var b bytes.Buffer
		if json.Indent(&b, d.Row, "", "  ") != nil {
			b.Reset()
			b.Write(d.Row)
		}
		for text := range strings.SplitSeq(b.String(), "\n") {
			if len(v.Row) == mostLines {
				v.Row = append(v.Row, "…")
				break
			}
			v.Row = append(v.Row, plain.Cut(text, lineLetters))
		}
	}
	s.write(w, code, page)
}

// quoted returns an argument for a shell.
func quoted(arg string) string {
	if arg != "" && strings.Trim(arg, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:") == "" && arg[0] != '-' {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// found is the answer to a search.
type found struct {
	What, Err string
	Back      bool // a search that says how far back may succeed
	Trace     *pipeline.Trace
	Command   string
}

// back is a choice of how far back a search reads.
type back struct {
	Value, Words string
	Chosen       bool
	span         time.Duration
}

var spansBack = []back{
	{Words: "since the row was written"},
	{Value: "1h", Words: "1 hour", span: time.Hour},
	{Value: "24h", Words: "24 hours", span: 24 * time.Hour},
	{Value: "168h", Words: "7 days", span: 7 * 24 * time.Hour},
}

// find searches for an event or a key.
func (s *site) find(r *http.Request, t target) *found {
	what, since := strings.TrimSpace(r.URL.Query().Get("find")), r.URL.Query().Get("since")
	f := &found{What: what}
	if what == "" {
		f.Err = "write an event's id, or a key"
		return f
	}
	if len(what) > 1000 {
		f.Err = fmt.Sprintf("the id or key has %d bytes, and the search takes 1000 at most", len(what))
		return f
	}
	command := "walpost where " + quoted(what)
	span := time.Duration(0)
	for _, c := range spansBack {
		if c.Value == since && c.span > 0 {
			span = c.span
			command += " --since " + since
		}
	}
	f.Command = strings.Trim(t.room.Commands("`"+command+"`"), "`")
	select {
	case s.finds <- struct{}{}:
		defer func() { <-s.finds }()
	default:
		f.Err = "another search runs at this moment: try again, or run the command"
		return f
	}
	ctx, cancel := context.WithTimeout(r.Context(), searchWithin)
	defer cancel()
	trace, err := t.room.Where(ctx, pipeline.WhereOptions{ID: what, Since: span})
	switch {
	case err != nil && ctx.Err() != nil:
		f.Err = fmt.Sprintf("the search was not done after %s: run the command, which may take longer", searchWithin)
	case err != nil:
		f.Err, f.Back = t.room.Commands(err.Error()), span == 0
	default:
		f.Trace = trace
	}
	return f
}

// mostFound is the number of events that the answer to a search shows.
const mostFound = 100

// Events returns the events that were found, or the last of them.
func (f *found) Events() []pipeline.Traced {
	return f.Trace.Events[max(0, len(f.Trace.Events)-mostFound):]
}

// More returns the number of events, if not all are shown.
func (f *found) More() int {
	if n := len(f.Trace.Events); n > mostFound {
		return n
	}
	return 0
}

// Answer returns in words where an event is.
func (f *found) Answer(e pipeline.Traced) string {
	switch e.Answer {
	case pipeline.IsPublished:
		if e.Times > 1 {
			return fmt.Sprintf("published %d times: consumers drop repeats by the header id", e.Times)
		}
		return "published"
	case pipeline.IsDeadLettered:
		return "dead-lettered"
	case pipeline.NotYet:
		return "not yet in Kafka: it waits"
	case pipeline.Gone:
		return "not in Kafka any more, or given up"
	}
	return "not found"
}
