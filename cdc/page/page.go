// Package page shows pipelines in a browser: whether each works, how far behind it is, what failed and what to do. It changes nothing.
//
// The server renders everything (html/template), and the page is complete without JavaScript. With it, one small script
// receives the parts that have changed as server-sent events. Nothing is loaded from elsewhere, and the content security
// policy forbids inline scripts and styles. Ids, keys, types and reasons come from the writers of rows: each passes
// [plain.Cut], so that letters which cannot be seen are shown as escapes, and html/template escapes the rest.
//
// Browsers share one look at each pipeline, so a hundred open pages ask PostgreSQL and Kafka as often as one.
package page

import (
	"context"
	"embed"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
)

// Pipeline is what the page shows: a [pipeline.Pipeline] whose Run was called.
type Pipeline interface {
	Name() string
	Commands(text string) string
	Settings() []config.Setting
	Status(ctx context.Context) pipeline.Status
	History() []pipeline.Point
	Changes() []pipeline.Change
	Tail(ctx context.Context, o pipeline.TailOptions, each func(pipeline.Event) error) error
	DeadLetters(ctx context.Context) ([]pipeline.DeadLetter, error)
	DeadLetter(ctx context.Context, id string) (pipeline.DeadLetter, error)
	Where(ctx context.Context, o pipeline.WhereOptions) (*pipeline.Trace, error)
}

var _ Pipeline = (*pipeline.Pipeline)(nil)

// Options say what the page shows, and to whom.
type Options struct {
	Rows  bool // show the rows of dead letters on demand
	Local bool // answer only browsers that name this machine: another site's name may lead here (DNS rebinding)
	// Every is the time between two looks at the pipelines while a page is open; 0: 2 s, and more for many pipelines.
	Every time.Duration
}

// Of returns the handler for the page of a process that listens on an address, or one that says why there is no page. Open
// pages are kept up to date until ctx ends.
func Of[P Pipeline](ctx context.Context, pipelines []P, cfg config.Page, listens net.Addr) http.Handler {
	at, ok := listens.(*net.TCPAddr)
	loopback := ok && at.IP.IsLoopback()
	if cfg.Serve == config.ServeAlways || cfg.Serve == config.ServeOnLoopback && loopback {
		return Handler(ctx, pipelines, Options{Rows: cfg.Rows, Local: cfg.Serve == config.ServeOnLoopback})
	}
	why := "page.serve is never"
	if cfg.Serve == config.ServeOnLoopback {
		why = "the relay listens on " + listens.String() + ", which other machines may reach"
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the page is off, because "+why+": page.serve: always shows it to everybody who reaches this address; /status, /readyz and /metrics answer in any case", http.StatusNotFound)
	})
}

//go:embed static
var static embed.FS

// site serves the page.
type site struct {
	Options
	all   []*room
	ended <-chan struct{} // closed when the process stops: open streams end
	lives chan struct{}   // has room for each stream
	finds chan struct{}   // one search runs at a time
	cache cache
}

// mostLives is the largest number of open pages that are kept up to date. The others are complete, but stay as they are.
const mostLives = 150

// Handler returns the handler for the page of these pipelines. Its streams end when ctx does.
func Handler[P Pipeline](ctx context.Context, pipelines []P, o Options) http.Handler {
	s := &site{Options: o, ended: ctx.Done(), lives: make(chan struct{}, mostLives), finds: make(chan struct{}, 1)}
	if s.Every == 0 {
		s.Every = max(2*time.Second, time.Duration(len(pipelines))*200*time.Millisecond)
	}
	for _, p := range pipelines {
		s.all = append(s.all, &room{Pipeline: p})
	}
	mux := http.NewServeMux()
	files, _ := fs.Sub(static, "static")
	for _, name := range []string{"page.css", "page.js", "icon.svg"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache") // another version of the relay has other files
			http.ServeFileFS(w, r, files, name)
		})
	}
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /pipelines/{name}", s.page)
	mux.HandleFunc("GET /pipelines/{name}/dead-letter", s.letter)
	mux.HandleFunc("GET /live", s.live)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.missing(w, "There is no page "+r.URL.Path+".") })
	return s.guard(mux)
}

// guard sets the headers that protect the page, and refuses requests for another site.
func (s *site) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if s.Local && !local(r.Host) {
			http.Error(w, "this page answers on localhost and on IP addresses only: open it as http://localhost:PORT, or set page.serve: always", http.StatusForbidden)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "the page changes nothing: it answers GET only", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// local reports whether a Host header names this machine or is an IP address. A name of another site cannot.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// room returns the pipeline with this name; nil if there is none. Without a name it returns the only pipeline.
func (s *site) room(name string) *room {
	if name == "" && len(s.all) == 1 {
		return s.all[0]
	}
	i := slices.IndexFunc(s.all, func(r *room) bool { return r.Name() == name })
	if i < 0 {
		return nil
	}
	return s.all[i]
}

// page answers with the page of one pipeline, or with the table of several.
func (s *site) page(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(searchWithin + writeWithin)) // a search may take longer than other answers
	name := r.PathValue("name")
	target := s.target(name, r.URL.Query())
	if name != "" && target.room == nil {
		s.missing(w, "There is no pipeline "+name+".")
		return
	}
	page := layout{Title: target.title(), Live: target.url("/live"), Up: name != "" && len(s.all) > 1, Parts: s.parts(target)}
	if target.room != nil && r.URL.Query().Has("find") {
		page.Found = s.find(r, target)
	}
	if target.room != nil {
		page.Fixed = s.fixed(target, r.URL.Query())
	}
	s.write(w, http.StatusOK, page)
}

// missing answers that something is not there, and names the pipelines.
func (s *site) missing(w http.ResponseWriter, what string) {
	var names []string
	for _, r := range s.all {
		names = append(names, r.Name())
	}
	s.write(w, http.StatusNotFound, layout{Title: "not here", Missing: &missing{what, names}})
}

// target is what a page shows: a pipeline, or the table of all.
type target struct {
	room  *room // nil: the table
	query url.Values
}

// target returns the target for a pipeline's name and a query. It keeps the parameters that parts depend on.
func (s *site) target(name string, query url.Values) target {
	t := target{room: s.room(name), query: url.Values{}}
	for _, key := range []string{"sort", "order", "letters"} {
		if v := query.Get(key); v != "" && len(v) < 30 {
			t.query.Set(key, v)
		}
	}
	return t
}

// title returns the page's title.
func (t target) title() string {
	if t.room == nil {
		return "pipelines"
	}
	return t.room.Name()
}

// url returns an address for the target.
func (t target) url(path string) string {
	q := url.Values{}
	for key, v := range t.query {
		q[key] = v
	}
	if t.room != nil {
		q.Set("pipeline", t.room.Name())
	}
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}
