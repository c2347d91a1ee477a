//go:build chromium

package browser_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/page"
	"github.com/walpost/walpost/cdc/pipeline"
)

// often is how often the pages of these tests are brought up to date.
var often = page.Options{Every: 200 * time.Millisecond}

// works returns a pipeline that works.
func works(t testing.TB) *fake { return one(func(testing.TB, *fake) {})(t)[0] }

// TestLive changes facts while a person types, reads and has scrolled: the page follows, and takes nothing from them.
func TestLive(t *testing.T) {
	t.Parallel()
	f := works(t)
	b := newTab(t, form{width: 1280})
	b.open(serve(t, often, f).url("/"))
	b.untilSays("#state", "Works")
	eval[int](b, "document.querySelector('details').open = true, document.getElementById('find').focus(), document.getElementById('find').scrollIntoView({block: 'center'}), window.same = document.getElementById('find'), 0")
	b.press("order-88233")
	const top = "Math.round(document.getElementById('find').getBoundingClientRect().top)"
	before := eval[int](b, top)
	f.change(func(f *fake) {
		f.status.Stalled = "nothing has moved for 15 s: `SELECT pg_terminate_backend(4711)` lets the relay connect again"
		blocks(&f.status, pipeline.NeedsSomeone, errors.New(f.status.Stalled))
		f.status.Notes = []string{"a note that was not there", "another"}
		f.events = append(slices.Clone(f.events[1:]), pipeline.Event{Time: now(), Topic: "shop.order", Key: []byte("the newest"), Type: "OrderPaid", ID: "n"})
	})
	b.untilSays("#state", "Stalled")
	b.untilSays("#todo", "pg_terminate_backend")
	b.untilSays("#events", "the newest")
	b.press("4")
	if typed := eval[string](b, "document.activeElement.value"); typed != "order-882334" {
		t.Errorf("typed %q", typed)
	}
	if !eval[bool](b, "document.activeElement === window.same") {
		t.Error("the field is another one")
	}
	if !eval[bool](b, "document.querySelector('details').open") {
		t.Error("what was opened is closed")
	}
	if after := eval[int](b, top); after < before-2 || after > before+2 {
		t.Errorf("the field moved from %d to %d", before, after)
	}
	f.change(func(f *fake) { f.status = streaming() })
	b.untilSays("#state", "Works")
	b.untilSays("#todo", nothing)
	if is := eval[string](b, "document.getElementById('state').innerText"); strings.Contains(is, "Stalled") {
		t.Errorf("the old part is left: %s", is)
	}
	b.clean()
}

// TestNothingMoves measures how far things jump while numbers change.
func TestNothingMoves(t *testing.T) {
	t.Parallel()
	for _, width := range []int64{360, 1280} {
		f := works(t)
		b := newTab(t, form{width: width})
		b.open(serve(t, often, f).url("/"))
		b.until("document.fonts.status === 'loaded'")
		eval[int](b, "window.moved = [], new PerformanceObserver((l) => l.getEntries().forEach((e) => window.moved.push([e.value, e.hadRecentInput, ...e.sources.map((s) => (s.node?.outerHTML ?? s.node?.data ?? '').slice(0, 120))]))).observe({type: 'layout-shift', buffered: true}), 0")
		for n := 1; n <= 6; n++ {
			f.change(func(f *fake) {
				f.status.Published += int64(n) * 1234
				f.status.LagBytes, f.status.LagSeconds = of(int64(n)<<12), of(0.8*float64(n))
				f.status.Positions = positions(0, int64(n)<<9, int64(n)<<11, int64(n)<<12, int64(n)<<12, int64(n)<<22)
				f.status.RetainedBytes = of(int64(n) << 22)
				f.points = append(slices.Clone(f.points[1:]), pipeline.Point{At: time.Now(), Rows: 800 * float64(n), P50: of(time.Duration(n) * time.Millisecond), P99: of(time.Duration(n*n) * time.Millisecond), Lag: of(time.Duration(n) * 800 * time.Millisecond)})
				f.events = append(slices.Clone(f.events[1:]), pipeline.Event{Time: time.Now(), Topic: "shop.order", Offset: 1_000_000 + int64(n), Key: fmt.Appendf(nil, "new-%d", n), Type: "OrderPaid", ID: "0192f3a1-7c44-7b13-9e1d-3f5a70c1d213"})
			})
			b.until(fmt.Sprintf("document.getElementById('state').innerText.includes(%s)", quote(commas(f.published()))))
		}
		type shift = []any
		sum := 0.0
		for _, s := range eval[[]shift](b, "window.moved") {
			sum += s[0].(float64)
			t.Logf("%d wide: %v", width, s)
		}
		if sum >= 0.01 {
			t.Errorf("%d wide, things moved by %.4f", width, sum)
		}
		b.clean()
	}
}

