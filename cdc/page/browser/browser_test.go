//go:build chromium

// Package browser_test shows the page in a real Chromium.
package browser_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/walpost/walpost/cdc/cdctest"
)

var out = flag.String("out", "", "folder for the screenshots of TestScreenshots")

// TestMain starts one Chromium for all tests. Each test opens its own tabs.
func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

var (
	chromium context.Context
	noneYet  error // why there is no Chromium
)

func run(m *testing.M) int {
	path, err := exec.LookPath("chromium")
	if err != nil {
		noneYet = fmt.Errorf("these tests need Chromium: apt-get install chromium: %w", err)
		return m.Run()
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(path), chromedp.Flag("lang", "en"))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	defer stop()
	var closed context.CancelFunc
	chromium, closed = chromedp.NewContext(allocator)
	defer closed()
	if err := chromedp.Do(chromium); err != nil {
		noneYet = fmt.Errorf("start %s: %w", path, err)
	}
	return m.Run()
}

// axe returns the source of axe-core.
var axe = sync.OnceValues(func() (string, error) {
	folder := os.Getenv("WALPOST_TEST_AXE")
	b, err := os.ReadFile(filepath.Join(folder, "axe.min.js"))
	if folder == "" || err != nil {
		return "", errors.Join(errors.New("these tests need axe-core: npm pack axe-core@4.14.1, tar -xzf axe-core-4.14.1.tgz, and WALPOST_TEST_AXE=$PWD/package"), err)
	}
	return string(b), nil
})

// tab is a tab of the browser. It remembers what no page of ours may do.
type tab struct {
	t      testing.TB
	ctx    context.Context
	origin string // requests to other places are wrong

	mu     sync.Mutex
	wrong  []string
	events int // received from the server
}

// form says how a tab shows pages.
type form struct {
	width   int64
	dark    bool
	without bool // no JavaScript
}

// height of a tab's viewport.
const height = 900

// newTab opens a tab.
func newTab(t testing.TB, f form) *tab {
	t.Helper()
	if noneYet != nil {
		t.Fatal(noneYet)
	}
	ctx, closed := chromedp.NewContext(chromium)
	t.Cleanup(closed)
	b := &tab{t: t, ctx: ctx}
	b.do(chromedp.Steps())
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	b.do(call(emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}))
	if f.without {
		b.do(call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	}
	b.form(f)
	return b
}

// form changes how the tab shows pages.
func (b *tab) form(f form) {
	b.t.Helper()
	scheme := "light"
	if f.dark {
		scheme = "dark"
	}
	b.do(
		chromedp.EmulateViewport(f.width, height),
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}}),
	)
}

// call returns an action that sends a command.
func call[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// hear notes what is wrong.
func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bad := func(format string, args ...any) { b.wrong = append(b.wrong, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		bad("an exception: %s", e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		bad("the console: %s", e.Type)
	case *log.EventEntryAdded:
		bad("the log: %s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL) // what the content security policy refuses, too
	case *page.EventJavascriptDialogOpening:
		bad("a dialog: %s", e.Message)
		go func() {
			_ = chromedp.Do(b.ctx, call(page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{}))
		}()
	case *network.EventEventSourceMessageReceived:
		b.events++
	case *network.EventRequestWillBeSent:
		if at, err := url.Parse(e.Request.URL); err != nil || at.Scheme+"://"+at.Host != b.origin {
			bad("a request to %s", e.Request.URL)
		}
	}
}

// clean fails the test if the tab did what no page may do. It takes what is allowed.
func (b *tab) clean(allowed ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.wrong {
		if !slices.ContainsFunc(allowed, func(a string) bool { return strings.Contains(w, a) }) {
			b.t.Error(w)
		}
	}
	b.wrong = nil
}

// received returns the number of events that came from the server.
func (b *tab) received() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.events
}

// do runs actions.
func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, cdctest.Patience(30*time.Second))
	defer cancel()
	if len(actions) == 1 && actions[0] != nil && chromedp.FromContext(b.ctx).Target == nil {
		ctx = b.ctx // the first action opens the tab, whose life is that of its context
	}
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// open opens an address.
func (b *tab) open(address string) {
	b.t.Helper()
	at, err := url.Parse(address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	b.origin, b.events = at.Scheme+"://"+at.Host, 0
	b.mu.Unlock()
	b.do(chromedp.Navigate(address))
}

// eval returns the value of a JavaScript expression.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, cdctest.Patience(30*time.Second))
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%.200s: %v", expression, err)
	}
	return v
}

// text returns what a person reads on the page.
func (b *tab) text() string {
	b.t.Helper()
	return eval[string](b, "document.body.innerText")
}

// until waits until an expression is true.
func (b *tab) until(expression string) {
	b.t.Helper()
	cdctest.Eventually(b.t, 20*time.Second, func() error {
		if !eval[bool](b, "!!("+expression+")") {
			return fmt.Errorf("%s is false; the page says:\n%s", expression, b.text())
		}
		return nil
	})
}

// untilSays waits until a part of the page contains a text.
func (b *tab) untilSays(selector, text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.querySelector(%s)?.innerText.includes(%s)", quote(selector), quote(text)))
}

// quote returns a JavaScript string.
func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// press presses keys.
func (b *tab) press(keys string, options ...chromedp.KeyOption) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys, options...))
}

// axe fails the test for each finding of axe-core.
func (b *tab) axe(what string) {
	b.t.Helper()
	source, err := axe()
	if err != nil {
		b.t.Fatal(err)
	}
	if !eval[bool](b, "'axe' in window") {
		eval[chromedp.Void](b, source+";0")
	}
	type finding struct {
		ID    string   `json:"id"`
		Help  string   `json:"help"`
		Nodes []string `json:"nodes"`
	}
	findings := eval[[]finding](b, `axe.run(document, {
		runOnly: {type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]}, resultTypes: ["violations", "incomplete"],
	}).then((r) => [...r.violations, ...r.incomplete.map((f) => ({...f, nodes: f.nodes.filter((n) => !n.any.some((c) => /bgOverlap|obscured|too short/.test(c.data?.messageKey + c.message)))})).filter((f) => f.nodes.length)].map((f) => ({id: f.id, help: f.help, nodes: f.nodes.slice(0, 3).map((n) => n.html.slice(0, 300) + " " + n.any.concat(n.all, n.none).map((c) => c.message).join("; "))})))`)
	for _, f := range findings {
		b.t.Errorf("axe, %s: %s: %s\n\t%s", what, f.ID, f.Help, strings.Join(f.Nodes, "\n\t"))
	}
}