func (f *fake) published() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status.Published
}

// commas returns a number as the page writes it.
func commas(n int64) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// TestRelayIsKilled ends the server while its page is open, and starts it again.
func TestRelayIsKilled(t *testing.T) {
	t.Parallel()
	f := works(t)
	s := serve(t, often, f)
	b := newTab(t, form{width: 1280})
	b.open(s.url("/"))
	b.untilSays("#state", "Works")
	cdctest.Eventually(t, 20*time.Second, func() error {
		if b.received() == 0 {
			return errors.New("no event came")
		}
		return nil
	})
	s.stop()
	b.until("!document.getElementById('link').hidden")
	b.untilSays("#link", "The relay does not answer")
	b.axe("while the relay does not answer")
	f.change(func(f *fake) { f.status.Role = cdc.Stopped })
	s.start()
	b.untilSays("#state", "Stopped")
	b.until("document.getElementById('link').hidden")
	b.clean("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
}

// TestFirstLook opens a page whose database hangs: it answers within seconds, says so, and goes on when the database does.
func TestFirstLook(t *testing.T) {
	t.Parallel()
	f := works(t)
	f.unanswered = make(chan struct{})
	b := newTab(t, form{width: 1280})
	begin := time.Now()
	b.open(serve(t, often, f).url("/"))
	if took := time.Since(begin); took > cdctest.Patience(10*time.Second) {
		t.Errorf("the page took %s", took)
	}
	b.untilSays("#state", "PostgreSQL and Kafka have not answered yet.")
	close(f.unanswered)
	b.untilSays("#state", "Works")
	b.untilSays("#events", "order-88233")
	b.clean()
}

// TestPolicy puts into the page what an attacker would: the browser runs none of it, and asks nobody for it.
func TestPolicy(t *testing.T) {
	t.Parallel()
	b := newTab(t, form{width: 1280})
	b.open(serve(t, page.Options{}, works(t)).url("/"))
	eval[int](b, `document.body.append(Object.assign(document.createElement("script"), {textContent: "window.broken = 1"})),
		document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.broken = 2'><a id=bad href='javascript:window.broken = 3'>x</a><p style='position: fixed'>x</p><iframe srcdoc='x'></iframe>"),
		document.getElementById("bad").click(), 0`)
	cdctest.Eventually(t, 20*time.Second, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		said := strings.Join(b.wrong, "\n")
		for _, of := range []string{"script-src", "script-src-attr", "javascript:", "style-src", "img-src"} {
			if !strings.Contains(said, of) && !(of == "script-src-attr" && strings.Contains(said, "inline event handler")) {
				return fmt.Errorf("the browser does not refuse for %s:\n%s", of, said)
			}
		}
		return nil
	})
	if is := eval[int](b, "window.broken ?? 0"); is != 0 {
		t.Errorf("the browser ran a stranger's script: %d", is)
	}
}

// TestKeyboard uses the page without a mouse.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	f := one(tenThousand)(t)[0]
	b := newTab(t, form{width: 1280})
	b.open(serve(t, page.Options{Rows: true}, f).url("/"))
	b.untilSays("#letters", "The next page")
	eval[int](b, "window.passed = [], 0")
	want := eval[int](b, `[...document.querySelectorAll("a, button, input, select, summary, [tabindex]")].filter((e) => e.checkVisibility()).length`)
	for range want + 5 {
		b.press(kb.Tab)
		// A relay's live update must not take the focus, so the element itself is remembered.
		if !eval[bool](b, `(() => {
			const e = document.activeElement;
			if (e === document.body || window.passed.includes(e)) return false;
			const style = getComputedStyle(e), box = e.getBoundingClientRect();
			if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) window.unseen = [...(window.unseen ?? []), e.outerHTML.slice(0, 120)];
			if (box.top >= innerHeight || box.bottom <= 0) window.unseen = [...(window.unseen ?? []), "out of sight: " + e.outerHTML.slice(0, 120)];
			window.passed.push(e);
			return true;
		})()`) {
			break
		}
	}
	if is := eval[int](b, "window.passed.length"); is != want {
		t.Errorf("Tab reaches %d of %d: it misses %s", is, want, eval[string](b, `[...document.querySelectorAll("a, button, input, select, summary, [tabindex]")].filter((e) => e.checkVisibility() && !window.passed.includes(e)).map((e) => e.outerHTML.slice(0, 100)).join("; ")`))
	}
	if unseen := eval[[]string](b, "window.unseen ?? []"); len(unseen) > 0 {
		t.Errorf("where the focus is cannot be seen: %q", unseen)
	}
	if !eval[bool](b, "window.passed.every((e, i) => i === 0 || window.passed[i - 1].compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)") {
		t.Error("Tab does not follow the order of the page")
	}

	b.open(eval[string](b, "location.href"))
	b.press(kb.Tab)
	if is := eval[string](b, "document.activeElement.innerText"); is != "To the content" || !eval[bool](b, "document.activeElement.getBoundingClientRect().top >= 0") {
		t.Errorf("the first stop is %q", is)
	}
	b.press(kb.Enter)
	b.until("location.hash === '#main'")
	b.press(kb.Tab)
	if !eval[bool](b, "document.querySelector('main').contains(document.activeElement)") {
		t.Error("the link to the content does not lead there")
	}
	b.clean()
}

// TestSort sorts the table of pipelines by keyboard.
func TestSort(t *testing.T) {
	t.Parallel()
	all := fifty(t)
	b := newTab(t, form{width: 1280})
	b.open(serve(t, page.Options{}, all[:20]...).url("/"))
	names := func() []string {
		return eval[[]string](b, "[...document.querySelectorAll('.table tbody th')].map((e) => e.innerText)")
	}
	sortBy := func(column, address, aria string) {
		t.Helper()
		eval[int](b, fmt.Sprintf("[...document.querySelectorAll('thead a')].find((a) => a.innerText.includes(%s)).focus(), 0", quote(column)))
		if _, err := chromedp.RunResponse(b.ctx, chromedp.KeyEvent(kb.Enter)); err != nil {
			t.Fatal(err)
		}
		b.until("location.search === " + quote(address))
		if is := eval[string](b, "document.querySelector('th[aria-sort]').innerText + ' ' + document.querySelector('th[aria-sort]').ariaSort"); is != column+" "+aria {
			t.Errorf("sorted by %q, want %s %s", is, column, aria)
		}
	}
	if first := names()[0]; first != "shop-02" {
		t.Errorf("at first, %s is on top", first)
	}
	sortBy("Pipeline", "?sort=name", "ascending")
	if is := names(); !slices.IsSorted(is) {
		t.Errorf("%q", is)
	}
	sortBy("Pipeline", "?sort=name&order=turned", "descending")
	if is := names(); is[0] != "shop-20" {
		t.Errorf("%q", is)
	}
	sortBy("Behind", "?sort=behind", "descending")
	if is := names()[0]; is != "shop-12" {
		t.Errorf("%s is the furthest behind", is)
	}
	b.axe("sorted")
	b.clean()
}
